"""What is on a board, by name: each part with the ports, addresses and interrupts that it was given, written once.

Whoever needs to know what is where asks here: ACPI and MP tables, a reset, a listing of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict, TypeVar

from pyvmm import state
from pyvmm.bus import Bus, Device


class Part(Protocol):
    """Something on the board that has a RESET pin, and a state: STATE, or save() and load(); see pyvmm/state.py.

    One that has parts of its own (the functions on a PCI bus) names them in parts()."""

    def reset(self) -> None: ...


@dataclass(frozen=True)
class Placement:
    """One part and where it is."""

    name: str
    part: Part | None
    """None where the kernel has it."""
    ports: tuple[tuple[int, int], ...] = ()
    """(first port, how many), as the part decodes them."""
    memory: tuple[tuple[int, int], ...] = ()
    """(guest physical address, bytes)."""
    irqs: tuple[int, ...] = ()
    """ISA IRQs that it drives."""


Place = tuple[int, int] | tuple[int, int, Device] | tuple[int, int, Device | None, int]

P = TypeVar("P", bound=Part)


class Places(TypedDict, total=False):
    """Where a part is, as note() takes it."""

    ports: Sequence[tuple[int, int]]
    memory: Sequence[tuple[int, int]]
    irqs: Sequence[int]


class Parts:
    """The parts of a board, in the order in which they were added, which is the order of a reset."""

    def __init__(self, pio: Bus, mmio: Bus) -> None:
        self.pio = pio
        self.mmio = mmio
        self._placements: dict[str, Placement] = {}
        self._kept: dict[str, object] = {}
        self.newer: list[object] = []
        """Parts that have taken the place of others, whose code may be newer than what is loaded."""

    def add(
        self,
        name: str,
        part: P,
        *,
        ports: Sequence[Place] = (),
        memory: Sequence[Place] = (),
        irqs: Sequence[int] = (),
    ) -> P:
        """Put *part* on the board as *name* and map it; ValueError where the name or a place is taken.

        A place is (start, length), or (start, length, device) where another object than the part answers there, or
        (start, length, device or None, offset) where its offset is not 0 there.
        """
        if name in self._placements:
            raise ValueError(f"there are two parts {name} on the board")
        for bus, places in ((self.pio, ports), (self.mmio, memory)):
            for start, length, *rest in places:
                device = rest[0] if rest and rest[0] is not None else part
                bus.map(start, length, device, rest[1] if len(rest) > 1 else 0)  # type: ignore[arg-type]
        self._placements[name] = Placement(
            name,
            part,
            tuple((place[0], place[1]) for place in ports),
            tuple((place[0], place[1]) for place in memory),
            tuple(irqs),
        )
        return part

    def give_up(self, name: str, port: int, count: int) -> None:
        """Part *name* answers at ports [port, port+count), which it was given as such, no more."""
        placement = self._placements[name]
        self.pio.unmap(port, count)
        ports = tuple(place for place in placement.ports if place != (port, count))
        self._placements[name] = replace(placement, ports=ports)

    def note(
        self,
        name: str,
        *,
        ports: Sequence[tuple[int, int]] = (),
        memory: Sequence[tuple[int, int]] = (),
        irqs: Sequence[int] = (),
    ) -> None:
        """A part that the kernel has: where it is, for those who ask."""
        self._placements[name] = Placement(name, None, tuple(ports), tuple(memory), tuple(irqs))

    def keep(self, name: str, part: object) -> None:
        """Something that has a state, and neither a place nor a RESET pin."""
        self._kept[name] = part

    def __iter__(self) -> Iterator[Placement]:
        return iter(self._placements.values())

    def __contains__(self, name: str) -> bool:
        return name in self._placements

    def __getitem__(self, name: str) -> Placement:
        return self._placements[name]

    def reset(self) -> None:
        """Every RESET pin, in the order in which the parts were added."""
        for placement in list(self):
            if placement.part is not None:
                placement.part.reset()

    def with_state(self) -> dict[str, object]:
        """All that a snapshot keeps, by name, in the order of a load: "com1", "pci", "pci/0a.0", "irqchip" …"""
        found: dict[str, object] = {}
        for placement in self:
            if placement.part is not None:
                found[placement.name] = placement.part
                inner = getattr(placement.part, "parts", None)
                if inner is not None:
                    found |= {f"{placement.name}/{name}": part for name, part in inner()}
        return found | self._kept

    def save(self) -> dict[str, state.Plain]:
        """The state of every part, by name, as plain data; StateError names the part that cannot be saved, and why."""
        return state.save_all(self.with_state())

    def check(self, saved: Mapping[str, state.Plain]) -> None:
        """Raises StateError where a part's check_saved() says that it cannot be what it was; nothing is changed."""
        for name, part in self.with_state().items():
            check = getattr(part, "check_saved", None)
            if check is not None and name in saved:
                check(saved[name])

    def portable(self, saved: Mapping[str, state.Plain]) -> dict[str, state.Plain]:
        """What save() gave, for another process: with what lies beside it, which a part's portable() adds. From any
        thread. Raises StateError."""
        parts = self.with_state()
        return {
            name: part.portable(one) if hasattr(part := parts.get(name), "portable") else one
            for name, one in saved.items()
        }

    def load(self, saved: Mapping[str, state.Plain]) -> None:
        """Put back what save() gave, of this board or one made alike; under the machine lock, while no vCPU runs, RAM
        being back already. Raises StateError where it is of another board."""
        state.load_all(self.with_state(), saved, self.newer)
