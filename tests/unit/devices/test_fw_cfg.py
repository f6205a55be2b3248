"""fw_cfg as libcflat, SeaBIOS and Linux use it: a selector of 16 bits, a byte at a time, or by DMA."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.devices.fw_cfg import PIECE, FwCfg, VmCoreInfo, check_name
from pyvmm.memory import GuestMemory
from pyvmm.units import GIB, KIB

ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
FILES: Final = {"etc/e820": b"map", "bootorder": b"", "opt/" + "x" * 51: b"last"}
OPS: Final = int(os.environ.get("PYVMM_SOAK_OPS", "20000"))
NOWHERE: Final = 1 << 40
WHERE: Final = 0x100
"""Of the description of an access."""


class Guest:
    """The device, and a guest that uses it."""

    def __init__(self, files: Mapping[str, bytes] = FILES, *, ram_size: int = 5 * GIB, memory: int = 64 * KIB) -> None:
        self.memory = GuestMemory.of_size(memory)
        self.later: list[Callable[[], None]] = []
        self.device = FwCfg(self.memory, ram_size, 3, lambda: files, self.later.append)

    def item(self, key: int, length: int) -> bytes:
        self.device.write(0, 2, key)
        return bytes(self.device.read(1, 1) for _ in range(length))

    def directory(self) -> dict[str, tuple[int, int]]:
        """Name: (key, size)."""
        count = int.from_bytes(self.item(0x19, 4), "big")
        entries = struct.iter_unpack(">IH2x56s", self.item(0x19, 4 + 64 * count)[4:])
        return {name.rstrip(b"\0").decode(): (key, size) for size, key, name in entries}

    def start(self, where: int) -> None:
        for offset, half in ((4, where >> 32), (8, where & 0xFFFFFFFF)):
            self.device.write(offset, 4, int.from_bytes(half.to_bytes(4, "big"), "little"))

    def control(self) -> int:
        return int.from_bytes(self.memory.read(WHERE, 4), "big")

    def dma(self, control: int, length: int = 0, address: int = 0) -> int:
        """An access to its end; its control then."""
        self.memory.write(WHERE, struct.pack(">IIQ", control, length, address))
        self.start(WHERE)
        while self.control() & ~ERROR:
            self.later.pop(0)()
        return self.control()


def test_items() -> None:
    guest = Guest()
    assert bytes(guest.device.read(1, 1) for _ in range(5)) == b"QEMU\0", "selected after power-on"
    assert guest.item(0, 6) == b"QEMU\0\0"
    assert guest.item(1, 4) == b"\3\0\0\0", "registers and DMA"
    assert guest.item(3, 9) == (5 * GIB).to_bytes(9, "little")
    assert guest.item(5, 3) == guest.item(0x0F, 3) == b"\3\0\0"
    assert guest.item(0x8002, 2) == b"\1\0", "IRQ 0 is at pin 2"
    assert guest.item(0x4005, 2) == b"\3\0", "the write channel"
    for unknown in (2, 0x18, 0x24, 0x8001, 0xFFFF):
        assert guest.item(unknown, 4) == bytes(4)


def test_files_are_found_in_the_directory() -> None:
    guest = Guest()
    directory = guest.directory()
    assert list(directory) == sorted([*FILES, "etc/vmcoreinfo"])
    for name, data in FILES.items():
        key, size = directory[name]
        assert guest.item(key, size + 1) == data + b"\0"


def test_files_are_made_when_they_are_looked_for_and_anew_after_a_reset() -> None:
    made = list[int]()

    def files() -> dict[str, bytes]:
        made.append(len(made))
        return {"etc/n": b"%d" % len(made)}

    device = FwCfg(GuestMemory.of_size(KIB), 1, 1, files, lambda call: None)
    assert not made
    for expected in (b"1", b"1", b"2"):
        if expected == b"2":
            device.reset()
        device.write(0, 2, 0x20)
        assert device.read(1, 1) == expected[0]


@pytest.mark.parametrize("name", ["", "x" * 56, "opt/ä", "opt/\n"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a file in fw_cfg"):
        check_name(name)
    check_name("x" * 55)


def test_other_widths_do_nothing() -> None:
    guest = Guest()
    device = guest.device
    guest.item(0, 1)
    device.write(0, 1, 5)
    device.write(0, 4, 5)
    device.write(1, 1, 5)
    assert device.read(0, 2) == 0xFFFF and device.read(0, 4) == 0xFFFFFFFF and device.read(2, 1) == 0xFF
    assert device.read(1, 1) == ord("E")
    device.reset()
    assert device.read(1, 1) == ord("Q")


def test_the_dma_register_reads_as_a_signature() -> None:
    device = Guest().device
    assert b"".join(device.read(4 + at, 4).to_bytes(4, "little") for at in (0, 4)) == b"QEMU CFG"
    assert bytes(device.read(4 + at, 1) for at in range(8)) == b"QEMU CFG"


def test_dma_selects_reads_and_skips() -> None:
    guest = Guest({"opt/a": b"0123456789"})
    key, _ = guest.directory()["opt/a"]
    guest.memory.write(0x200, b"\xee" * 16)
    assert guest.dma(key << 16 | SELECT | READ, 4, 0x200) == 0
    assert guest.dma(SKIP, 2) == 0
    assert guest.dma(READ, 8, 0x204) == 0
    assert guest.memory.read(0x200, 16) == b"01236789" + bytes(4) + b"\xee" * 4, "zeroes behind the end"
    assert guest.dma(key << 16 | SELECT) == 0 and guest.device.read(1, 1) == ord("0")
    assert guest.dma(SKIP, 0xFFFFFFFF) == 0 and guest.device.read(1, 1) == 0
    assert guest.dma(READ, 0, NOWHERE) == 0, "nothing is moved"


def test_an_access_from_above_4_gib() -> None:
    memory = GuestMemory([(0, memoryview(bytearray(4096))), (5 * GIB, memoryview(bytearray(4096)))])
    device = FwCfg(memory, 1, 1, dict, lambda call: None)
    memory.write(5 * GIB, struct.pack(">IIQ", SELECT | READ, 4, 5 * GIB + 64))
    device.write(4, 4, int.from_bytes((1).to_bytes(4, "big"), "little"))
    device.write(8, 4, int.from_bytes((1 * GIB).to_bytes(4, "big"), "little"))
    assert memory.read(5 * GIB, 4) == bytes(4) and memory.read(5 * GIB + 64, 4) == b"QEMU"
    memory.write(64, struct.pack(">IIQ", READ, 4, NOWHERE))
    device.write(8, 4, int.from_bytes((64).to_bytes(4, "big"), "little"))
    assert memory.read(64, 4) == b"\0\0\0\1", "the high half is used once"


@pytest.mark.parametrize(
    ("control", "length", "address"),
    [
        (READ, 4, NOWHERE),
        (READ, 4, 64 * KIB - 2),
        (WRITE, 4, 0x200),
        (0x19 << 16 | SELECT | WRITE, 4, 0x200),
        (0x20 << 16 | SELECT | WRITE, 0, 0x200),
    ],
)
def test_what_cannot_be_done_is_an_error(control: int, length: int, address: int) -> None:
    guest = Guest()
    assert guest.dma(control, length, address) == ERROR
    assert guest.dma(SELECT | READ, 4, 0x200) == 0 and guest.memory.read(0x200, 4) == b"QEMU", "and the next one works"


@pytest.mark.parametrize("where", [NOWHERE, 64 * KIB - 8, (1 << 64) - 8])
def test_a_description_that_is_nowhere(where: int) -> None:
    guest = Guest()
    before = guest.memory.read(0, 64 * KIB - 8)
    guest.start(where)
    assert guest.memory.read(0, 64 * KIB - 8) == before and guest.device.dma_access is None
    if where == 64 * KIB - 8:
        assert guest.memory.read(where, 4) == b"\0\0\0\1", "there is room for the error"


def test_a_long_access_goes_on_in_pieces() -> None:
    size = 2 * PIECE + 5
    data = bytes(range(251)) * (size // 251 + 1)
    guest = Guest({"opt/large": data}, memory=4 * PIECE)
    guest.memory.write(WHERE, struct.pack(">IIQ", 0x21 << 16 | SELECT | READ, size, PIECE))
    guest.start(WHERE)
    for pieces in (1, 2):
        assert guest.control() & ~ERROR, "it goes on"
        assert guest.memory.read(PIECE, pieces * PIECE) == data[: pieces * PIECE]
        assert guest.memory.read(PIECE * (1 + pieces), 64) == bytes(64)
        guest.later.pop(0)()
    assert guest.control() == 0 and guest.memory.read(PIECE, size) == data[:size] and not guest.later


def test_another_one_while_it_goes_on_is_lost() -> None:
    guest = Guest({"opt/large": b"x" * 2 * PIECE}, memory=4 * PIECE)
    guest.memory.write(WHERE, struct.pack(">IIQ", 0x21 << 16 | SELECT | READ, 2 * PIECE, PIECE))
    guest.start(WHERE)
    guest.memory.write(0x200, struct.pack(">IIQ", READ, 4, NOWHERE))
    guest.start(0x200)
    assert len(guest.later) == 1 and guest.memory.read(0x200, 4) == b"\0\0\0\2"
    guest.later.pop()()
    assert guest.control() == 0 and guest.memory.read(3 * PIECE - 1, 1) == b"x"


def test_a_reset_ends_it() -> None:
    guest = Guest({"opt/large": b"x" * 2 * PIECE}, memory=4 * PIECE)
    guest.memory.write(WHERE, struct.pack(">IIQ", 0x21 << 16 | SELECT | READ, 2 * PIECE, PIECE))
    guest.start(WHERE)
    guest.device.reset()
    guest.later.pop()()
    assert guest.memory.read(2 * PIECE, PIECE) == bytes(PIECE) and not guest.later


def test_it_goes_on_after_a_load() -> None:
    guest, other = (Guest({"opt/large": b"x" * 2 * PIECE}, memory=4 * PIECE) for _ in range(2))
    guest.memory.write(WHERE, struct.pack(">IIQ", 0x21 << 16 | SELECT | READ, 2 * PIECE, PIECE))
    guest.start(WHERE)
    other.memory.write(0, guest.memory.read(0, 4 * PIECE))
    state.load(other.device, state.save(guest.device))
    other.later.pop()()
    assert other.control() == 0 and other.memory.read(PIECE, 2 * PIECE) == b"x" * 2 * PIECE


anything = st.one_of(st.none(), st.text(max_size=2), st.integers(-(1 << 70), 1 << 70), st.integers(-5, 300))


@given(
    st.fixed_dictionaries(
        {
            "selected": anything | st.integers(0x19, 0x24),
            "offset": anything,
            "dma_high": anything,
            "dma_access": anything | st.lists(anything, min_size=3, max_size=5).map(tuple),
            "vmcoreinfo": st.binary(max_size=17),
        }
    )
)
def test_whatever_a_file_has(saved: Any) -> None:
    """It is refused, or what the guest does then is no trouble."""
    guest = Guest({"a": b"b"})
    try:
        state.load(guest.device, saved)
    except (struct.error, state.StateError, TypeError):
        return
    for _ in range(3):
        if guest.later:
            guest.later.pop()()
    assert 0 <= guest.device.read(1, 1) <= 0xFF
    guest.start(NOWHERE)
    assert guest.device.vmcoreinfo_note is None or guest.device.vmcoreinfo_note.size >= 0


def test_linux_says_where_its_vmcoreinfo_is() -> None:
    guest = Guest()
    key, size = guest.directory()["etc/vmcoreinfo"]
    assert guest.item(key, size) == struct.pack("<HHIQ", 1, 0, 0, 0), "this host takes an ELF note"
    assert guest.device.vmcoreinfo_note is None
    guest.memory.write(0x200, struct.pack("<HHIQ", 0, 1, 0x1024, 5 * GIB))
    assert guest.dma(key << 16 | SELECT | WRITE, 17, 0x200) == ERROR, "more than there is"
    assert guest.dma(key << 16 | SELECT | WRITE, 16, NOWHERE) == ERROR
    assert guest.device.vmcoreinfo_note is None
    assert guest.dma(key << 16 | SELECT | WRITE, 16, 0x200) == 0
    assert guest.device.vmcoreinfo_note == VmCoreInfo(5 * GIB, 0x1024)
    other = Guest()
    state.load(other.device, state.save(guest.device))
    assert other.device.vmcoreinfo_note == VmCoreInfo(5 * GIB, 0x1024)
    guest.device.reset()
    assert guest.device.vmcoreinfo_note is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 11), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFFFFFF))))
def test_any_access(accesses: list[tuple[bool, int, int, int]]) -> None:
    guest = Guest({"a": b"b"})
    for is_write, offset, size, value in accesses:
        size = min(size, 12 - offset) if offset + size > 12 else size
        if size == 3:
            continue
        if is_write:
            guest.device.write(offset, size, value & ((1 << 8 * size) - 1))
        else:
            assert 0 <= guest.device.read(offset, size) < 1 << 8 * size
        assert guest.device.offset <= 4 + 2 * 64, "no item is longer, and a guest that reads on moves nothing"


controls = st.one_of(
    st.integers(0, 0x1F), st.builds(lambda key, bits: key << 16 | bits, st.integers(0, 0x24), st.integers(0, 0x1F))
)
lengths = st.one_of(st.integers(0, 300), st.sampled_from((PIECE - 1, PIECE, PIECE + 1, 3 * PIECE)))
addresses = st.one_of(st.integers(0x200, 0x400), st.sampled_from((0, 2 * PIECE, 4 * PIECE - 1, NOWHERE, (1 << 64) - 1)))


@given(st.lists(st.tuples(controls, lengths, addresses), max_size=8))
def test_any_dma_is_what_the_specification_says(accesses: list[tuple[int, int, int]]) -> None:
    """Beside a model that does each access at once, on a copy of RAM."""
    files = {"etc/a": bytes(range(1, 200)), "opt/large": b"ab" * PIECE}
    guest = Guest(files, memory=4 * PIECE)
    items = {0: b"QEMU", 1: b"\3\0\0\0", 3: (5 * GIB).to_bytes(8, "little"), 5: b"\3\0", 0xF: b"\3\0"}
    items |= {key: files.get(name, b"") for name, (key, _) in guest.directory().items()}
    written = bytearray(struct.pack("<HHIQ", 1, 0, 0, 0))
    selected, offset = 0, 0
    guest.device.write(0, 2, 0)
    directory_key, core = 0x19, guest.directory()["etc/vmcoreinfo"][0]
    items[directory_key] = guest.item(directory_key, 4 + 64 * 3)
    guest.device.write(0, 2, 0)
    for control, length, address in accesses:
        if address < WHERE + 16 and address + length > WHERE:
            continue  # over its own control word, which a guest could not wait for
        guest.memory.write(WHERE, struct.pack(">IIQ", control, length, address))
        ram = bytearray(guest.memory.read(0, 4 * PIECE))
        if control & SELECT:
            selected, offset = control >> 16, 0
        data = bytes(written) if selected == core else items.get(selected, b"")
        error, inside = 0, address >= 0 and address + length <= len(ram)
        if not control & (READ | WRITE | SKIP):
            length = 0
        piece = data[offset : offset + length].ljust(length, b"\0")
        if control & READ:
            if length and not inside:
                assert guest.dma(control, length, address) == ERROR
                return  # how much of it came into RAM is not said
            ram[address : address + length] = piece if length else b""
        elif control & WRITE:
            if selected != core or offset + length > len(written) or not inside:
                error = ERROR
            else:
                written[offset : offset + length] = ram[address : address + length]
        if not error:
            offset = min(offset + length, max(len(data), offset))
        ended = guest.dma(control, length, address)
        ram[WHERE : WHERE + 4] = ended.to_bytes(4, "big")
        ram[WHERE + 4 : WHERE + 8] = guest.memory.read(WHERE + 4, 4)
        assert ended == error and bytes(ram) == guest.memory.read(0, 4 * PIECE)


@settings(deadline=None, max_examples=max(1, OPS // 500))
@given(seed=st.integers(0, 1 << 32))
def test_whatever_a_guest_does(seed: int) -> None:
    """It never raises, keeps at most one piece for later, and reaches nothing but RAM."""
    chance = random.Random(seed)
    guest = Guest({"etc/a": bytes(range(1, 200)), "opt/large": b"ab" * PIECE}, memory=4 * PIECE)
    device = guest.device
    for _ in range(500):
        kind, size = chance.randrange(6), chance.choice((1, 2, 4))
        if kind == 0:
            device.write(chance.randrange(13 - size), size, chance.getrandbits(8 * size))
        elif kind == 1:
            assert 0 <= device.read(chance.randrange(13 - size), size) < 1 << 8 * size
        elif kind == 2:
            control = chance.choice((chance.randrange(0x24) << 16 | chance.randrange(0x20), chance.getrandbits(32)))
            length = chance.choice((chance.randrange(64), chance.getrandbits(22), chance.getrandbits(32)))
            address = chance.choice((chance.getrandbits(22), chance.getrandbits(64)))
            guest.memory.write(WHERE, struct.pack(">IIQ", control, length, address))
            guest.start(chance.choice((WHERE, chance.getrandbits(23), chance.getrandbits(64))))
        elif kind == 3 and chance.randrange(50) == 0:
            device.reset()
        elif guest.later:
            guest.later.pop(0)()
        assert len(guest.later) <= 2 and len(device.vmcoreinfo) == 16
        note = device.vmcoreinfo_note
        assert note is None or (note.size < 1 << 32 and note.paddr < 1 << 64)
