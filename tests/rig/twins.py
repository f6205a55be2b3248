"""Parts under random accesses, and what is reachable from one: for the tests of what a snapshot keeps of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pyvmm import state
from pyvmm.bus import Bus, Device
from pyvmm.clock import FakeClock, FakeTimer
from pyvmm.irq import FakeIrq, LevelIrq
from pyvmm.memory import GuestMemory
from pyvmm.pci.decoder import AddressClaim, AddressDecoder
from pyvmm.pci.doorbell import FakeDoorbells
from pyvmm.pci.msi import FakeMsiIrq, FakeMsiRouter
from pyvmm.tap import Tap
from pyvmm.trace import Channel
from tests.rig.vhost import FakeServer, FakeVhost

Access = tuple[int, int, int, int]
"""(what, where, how wide, value): every combination of ints is one."""
Door = tuple[Device, int]
"""(what answers, how many addresses)."""
Hand = Callable[[int], object]
"""What comes from elsewhere than the guest: a key, a byte from the line; any int says which."""
SIZES = (1, 1, 2, 4)


@dataclass
class Twin:
    """A part with all it needs, made alike each time."""

    part: Any
    clock: FakeClock
    doors: Sequence[Door] = ()
    hands: Sequence[Hand] = ()
    lines: Sequence[FakeIrq] = ()
    """What the part drives."""
    told: list[object] = field(default_factory=list)
    """What it has called."""
    memory: GuestMemory | None = None
    longest: int = 20_000_000
    """Nanoseconds that pass at once, at the most."""
    firmware: Callable[[], object] = lambda: None
    """What is done to it before a guest runs."""
    later: list[Callable[[], None]] = field(default_factory=list)
    """What it has put off to the loop."""
    let_go: Callable[[], object] = lambda: None
    """Whoever drives its inputs is reset."""
    loses: bool = False
    """A load changes it: what was said between its other end and it belongs to another time, and is no state."""

    def access(self, access: Access) -> object:
        """One access, by the guest, by a hand, or of time; what it gave."""
        what, where, width, value = access
        doors, hands = len(self.doors), len(self.hands)
        what %= 3 * doors + 2 * hands + 1
        if what < 3 * doors:
            device, length = self.doors[what // 3]
            size = SIZES[width % len(SIZES)]
            offset = where % length
            size = size if offset + size <= length else 1
            if what % 3 == 0:
                return device.read(offset, size) & (1 << 8 * size) - 1
            device.write(offset, size, value & (1 << 8 * size) - 1)
            return None
        if what < 3 * doors + 2 * hands:
            return self.hands[(what - 3 * doors) // 2](value)
        self.clock.advance(value % self.longest)
        return None

    @property
    def seen(self) -> object:
        """What a guest and the board see of it without an access."""
        deadlines = [timer.deadline for timer in self.clock.timers]
        return [line.level for line in self.lines], deadlines

    def run_later(self) -> None:
        """A few turns of the loop."""
        for _ in range(5):
            calls, self.later[:] = self.later[:], []
            for call in calls:
                call()

    def become(self, other: Twin) -> None:
        """Take over the state of *other*, with clock, RAM and lines, as a machine does; nothing is left to be done
        later."""
        other.run_later()
        self.run_later()
        self.clock.set(other.clock.now())
        if self.memory is not None and other.memory is not None:
            for gpa, length in other.memory.regions:
                self.memory.write(gpa, other.memory.read(gpa, length))
        if self.loses:
            state.load(other.part, state.save(other.part))
            other.later.clear()
        for line, original in zip(self.lines, other.lines, strict=True):
            state.load(line, state.save(original))
        state.load(self.part, state.save(other.part))
        self.later.clear()


def random_accesses(seed: int, count: int) -> list[Access]:
    """As hypothesis makes them, without its cost: for what comes after."""
    random = Random(seed)
    return [
        (random.randrange(1 << 16), random.randrange(1 << 16), random.randrange(4), random.getrandbits(32))
        for _ in range(count)
    ]


def undeclared(part: object) -> Iterator[tuple[str, object]]:
    """("Class.attribute", what it holds) of every attribute that no STATE names, of the part and what it is made of."""
    saved = _saved_things(part)
    seen: set[int] = set()
    waiting = [part]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        kept = saved.get(id(thing), ())
        for name, value in _attributes(thing):
            waiting += _inner(value)
            if name not in kept:
                yield f"{type(thing).__name__}.{name}", _shown(value)


def _saved_things(part: object) -> dict[int, tuple[str, ...]]:
    """What is saved with *part*, by id: the names of its attributes that are."""
    found: dict[int, tuple[str, ...]] = {}
    waiting = [part]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in found:
            found[id(thing)] = state.names(type(thing))
            for name in found[id(thing)]:
                waiting += _inner(getattr(thing, name))
    return found


def _attributes(thing: object) -> Iterator[tuple[str, object]]:
    yield from vars(thing).items() if hasattr(thing, "__dict__") else ()
    for cls in type(thing).__mro__:
        for name in vars(cls).get("__slots__", ()):
            if hasattr(thing, name):
                yield name, getattr(thing, name)


_WIRES = (
    FakeClock,
    FakeTimer,
    FakeIrq,
    GuestMemory,
    Channel,
    Bus,
    AddressDecoder,
    AddressClaim,
    FakeDoorbells,
    FakeMsiRouter,
    FakeMsiIrq,
    LevelIrq,
    FakeVhost,
    FakeServer,
    Tap,
)


def _inner(value: object) -> list[object]:
    """What of ours is in there, other than wires."""
    if isinstance(value, (tuple, list, deque, set)):
        return [thing for item in value for thing in _inner(item)]
    if isinstance(value, dict):
        return [thing for item in (*value.keys(), *value.values()) for thing in _inner(item)]
    module = type(value).__module__
    ours = module.startswith(("pyvmm.", "docs.", "tests."))
    return [value] if ours and not isinstance(value, (*_WIRES, Twin)) else []


def _shown(value: object) -> object:
    if isinstance(value, (tuple, list, deque)):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return [(_shown(key), _shown(item)) for key, item in value.items()]
    if isinstance(value, (bytearray, memoryview)):
        return hash(bytes(value))
    if isinstance(value, (int, str, bytes, type(None))):
        return value
    return f"{type(value).__name__} {id(value):#x}"
