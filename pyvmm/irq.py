"""Interrupt lines as devices see them: something to raise, lower or pulse, with no number on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Irq(Protocol):
    """An interrupt output of a device: a wire (set_level) or a message (pulse)."""

    def set_level(self, level: bool) -> None:
        """Drive the wire; setting the level it already has does nothing."""

    def pulse(self) -> None:
        """One edge: raise and lower a wire, or send one message."""


class LevelIrq:
    """A wire, driven through a function that is called only when the level changes."""

    def __init__(self, drive: Callable[[bool], None]) -> None:
        self._drive = drive
        self.level = False

    def set_level(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self._drive(level)

    def pulse(self) -> None:
        self.set_level(True)
        self.set_level(False)


class SharedLine:
    """A wired-OR: several sources on one input, which is up while any source is."""

    def __init__(self, target: Irq) -> None:
        self._target = target
        self._asserted = 0
        self._sources = 0

    def source(self) -> LevelIrq:
        """A new source of this line."""
        bit = 1 << self._sources
        self._sources += 1

        def drive(level: bool) -> None:
            self._asserted = self._asserted | bit if level else self._asserted & ~bit
            self._target.set_level(self._asserted != 0)

        return LevelIrq(drive)


def swizzle(slot: int, pin: int) -> int:
    """Which of the four interrupt lines of a PCI bus (0–3) pin INTA–INTD (0–3) of *slot* is wired to.

    To a bridge the lines are its own pins. PCI-to-PCI Bridge Architecture Specification 1.2, section 9.1;
    pci_swizzle_interrupt_pin() in linux/pci.h.
    """
    return (slot + pin) % 4


class FakeIrq:
    """The line of the unit tests: remembers its level and counts rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def set_level(self, level: bool) -> None:
        if level and not self.level:
            self.edges += 1
        self.level = level

    def pulse(self) -> None:
        self.set_level(True)
        self.set_level(False)
