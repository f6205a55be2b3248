"""The loop: descriptors, timers, posts, all under the machine lock, in the thread that runs it."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.loop import Loop

MS = 1_000_000


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop(threading.Lock())
    yield loop
    loop.close()


def run_until(loop: Loop, condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        loop.run_once(0.05)


def test_a_post_runs_once_in_the_loops_thread_under_the_lock(loop: Loop) -> None:
    seen: list[tuple[bool, threading.Thread]] = []
    thread = threading.Thread(
        target=loop.post, args=(lambda: seen.append((loop._lock.locked(), threading.current_thread())),)
    )
    thread.start()
    run_until(loop, lambda: bool(seen))
    thread.join()
    loop.run_once(0)
    assert seen == [(True, threading.current_thread())]


def test_posts_keep_their_order_and_a_post_from_a_post_comes_later(loop: Loop) -> None:
    order: list[str] = []

    def first() -> None:
        order.append("first")
        loop.post(lambda: order.append("third"))

    loop.post(first)
    loop.post(lambda: order.append("second"))
    loop.run_once(0)
    assert order == ["first", "second"]
    loop.run_once(0)
    assert order == ["first", "second", "third"]


def test_a_post_wakes_a_loop_that_sleeps(loop: Loop) -> None:
    timer = threading.Timer(0.05, lambda: loop.post(loop.stop))
    timer.start()
    start = time.monotonic()
    loop.run()
    assert time.monotonic() - start < 5
    timer.join()


def test_timers_fire_in_order_not_early_and_once(loop: Loop) -> None:
    fired: list[tuple[int, int]] = []
    start = loop.now()
    for delay in (30, 10, 20):
        deadline = start + delay * MS
        loop.timer(lambda deadline=deadline: fired.append((deadline, loop.now()))).arm(deadline)  # type: ignore[misc]
    run_until(loop, lambda: len(fired) == 3)
    assert [deadline for deadline, _ in fired] == [start + delay * MS for delay in (10, 20, 30)]
    assert all(now >= deadline for deadline, now in fired)
    loop.run_once(0.02)
    assert len(fired) == 3


def test_a_deadline_that_has_passed_is_now(loop: Loop) -> None:
    fired: list[int] = []
    loop.timer(lambda: fired.append(1)).arm(0)
    loop.run_once(10)
    assert fired == [1]


def test_arming_again_moves_a_timer(loop: Loop) -> None:
    fired: list[int] = []
    timer = loop.timer(lambda: fired.append(loop.now()))
    now = loop.now()
    timer.arm(now + 1 * MS)
    timer.arm(now + 40 * MS)
    run_until(loop, lambda: bool(fired))
    assert fired[0] >= now + 40 * MS
    timer.arm(loop.now() + 10_000 * MS)
    timer.arm(loop.now() + 1 * MS)
    run_until(loop, lambda: len(fired) == 2, 5)
    loop.run_once(0.01)
    assert len(fired) == 2


def test_a_cancelled_timer_does_not_fire(loop: Loop) -> None:
    fired: list[int] = []
    timer = loop.timer(lambda: fired.append(1))
    timer.arm(loop.now() + 1 * MS)
    timer.cancel()
    timer.cancel()
    loop.run_once(0.02)
    assert fired == []
    assert timer.deadline is None


def test_a_timer_may_arm_itself_and_cancel_another(loop: Loop) -> None:
    fired: list[str] = []

    def tick() -> None:
        fired.append("tick")
        other.cancel()
        if len(fired) < 3:
            timer.arm(loop.now())

    timer = loop.timer(tick)
    other = loop.timer(lambda: fired.append("other"))
    now = loop.now()
    timer.arm(now)
    other.arm(now + 1)
    run_until(loop, lambda: len(fired) >= 3)
    loop.run_once(0.01)
    assert fired == ["tick"] * 3


def test_an_earlier_timer_armed_by_another_thread_wakes_the_loop(loop: Loop) -> None:
    fired: list[float] = []
    loop.timer(lambda: None).arm(loop.now() + 60_000 * MS)
    timer = loop.timer(lambda: (fired.append(time.monotonic()), loop.stop())[0])  # type: ignore[func-returns-value]

    def arm() -> None:
        time.sleep(0.05)
        with loop._lock:
            timer.arm(loop.now() + 10 * MS)

    thread = threading.Thread(target=arm)
    start = time.monotonic()
    thread.start()
    loop.run()
    thread.join()
    assert fired[0] - start < 10


def test_arming_without_end_leaves_little_behind(loop: Loop) -> None:
    """What a guest does that programs a timer in a loop."""
    timer = loop.timer(lambda: None)
    keeper: list[int] = []
    loop.timer(lambda: keeper.append(1)).arm(loop.now() + 1 * MS)
    for n in range(50_000):
        timer.arm(loop.now() + 10_000 * MS + n)
    assert len(loop._heap) <= 4097
    run_until(loop, lambda: bool(keeper), 5)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["arm", "cancel", "pass"]), st.integers(0, 50)), max_size=30)
)
@settings(max_examples=100, deadline=None)
def test_timers_against_a_model(actions: list[tuple[int, str, int]]) -> None:
    """With a clock of our own: a timer fires once for the last arm that was not cancelled, at or after its deadline."""

    class Still(Loop):
        time = 0

        def now(self) -> int:
            return self.time

    loop = Still(threading.Lock())
    fired: list[tuple[int, int]] = []
    timers = [loop.timer(lambda n=n: fired.append((n, loop.now()))) for n in range(5)]  # type: ignore[misc]
    wanted: dict[int, int] = {}
    for n, action, amount in actions:
        if action == "arm":
            wanted[n] = loop.now() + amount
            timers[n].arm(wanted[n])
        elif action == "cancel":
            wanted.pop(n, None)
            timers[n].cancel()
        else:
            loop.time += amount
            loop.run_once(0)
            due = sorted((deadline, n) for n, deadline in wanted.items() if deadline <= loop.time)
            assert sorted(n for n, _ in fired) == sorted(n for _, n in due)
            assert [wanted[n] for n, _ in fired] == [deadline for deadline, _ in due], "in the order of the deadlines"
            for _, n in due:
                del wanted[n]
            fired.clear()
        assert [timer.deadline for timer in timers] == [wanted.get(n) for n in range(5)]
    loop.close()


def test_descriptors(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        got: list[bytes] = []
        loop.add(ours.fileno(), lambda: got.append(ours.recv(100)))
        loop.run_once(0)
        assert got == []
        theirs.send(b"a")
        loop.run_once(5)
        theirs.send(b"b")
        loop.run_once(5)
        assert got == [b"a", b"b"]
        loop.remove(ours.fileno())
        loop.remove(ours.fileno())
        theirs.send(b"c")
        loop.run_once(0)
        assert got == [b"a", b"b"]


def test_a_descriptor_is_level_triggered(loop: Loop) -> None:
    ours, theirs = os.pipe()
    calls: list[int] = []
    loop.add(ours, lambda: calls.append(1))
    os.write(theirs, b"x")
    loop.run_once(0)
    loop.run_once(0)
    assert len(calls) == 2, "as long as it is readable"
    loop.remove(ours)
    os.close(ours)
    os.close(theirs)


def test_adding_again_changes_callback_and_events(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        calls: list[str] = []
        loop.add(ours.fileno(), lambda: calls.append("in"))
        loop.add(ours.fileno(), lambda: calls.append("out"), select.EPOLLOUT)
        loop.run_once(0)
        assert calls == ["out"]
        loop.remove(ours.fileno())


def test_a_callback_may_remove_another_that_is_ready(loop: Loop) -> None:
    pairs = [os.pipe() for _ in range(2)]
    calls: list[int] = []
    for n, (ours, theirs) in enumerate(pairs):

        def callback(n: int = n) -> None:
            calls.append(n)
            loop.remove(pairs[1 - n][0])

        loop.add(ours, callback)
        os.write(theirs, b"x")
    loop.run_once(0)
    assert len(calls) == 1
    for ours, theirs in pairs:
        loop.remove(ours)
        os.close(ours)
        os.close(theirs)


def test_stop_before_run_and_from_a_callback(loop: Loop) -> None:
    done: list[int] = []

    def end() -> None:
        done.append(1)
        loop.stop()

    loop.post(end)
    loop.timer(lambda: done.append(2)).arm(0)
    loop.run()
    assert done == [1], "nothing after the stop"
    loop.run()
    assert done == [1]


def test_what_a_callback_raises_comes_out_of_run(loop: Loop) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    loop.post(fail)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert not loop._lock.locked()


def test_nothing_runs_while_another_thread_has_the_lock(loop: Loop) -> None:
    done: list[int] = []
    loop.post(lambda: done.append(1))
    with loop._lock:
        thread = threading.Thread(target=loop.run_once, args=(0,))
        thread.start()
        time.sleep(0.02)
        assert done == []
    thread.join()
    assert done == [1]


def test_after_close_a_post_or_a_stop_writes_to_nobodys_descriptor() -> None:
    loop = Loop(threading.Lock())
    fd = loop._wake_fd
    loop.close()
    loop.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    if other != fd:
        os.dup2(other, fd)
    loop.post(lambda: None)
    loop.stop()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    for number in {other, fd}:
        os.close(number)
