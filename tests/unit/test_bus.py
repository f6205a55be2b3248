"""The bus against the simplest model there is: a device for each byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.bus import ALL_ONES, HITS, NOBODY, Bus

LIMIT = 64


class Recorder:
    """A device whose bytes tell who they are and at what offset, and which notes its accesses."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.writes: dict[int, int] = {}
        self.accesses: list[tuple[int, int]] = []

    def byte(self, offset: int) -> int:
        return (self.number * 37 + offset * 3) & 0xFF

    def read(self, offset: int, size: int) -> int:
        self.accesses.append((offset, size))
        # Bits above the access are dirt, which the bus cuts off.
        return sum(self.byte(offset + i) << 8 * i for i in range(size)) | 0xAB << 8 * size

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append((offset, size))
        assert value < 1 << 8 * size
        for i in range(size):
            self.writes[offset + i] = value >> 8 * i & 0xFF


class Model:
    """Which device and offset is at each address."""

    def __init__(self) -> None:
        self.at: dict[int, tuple[Recorder, int]] = {}
        self.mapped: set[tuple[int, int]] = set()

    def map(self, start: int, length: int, device: Recorder, offset: int) -> bool:
        addresses = range(start, start + length)
        if length <= 0 or start < 0 or start + length > LIMIT or any(a in self.at for a in addresses):
            return False
        self.mapped.add((start, length))
        self.at.update({a: (device, a - start + offset) for a in addresses})
        return True

    def unmap(self, start: int, length: int) -> bool:
        if (start, length) not in self.mapped:
            return False
        self.mapped.remove((start, length))
        for a in range(start, start + length):
            del self.at[a]
        return True

    def byte(self, address: int) -> int:
        if address not in self.at:
            return 0xFF
        device, offset = self.at[address]
        return device.byte(offset)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("map"), st.integers(-2, LIMIT + 2), st.integers(-1, 20), st.integers(0, 9)),
        st.tuples(st.just("unmap"), st.integers(0, LIMIT), st.integers(1, 20), st.just(0)),
        st.tuples(st.just("unmap one"), st.integers(0, 9), st.just(0), st.just(0)),
        st.tuples(st.just("read"), st.integers(0, LIMIT - 1), st.sampled_from([1, 2, 4, 8]), st.just(0)),
        st.tuples(
            st.just("write"), st.integers(0, LIMIT - 1), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)
        ),
    ),
    max_size=40,
)


@given(ACTIONS)
@settings(max_examples=300, deadline=None)
def test_bus_is_a_map_of_bytes(actions: list[tuple[str, int, int, int]]) -> None:
    bus, model = Bus("test", LIMIT), Model()
    for number, (action, a, b, c) in enumerate(actions):
        if action == "map":
            device = Recorder(number)
            if model.map(a, b, device, c):
                bus.map(a, b, device, c)
            else:
                with pytest.raises(ValueError, match=r"test: -?0x"):
                    bus.map(a, b, device, c)
        elif action == "unmap" or (action == "unmap one" and model.mapped):
            start, length = (a, b) if action == "unmap" else sorted(model.mapped)[a % len(model.mapped)]
            if model.unmap(start, length):
                bus.unmap(start, length)
            else:
                with pytest.raises(ValueError, match="nothing is mapped at exactly"):
                    bus.unmap(start, length)
        elif action == "read":
            assert bus.read(a, b) == sum(model.byte(a + i) << 8 * i for i in range(b))
        elif action == "write":
            value = c & ALL_ONES[b]
            devices = {device for device, _ in model.at.values()}
            for device in devices:
                device.writes.clear()
            bus.write(a, b, value)
            for i in range(b):
                if a + i in model.at:
                    device, offset = model.at[a + i]
                    assert device.writes.pop(offset) == value >> 8 * i & 0xFF
            assert not any(device.writes for device in devices), "written where it was not meant to"
        assert [(start, end - start) for start, end, _, _ in bus.ranges] == sorted(model.mapped)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_access_within_a_range_reaches_the_device_whole(size: int) -> None:
    bus, device = Bus("test", LIMIT), Recorder(1)
    bus.map(16, 16, device, 100)
    bus.read(17, size)
    bus.write(17, size, 1)
    assert device.accesses == [(101, size)] * 2


def test_a_partial_overlap_is_split_into_bytes() -> None:
    bus, low, high = Bus("test", LIMIT), Recorder(1), Recorder(2)
    bus.map(0, 6, low)
    bus.map(8, 4, high)
    bus.write(4, 8, 0x8877665544332211)
    assert low.accesses == [(4, 1), (5, 1)]
    assert high.accesses == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert high.writes == {0: 0x55, 1: 0x66, 2: 0x77, 3: 0x88}


def test_a_device_may_move_itself_from_inside_a_write() -> None:
    bus = Bus("test", LIMIT)

    class Mover:
        def __init__(self) -> None:
            self.at = 0

        def read(self, offset: int, size: int) -> int:
            return self.at

        def write(self, offset: int, size: int, value: int) -> None:
            bus.unmap(self.at, 4)
            self.at = value
            bus.map(self.at, 4, self)

    mover = Mover()
    bus.map(0, 4, mover)
    bus.write(0, 1, 32)
    assert bus.read(0, 1) == 0xFF
    assert bus.read(32, 1) == 32


def test_beyond_the_last_address_is_nothing() -> None:
    bus, device = Bus("PIO", 0x10000), Recorder(1)
    bus.map(0xFFFF, 1, device)
    assert bus.read(0xFFFF, 1) == device.byte(0)
    assert bus.read(0xFFFF, 4) == 0xFFFFFF00 | device.byte(0)
    bus.write(0xFFFE, 4, 0x44332211)
    assert device.writes == {0: 0x22}


def test_messages_name_the_bus_the_place_and_the_device() -> None:
    bus = Bus("PIO", 0x10000)
    bus.map(0x60, 1, Recorder(1))
    with pytest.raises(ValueError, match="PIO: 0x5f-0x60 overlaps Recorder"):
        bus.map(0x5F, 2, Recorder(2))
    with pytest.raises(ValueError, match=r"PIO: 0xffff\+0x2 is outside the address space"):
        bus.map(0xFFFF, 2, Recorder(2))
    with pytest.raises(ValueError, match="PIO: nothing is mapped at exactly 0x60-0x61"):
        bus.unmap(0x60, 2)


def test_what_a_bus_remembers_has_an_end() -> None:
    bus, device = Bus("MMIO", 1 << 52), Recorder(1)
    bus.map(0x10000, 2 * HITS, device)
    for address in range(0x10000, 0x10000 + 2 * HITS):
        bus.write(address, 1, 0)
        bus.read(address + 4 * HITS, 1)
    assert len(bus._hits) <= HITS
    assert device.accesses == [(offset, 1) for offset in range(2 * HITS)]


def test_who_watches_the_map_is_told_when_it_is_another() -> None:
    bus, seen = Bus("io", 0x100), list[int]()
    bus.changed = lambda: seen.append(len(bus.ranges))
    bus.map(0, 4, NOBODY)
    bus.map(8, 4, NOBODY)
    bus.unmap(0, 4)
    assert seen == [1, 2, 1]
