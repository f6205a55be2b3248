"""Threads for what may block: a disk's reads and writes. They never wait for the machine lock, and nobody for them.

    worker = Worker("disk root.img", work, ended, loop.post)
    worker.submit(item)         # work(item) runs in a thread; then ended([item, …]) in the loop, under the machine lock

    fd = worker.watch(look)     # an eventfd: who writes to it has look() called, which submits what there is to do

Where that lock is free, the thread itself calls *ended* and *look* under it: the loop need not wake up for that, and of
what *look* submits the thread does the first. Items end in any order. Those that end close together are given to
*ended* as one batch. Every method is called under the machine lock, which is what keeps the counts right.

Of short items one thread does one after the other, and listens in between: others, which want the interpreter too,
would only slow it down, and stand by. Where items take long all listen, and share them out. Where one does not end that
nobody expected to, another thread notices after SLOW_NS.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, Generic, TypeVar

from pyvmm import threads
from pyvmm.backends.polling import AdaptivePolling
from pyvmm.clock import NS_PER_SECOND
from pyvmm.errors import UserError

T = TypeVar("T")
RunHere = Callable[[Callable[[], None]], bool]
"""Runs a call under the machine lock, if that is free, and says whether it did."""
MOST_THREADS: Final = 4
"""Of one worker. Python runs one of them at a time; more only wait for one another once their files are cached."""
LONG_NS: Final = 50_000
"""Nanoseconds of an item that is no short one; what is cached takes less, and to wake another thread about as much."""
LONG_FOR_NS: Final = 100_000_000
"""Nanoseconds after one that is known to be long for which others are expected to be."""
LONG_WEIGHT: Final = 8
"""One long item counts as so many short ones: where more than one in nine is long, threads side by side are faster. One
alone may have waited for the interpreter, or for a processor."""
MOST_WEIGHT: Final = 4 * LONG_WEIGHT
VERY_LONG_NS: Final = 1_000_000
"""Nanoseconds of an item after which others are taken for long at once."""
SLOW_NS: Final = 10_000_000
"""Nanoseconds after which another thread listens; once something has taken so long, there is one more for that."""
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
        is_long: Callable[[T], bool] = lambda item: False,
    ) -> None:
        """*is_long* says of what is known to take longer than others that it does."""
        self.name = name
        self.pending = 0
        """Items that were submitted and that `ended` has not been told of."""
        self._work = work
        self._tell_ended = ended
        self._post = post
        self._run_here = run_here
        self._most = most
        self._todo: deque[T] = deque()
        self._is_long = is_long
        self._bell = -1
        """An eventfd that wakes a thread which listens. Who rings lets the interpreter go, so the thread need not wait
        for that."""
        self._watched: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None
        """What a thread that listens waits for; each ring wakes one."""
        self._polling = AdaptivePolling()
        self._listener: threading.Thread | None = None
        """Who listens also while items are short."""
        self._helpers_bell = -1
        self._helpers_epoll: select.epoll | None = None
        """What those who stand by wait for."""
        self._began: dict[threading.Thread, int] = {}
        """When each began what it does."""
        self._parked: set[threading.Thread] = set()
        """Those who stand by."""
        self._lookers: set[threading.Thread] = set()
        """Those of them who look now and then whether the listener comes to an end."""
        self._weight = 0
        """More than LONG_WEIGHT: of the last items many were long."""
        self._long_until = 0
        self._slow = False
        """Something took SLOW_NS: a thread more is there, to listen meanwhile."""
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
        pending = self.pending + len(items)
        self._start_for(pending + any(map(self._is_long, items)))
        self.pending = pending
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

    def _start_for(self, pending: int) -> None:
        while pending + self._slow > len(self._threads) < self._most:
            if not self._start():
                break

    def _start(self) -> bool:
        """Whether there is one thread more. Raises OSError or RuntimeError where there is none at all."""
        try:
            if self._epoll is None:
                self._bell, self._epoll = _epoll()
            elif self._helpers_epoll is None:
                self._helpers_bell, self._helpers_epoll = _epoll()
        except OSError:
            if not self._threads:
                raise
            return False
        thread = threading.Thread(target=self._main, name=self.name, daemon=True)
        if not self._threads:
            self._listener = thread
        try:
            threads.start(thread)
        except RuntimeError:  # there are too many; one does
            if not self._threads:
                raise
            self._most = len(self._threads)
            return False
        self._threads.append(thread)
        return True

    @property
    def _long(self) -> bool:
        """Whether items take so long that several threads are faster."""
        return self._weight > LONG_WEIGHT or self._long_until > time.monotonic_ns()

    def _main(self) -> None:
        me = threading.current_thread()
        heard = False
        """Somebody rang, and nobody else may know what there is to do since."""
        while True:
            listens = me is self._listener or self._long
            if self._todo and (heard or listens):
                self._do_next(me)
            elif self._closed:
                self._wake_all()
                return
            elif listens:
                self._listen()
                heard = True
            else:
                heard = False
                self._stand_by(me)

    def _do_next(self, me: threading.Thread) -> None:
        try:
            item = self._todo.popleft()
        except IndexError:
            return
        self._do(me, item)
        del item  # and with it guest RAM, while there is nothing to do
        if not self._told:
            self._tell_here_or_post()
        if self._awaited:
            self._event.set()

    def _do(self, me: threading.Thread, item: T) -> None:
        began = self._began[me] = time.monotonic_ns()
        if self._is_long(item):
            self._long_until = began + LONG_FOR_NS
        long = self._long
        if self._parked and (long or not self._lookers):
            self._wake_helper()
        if self._todo and (long or not self._lookers or me is not self._listener):  # another may do that meanwhile
            os.eventfd_write(self._bell, 1)
        try:
            self._work(item)
        except BaseException as error:
            self._post(_raiser(error))
        self._weigh(time.monotonic_ns() - began)
        del self._began[me]
        self._ended.append(item)

    def _weigh(self, took: int) -> None:
        if self._watched and took > SLOW_NS:
            self._slow = True
        if took <= LONG_NS:
            self._weight = max(self._weight - 1, 0)
            return
        weight = MOST_WEIGHT if took > VERY_LONG_NS else self._weight + LONG_WEIGHT
        self._weight = min(weight, MOST_WEIGHT)
        if self._parked and self._long:
            self._wake_helper()

    def _wake_helper(self) -> None:
        if self._helpers_epoll is not None:
            os.eventfd_write(self._helpers_bell, 1)

    def _wake_all(self) -> None:
        os.eventfd_write(self._bell, 1)
        self._wake_helper()

    def _stand_by(self, me: threading.Thread) -> None:
        """Until items are long, or the listener does not end what it does."""
        assert self._helpers_epoll is not None
        self._parked.add(me)
        try:
            if self._long:  # who has found that just now may not have seen us here
                return
            looks = self.pending > 0
            if looks:  # else whoever begins something from now on finds nobody who looks, and wakes us
                self._lookers.add(me)
            rings = self._helpers_epoll.poll(SLOW_NS / NS_PER_SECOND if looks else None, 1)
        finally:
            self._lookers.discard(me)
            self._parked.discard(me)
        if rings:
            with suppress(BlockingIOError):
                os.eventfd_read(self._helpers_bell)
        else:
            self._stand_in(me)
        if self._parked and self._long:
            self._wake_helper()  # the others too

    def _stand_in(self, me: threading.Thread) -> None:
        """For a listener that does not end what it does."""
        began, now = self._began.get(self._listener or me), time.monotonic_ns()
        if began is not None and now - began > SLOW_NS:
            self._listener = me
            self._long_until = now + LONG_FOR_NS
            if not self._here(self._start_more):
                self._post(self._start_more)

    def _start_more(self) -> None:
        """What two threads were to do takes others, too."""
        if not self._closed:
            self._start_for(self.pending + 1)

    def _listen(self) -> None:
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
            self._wake_all()
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            raise UserError(f"{self.name} does not end within {patience:g} s: its host does not answer")
        self._threads.clear()
        self._ended.clear()
        for epoll in (self._epoll, self._helpers_epoll):
            if epoll is not None:
                epoll.close()
        for fd in (self._bell, self._helpers_bell, *self._watched):
            if fd >= 0:
                os.close(fd)
        self._watched.clear()
        self._epoll = self._helpers_epoll = None
        self._bell = self._helpers_bell = -1


def _eventfd(epoll: select.epoll) -> int:
    """One of whose rings *epoll* tells one thread that waits. Raises OSError."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
    except OSError:
        os.close(fd)
        raise
    return fd


def _epoll() -> tuple[int, select.epoll]:
    """An eventfd, and what tells of its rings. Raises OSError."""
    epoll = select.epoll()
    try:
        return _eventfd(epoll), epoll
    except OSError:
        epoll.close()
        raise


def _raiser(error: BaseException) -> Callable[[], None]:
    def throw() -> None:
        raise error

    return throw
