"""Frames that C writes to where a ring points: the same as Python does, or nothing at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyvmm.memory import GuestMemory
from pyvmm.virtio.net import MAX_PIECES, NUM_BUFFERS_AT
from pyvmm.virtio.packed import PackedRing
from pyvmm.virtio.queue import FakeTransport, VirtQueue
from pyvmm.virtio.ring import Chain, QueueError
from pyvmm.virtio.split import SplitRing
from tests.rig.net_driver import PACKED, FakeOffloadWire, NetDriver, frame
from tests.rig.virtio_driver import AVAIL, INDIRECT, NEXT, USED, WRITE, Driver, PackedDriver, SplitDriver, fill_in_c

SIZE, BASE, BUFFERS = 8, 0x1000, 0x10000
LOW, HIGH = 0x20000, 0x8000
"""Bytes of the two regions of RAM; the second begins at 1 MiB."""
END = 0x100000
MRG_RXBUF = 1 << 15


KINDS = pytest.mark.parametrize("kind", ["split", "packed"])
EDGES = [0, LOW - 1, LOW, END - 1, END, END + HIGH - 1, END + HIGH, (1 << 64) - 1]


def memory(fills: bool = True) -> GuestMemory:
    found = GuestMemory([(0, memoryview(bytearray(LOW))), (END, memoryview(bytearray(HIGH)))])
    fill_in_c(found, fills)
    return found


def ring_in(ram: GuestMemory, kind: str, event_idx: bool = False) -> tuple[Driver, SplitRing | PackedRing]:
    if kind == "split":
        split = SplitDriver(ram, BASE, SIZE, event_idx)
        return split, SplitRing(ram, SIZE, split.desc, split.driver, split.device, event_idx=event_idx)
    packed = PackedDriver(ram, BASE, SIZE, event_idx)
    return packed, PackedRing(ram, SIZE, packed.desc, packed.driver, packed.device, event_idx=event_idx)


def offer_first(driver: Driver, address: int, length: int, flags: int) -> None:
    """Make the first descriptor available, whatever it says."""
    if isinstance(driver, SplitDriver):
        driver.write_desc(0, address, length, flags)
        driver.offer(0)
    else:
        driver.write_desc(0, address, length, 5, flags | AVAIL)
        driver.next_avail = 1


def contents(ram: GuestMemory) -> tuple[bytes, ...]:
    return tuple(bytes(region.buffer) for region in ram.ram)


def by_hand(ring: SplitRing | PackedRing, data: bytes, most: int) -> int:
    """As pop() and push() do it."""
    chains: list[Chain] = []
    room = 0
    while room < len(data):
        chain = ring.pop() if len(chains) < most else None
        assert chain is not None
        chains.append(chain)
        room += chain.writable_size
    at = 0
    for chain in chains:
        written = chain.write(data[at : at + chain.writable_size])
        at += written
        ring.push(chain, written)
    chains[0].writable[0][NUM_BUFFERS_AT : NUM_BUFFERS_AT + 2] = struct.pack("<H", len(chains))
    return len(chains)


TURNS = st.lists(
    st.tuples(st.integers(12, 300), st.lists(st.integers(12, 200), min_size=1, max_size=SIZE)), max_size=12
)
"""The length of a frame, and of the buffers that are made available before it."""


@KINDS
@given(turns=TURNS, event_idx=st.booleans(), together=st.integers(1, 3))
def test_as_python_does_it(kind: str, turns: list[tuple[int, list[int]]], event_idx: bool, together: int) -> None:
    """Frames one after the other, of which *together* are shown to the driver at once."""
    rams = memory(), memory(fills=False)
    (driver, ring), (other, model) = (ring_in(ram, kind, event_idx) for ram in rams)
    for number, (length, buffers) in enumerate(turns):
        data = bytes((number + n) & 0xFF for n in range(length))
        for room in buffers:
            for one in (driver, other):
                one.add([(BUFFERS + 0x100 * (number % 64), room, True)])
        for one in (driver, other):
            one.arm(number % 3 != 0)
        before = contents(rams[0])
        count = ring.fill(data, SIZE, NUM_BUFFERS_AT)
        if not count:
            assert contents(rams[0]) == before
            return
        assert by_hand(model, data, SIZE) == count
        assert ring.progress(()) == model.progress(()) or kind == "packed"
        assert driver.used() == other.used() == []
        if number % together == 0:
            assert ring.flush() == model.flush()
            assert ring.progress(()) == model.progress(())
            assert driver.used() == other.used() != []
            assert contents(rams[0]) == contents(rams[1])


@KINDS
def test_up_to_the_end_of_each_region(kind: str) -> None:
    ram = memory()
    driver, ring = ring_in(ram, kind)
    driver.add([(LOW - 16, 16, True)])
    driver.add([(END + HIGH - 16, 16, True)])
    assert ring.fill(bytes(range(20)), SIZE, 10) == 2
    ring.flush()
    assert driver.used() == [(7, 16), (6, 4)]
    assert ram.read(LOW - 16, 16) == bytes(range(10)) + b"\x02\x00" + bytes(range(12, 16))
    assert ram.read(END + HIGH - 16, 16) == bytes(range(16, 20)) + bytes(12)


@KINDS
@pytest.mark.parametrize(
    ("address", "length", "flags"),
    [
        (LOW - 15, 16, WRITE),
        (LOW, 16, WRITE),
        (END - 1, 16, WRITE),
        (END + HIGH - 15, 16, WRITE),
        ((1 << 64) - 8, 16, WRITE),
        (0, 0xFFFFFFFF, WRITE),
        (BUFFERS, 0, WRITE),
        (BUFFERS, 16, 0),
        (BUFFERS, 16, WRITE | NEXT),
        (BUFFERS, 16, INDIRECT),
        (BUFFERS, 16, WRITE | 0x4000),
        (BUFFERS, 11, WRITE),
    ],
)
def test_what_is_not_for_it_is_left_as_it_is(kind: str, address: int, length: int, flags: int) -> None:
    ram = memory()
    driver, ring = ring_in(ram, kind)
    offer_first(driver, address, length, flags)
    driver.add([(BUFFERS, 64, True)])
    before, progress = contents(ram), ring.progress(())
    assert ring.fill(bytes(16), SIZE, 10) == 0
    assert contents(ram) == before and ring.progress(()) == progress


def test_an_index_that_jumps_or_a_head_that_is_none() -> None:
    ram = memory()
    driver, ring = ring_in(ram, "split")
    assert isinstance(driver, SplitDriver)
    driver.offer(SIZE)
    assert ring.fill(bytes(16), SIZE, 10) == 0
    driver.set_avail_idx(SIZE + 1)
    assert ring.fill(bytes(16), SIZE, 10) == 0
    with pytest.raises(QueueError, match="jumped by 9"):
        ring.pop()


@given(st.data())
def test_a_hostile_split_ring_reaches_nothing_but_ram(data: st.DataObject) -> None:
    """Whatever is in descriptors and indices: what it says is no more than the ring has, and nobody dies of it."""
    ram = memory()
    driver, ring = ring_in(ram, "split")
    assert isinstance(driver, SplitDriver)
    for index in range(SIZE):
        address = data.draw(st.sampled_from(EDGES)) + data.draw(st.integers(-64, 64))
        length = data.draw(st.sampled_from([0, 1, 12, 64, LOW, 0xFFFFFFFF]))
        driver.write_desc(index, address & (1 << 64) - 1, length, data.draw(st.sampled_from([2, 2, 2, 0, 1, 3, 4])))
        driver.memory.write_int(driver.driver + 4 + 2 * index, 2, data.draw(st.integers(0, SIZE)))
    driver.set_avail_idx(data.draw(st.integers(0, SIZE + 2)))
    count = ring.fill(bytes(data.draw(st.integers(0, 300))), data.draw(st.integers(0, MAX_PIECES)), 10)
    assert 0 <= count <= SIZE


DESCRIPTORS = st.lists(
    st.tuples(
        st.one_of(st.just(BUFFERS), st.builds(int.__add__, st.sampled_from(EDGES), st.integers(-64, 64))),
        st.sampled_from([64, 64, 12, 1, 0, LOW, 0xFFFFFFFF]),
        st.integers(0, 0xFFFF),
        st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, WRITE, AVAIL, USED, NEXT | WRITE, INDIRECT])),
    ),
    min_size=SIZE,
    max_size=SIZE,
)
"""Address, length, ID and flags from where the driver is; flags of None: a buffer that is available."""
PLAIN = [(BUFFERS, 64, 100 + n, None) for n in range(SIZE)]


@given(
    descriptors=DESCRIPTORS,
    length=st.integers(0, 500),
    most=st.integers(0, MAX_PIECES),
    start=st.integers(0, SIZE - 1),
    wrap=st.integers(0, 1),
    held=st.integers(0, SIZE - 1),
    event=st.integers(0, 0xFFFFFFFF),
)
@example(PLAIN, 64 * SIZE, SIZE, 5, 0, 0, 0)
@example(PLAIN, 64 * 4, SIZE, 5, 1, 3, 0)
def test_a_hostile_packed_ring_as_python_takes_it(
    descriptors: list[tuple[int, int, int, int | None]],
    length: int,
    most: int,
    start: int,
    wrap: int,
    held: int,
    event: int,
) -> None:
    """Whatever is in the descriptors, wherever the ring has got, with *held* descriptors that are still the device's:
    what C does Python does too, and C does nothing that Python would call an error."""
    rams = memory(), memory(fills=False)
    (driver, ring), (_, model) = (ring_in(ram, "packed", event_idx=True) for ram in rams)
    used = (start - held) % SIZE
    progress = start, wrap, used, wrap ^ (held > start), 0
    for ram in rams:
        for n, (address, room, id, flags) in enumerate(descriptors):
            if flags is None:
                flags = WRITE | (AVAIL if wrap ^ (start + n >= SIZE) else USED)
            at = BASE + 16 * ((start + n) % SIZE)
            ram.write(at, struct.pack("<QIHH", address & (1 << 64) - 1, room, id, flags))
        ram.write_int(driver.driver, 4, event)
    for one in (ring, model):
        one.go_on_at(progress)
    before, data = contents(rams[0]), bytes(n & 0xFF for n in range(length))
    count = ring.fill(data, most, NUM_BUFFERS_AT)
    assert 0 <= count <= min(most, SIZE)
    if count:
        assert by_hand(model, data, most) == count
        assert ring.flush() == model.flush()
        assert contents(rams[0]) == contents(rams[1])
    else:
        assert contents(rams[0]) == before and descriptors is not PLAIN
    assert ring.progress(()) == model.progress(())


@pytest.mark.parametrize("progress", [(SIZE, 1, 0, 1, 0), (0, 1, SIZE, 1, 0), (0x7FFF, 0, 0x7FFF, 0, 0)])
def test_a_place_that_the_packed_ring_has_not(progress: tuple[int, ...]) -> None:
    ram = memory()
    driver, ring = ring_in(ram, "packed")
    for _ in range(SIZE):
        driver.add([(BUFFERS, 64, True)])
    ring.go_on_at(progress)
    before = contents(ram)
    assert ring.fill(bytes(16), SIZE, 10) == 0
    assert contents(ram) == before


@KINDS
def test_ram_that_comes_and_goes(kind: str) -> None:
    ram = memory()
    driver, ring = ring_in(ram, kind)
    for at in (0x200000, 0x200000, END, 0x200000):
        driver.add([(at, 64, True)])
    assert ring.fill(bytes(64), SIZE, 10) == 0, "there is none"
    ram.add((region := ram.ram[1])._replace(gpa=0x200000, buffer=memoryview(bytearray(4096))))
    assert ring.fill(bytes(64), SIZE, 10) == 1
    ram.remove(0x200000)
    region.buffer[:4] = b"here"
    assert ring.fill(bytes(64), SIZE, 10) == 0, "it has gone"
    ram.release()
    assert ring.fill(bytes(64), SIZE, 10) == 0


@KINDS
def test_while_somebody_asks_what_is_written_python_does_it(kind: str) -> None:
    ram = memory()
    driver, ring = ring_in(ram, kind)
    driver.add([(BUFFERS, 64, True)])
    ram.written = set()
    assert ring.fill(bytes(64), SIZE, 10) == 0
    ram.written = None
    assert ring.fill(bytes(64), SIZE, 10) == 1


def test_a_queue_that_holds_chains_or_is_traced_or_stands() -> None:
    ram = memory()
    queue = VirtQueue(0, SIZE)
    queue.transport = FakeTransport()
    driver = SplitDriver(ram, BASE, SIZE)
    queue.desc, queue.driver, queue.device = driver.desc, driver.driver, driver.device
    assert queue.fill(bytes(64), SIZE, 10) == 0
    queue.start(ram, 1 << 32)
    for _ in range(3):
        driver.add([(BUFFERS, 64, True)])
    queue.paused = True
    assert queue.fill(bytes(64), SIZE, 10) == 0
    queue.paused = False
    chain = queue.pop()
    assert chain is not None
    queue.put_back([chain])
    assert queue.fill(bytes(64), SIZE, 10) == 0
    assert queue.pop() is chain
    assert queue.fill(bytes(64), SIZE, 10) == 1


@pytest.mark.parametrize("features", [0, PACKED])
@pytest.mark.parametrize("without", [0, MRG_RXBUF])
@pytest.mark.parametrize("length", [60, 1500, 9000])
def test_a_card_gives_the_driver_the_same_either_way(features: int, without: int, length: int) -> None:
    seen = []
    for fills in (True, False):
        card = NetDriver(FakeOffloadWire(), features=features, without=without)
        fill_in_c(card.ram, fills)
        for _ in range(6):
            card.offer(2048)
        for n in range(2):
            card.wire.give(bytes(12) + frame(bytes(range(n, n + 50)) * (length // 50)))
        seen.append((card.frames(), card.wire.received, card.wire.dropped))
    assert seen[0] == seen[1]
