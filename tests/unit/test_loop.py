"""The loop's timers, whatever a guest makes its devices do with them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from pyvmm.loop import Loop

HOUR = 3600 * 10**9


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop(threading.Lock())) as loop:
        yield loop


@pytest.mark.parametrize("step", [0, 1])
def test_a_timer_that_is_armed_without_end_keeps_little(loop: Loop, step: int) -> None:
    """As the alarm of the RTC is by a guest that writes its registers for hours: to the same deadline each time."""
    fired: list[int] = []
    other = loop.timer(lambda: fired.append(0))
    other.arm(0)
    timer = loop.timer(lambda: fired.append(1))
    deadline = loop.now() + HOUR
    for n in range(20_000):
        timer.cancel()
        timer.arm(deadline + n * step)
    assert len(loop._heap) < 5000
    timer.arm(0)
    loop.run_once(0)
    assert fired == [0, 1]


def test_a_timer_that_another_thread_arms_wakes_the_loop(loop: Loop) -> None:
    """As a vCPU does while the loop goes to sleep for good: at any point of its way there."""
    fired = threading.Event()
    timer = loop.timer(fired.set)
    count = 0

    def arm() -> None:
        nonlocal count
        while count < 3000:
            with loop._lock:
                timer.arm(loop.now())
            if not fired.wait(5):
                break
            fired.clear()
            count += 1
        loop.stop()

    thread = threading.Thread(target=arm)
    thread.start()
    loop.run()
    thread.join()
    assert count == 3000


def test_a_timer_that_is_armed_leaves_the_loop_asleep(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each deadline is before those that there are, as that of a one-shot tick is."""
    looks = 0
    look = loop.run_posted

    def counted() -> None:
        nonlocal looks
        looks += 1
        look()

    monkeypatch.setattr(loop, "run_posted", counted)
    thread = threading.Thread(target=loop.run)
    thread.start()
    deadline = loop.now() + HOUR
    for n in range(1000):
        with loop._lock:
            loop.timer(loop.stop).arm(deadline - n)
    with loop._lock:
        loop.timer(loop.stop).arm(loop.now())
    thread.join()
    assert looks <= 3, "for the timer that fired, for stop(), and for one on the way to sleep"


def test_a_timer_behind_one_that_was_cancelled(loop: Loop) -> None:
    fired: list[int] = []
    first, second = (loop.timer(lambda n=n: fired.append(n)) for n in range(2))  # type: ignore[misc]
    second.arm(loop.now() + 2_000_000)
    first.arm(loop.now() + 1_000_000)
    first.cancel()
    while not fired:
        loop.run_once()
    assert fired == [1] and not loop._heap


def test_a_descriptor_that_takes_the_number_of_one_that_was_ready(loop: Loop) -> None:
    """One callback may close what another descriptor waited for, and open what gets its number."""
    called: list[str] = []
    pipes = [os.pipe() for _ in range(2)]

    def replace(own: int, other: int) -> None:
        called.append("ready")
        os.read(own, 1)
        loop.remove(other)
        os.close(other)
        os.dup2(quiet, other)  # nothing to read here
        loop.add(other, lambda: called.append("not ready"))

    quiet, keep = os.pipe()
    for n, (end, _) in enumerate(pipes):
        loop.add(end, lambda n=n: replace(pipes[n][0], pipes[1 - n][0]))  # type: ignore[misc]
    for _, end in pipes:
        os.write(end, b"x")
    loop.run_once(1)
    assert called == ["ready"]
    os.write(keep, b"x")
    loop.run_once(1)
    assert called == ["ready", "not ready"], "it is served when there is something"
    for end, other in (*pipes, (quiet, keep)):
        os.close(end)
        os.close(other)


def test_who_is_lent_the_lock_runs_at_once(loop: Loop) -> None:
    ran: list[threading.Thread | None] = []

    def call() -> None:
        assert loop._lock.locked()  # type: ignore[attr-defined]
        ran.append(loop.lent_to)

    assert not loop.run_here(call) and ran == []
    loop.lends = True
    with loop._lock:
        assert not loop.run_here(call) and ran == []
    assert loop.run_here(call) and ran == [threading.current_thread()]
    with pytest.raises(ZeroDivisionError):
        loop.run_here(lambda: void(1 // 0))
    assert loop.lent_to is None and loop.run_here(call)


def void(value: object) -> None: ...


def test_an_observer_calls_every_callback_once(loop: Loop) -> None:
    """Of descriptors, timers, posts, and what another thread does here; when it has gone they are called as before."""
    done: list[str] = []
    seen: list[int] = []

    def call(callback: Callable[[], None]) -> None:
        seen.append(len(done))
        callback()

    fd = os.eventfd(1)
    loop.add(fd, lambda: done.append(f"descriptor {os.eventfd_read(fd)}"))
    loop.timer(lambda: done.append("timer")).arm(0)
    loop.post(lambda: done.append("posted"))
    loop.lends = True
    loop.observer = call
    loop.run_once(0)
    assert loop.run_here(lambda: done.append("here"))
    assert done == ["descriptor 1", "posted", "timer", "here"] and seen == [0, 1, 2, 3]
    loop.observer = None
    loop.post(lambda: done.append("unseen"))
    loop.run_once(0)
    assert done[-1] == "unseen" and len(seen) == 4
    loop.remove(fd)
    os.close(fd)
