"""Threads for what may block: a disk's reads and writes. They never wait for the machine lock, and nobody for them.

    worker = Worker("disk root.img", work, ended, loop.post)
    worker.submit(item)         # work(item) runs in a thread; then ended([item, …]) in the loop, under the machine lock

    fd = worker.watch(look)     # an eventfd: who writes to it has look() called, which submits what there is to do

Where that lock is free, the thread itself calls *ended* and *look* under it: the loop need not wake up for that, and of
what *look* submits the thread does the first. Items end in any order. Those that end close together are given to
*ended* as one batch. Every method is called under the machine lock, which is what keeps the counts right.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Generic, TypeVar

from pyvmm import threads
from pyvmm.backends.polling import AdaptivePolling
from pyvmm.errors import UserError

T = TypeVar("T")
RunHere = Callable[[Callable[[], None]], bool]
"""Runs a call under the machine lock, if that is free, and says whether it did."""
MOST_THREADS: Final = 4
"""Of one worker. Python runs one of them at a time; more only wait for one another once their files are cached."""
PATIENCE: Final = 10.0
"""Seconds that what has begun gets to end; more takes only a file that does not answer."""


class Worker(Generic[T]):
    """Does *work* with each item, without the lock, in up to *most* threads, which begin with the first items. *work*
    raises nothing: what comes out of it all the same is raised in the loop."""

    def __init__(
        self,
        name: str,
        work: Callable[[T], None],
        ended: Callable[[list[T]], None],
        post: Callable[[Callable[[], None]], None],
        most: int = MOST_THREADS,
        run_here: RunHere | None = None,
    ) -> None:
        self.name = name
        self.pending = 0
        """Items that were submitted and that `ended` has not been told of."""
        self._work = work
        self._tell_ended = ended
        self._post = post
        self._run_here = run_here
        self._most = most
        self._todo: deque[T] = deque()
        self._bell = -1
        """An eventfd that wakes a thread. Who rings lets the interpreter go, so the thread need not wait for that."""
        self._watched: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None
        """What a thread waits for that has nothing to do; each ring wakes one of them."""
        self._polling = AdaptivePolling()
        self._looking = False
        """A thread calls what it watches, and then does what that submits."""
        self._ended: deque[T] = deque()
        self._told = False
        """The loop has been asked to look at `_ended`."""
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._awaited = False
        self._event = threading.Event()

    def submit(self, *items: T) -> None:
        """Have them done. RuntimeError where this host gives no thread and there is none."""
        if self._closed or not items:
            return
        while self.pending + len(items) > len(self._threads) < self._most:
            self._start()
        self.pending += len(items)
        self._todo.extend(items)
        if not self._looking:
            os.eventfd_write(self._bell, 1)

    def watch(self, look: Callable[[], None]) -> int | None:
        """An eventfd for somebody to ring; *look* is called for it, once for several rings, until close(). None where
        no thread may call it, or this host gives us none."""
        if self._run_here is None:
            return None
        try:
            if not self._threads:
                self._start()
            assert self._epoll is not None
            fd = _eventfd(self._epoll)
        except (OSError, RuntimeError):
            return None
        self._watched[fd] = look
        return fd

    def _start(self) -> None:
        if self._epoll is None:
            epoll = select.epoll()
            try:
                self._bell = _eventfd(epoll)
            except OSError:
                epoll.close()
                raise
            self._epoll = epoll
        thread = threading.Thread(target=self._main, name=self.name, daemon=True)
        try:
            threads.start(thread)
        except RuntimeError:  # there are too many; one does
            if not self._threads:
                raise
            self._most = len(self._threads)
            return
        self._threads.append(thread)

    def _main(self) -> None:
        while True:
            try:
                item = self._todo.popleft()
            except IndexError:
                if self._closed:
                    os.eventfd_write(self._bell, 1)
                    return
                self._wait()
                continue
            if self._todo:  # another thread may do that meanwhile
                os.eventfd_write(self._bell, 1)
            try:
                self._work(item)
            except BaseException as error:
                self._post(_raiser(error))
            self._ended.append(item)
            del item  # and with it guest RAM, while there is nothing to do
            if not self._told:
                self._tell_here_or_post()
            if self._awaited:
                self._event.set()

    def _wait(self) -> None:
        """For a ring."""
        assert self._epoll is not None
        for fd, _ in self._polling.wait(self._epoll.poll):
            try:
                os.eventfd_read(fd)
            except BlockingIOError:  # another thread has come before
                continue
            look = self._watched.get(fd)
            if look is not None and not self._here(partial(self._look, look)):
                self._post(look)

    def _look(self, look: Callable[[], None]) -> None:
        self._looking = True
        try:
            look()
        finally:
            self._looking = False

    def _here(self, call: Callable[[], None]) -> bool:
        """Whether *call* was done here, under the machine lock."""
        try:
            return self._run_here is not None and self._run_here(call)
        except BaseException as error:
            self._post(_raiser(error))
            return True

    def _tell_here_or_post(self) -> None:
        if not self._here(self._tell):
            self._told = True
            self._post(self._tell)

    def _tell(self) -> None:
        self._told = False
        batch: list[T] = []
        while self._ended:
            batch.append(self._ended.popleft())
        if batch:
            self.pending -= len(batch)
            self._tell_ended(batch)

    def drop(self) -> list[T]:
        """Take back what no thread has begun; `ended` is not told of it."""
        dropped: list[T] = []
        while True:
            try:
                dropped.append(self._todo.popleft())
            except IndexError:
                self.pending -= len(dropped)
                return dropped

    def drain(self, patience: float = PATIENCE) -> None:
        """Wait until all has ended, what `ended` goes on to submit included. UserError after *patience* seconds."""
        if not self.pending:
            return
        deadline = time.monotonic() + patience
        self._awaited = True
        try:
            while True:
                self._event.clear()
                self._tell()
                if not self.pending:
                    return
                if not self._event.wait(max(0.0, deadline - time.monotonic())):
                    raise UserError(
                        f"{self.name} does not come to rest within {patience:g} s: its host does not answer"
                    )
        finally:
            self._awaited = False

    def close(self, patience: float = PATIENCE) -> None:
        """End the threads, once they have done what they have begun; the rest is dropped, and `ended` told of nothing.
        UserError after *patience* seconds."""
        if self._closed:
            return
        self._closed = True
        self.drop()
        if self._epoll is not None:
            os.eventfd_write(self._bell, 1)
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise UserError(f"{self.name} does not end within {patience:g} s: its host does not answer")
        self._threads.clear()
        self._ended.clear()
        if self._epoll is not None:
            self._epoll.close()
            for fd in (self._bell, *self._watched):
                os.close(fd)
            self._watched.clear()
            self._epoll = None


def _eventfd(epoll: select.epoll) -> int:
    """One that *epoll* tells of. Raises OSError."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
    except OSError:
        os.close(fd)
        raise
    return fd


def _raiser(error: BaseException) -> Callable[[], None]:
    def throw() -> None:
        raise error

    return throw
