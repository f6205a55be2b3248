"""Port I/O and MMIO as a vCPU's exits give them: each access once, in order, at its size, string I/O item by item."""

from __future__ import annotations

from kvm_cffi import constants
from kvm_cffi.exits import MmioRead, MmioWrite, PioIn, PioOut
from pyvmm.guests import load
from tests.rig.rig import Rig

BASE = 0xD0000000
WORD = 0x8877665544332211


def part(first: int, size: int) -> int:
    """*size* bytes of WORD, from byte *first*."""
    return WORD >> 8 * first & (1 << 8 * size) - 1


def test_port_io_of_each_size() -> None:
    answers = {1: 0xA1, 2: 0xB2B1, 4: 0xC4C3C2C1}
    with Rig("pio") as rig:
        exits, value = rig.run(
            lambda exit: 0x77 if isinstance(exit, PioIn) and exit.port == 0x80 else answers[exit.size]
        )
        assert exits == [
            PioOut(0x5000, 1, 0x11),
            PioOut(0x5000, 2, 0x2211),
            PioOut(0x5000, 4, 0x44332211),
            PioOut(0x80, 1, 0x11),
            PioIn(0x5000, 1),
            PioIn(0x5000, 2),
            PioIn(0x5000, 4),
            PioIn(0x80, 1),
        ]
        assert value == 0
        assert [rig.value(name) for name in ("in1", "in2", "in4", "in_imm")] == [0xA1, 0xB2B1, 0xC4C3C2C1, 0x77]


def test_an_answer_is_cut_to_the_size_of_the_read() -> None:
    with Rig("pio") as rig:
        rig.run(lambda exit: 0x1122334455667788)
        assert [rig.value(name) for name in ("in1", "in2", "in4", "in_imm")] == [0x88, 0x7788, 0x55667788, 0x88]


def test_string_io_comes_item_by_item() -> None:
    reads = iter(range(1, 1 << 16))
    with Rig(load("string-io").with_parameters(port=0x1234)) as rig:
        exits, value = rig.run(lambda exit: next(reads))
        text = b"string I/O bytes"
        assert value == 0
        assert exits[:32] == [PioOut(0x1234, 1, byte) for byte in text + text[::-1]], "rep outsb, up and down"
        assert exits[32:37] == [PioIn(0x1234, 1)] * 5, "rep insb"
        assert exits[37:41] == [PioIn(0x1234, 2)] * 4, "rep insw"
        assert exits[41 : 41 + 2049] == [PioOut(0x1234, 4, n) for n in range(2049)], "more than two pages of rep outsl"
        assert exits[41 + 2049 :] == [PioIn(0x1234, 4)] * 2048, "two pages of rep insl"
        assert rig.memory.read(rig.symbol("in_bytes"), 5) == bytes([1, 2, 3, 4, 5])
        assert rig.memory.read(rig.symbol("in_words"), 8) == bytes([6, 0, 7, 0, 8, 0, 9, 0])
        assert rig.value("in_sum") == sum(range(10, 10 + 2048))


def test_one_exit_carries_many_items_of_a_string_read() -> None:
    with Rig("string-io") as rig:
        exits, _ = rig.run(lambda exit: 0)
        items = len(exits) + 1
        assert rig.vcpu.exits < items - 2000, "KVM reads ahead for INS"
        batches = [record for record in rig.vcpu.last_exits() if not record.is_write]
        assert max(record.items for record in batches) > 100
        assert all(record.reason == constants.KVM_EXIT_IO and record.size == 4 for record in batches)


def test_mmio_of_each_size() -> None:
    reads = iter([0x1A, 0x2B2A, 0x4D4C4B4A, 0x8877665544332211, 0x01010101, 0x1111111111111111, 0x2222222222222222])
    with Rig(load("mmio").with_parameters(base=BASE)) as rig:
        exits, value = rig.run(lambda exit: next(reads))
        assert exits == [
            MmioWrite(BASE, 1, 0x11),
            MmioWrite(BASE + 2, 2, 0x2211),
            MmioWrite(BASE + 4, 4, 0x44332211),
            MmioWrite(BASE + 8, 8, WORD),
            MmioRead(BASE, 1),
            MmioRead(BASE + 2, 2),
            MmioRead(BASE + 4, 4),
            MmioRead(BASE + 8, 8),
            MmioRead(BASE + 16, 4),
            MmioWrite(BASE + 16, 4, 0x01010181),
            MmioWrite(BASE + 32, 8, 0x0706050403020100),
            MmioWrite(BASE + 40, 8, 0x0F0E0D0C0B0A0908),
            MmioRead(BASE + 32, 8),
            MmioRead(BASE + 40, 8),
        ]
        assert value == 0
        assert [rig.value(f"in{size}") for size in (1, 2, 4, 8)] == [0x1A, 0x2B2A, 0x4D4C4B4A, WORD]
        assert [rig.value("in_string"), rig.value("in_string_2")] == [0x1111111111111111, 0x2222222222222222]


def test_mmio_across_eight_bytes_and_across_pages() -> None:
    ram_end = 16 << 20
    with Rig(load("mmio-cross").with_parameters(base=BASE, memory_end=ram_end)) as rig:

        def answer(exit: PioIn | MmioRead) -> int:
            assert isinstance(exit, MmioRead)
            return sum(((exit.address + i) * 7 & 0xFF) << 8 * i for i in range(exit.size))

        def bytes_at(address: int, size: int) -> int:
            return sum(((address + i) * 7 & 0xFF) << 8 * i for i in range(size))

        exits, value = rig.run(answer)
        odd = BASE + 0x1FFF
        fragments = [
            (BASE + 4, 0, 8),  # within a page it stays one access, across 8 bytes too
            (BASE + 0xFFC, 0, 4),
            (BASE + 0x1000, 4, 4),
            *((odd + i, i, 1) for i in range(8)),  # 1 byte and 7: what is no size of a device comes as bytes
            (ram_end, 4, 4),  # the lower half is RAM
        ]
        assert value == 0
        assert exits == [
            *(MmioWrite(address, size, part(first, size)) for address, first, size in fragments),
            *(MmioRead(address, size) for address, _, size in fragments),
        ]
        assert rig.value("in_8") == bytes_at(BASE + 4, 8)
        assert rig.value("in_page") == bytes_at(BASE + 0xFFC, 8)
        assert rig.value("in_odd") == bytes_at(odd, 8)
        assert rig.memory.read_int(ram_end - 4, 4) == part(0, 4)
        assert rig.value("in_ram") == part(0, 4) | bytes_at(ram_end, 4) << 32
