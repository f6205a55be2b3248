"""What every wire to this host has: counts, a frame that waits for room in the card, a dump, and rest while the machine
stands still.

A frame that comes while nobody listens is lost, as in a card that its driver has not started. While the guest's clock
stands nothing is read: the back end keeps what it can.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pyvmm.backends.pcap import Dump
from pyvmm.backends.wire import HEADER_SIZE, MAX_FRAME
from pyvmm.clock import Clock
from pyvmm.errors import printable
from pyvmm.loop import Loop

BURST: Final = 32
"""Frames that are read in one go: at most about a millisecond with the machine lock."""


@dataclass(frozen=True)
class Host:
    """What a cable needs of the machine: its loop, the guest's clock and whether that stands, and the user's ear."""

    loop: Loop
    clock: Clock
    stands: Callable[[], bool]
    tell: Callable[[str], None]


class Cable:
    """A Wire and a Carrier; what is derived has the descriptor."""

    offset = 0
    """Where in what is sent and received the frame begins."""

    def __init__(self, name: str, host: Host, dump: Dump | None) -> None:
        self.name = name
        self.sent = self.received = self.dropped = 0
        self.connected = True
        self.link_changed: Callable[[], None] = lambda: None
        self._host = host
        self._dump = dump
        self._receive: Callable[[bytes], bool] | None = None
        self._caught_up: Callable[[], None] | None = None
        self._kept: bytes | None = None
        """For which the card had no room."""
        self._fd = -1
        self._events = 0
        """What the loop looks for."""
        self._posted = False
        self.closed = False
        self._clock = host.clock.timer(self._go_on)

    # What a back end does

    def _take(self) -> bool:
        """Read one frame, if there is one, and give it to _deliver(); whether there may be more."""
        raise NotImplementedError

    def _put(self, frame: bytes | bytearray | memoryview, more: bool) -> bool:
        """Whether the back end has taken *frame*; with *more* it may keep it until the next."""
        raise NotImplementedError

    def _flush(self) -> None:
        """There is room for what waits to be sent."""

    @property
    def _away(self) -> bool:
        """Somebody else has the descriptor, or nobody may read it: the loop does not look at it."""
        return False

    @property
    def _unsent(self) -> bool:
        """Whether something waits to be sent."""
        return False

    @property
    def _buffered(self) -> bool:
        """Whether _take() has a frame without looking at the descriptor."""
        return False

    # The wire

    def send(self, frame: bytes | bytearray | memoryview, more: bool = False) -> None:
        size = len(frame) - self.offset
        if self._fd < 0 or not HEADER_SIZE <= size <= MAX_FRAME or not self._put(frame, more):
            self.dropped += 1
            return
        self.sent += 1
        if self._dump is not None:
            self._show(frame)
            if self._dump is not None and not more:
                self._dump.flush()

    def listen(self, receive: Callable[[bytes], bool] | None, caught_up: Callable[[], None] | None = None) -> None:
        self._receive, self._caught_up = receive, caught_up
        if receive is None and self._kept is not None:
            self._kept = None
            self.dropped += 1
        self._watch()

    def ready(self) -> None:
        if self._kept is None:
            return
        if self._host.stands():
            self._wait_for_the_clock()
        else:
            frame, self._kept = self._kept, None
            self._deliver(frame)
            self._tell_caught_up()
            self._watch()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._clock.cancel()
        self._receive = self._caught_up = None
        self._let_go()
        if self._dump is not None:
            self._dump.close()

    def _deliver(self, frame: bytes) -> None:
        if self._receive is None:
            self.dropped += 1
        elif self._receive(frame):
            self.received += 1
            if self._dump is not None:
                self._show(frame)
        else:
            self._kept = frame

    def _tell_caught_up(self) -> None:
        if self._caught_up is not None:
            self._caught_up()

    def _show(self, frame: bytes | bytearray | memoryview) -> None:
        assert self._dump is not None
        self._dump.frame(memoryview(frame)[self.offset :])
        if self._dump.error is not None:
            path, why = printable(str(self._dump.path)), self._dump.error.strerror
            self._dump = None
            self._host.tell(f"{self.name}: {path}: {why}: no more frames are written there")

    # Its descriptor

    def _watch(self) -> None:
        """Let the loop look for what is wanted now."""
        events = 0
        if self._fd >= 0 and not self._away:
            events = (select.EPOLLIN if self._kept is None else 0) | (select.EPOLLOUT if self._unsent else 0)
        if self._buffered and self._kept is None and not self._posted:
            self._posted = True
            self._host.loop.post(self._go_through_buffer)
        if events == self._events:
            return
        if events:
            self._host.loop.add(self._fd, self._ready_fd, events)
        elif self._fd >= 0:
            self._host.loop.remove(self._fd)
        self._events = events

    def _ready_fd(self) -> None:
        if self._host.stands():
            self._host.loop.remove(self._fd)
            self._events = 0
            self._wait_for_the_clock()
            return
        if self._unsent:
            self._flush()
        self._take_some()

    def _go_through_buffer(self) -> None:
        self._posted = False
        if self._host.stands():
            self._wait_for_the_clock()
        else:
            self._take_some()

    def _wait_for_the_clock(self) -> None:
        """To go on when it does, however far a snapshot sets it back meanwhile."""
        self._clock.arm(0)

    def _go_on(self) -> None:
        self.ready()
        self._watch()

    def _take_some(self) -> None:
        for _ in range(BURST):
            if self._kept is not None or self._fd < 0 or not self._take():
                break
        self._tell_caught_up()
        if self._dump is not None:
            self._dump.flush()
        self._watch()

    def _let_go(self) -> None:
        """Of the descriptor, which is its owner's to close after this."""
        if self._fd >= 0:
            if self._events:
                self._host.loop.remove(self._fd)
            self._events, self._fd = 0, -1

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected and not self.closed:
            self.connected = connected
            self.link_changed()
