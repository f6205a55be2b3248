"""One epoll loop for everything that is not a vCPU: descriptors, timers, and calls posted from other threads.

Every callback runs under the machine lock, in the thread that called run(); so a device is never entered twice. A back
end's thread that has something for a device may do it itself, under the same lock, where it is free: run_here().
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, cast

from kvm_cffi import TimerFd

Callback = Callable[[], None]
NEVER: Final = 1 << 63
NOBODY: tuple[int, Callback] = (0, lambda: None)


class LoopTimer:
    """A Timer of the loop; see clock.Timer."""

    def __init__(self, loop: Loop, callback: Callback) -> None:
        self._loop = loop
        self.callback = callback
        self.deadline: int | None = None

    def arm(self, deadline: int) -> None:
        self.deadline = deadline
        self._loop._schedule(self, deadline)

    def cancel(self) -> None:
        self.deadline = None


class Loop:
    """The loop, and the Clock that devices get (CLOCK_MONOTONIC)."""

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[int, Callback]] = {}
        self._added = 0
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._posted: deque[Callback] = deque()
        self._heap: list[tuple[int, int, LoopTimer]] = []
        self._order = itertools.count()
        self._timerfd = TimerFd()
        self._epoll.register(self._timerfd.fd, select.EPOLLIN)
        self._alarm = NEVER
        """When the timerfd goes off: never later than the first timer."""
        self._stopped = False
        self.lends = False
        """Whether run_here() may do it: while a machine lives and does not stand still."""
        self.lent_to: threading.Thread | None = None
        """Who is in run_here()."""
        self.observer: Callable[[Callback], None] | None = None
        """Who calls the callbacks, each in its turn, to see how long it takes; under the machine lock."""

    def now(self) -> int:
        return time.monotonic_ns()

    def timer(self, callback: Callback) -> LoopTimer:
        return LoopTimer(self, callback)

    def _schedule(self, timer: LoopTimer, deadline: int) -> None:
        heapq.heappush(self._heap, (deadline, next(self._order), timer))
        if len(self._heap) > 4096:  # a guest that re-arms without end leaves stale entries behind
            live = {entry[2]: entry for entry in self._heap if entry[2].deadline == entry[0]}  # one of equal ones
            self._heap = list(live.values())
            heapq.heapify(self._heap)
        self._set_alarm(deadline)

    def _set_alarm(self, deadline: int) -> None:
        """Look at the timers at *deadline*, or before.

        The kernel is told, and not the loop's thread: that would wake up only to go to sleep again, and meet whoever
        arms the timer at the machine lock. Under an emulated processor this took longer than a guest's ticks are apart.
        """
        if deadline < self._alarm:
            self._alarm = deadline
            self._timerfd.set(deadline)

    def add(self, fd: int, callback: Callback, events: int = select.EPOLLIN) -> None:
        """Call back while *fd* is ready (level-triggered)."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._added += 1
        self._callbacks[fd] = (self._added, callback)

    def remove(self, fd: int) -> None:
        """Forget *fd*; nothing happens if it is not known. Call it before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def post(self, callback: Callback) -> None:
        """Call back once, soon; from any thread, with or without the machine lock."""
        self._posted.append(callback)
        self._wake()

    def run_here(self, callback: Callback) -> bool:
        """Call back in this thread, which is not the loop's, if nobody has the machine lock: a wake-up less. Else it
        returns false, and post() is what is left."""
        lock = cast(threading.Lock, self._lock)
        if not self.lends or not lock.acquire(blocking=False):
            return False
        try:
            if not self.lends:
                return False
            self.lent_to = threading.current_thread()
            callback() if self.observer is None else self.observer(callback)
            return True
        finally:
            self.lent_to = None
            lock.release()

    def stop(self) -> None:
        """Make run() return; from any thread."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def run(self) -> None:
        """Serve until stop()."""
        while not self._stopped:
            self.run_once()

    def run_once(self, limit: float | None = None) -> None:
        """Wait for the next thing to do, at most *limit* seconds, and do all that is due."""
        added = self._added
        events = self._epoll.poll(0 if self._posted or self._stopped else limit)
        for fd, _ in events:
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                continue
            if fd == self._timerfd.fd:
                self._timerfd.take()
                continue
            with self._lock:
                number, callback = self._callbacks.get(fd, NOBODY)
                # What was added since is not what was ready: it has the number of a descriptor that was closed.
                if number <= added and not self._stopped:
                    callback() if self.observer is None else self.observer(callback)
        self.run_posted()
        if self._heap:
            self._run_timers()

    def run_posted(self) -> None:
        """Do what has been posted up to now, and not what that posts."""
        for _ in range(len(self._posted)):
            callback = self._posted.popleft()
            with self._lock:
                callback() if self.observer is None else self.observer(callback)

    def _run_timers(self) -> None:
        now = self.now()
        while True:
            with self._lock:
                heap = self._heap  # arming may make another
                while heap and heap[0][2].deadline != heap[0][0]:
                    heapq.heappop(heap)
                if not heap or heap[0][0] > now or self._stopped:
                    if self._alarm <= now:  # it has gone off
                        self._alarm = NEVER
                    if heap:
                        self._set_alarm(heap[0][0])
                    return
                timer = heapq.heappop(heap)[2]
                timer.deadline = None
                callback = timer.callback
                callback() if self.observer is None else self.observer(callback)

    def close(self) -> None:
        """Close the loop's own descriptors; those that were added stay their owners'."""
        self._callbacks.clear()
        self._epoll.close()
        self._timerfd.close()
        if self._wake_fd >= 0:
            fd, self._wake_fd = (
                self._wake_fd,
                -1,
            )  # whoever posts or stops from now on writes to no stranger's descriptor
            os.close(fd)
