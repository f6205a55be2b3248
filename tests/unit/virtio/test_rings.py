"""Split and packed rings against a model of the driver, and against drivers that break the rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.memory import GuestMemory
from pyvmm.virtio.packed import PackedRing
from pyvmm.virtio.ring import QueueError
from pyvmm.virtio.split import SplitRing
from tests.rig.virtio_driver import AVAIL, INDIRECT, NEXT, USED, WRITE, Driver, PackedDriver, SplitDriver

RAM = 1 << 20
DATA = 0x20000
TABLES = 0x80000
KINDS = [(kind, event_idx) for kind in ("split", "packed") for event_idx in (False, True)]


def pair(kind: str, size: int, event_idx: bool, indirect: bool = True) -> tuple[Driver, SplitRing | PackedRing]:
    memory = GuestMemory.of_size(RAM)
    if kind == "split":
        split = SplitDriver(memory, 0x1000, size, event_idx)
        return split, SplitRing(
            memory, size, split.desc, split.driver, split.device, indirect=indirect, event_idx=event_idx
        )
    packed = PackedDriver(memory, 0x1000, size, event_idx)
    return packed, PackedRing(
        memory, size, packed.desc, packed.driver, packed.device, indirect=indirect, event_idx=event_idx
    )


BUFFERS = st.lists(st.integers(0, 40), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), BUFFERS, BUFFERS, st.booleans()),
        st.tuples(st.just("take"), st.integers(1, 4), st.booleans(), st.none()),
        st.tuples(st.just("reap"), st.booleans(), st.none(), st.none()),
    ),
    max_size=60,
)


@pytest.mark.parametrize(("kind", "event_idx"), KINDS)
@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from([1, 2, 4, 8]), steps=STEPS)
def test_every_chain_comes_back_once_in_order_and_nobody_is_left_waiting(
    kind: str, event_idx: bool, size: int, steps: list[tuple[str, object, object, object]]
) -> None:
    driver, ring = pair(kind, size, event_idx)
    memory = driver.memory
    fifo: list[tuple[int, bytes, int]] = []  # (id, what the device must read, room) of what is available
    done: list[tuple[int, int]] = []
    fresh, table = DATA, TABLES
    ring.set_kicks(True)
    driver.arm()
    kicks_armed = irq_armed = True
    for step in steps:
        if step[0] == "add":
            outs, ins, indirect = step[1], step[2], step[3]
            assert isinstance(outs, list) and isinstance(ins, list)
            gpa, buffers, data = fresh, [], b""
            fresh += 0x100
            for i, length in enumerate([*outs, *ins]):
                if i < len(outs):
                    content = bytes((i * 31 + j + len(steps)) & 0xFF for j in range(length))
                    memory.write(gpa, content)
                    data += content
                buffers.append((gpa, length, i >= len(outs)))
                gpa += length
            if not buffers:
                continue
            added = driver.add(buffers, table if indirect else None)
            if added is not None:
                table += 0x100
                fifo.append((added, data, sum(ins)))
                if driver.needs_kick():
                    kicks_armed = False
                else:
                    assert not kicks_armed, "the device asked for a kick and would not have got it"
        elif step[0] == "take":
            count, ask = step[1], step[2]
            assert isinstance(count, int)
            pushed = False
            for _ in range(count):
                chain = ring.pop()
                if chain is None:
                    assert not fifo
                    break
                expected_id, data, room = fifo.pop(0)
                assert (chain.id, chain.read(1 << 20), chain.writable_size) == (expected_id, data, room)
                written = chain.write(bytes(range(200))[: max(room - 1, 0)])
                ring.push(chain, written)
                done.append((chain.id, written))
                pushed = True
            if ask and not fifo:
                ring.set_kicks(True)
                kicks_armed = True
            interrupted = ring.flush()
            if pushed and irq_armed:
                assert interrupted, "the driver asked for an interrupt and would not have got it"
                irq_armed = False
        else:
            assert driver.used() == done
            done.clear()
            driver.arm(bool(step[1]))
            irq_armed = bool(step[1])
    assert driver.used() == done


@pytest.mark.parametrize(("kind", "event_idx"), KINDS)
def test_a_flush_shows_all_or_nothing(kind: str, event_idx: bool) -> None:
    driver, ring = pair(kind, 8, event_idx)
    for i in range(3):
        driver.add([(DATA + i * 16, 8, True)])
    chains = [ring.pop() for _ in range(3)]
    for chain in chains:
        assert chain is not None
        ring.push(chain, 8)
        assert driver.used() == []
    ring.flush()
    assert len(driver.used()) == 3


class Spy:
    """A ring's words, and the order in which they were written."""

    def __init__(self, words: memoryview) -> None:
        self.words, self.order = words, list[int]()

    def __getitem__(self, index: int) -> int:
        return self.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self.words[index] = value
        self.order.append(index)


def test_the_first_descriptor_of_a_packed_batch_is_used_last() -> None:
    """A driver that looks while we write sees nothing or everything."""
    driver, ring = pair("packed", 8, False)
    for i in range(3):
        driver.add([(DATA + i * 16, 8, True)])
    for chain in [ring.pop() for _ in range(3)]:
        assert chain is not None
        ring.push(chain, 8)
    spy = Spy(ring._words)  # type: ignore[union-attr]
    ring._words = spy  # type: ignore[union-attr]
    ring.flush()
    assert spy.order[-1] == 7 and sorted(spy.order) == [7, 15, 23]


@pytest.mark.parametrize(("kind", "event_idx"), KINDS)
def test_indices_wrap_around(kind: str, event_idx: bool) -> None:
    """70000 chains: the 16-bit indices of a split ring go round, the wrap counters of a packed one many times."""
    driver, ring = pair(kind, 4, event_idx)
    interrupts = 0
    for i in range(70000):
        added = driver.add([(DATA, 8, True)])
        assert driver.needs_kick()
        driver.arm()
        chain = ring.pop()
        assert chain is not None
        ring.push(chain, i & 7)
        interrupts += ring.flush()
        assert driver.used() == [(added, i & 7)]
        ring.set_kicks(True)
    assert interrupts == 70000


@pytest.mark.parametrize(("kind", "event_idx"), KINDS)
def test_no_interrupt_and_no_kick_when_none_is_wanted(kind: str, event_idx: bool) -> None:
    driver, ring = pair(kind, 8, event_idx)
    driver.arm(False)
    for _ in range(100):
        ring.set_kicks(False)
        driver.add([(DATA, 8, True)])
        assert not driver.needs_kick()
        chain = ring.pop()
        assert chain is not None
        ring.push(chain, 0)
        assert not ring.flush()
        driver.used()
        driver.arm(False)


# Drivers that break the rules


def test_split_index_that_jumps() -> None:
    driver, ring = pair("split", 8, False)
    assert isinstance(driver, SplitDriver)
    driver.set_avail_idx(9)
    with pytest.raises(QueueError, match="jumped by 9"):
        ring.pop()


def test_split_index_that_goes_back() -> None:
    driver, ring = pair("split", 8, False)
    assert isinstance(driver, SplitDriver)
    driver.add([(DATA, 8, True)])
    ring.pop()
    driver.set_avail_idx(0)
    with pytest.raises(QueueError, match="jumped"):
        ring.pop()


def test_split_head_and_next_outside_the_table() -> None:
    driver, ring = pair("split", 8, False)
    assert isinstance(driver, SplitDriver)
    driver.offer(8)
    with pytest.raises(QueueError, match="descriptor 8 of 8"):
        ring.pop()
    driver, ring = pair("split", 8, False)
    assert isinstance(driver, SplitDriver)
    driver.write_desc(0, DATA, 8, NEXT, 0xFFFF)
    driver.offer(0)
    with pytest.raises(QueueError, match="descriptor 65535 of 8"):
        ring.pop()


def test_split_loop() -> None:
    driver, ring = pair("split", 8, False)
    assert isinstance(driver, SplitDriver)
    driver.write_desc(0, DATA, 8, NEXT, 1)
    driver.write_desc(1, DATA, 8, NEXT, 0)
    driver.offer(0)
    with pytest.raises(QueueError, match="loops"):
        ring.pop()


def test_packed_chain_without_an_end() -> None:
    driver, ring = pair("packed", 8, False)
    assert isinstance(driver, PackedDriver)
    for i in range(8):
        driver.write_desc(i, DATA, 8, 0, NEXT | AVAIL)
    with pytest.raises(QueueError, match="longer than the ring"):
        ring.pop()


@pytest.mark.parametrize("kind", ["split", "packed"])
def test_readable_after_writable(kind: str) -> None:
    for indirect_at in (None, TABLES):
        driver, ring = pair(kind, 8, False)
        driver.add([(DATA, 8, True), (DATA, 8, False)], indirect_at)
        with pytest.raises(QueueError, match="readable descriptor after a writable"):
            ring.pop()


@pytest.mark.parametrize("kind", ["split", "packed"])
@pytest.mark.parametrize(
    ("gpa", "length"), [(RAM, 1), (RAM - 1, 2), ((1 << 64) - 1, 2), ((1 << 64) - 16, 0x20), (DATA, 0xFFFFFFFF)]
)
def test_buffers_outside_ram(kind: str, gpa: int, length: int) -> None:
    for write in (False, True):
        for indirect_at in (None, TABLES):
            driver, ring = pair(kind, 8, False)
            driver.add([(gpa, length, write)], indirect_at)
            with pytest.raises(QueueError, match="no guest RAM"):
                ring.pop()


@pytest.mark.parametrize("kind", ["split", "packed"])
@pytest.mark.parametrize("length", [0, 8, 24, 16 << 16])
def test_bad_indirect_tables(kind: str, length: int) -> None:
    driver, ring = pair(kind, 8, False)
    driver.memory.write(driver.desc, struct.pack("<QI", TABLES, length))
    flags = INDIRECT if kind == "split" else INDIRECT | AVAIL
    at = driver.desc + (12 if kind == "split" else 14)
    driver.memory.write_int(at, 2, flags)
    if isinstance(driver, SplitDriver):
        # Each entry is linked to the next one, without an end.
        for i in range(0xFFFF):
            driver.memory.write(
                TABLES + 16 * i, struct.pack("<QIHH", DATA, 1, NEXT, (i + 1) & 0x7FF)
            ) if i < 0x800 else None
        driver.offer(0)
    with pytest.raises(QueueError):
        ring.pop()


@pytest.mark.parametrize("kind", ["split", "packed"])
def test_indirect_inside_indirect_or_not_negotiated(kind: str) -> None:
    driver, ring = pair(kind, 8, False)
    driver.add([(DATA, 16, False)], TABLES)
    driver.memory.write_int(TABLES + (12 if kind == "split" else 14), 2, INDIRECT)
    with pytest.raises(QueueError, match="inside"):
        ring.pop()
    driver, ring = pair(kind, 8, False, indirect=False)
    driver.add([(DATA, 16, False)], TABLES)
    with pytest.raises(QueueError, match="not negotiated"):
        ring.pop()


def test_split_indirect_after_direct_descriptors() -> None:
    """Section 2.7.5.3.2: normal descriptors and then one indirect; the write flag of the latter is ignored."""
    driver, ring = pair("split", 8, False)
    assert isinstance(driver, SplitDriver)
    driver.memory.write(DATA, b"abcdef")
    driver.memory.write(TABLES, struct.pack("<QIHH", DATA + 3, 3, 0, 0))
    driver.write_desc(0, DATA, 3, NEXT, 1)
    driver.write_desc(1, TABLES, 16, INDIRECT | WRITE)
    driver.offer(0)
    chain = ring.pop()
    assert chain is not None and chain.read(100) == b"abcdef"


def test_indirect_with_a_next() -> None:
    """Section 2.7.5.3.1: the driver must not set both; in a packed ring an indirect descriptor is a whole chain."""
    for first, second in ((INDIRECT | NEXT, 0), (NEXT, INDIRECT)):
        driver, ring = pair("packed", 8, False)
        driver.memory.write(TABLES, struct.pack("<QIHH", DATA, 3, 0, 0))
        driver.write_desc(1, TABLES, 16, 0, second | AVAIL)
        driver.write_desc(0, TABLES, 16, 0, first | AVAIL)
        with pytest.raises(QueueError, match="part of a chain"):
            ring.pop()
    driver, ring = pair("split", 8, False)
    assert isinstance(driver, SplitDriver)
    driver.memory.write(TABLES, struct.pack("<QIHH", DATA, 3, 0, 0))
    driver.write_desc(0, TABLES, 16, INDIRECT | NEXT, 1)
    driver.write_desc(1, DATA, 3, 0)
    driver.offer(0)
    with pytest.raises(QueueError, match="has a next"):
        ring.pop()


@pytest.mark.parametrize("kind", ["split", "packed"])
def test_chains_of_more_than_four_gigabytes(kind: str) -> None:
    big = GuestMemory.of_size(0x500000)
    size, count = 0x480000, 1000
    driver = SplitDriver(big, 0x1000, 8) if kind == "split" else PackedDriver(big, 0x1000, 8)
    ring = (SplitRing if kind == "split" else PackedRing)(big, 8, driver.desc, driver.driver, driver.device)
    driver.add([(0x20000, size, False)] * count, 0x10000)
    with pytest.raises(QueueError, match="4 GiB"):
        ring.pop()


@pytest.mark.parametrize("ring", [SplitRing, PackedRing])
def test_rings_that_can_not_be(ring: type[SplitRing] | type[PackedRing]) -> None:
    memory = GuestMemory.of_size(RAM)
    for size, desc, driver, device in (
        (0, 0x1000, 0x2000, 0x3000),
        (65536, 0x1000, 0x2000, 0x3000),
        (8, 0x1008, 0x2000, 0x3000),
        (8, 0x1000, 0x2001, 0x3000),
        (8, 0x1000, 0x2000, 0x3002),
        (8, RAM - 16, 0x2000, 0x3000),
        (8, 0x1000, RAM, 0x3000),
        (8, 0x1000, 0x2000, (1 << 64) - 4),
    ):
        with pytest.raises(QueueError):
            ring(memory, size, desc, driver, device)
    with pytest.raises(QueueError):
        SplitRing(memory, 6, 0x1000, 0x2000, 0x3000)
    PackedRing(memory, 6, 0x1000, 0x2000, 0x3000)


def test_split_without_event_idx_has_no_event_fields() -> None:
    """A driver without EVENT_IDX may put the rings at the very end of RAM."""
    memory = GuestMemory.of_size(RAM)
    SplitRing(memory, 8, 0x1000, RAM - 20, 0x2000)
    SplitRing(memory, 8, 0x1000, 0x2000, RAM - 68)
    with pytest.raises(QueueError):
        SplitRing(memory, 8, 0x1000, RAM - 20, 0x2000, event_idx=True)


def test_packed_descriptor_that_is_both_available_and_used_is_not_available() -> None:
    driver, ring = pair("packed", 8, False)
    assert isinstance(driver, PackedDriver)
    driver.write_desc(0, DATA, 8, 0, AVAIL | USED)
    assert ring.pop() is None
