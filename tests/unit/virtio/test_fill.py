"""Frames that C writes to where a split ring points: the same as Python does, or nothing at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_cffi.rings import SplitFiller
from pyvmm.memory import GuestMemory
from pyvmm.virtio.net import MAX_PIECES, NUM_BUFFERS_AT
from pyvmm.virtio.queue import FakeTransport, VirtQueue
from pyvmm.virtio.ring import Chain, QueueError
from pyvmm.virtio.split import SplitRing
from tests.rig.net_driver import FakeOffloadWire, NetDriver, frame
from tests.rig.virtio_driver import INDIRECT, NEXT, WRITE, SplitDriver

SIZE, BASE, BUFFERS = 8, 0x1000, 0x10000
LOW, HIGH = 0x20000, 0x8000
"""Bytes of the two regions of RAM; the second begins at 1 MiB."""
END = 0x100000
MRG_RXBUF = 1 << 15


def memory(fills: bool = True) -> GuestMemory:
    found = GuestMemory([(0, memoryview(bytearray(LOW))), (END, memoryview(bytearray(HIGH)))])
    found.make_filler = SplitFiller if fills else None
    return found


def ring_in(ram: GuestMemory) -> tuple[SplitDriver, SplitRing]:
    driver = SplitDriver(ram, BASE, SIZE)
    return driver, SplitRing(ram, SIZE, driver.desc, driver.driver, driver.device)


def contents(ram: GuestMemory) -> tuple[bytes, ...]:
    return tuple(bytes(region.buffer) for region in ram.ram)


def by_hand(ring: SplitRing, data: bytes, most: int) -> int:
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


@given(TURNS)
def test_as_python_does_it(turns: list[tuple[int, list[int]]]) -> None:
    rams = memory(), memory(fills=False)
    (driver, ring), (other, model) = (ring_in(ram) for ram in rams)
    for number, (length, buffers) in enumerate(turns):
        data = bytes((number + n) & 0xFF for n in range(length))
        for room in buffers:
            for one in (driver, other):
                one.add([(BUFFERS + 0x100 * (number % 64), room, True)])
        before = contents(rams[0])
        count = ring.fill(data, SIZE, NUM_BUFFERS_AT)
        if count:
            assert by_hand(model, data, SIZE) == count
            assert ring.flush() == model.flush()
            assert driver.used() == other.used()
            assert contents(rams[0]) == contents(rams[1])
        else:
            assert contents(rams[0]) == before
            return
        assert ring.progress(()) == model.progress(())


def test_up_to_the_end_of_each_region() -> None:
    ram = memory()
    driver, ring = ring_in(ram)
    driver.add([(LOW - 16, 16, True)])
    driver.add([(END + HIGH - 16, 16, True)])
    assert ring.fill(bytes(range(20)), SIZE, 10) == 2
    ring.flush()
    assert driver.used() == [(7, 16), (6, 4)]
    assert ram.read(LOW - 16, 16) == bytes(range(10)) + b"\x02\x00" + bytes(range(12, 16))
    assert ram.read(END + HIGH - 16, 16) == bytes(range(16, 20)) + bytes(12)


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
        (BUFFERS, 16, WRITE | 0x8000),
        (BUFFERS, 11, WRITE),
    ],
)
def test_what_is_not_for_it_is_left_as_it_is(address: int, length: int, flags: int) -> None:
    ram = memory()
    driver, ring = ring_in(ram)
    driver.write_desc(0, address, length, flags)
    driver.offer(0)
    driver.add([(BUFFERS, 64, True)])
    before = contents(ram)
    assert ring.fill(bytes(16), SIZE, 10) == 0
    assert contents(ram) == before and ring.progress(()) == (0, 0, 0)


def test_an_index_that_jumps_or_a_head_that_is_none() -> None:
    ram = memory()
    driver, ring = ring_in(ram)
    driver.offer(SIZE)
    assert ring.fill(bytes(16), SIZE, 10) == 0
    driver.set_avail_idx(SIZE + 1)
    assert ring.fill(bytes(16), SIZE, 10) == 0
    with pytest.raises(QueueError, match="jumped by 9"):
        ring.pop()


@given(st.data())
def test_a_hostile_ring_reaches_nothing_but_ram(data: st.DataObject) -> None:
    """Whatever is in descriptors and indices: what it says is no more than the ring has, and nobody dies of it."""
    ram = memory()
    driver, ring = ring_in(ram)
    edge = st.sampled_from([0, LOW - 1, LOW, END - 1, END, END + HIGH - 1, END + HIGH, (1 << 64) - 1])
    for index in range(SIZE):
        address = data.draw(edge) + data.draw(st.integers(-64, 64))
        length = data.draw(st.sampled_from([0, 1, 12, 64, LOW, 0xFFFFFFFF]))
        driver.write_desc(index, address & (1 << 64) - 1, length, data.draw(st.sampled_from([2, 2, 2, 0, 1, 3, 4])))
        driver.memory.write_int(driver.driver + 4 + 2 * index, 2, data.draw(st.integers(0, SIZE)))
    driver.set_avail_idx(data.draw(st.integers(0, SIZE + 2)))
    count = ring.fill(bytes(data.draw(st.integers(0, 300))), data.draw(st.integers(0, MAX_PIECES)), 10)
    assert 0 <= count <= SIZE


def test_ram_that_comes_and_goes() -> None:
    ram = memory()
    driver, ring = ring_in(ram)
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


def test_while_somebody_asks_what_is_written_python_does_it() -> None:
    ram = memory()
    driver, ring = ring_in(ram)
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


@pytest.mark.parametrize("features", [MRG_RXBUF, 0])
@pytest.mark.parametrize("length", [60, 1500, 9000])
def test_a_card_gives_the_driver_the_same_either_way(features: int, length: int) -> None:
    seen = []
    for fills in (SplitFiller, None):
        card = NetDriver(FakeOffloadWire(), without=0 if features else MRG_RXBUF)
        card.ram.make_filler = fills
        for _ in range(6):
            card.offer(2048)
        for n in range(2):
            card.wire.give(bytes(12) + frame(bytes(range(n, n + 50)) * (length // 50)))
        seen.append((card.frames(), card.wire.received, card.wire.dropped))
    assert seen[0] == seen[1]
