"""Interrupt lines as devices see them: something to raise, lower or pulse, with no number on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet


class Irq(Protocol):
    """An interrupt output of a device: a wire (set_level) or a message (pulse)."""

    def set_level(self, level: bool) -> None:
        """Drive the wire; setting the level it already has does nothing."""

    def pulse(self) -> None:
        """One edge: raise and lower a wire, or send one message."""


class LevelIrq:
    """A wire, driven through a function that is called only when the level changes."""

    STATE = ("level",)

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
        self._sources: WeakSet[LevelIrq] = WeakSet()  # one whose owner has gone is low

    def source(self) -> LevelIrq:
        """A new source of this line, whose level is the state of whoever has it."""
        source = LevelIrq(self._drive)
        self._sources.add(source)
        return source

    def _drive(self, level: bool) -> None:
        self._target.set_level(level or any(source.level for source in self._sources))


class Wires:
    """The wires that an interrupt controller has given out. Their levels are its state, and come back silently: driving
    a wire again would be a second interrupt."""

    STATE = ("levels",)

    def __init__(self) -> None:
        self._wires: list[LevelIrq] = []

    def add(self, wire: LevelIrq) -> LevelIrq:
        self._wires.append(wire)
        return wire

    @property
    def levels(self) -> list[bool]:
        """In the order in which they were given out."""
        return [wire.level for wire in self._wires]

    @levels.setter
    def levels(self, levels: list[bool]) -> None:
        for wire, level in zip(self._wires, levels, strict=True):
            wire.level = level


def swizzle(slot: int, pin: int) -> int:
    """Which of the four interrupt lines of a PCI bus (0–3) pin INTA–INTD (0–3) of *slot* is wired to.

    To a bridge the lines are its own pins. PCI-to-PCI Bridge Architecture Specification 1.2, section 9.1;
    pci_swizzle_interrupt_pin() in linux/pci.h.
    """
    return (slot + pin) % 4


class FakeIrq:
    """The line of the unit tests: remembers its level and counts rising edges."""

    STATE = ("level",)

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
