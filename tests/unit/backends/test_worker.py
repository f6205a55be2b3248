"""Threads that work for a device: batches, draining, dropping, ending; and what happens to what goes wrong."""

from __future__ import annotations

import errno
import gc
import os
import queue
import random
import select
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from pyvmm.backends import worker
from pyvmm.backends.worker import RunHere, Worker
from pyvmm.clock import NS_PER_SECOND
from pyvmm.errors import UserError
from pyvmm.testing.patience import Patience


class Rig:
    """A worker whose items are calls; the loop is run by hand."""

    def __init__(self, run_here: RunHere | None = None, is_long: bool = False) -> None:
        self.posted: list[Callable[[], None]] = []
        self.batches: list[list[Callable[[], object]]] = []
        self.on_ended: Callable[[], None] = lambda: None
        self.worker: Worker[Callable[[], object]] = Worker(
            "disk x", lambda item: void(item()), self._ended, self.posted.append, run_here=run_here,
            is_long=lambda item: is_long,
        )  # fmt: skip

    def run_posted(self) -> None:
        while self.posted:
            self.posted.pop(0)()

    def _ended(self, batch: list[Callable[[], object]]) -> None:
        self.batches.append(batch)
        self.on_ended()


def void(value: object) -> None: ...


def under(lock: threading.Lock) -> RunHere:
    """As the loop runs a call here, if *lock* is free."""

    def run_here(call: Callable[[], None]) -> bool:
        if not lock.acquire(blocking=False):
            return False
        try:
            call()
        finally:
            lock.release()
        return True

    return run_here


def test_items_are_done_in_threads_and_told_in_batches() -> None:
    rig, names = Rig(), set[str]()
    for _ in range(50):
        rig.worker.submit(lambda: names.add(threading.current_thread().name))
    assert rig.worker.pending == 50
    rig.worker.drain()
    assert sum(map(len, rig.batches)) == 50 and names == {"disk x"} and rig.worker.pending == 0
    rig.worker.close()
    for call in rig.posted:
        call()
    assert sum(map(len, rig.batches)) == 50


def test_long_items_that_come_together_are_shared_out() -> None:
    """Also where nobody said that they are."""
    for is_long in (True, False):
        rig, meet = Rig(is_long=is_long), threading.Barrier(4)
        rig.worker.submit()
        assert rig.worker.pending == 0 and not rig.worker._threads
        rig.worker.submit(*[lambda meet=meet: meet.wait(60)] * 8)
        while rig.worker.pending:
            rig.run_posted()
        assert sum(map(len, rig.batches)) == 8 and len(rig.worker._threads) == 4
        rig.worker.submit(*[lambda meet=meet: meet.wait(60)] * 4)  # all of them are woken, by one another
        rig.worker.drain()
        rig.worker.close()


def test_of_short_items_one_thread_does_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LONG_NS", 60 * NS_PER_SECOND)
    monkeypatch.setattr(worker, "SLOW_NS", 60 * NS_PER_SECOND)
    rig, order, did = Rig(), list[int](), set[threading.Thread]()

    def do(number: int) -> None:
        order.append(number)
        did.add(threading.current_thread())

    for _ in range(20):
        rig.worker.submit(*[partial(do, number) for number in range(10)])
        rig.worker.drain()
    assert order == [*range(10)] * 20 and len(did) == 1 and len(rig.worker._threads) == 4
    rig.worker.close()


def test_a_thread_tells_itself_where_it_may() -> None:
    lock, told, free = threading.Lock(), threading.Event(), [True]

    def run_here(call: Callable[[], None]) -> bool:
        if free[0]:
            with lock:
                call()
        return free[0]

    rig = Rig(run_here)
    rig.on_ended = told.set
    for number in range(20):
        with lock:
            rig.worker.submit(lambda: None)
        assert told.wait(60)
        told.clear()
        assert len(rig.batches) == number + 1 and rig.posted == []
    free[0] = False
    done = threading.Event()
    rig.worker.submit(done.set)
    assert done.wait(60)
    rig.worker.drain()
    assert len(rig.batches) == 21
    free[0], error = True, ValueError("in a device")

    def fail() -> None:
        told.set()
        raise error

    for call in rig.posted:
        call()
    told.clear()
    rig.on_ended = fail
    rig.worker.submit(lambda: None)
    assert told.wait(60)
    rig.worker.close()
    with pytest.raises(ValueError, match="in a device"):
        rig.posted[-1]()


def test_a_thread_hears_who_rings_and_does_what_that_submits() -> None:
    """Where the lock is not free, the loop is asked to look."""
    lock, looked, free = threading.Lock(), list[threading.Thread](), [True]

    def run_here(call: Callable[[], None]) -> bool:
        if not free[0]:
            return False
        with lock:
            call()
        return True

    rig, done = Rig(run_here), queue.SimpleQueue[threading.Thread]()

    def look() -> None:
        looked.append(threading.current_thread())
        rig.worker.submit(lambda: done.put(threading.current_thread()))

    fd = rig.worker.watch(look)
    assert fd is not None
    for number in range(20):
        os.eventfd_write(fd, 1)
        assert done.get(timeout=60) is looked[number], "it need wake nobody"
    assert not rig.posted
    rig.on_ended = lambda: done.put(threading.current_thread())
    os.eventfd_write(fd, 1)
    done.get(timeout=60), done.get(timeout=60)
    free[0] = False
    os.eventfd_write(fd, 1)
    while not rig.posted:
        pass
    (call,) = rig.posted
    with lock:
        call()
        assert looked[-1] is threading.current_thread()
        rig.worker.drain()
    assert rig.worker.pending == 0 and sum(map(len, rig.batches)) == len(looked) == 22
    rig.worker.close()
    with pytest.raises(OSError):
        os.eventfd_write(fd, 1)


@pytest.mark.parametrize("long_ns", [0, 60 * NS_PER_SECOND])
def test_who_rings_is_heard_while_a_thread_has_something_slow_to_do(
    monkeypatch: pytest.MonkeyPatch, long_ns: int
) -> None:
    """Where something had been slow: what does not end must not keep reads waiting that come one by one."""
    monkeypatch.setattr(worker, "SLOW_NS", 1_000_000)
    monkeypatch.setattr(worker, "LONG_NS", long_ns)
    lock, slow, done = threading.Lock(), threading.Event(), queue.SimpleQueue[int]()

    rig = Rig(under(lock))

    def wait() -> None:
        done.put(1)
        slow.wait()

    def slowly() -> None:
        time.sleep(0.002)
        done.put(0)

    items = iter([slowly, wait, lambda: done.put(2), lambda: done.put(3)])
    fd = rig.worker.watch(lambda: rig.worker.submit(next(items)))
    assert fd is not None
    patience = Patience(60, os.getpid())
    try:
        for number in range(4):
            os.eventfd_write(fd, 1)
            while done.empty():  # two threads may want the lock at once, and the loop is asked then
                with lock:
                    rig.run_posted()
                assert not patience.is_over, number
            assert done.get() == number
    finally:
        slow.set()
    with lock:
        rig.worker.drain()
    rig.worker.close()


def test_an_error_of_who_looks_is_raised_in_the_loop_and_the_thread_goes_on() -> None:
    came = threading.Semaphore(0)

    def run_here(call: Callable[[], None]) -> bool:
        try:
            call()
        finally:
            came.release()
        return True

    rig = Rig(run_here)
    fd = rig.worker.watch(lambda: void(1 / 0))
    assert fd is not None
    for _ in range(2):
        os.eventfd_write(fd, 1)
        assert came.acquire(timeout=60)
    rig.worker.close()
    assert len(rig.posted) == 2
    with pytest.raises(ZeroDivisionError):
        rig.posted[0]()


def test_who_may_not_take_the_lock_watches_nothing() -> None:
    rig = Rig()
    assert rig.worker.watch(lambda: None) is None and not rig.worker._threads
    rig.worker.close()


def test_draining_waits_for_what_is_submitted_meanwhile() -> None:
    rig = Rig()
    left = [5]

    def again() -> None:
        if left[0]:
            left[0] -= 1
            rig.worker.submit(lambda: None)

    rig.on_ended = again
    rig.worker.submit(lambda: None)
    rig.worker.drain()
    assert not left[0] and rig.worker.pending == 0
    rig.worker.close()


def test_what_does_not_end_is_named_and_the_rest_can_be_taken_back() -> None:
    rig, go_on = Rig(is_long=True), threading.Event()
    for _ in range(6):
        rig.worker.submit(lambda: go_on.wait(60))
    with pytest.raises(UserError, match=r"^disk x does not come to rest within 0 s: its host does not answer$"):
        rig.worker.drain(0)
    while len(rig.worker._threads) + len(rig.worker._todo) > 6:
        pass
    dropped = rig.worker.drop()
    assert len(dropped) == 2 and rig.worker.pending == 4
    with pytest.raises(UserError, match=r"^disk x does not end within 0 s: its host does not answer$"):
        rig.worker.close(0)
    go_on.set()
    for thread in rig.worker._threads:
        thread.join(60)
    assert rig.batches == []


def test_what_raises_is_raised_in_the_loop_and_no_thread_ends() -> None:
    rig = Rig()
    for _ in range(10):
        rig.worker.submit(lambda: 1 // 0)
    rig.worker.drain()
    raised = 0
    for call in rig.posted:
        try:
            call()
        except ZeroDivisionError:
            raised += 1
    assert raised == 10 and sum(map(len, rig.batches)) == 10
    rig.worker.submit(lambda: None)
    rig.worker.drain()
    rig.worker.close()


def test_one_thread_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, start, started = Rig(), threading.Thread.start, [0]

    def limited(thread: threading.Thread) -> None:
        if started[0]:
            raise RuntimeError("can't start new thread")
        started[0] += 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    for _ in range(10):
        rig.worker.submit(lambda: None)
    rig.worker.drain()
    assert sum(map(len, rig.batches)) == 10
    rig.worker.close()


@pytest.mark.parametrize("short", ["eventfd", "epoll"])
def test_what_no_descriptor_is_left_for_is_not_begun(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submitted it hears of that, and asks again once there are some."""
    gc.collect()  # what others have left is closed now, or later
    rig, done, open_before = Rig(lambda call: False), list[int](), len(os.listdir("/proc/self/fd"))
    for number in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(*((os, "eventfd") if short == "eventfd" else (select, "epoll")), no_descriptor)
            assert rig.worker.watch(lambda: None) is None
            with pytest.raises(OSError, match="Too many open files"):
                rig.worker.submit(lambda number=number: done.append(number))  # type: ignore[misc]
        assert rig.worker.pending == 0
    rig.worker.submit(lambda: done.append(2))
    rig.worker.drain()
    assert done == [2] and sum(map(len, rig.batches)) == 1
    rig.worker.close()
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_what_no_descriptor_was_left_for_is_had_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread does it meanwhile."""
    rig = Rig()
    with monkeypatch.context() as patch:
        rig.worker.submit(lambda: None)
        rig.worker.drain()
        patch.setattr(select, "epoll", no_descriptor)
        rig.worker.submit(*[lambda: None] * 4)
        rig.worker.drain()
        assert len(rig.worker._threads) == 1
    rig.worker.submit(*[lambda: None] * 4)
    rig.worker.drain()
    assert len(rig.worker._threads) == 4 and sum(map(len, rig.batches)) == 9
    rig.worker.close()


def test_threads_help_where_many_items_are_long() -> None:
    """One has perhaps waited for a processor."""
    worked = Rig().worker
    weigh = worked._weigh
    long, short, very_long = worker.LONG_NS + 1, 1000, worker.VERY_LONG_NS + 1
    weigh(long)
    assert not worked._long
    weigh(long)
    assert worked._long
    for _ in range(worker.LONG_WEIGHT):
        weigh(short)
    assert not worked._long
    weigh(very_long)
    assert worked._long
    for _ in range(worker.MOST_WEIGHT):
        weigh(short)
    assert not worked._long
    worked.close()


def no_descriptor(*arguments: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_closed_one_takes_nothing() -> None:
    rig = Rig()
    rig.worker.submit(lambda: None)
    rig.worker.close()
    rig.worker.submit(lambda: None)
    rig.worker.close()
    assert threading.active_count() >= 1 and not rig.worker._threads


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_left_lying_however_long_things_take(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A guest that rings at any time and others that submit, while threads come to listen and go to stand by."""
    monkeypatch.setattr(worker, "LONG_FOR_NS", 500_000)
    monkeypatch.setattr(worker, "SLOW_NS", 2_000_000)
    dice, lock, done = random.Random(seed), threading.Lock(), list[int]()
    added: list[int] = []
    """What the guest has added to its ring."""

    def do(number: int, seconds: float) -> None:
        if seconds:
            time.sleep(seconds)
        done.append(number)

    rig = Rig(under(lock))
    rig.worker._is_long = lambda item: dice.random() < 0.05

    def look() -> None:
        while added:
            rig.worker.submit(item(added.pop(0)))

    def item(number: int) -> Callable[[], object]:
        return partial(do, number, dice.choice((0, 0, 0, 0, 0, 0, 0.0001, 0.0005, 0.003)))

    fds = [rig.worker.watch(look) for _ in range(2)]
    patience = Patience(60, os.getpid(), lambda: len(done))
    number = 0
    while number < 1500:
        together = dice.choice((1, 1, 1, 2, 8, 32))
        for _ in range(together):
            if dice.random() < 0.8:
                added.append(number)
                os.eventfd_write(dice.choice(fds), 1)  # type: ignore[arg-type]
            else:
                with lock:
                    rig.worker.submit(item(number))
            number += 1
        most = dice.choice((0, 1, 40)) if number < 1500 else 0  # that are under way when more come
        while number - len(done) > most:
            with lock:
                rig.run_posted()
            assert not patience.is_over, f"{number - len(done)} of {number}"
            time.sleep(0)
    with lock:
        rig.worker.drain()
    assert sorted(done) == list(range(number))
    rig.worker.close()
