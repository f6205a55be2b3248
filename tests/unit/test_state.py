"""state.save and state.load: which attributes, which values, what is refused."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import pytest

from pyvmm import state
from pyvmm.clock import Clock, FakeClock, GuestClock
from pyvmm.irq import LevelIrq, SharedLine, Wires


class Inner:
    STATE = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Base:
    STATE: ClassVar[tuple[str, ...]] = ("number", "text")

    def __init__(self, clock: Clock) -> None:
        self.number = 1
        self.text = "one"
        self.timer = clock.timer(lambda: None)


class Whole(Base):
    STATE = ("timer", "maybe", "fifo", "table", "ring", "memory", "inner", "several", "by_name", "doubled")

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.maybe: tuple[int, bytes] | None = None
        self.fifo: deque[int] = deque(maxlen=4)
        self.table: dict[tuple[int, int], list[int]] = {}
        self.ring = bytearray(4)
        self.memory = memoryview(bytearray(4))
        self.inner = Inner()
        self.several = (Inner(), Inner())
        self.by_name = {"a": Inner()}
        self.wire = object()
        self.half = 0
        self.log: list[str] = []

    @property
    def doubled(self) -> int:
        return 2 * self.half

    @doubled.setter
    def doubled(self, value: int) -> None:
        self.half = value // 2

    def drain(self) -> None:
        self.log.append("drained")

    def restored(self) -> None:
        self.log.append(f"restored with {self.by_name['a'].count}")


def changed(clock: Clock) -> Whole:
    part = Whole(clock)
    part.number, part.text, part.maybe, part.half = 7, "seven", (1, b"x"), 21
    part.timer.arm(700)
    part.fifo.extend((1, 2))
    part.table[0, 1] = [5]
    part.ring[:] = b"abcd"
    part.memory[:] = b"wxyz"
    part.inner.count, part.several[1].count, part.by_name["a"].count = 3, 4, 5
    return part


SAVED = {
    "number": 7,
    "text": "seven",
    "timer": 700,
    "maybe": (1, b"x"),
    "fifo": [1, 2],
    "table": {(0, 1): [5]},
    "ring": b"abcd",
    "memory": b"wxyz",
    "inner": {"count": 3},
    "several": ({"count": 0}, {"count": 4}),
    "by_name": {"a": {"count": 5}},
    "doubled": 42,
}


def test_what_is_saved() -> None:
    part = changed(FakeClock())
    assert state.save(part) == SAVED
    assert part.log == ["drained"]


def test_a_load_is_in_place_and_can_be_done_again() -> None:
    clock = FakeClock()
    saved: Any = state.save(changed(clock))
    part = Whole(clock)
    holders = (part.fifo, part.table, part.ring, part.memory, part.inner, part.timer, part.wire)
    for _ in range(2):
        state.load(part, saved)
        assert (part.fifo, part.table, part.ring, part.memory, part.inner, part.timer, part.wire) == holders
        assert all(now is then for now, then in zip(vars(part).values(), vars(part).values(), strict=True))
        assert state.save(part) == SAVED
        assert part.half == 21
        part.table[0, 1].append(6)
        part.fifo.clear()
        part.maybe = None
        part.timer.cancel()
    assert "restored with 5" in part.log
    assert saved == SAVED


def test_none_comes_back_where_something_is() -> None:
    clock = FakeClock()
    part = changed(clock)
    state.load(part, state.save(Whole(clock)))
    assert part.maybe is None and part.timer.deadline is None and not part.fifo and not part.table


class Old:
    """What was saved; New and Newer are of later code."""

    STATE: ClassVar[tuple[str, ...]] = ("count", "name", "table", "inner", "gone")

    def __init__(self) -> None:
        self.count, self.name, self.table, self.gone = 7, "seven", {1: 2}, 1
        self.inner = Old.Inner()

    class Inner:
        STATE: ClassVar[tuple[str, ...]] = ("level", "edge")

        def __init__(self) -> None:
            self.level, self.edge = True, False


class New:
    STATE = ("count", "name", "table", "inner", "more")

    def __init__(self) -> None:
        self.count, self.name, self.more = 0, 0, 3
        self.table: list[int] = []
        self.inner = New.Inner()
        self.log: list[int] = []

    def restored(self) -> None:
        self.log.append(self.count)

    class Inner:
        STATE = ("level",)

        def __init__(self) -> None:
            self.level = False


def test_newer_code_takes_what_it_knows() -> None:
    """By name, and where the kind of value is the same; the rest stays as it was made, and is named."""
    new = New()
    assert sorted(state.adopt(new, state.save(Old()))) == ["gone", "inner.edge", "more", "name", "table"]
    assert (new.count, new.name, new.table, new.more, new.inner.level, new.log) == (7, 0, [], 3, True, [7])
    assert state.adopt(New(), state.save(new), but=("count",)) == []
    with pytest.raises(state.StateError):
        state.load(New(), state.save(Old()))


def test_of_all_parts_those_that_are_newer_may_differ() -> None:
    saved, new = {"a": state.save(Old()), "b": state.save(Old())}, New()
    state.load_all({"a": Old(), "b": new}, saved, newer=[new])
    assert new.count == 7
    with pytest.raises(state.StateError, match=r"^a: "):
        state.load_all({"a": New(), "b": new}, saved, newer=[new])


def test_a_timer_is_armed_on_the_guests_clock() -> None:
    host = FakeClock(1000)
    clock = GuestClock(host)
    fired: list[int] = []

    class Timed:
        STATE = ("timer",)

        def __init__(self) -> None:
            self.timer = clock.timer(lambda: fired.append(clock.now()))

    part = Timed()
    part.timer.arm(1500)
    saved = state.save(part)
    host.advance(2000)
    assert fired == [1500]
    clock.stop()
    clock.set(1000)
    state.load(part, saved)
    clock.go()
    host.advance(499)
    assert fired == [1500]
    host.advance(1)
    assert fired == [1500, 1500]


def test_a_class_that_declares_nothing_is_refused_with_the_line_to_add() -> None:
    class Edu(Base):
        def __init__(self, clock: Clock) -> None:
            super().__init__(clock)
            self.fact = 1
            self.result, self.busy = 0, False

    with pytest.raises(
        state.StateError, match=r'^Edu does not say what its state is: add  STATE = \("fact", "result", "busy"\), less'
    ):
        state.save(Edu(FakeClock()))


@pytest.mark.parametrize("value", [1.5, {1, 2}, [bytearray(2), 1.5], {1.5: 2}, object()])
def test_what_is_no_state_is_refused_by_its_name(value: object) -> None:
    class Odd:
        STATE = ("value",)

        def __init__(self) -> None:
            self.value = value

    with pytest.raises(state.StateError, match=r"^Odd\.value: "):
        state.save(Odd())


def test_a_name_that_is_not_there_is_refused() -> None:
    class Wrong:
        STATE = ("nothing",)

    with pytest.raises(state.StateError, match="STATE of Wrong names nothing, which it does not have"):
        state.save(Wrong())


@pytest.mark.parametrize(
    "change",
    [{"number": None}, {"memory": b"12345"}, {"ring": 3}, {"several": ({"count": 1},)}, {"fifo": {}}, {"timer": "x"}],
)
def test_the_state_of_something_else_is_refused(change: dict[str, Any]) -> None:
    saved: Any = {**SAVED, **change}
    if change == {"number": None}:
        del saved["number"]
    with pytest.raises(state.StateError):
        state.load(Whole(FakeClock()), saved)


def test_all_parts_are_loaded_before_the_first_is_restored() -> None:
    clock = FakeClock()
    order: list[tuple[int, int]] = []

    class Pair:
        STATE = ("value",)

        def __init__(self) -> None:
            self.value = 0
            self.other = self

        def restored(self) -> None:
            order.append((self.value, self.other.value))

    one, two = Pair(), Pair()
    one.other, two.other = two, one
    state.load_all({"one": one, "two": two}, {"one": {"value": 1}, "two": {"value": 2}})
    assert order == [(1, 2), (2, 1)]
    with pytest.raises(state.StateError, match="of another machine: it has no two"):
        state.load_all({"one": one, "two": two}, {"one": {"value": 1}})
    with pytest.raises(state.StateError, match="of another machine: it has three too"):
        state.load_all({"one": one}, {"one": {"value": 1}, "three": 3})
    with pytest.raises(state.StateError, match=r"two: Holder\.held: object does not say"):
        state.save_all({"one": one, "two": Holder(object())})
    assert clock.now() == 0


class Holder:
    STATE = ("held",)

    def __init__(self, held: object) -> None:
        self.held = held


def test_lines_come_back_silently() -> None:
    driven: list[bool] = []
    wires = Wires()
    one, two = (wires.add(LevelIrq(driven.append)) for _ in range(2))
    two.set_level(True)
    saved = state.save(wires)
    two.set_level(False)
    driven.clear()
    state.load(wires, saved)
    assert (one.level, two.level) == (False, True) and driven == []
    two.set_level(True)
    assert driven == []
    two.set_level(False)
    assert driven == [False]


def test_a_shared_line_follows_the_levels_that_its_sources_got_back() -> None:
    driven: list[bool] = []
    target = LevelIrq(driven.append)
    line = SharedLine(target)
    one, two = line.source(), line.source()
    state.load(one, {"level": True})
    state.load(target, {"level": True})
    two.set_level(True)
    two.set_level(False)
    assert driven == []
    one.set_level(False)
    assert driven == [False]
