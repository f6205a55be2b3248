"""What a PCI function is plugged into, and all that it finds there: a place on a bus, in a test, at a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from pyvmm.clock import Clock, FakeClock
from pyvmm.irq import FakeIrq, Irq
from pyvmm.memory import GuestMemory
from pyvmm.pci.bar import Bar, Claim, Span
from pyvmm.pci.msi import FakeMsiRouter, MsiRouter
from pyvmm.trace import OFF, Channel


class Slot(Protocol):
    """Whoever serves a PciDevice gives it one of these (PciDevice.connect)."""

    @property
    def name(self) -> str:
        """Where it is, for the trace: device.function as lspci writes it."""

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM; a function takes PciDevice.dma instead."""

    @property
    def clock(self) -> Clock: ...

    @property
    def trace(self) -> Channel: ...

    @property
    def msi(self) -> MsiRouter: ...

    @property
    def bus_master(self) -> bool:
        """Whether DMA and messages from here get anywhere: every bridge above lets them through."""

    @property
    def powered(self) -> bool:
        """Whether the function is in D0 as far as the slot goes, else in D3hot; slot_power_changed() tells it."""

    def claim(self, bar: Bar) -> Claim:
        """A claim on addresses, nowhere yet, that *bar*'s device and doorbells answer."""

    def apply(self) -> None:
        """Let what was placed since take effect, all at once."""

    def intx(self, pin: int) -> Irq:
        """A new source on the line that *pin*, INTA–INTD (1–4), ends at; level, high is asserted."""

    def interrupt_line(self, pin: int) -> int:
        """What firmware puts in the Interrupt Line register for that pin; 255 where it is not connected."""

    def defer(self, call: Callable[[], None]) -> None:
        """Run *call* a little later, once, under the machine lock."""


class FakeClaim:
    """What a BAR of a function in a FakeSlot last asked for."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.base = 0
        self.spans: tuple[Span, ...] = ()
        self.released = False

    def place(self, base: int, spans: Iterable[Span]) -> bool:
        before = self.base, self.spans
        self.base, self.spans = base, tuple(spans)
        return before != (self.base, self.spans)

    def release(self) -> None:
        self.spans, self.released = (), True


class FakeSlot:
    """A slot with no machine around it: `claims` by BAR, `lines` by pin, `msi.sent`, and `run_later()` for what was
    deferred. The function's BARs are reached through their devices."""

    def __init__(self, memory: GuestMemory | None = None, trace: Channel = OFF) -> None:
        self.name = "00.0"
        self.memory = GuestMemory(()) if memory is None else memory
        self.clock = FakeClock()
        self.trace = trace
        self.msi = FakeMsiRouter()
        self.bus_master = self.powered = True
        self.claims: dict[int, FakeClaim] = {}
        self.lines = {pin: FakeIrq() for pin in (1, 2, 3, 4)}
        self.applied = 0
        self.later: list[Callable[[], None]] = []

    def claim(self, bar: Bar) -> FakeClaim:
        self.claims[bar.index] = FakeClaim(bar)
        return self.claims[bar.index]

    def apply(self) -> None:
        self.applied += 1

    def intx(self, pin: int) -> FakeIrq:
        return self.lines[pin]

    def interrupt_line(self, pin: int) -> int:
        return 0xFF

    def defer(self, call: Callable[[], None]) -> None:
        self.later.append(call)

    def run_later(self) -> None:
        """A turn of the loop: what was deferred before it."""
        calls, self.later[:] = self.later[:], []
        for call in calls:
            call()
