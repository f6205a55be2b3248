"""What a running machine does, as compact tuples: an Observer of its exits, of its channels and of its loop.

A vCPU that comes back from KVM_RUN must lose as little as possible, so an exit is a clock read, another before the next
KVM_RUN and one tuple; names are looked up later, by who takes the tuples out. What is taken out too slowly is left out
and counted: LIMIT bounds the memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from kvm_cffi import Exit, Vcpu
from kvm_cffi.exits import (
    Debug,
    ExceptionExit,
    FailEntry,
    Hlt,
    InternalError,
    Intr,
    IoapicEoi,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    PioIn,
    PioOut,
    SetTpr,
    Shutdown,
    SystemEvent,
)
from pyvmm.board.access_trace import BusMap
from pyvmm.board.pc import Pc
from pyvmm.bus import HITS
from pyvmm.control.timeline.flows import Flows
from pyvmm.trace import Step, Trace

LIMIT: Final = 1 << 15
"""Tuples that wait to be taken out: some megabytes, and some ten milliseconds to find the names of."""
TAKEN: Final = 256
"""Tuples that are taken out before the machine lock, which the names need, is given up."""
CARRIED: Final = 16
"""Flows that go through one exit or callback; a doorbell may be for thousands of chains."""
INTERRUPTS: Final = "irq"
"""The channel that has a track of its own."""

Record = tuple[str, int, int, str, int, tuple[int, ...], tuple[int, ...]]
"""(track, from, to, name, value, flows through it, flows that end in it): times in nanoseconds of CLOCK_MONOTONIC, *to*
is POINT for what has no duration; *value* is what was written or read, or NO_VALUE. It holds plain data alone."""
POINT: Final = -1
NO_VALUE: Final = -1
NOBODY: Final = "nobody"
"""Whose an access is that no part answers."""
OTHERS: Final[dict[type, str]] = {
    Debug: "KVM_EXIT_DEBUG",
    ExceptionExit: "KVM_EXIT_EXCEPTION",
    FailEntry: "KVM_EXIT_FAIL_ENTRY",
    Hlt: "KVM_EXIT_HLT",
    InternalError: "KVM_EXIT_INTERNAL_ERROR",
    Intr: "KVM_EXIT_INTR",
    IoapicEoi: "KVM_EXIT_IOAPIC_EOI",
    IrqWindowOpen: "KVM_EXIT_IRQ_WINDOW_OPEN",
    SetTpr: "KVM_EXIT_SET_TPR",
    Shutdown: "KVM_EXIT_SHUTDOWN",
    SystemEvent: "KVM_EXIT_SYSTEM_EVENT",
}
"""Exits that are no access, by their names in <linux/kvm.h>."""
ACCESSES: Final = {PioOut: (True, "out"), PioIn: (True, "in"), MmioWrite: (False, "write"), MmioRead: (False, "read")}
"""Whether an exit is of the bus of ports, and what the guest does there."""

_Exit = tuple[str, int, int, Exit, int, tuple[int, ...]]
"""As a vCPU's thread puts it down: (track, from, to, exit, what it reads, flows)."""
_Gathered = tuple[int, bool, int, int]
"""(when, whether to a port, address, value)."""


class _Lane:
    """What one thread is doing."""

    __slots__ = ("began", "exit", "flows", "track", "value")

    def __init__(self, track: str) -> None:
        self.track = track
        self.began = 0
        self.exit: Exit | None = None
        self.value = NO_VALUE
        self.flows: tuple[int, ...] = ()


class Recorder:
    """Of *board*, whose channels are *trace*'s. See vcpu.observer.Observer for the methods that a vCPU calls."""

    def __init__(self, board: Pc, trace: Trace) -> None:
        self._waiting: deque[_Exit | _Gathered | Record] = deque(maxlen=LIMIT)
        self._append = self._waiting.append
        self._lanes: dict[int, _Lane] = {}  # by number of the vCPU
        self._threads: dict[int, _Lane] = {}  # by thread, of vCPUs and others
        self._flows = Flows()
        self._pio, self._mmio = (BusMap(board, trace, bus) for bus in (board.pio, board.mmio))
        self._names: dict[tuple[type, int], str] = {}
        self._named: deque[Record] = deque(maxlen=LIMIT)

    def __len__(self) -> int:
        """How many tuples wait."""
        return len(self._waiting) + len(self._named)

    # In a vCPU's thread

    def entering(self, vcpu: Vcpu) -> None:
        lane = self._lanes.get(vcpu.id)
        if lane is None:
            lane = self._lanes[vcpu.id] = self._threads[threading.get_ident()] = _Lane(f"vCPU {vcpu.id}")
        exit = lane.exit
        if exit is not None:
            self._append((lane.track, lane.began, monotonic_ns(), exit, lane.value, lane.flows))
            lane.exit = None
            lane.flows = ()

    def exited(self, vcpu: Vcpu, exit: Exit) -> None:
        lane = self._lanes[vcpu.id]
        lane.began = monotonic_ns()
        lane.exit = exit

    def answered(self, vcpu: Vcpu, exit: Exit, value: int) -> None:
        self._lanes[vcpu.id].value = value

    # Under the machine lock

    def gathered(self, pio: bool, address: int, size: int, value: int) -> None:
        self._append((monotonic_ns(), pio, address, value))

    def heard(self, ns: int, channel: str, message: str, step: Step | None) -> None:
        """A Listener of the trace."""
        through, ending = self._flows.links(channel, step)
        if through or ending:
            lane = self._threads.get(threading.get_ident())
            if lane is not None and len(lane.flows) < CARRIED:  # what this happens in is on the way too
                lane.flows = (*lane.flows, *(flow for flow in (*through, *ending) if flow not in lane.flows))
        track = "interrupts" if channel == INTERRUPTS else channel
        self._append((track, ns, POINT, message, NO_VALUE, through, ending))

    def called(self, callback: Callable[[], None]) -> None:
        """The observer of the loop."""
        ident = threading.get_ident()
        lane = self._threads[ident] = _Lane(f"thread {threading.current_thread().name}")
        began = monotonic_ns()
        try:
            callback()
        finally:
            ended = monotonic_ns()
            del self._threads[ident]
            self._append((lane.track, began, ended, _called(callback), NO_VALUE, lane.flows, ()))

    def finish(self) -> None:
        """It hears no more: an exit after which the guest was not entered again is one all the same."""
        for lane in self._lanes.values():
            if lane.exit is not None:
                self._append((lane.track, lane.began, lane.began, lane.exit, lane.value, lane.flows))
                lane.exit = None

    # Where they go; in one thread, under the machine lock

    def take(self) -> list[Record]:
        """Up to TAKEN of what waits, the oldest first."""
        if not self._named:
            self._settle(TAKEN)
        named = self._named
        return [named.popleft() for _ in range(min(TAKEN, len(named)))]

    def remapped(self) -> None:
        """The map of a bus is another now: find the names of all that waits by the old one."""
        self._settle(len(self._waiting))
        self._names.clear()
        for bus in (self._pio, self._mmio):
            bus.update()

    def _settle(self, most: int) -> None:
        waiting, names, append = self._waiting, self._names, self._named.append
        for _ in range(min(most, len(waiting))):
            raw: Any = waiting.popleft()
            if len(raw) == 7:
                append(raw)
            elif len(raw) == 6:  # most are, so little is called for one
                track, began, ended, exit, value, flows = raw
                kind = type(exit)
                key = kind, exit[0] if exit else 0
                name = names.get(key) or self._name(key)
                value = exit[2] if kind is PioOut or kind is MmioWrite else value if kind in ACCESSES else NO_VALUE
                append((track, began, ended, name, value, flows, ()))
            else:
                ns, pio, address, value = raw
                part, where = self._where(pio, address)
                said = f"{'out' if pio else 'write'} {where}, gathered by KVM"
                append((part, ns, POINT, said, value, (), ()))

    def _name(self, key: tuple[type, int]) -> str:
        """Of an exit of a type, and to an address where it is an access."""
        kind, address = key
        access = ACCESSES.get(kind)
        if access is None:
            name = OTHERS.get(kind, "KVM_EXIT_UNKNOWN")
        else:
            part, where = self._where(access[0], address)
            name = f"{part}: {access[1]} {where}"
        if len(self._names) >= HITS:
            self._names.clear()
        self._names[key] = name
        return name

    def _where(self, pio: bool, address: int) -> tuple[str, str]:
        """Who answers there, and how the address is called: of a BAR's, by the offset."""
        found = (self._pio if pio else self._mmio).found(address)
        if found is None:
            return NOBODY, f"{address:#x}"
        place = found[1]
        if place.base is None:
            return place.channel.name, f"{address:#x}"
        return place.channel.name, f"{place.label}+{address - place.base:#x}"


def _called(callback: Callable[[], None]) -> str:
    """What is called, as its source calls it."""
    function = getattr(callback, "func", callback)  # of a functools.partial
    return getattr(function, "__qualname__", None) or type(function).__name__
