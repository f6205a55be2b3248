"""Memory slots: RAM, ROM, the dirty log, and what a hole is."""

from __future__ import annotations

import gc
import mmap
import weakref

import pytest

from kvm_cffi import KvmError
from kvm_cffi.exits import MmioRead, MmioWrite, PioOut
from pyvmm.board.layout import DEBUG_EXIT
from pyvmm.units import MIB
from tests.rig.rig import Rig

AT = 32 * MIB
# Long mode, RBX = AT: mov eax, [rbx]; out 0xe9, eax; mov dword [rbx+4], 0x44434241; mov eax, [rbx+4]; out 0xe9, eax;
# mov al, 0; out 0xf4, al
READ_WRITE_READ = "8b 03 e7 e9  c7 43 04 41 42 43 44  8b 43 04 e7 e9  b0 00 e6 f4"


def start(rig: Rig) -> None:
    rig.code(READ_WRITE_READ, mode="long")
    regs = rig.vcpu.get_regs()
    regs.rbx = AT
    rig.vcpu.set_regs(regs)


def page(first: bytes = b"", pages: int = 1) -> mmap.mmap:
    memory = mmap.mmap(-1, pages * 4096)
    memory[: len(first)] = first
    return memory


def test_ram() -> None:
    ram = page(b"\x01\x02\x03\x04")
    with Rig() as rig:
        rig.vm.set_user_memory_region(1, AT, ram)
        start(rig)
        assert rig.run() == ([PioOut(0xE9, 4, 0x04030201), PioOut(0xE9, 4, 0x44434241)], 0)
        assert ram[:8] == b"\x01\x02\x03\x04ABCD"


def test_rom_is_read_without_an_exit_and_a_write_is_mmio() -> None:
    rom = page(b"\x01\x02\x03\x04\x05\x06\x07\x08")
    with Rig() as rig:
        rig.vm.set_user_memory_region(1, AT, rom, readonly=True)
        start(rig)
        assert rig.run() == (
            [PioOut(0xE9, 4, 0x04030201), MmioWrite(AT + 4, 4, 0x44434241), PioOut(0xE9, 4, 0x08070605)],
            0,
        )
        assert rom[:8] == b"\x01\x02\x03\x04\x05\x06\x07\x08"


def test_a_slot_that_was_deleted_is_a_hole() -> None:
    with Rig() as rig:
        rig.vm.set_user_memory_region(1, AT, page())
        rig.vm.set_user_memory_region(1, AT, None)
        start(rig)
        exits, _ = rig.run(lambda exit: 0x55)
        assert exits == [
            MmioRead(AT, 4),
            PioOut(0xE9, 4, 0x55),
            MmioWrite(AT + 4, 4, 0x44434241),
            MmioRead(AT + 4, 4),
            PioOut(0xE9, 4, 0x55),
        ]


def test_the_buffer_of_a_slot_lives_as_long_as_the_slot() -> None:
    with Rig() as rig:
        ram = page()
        seen = weakref.ref(ram)
        rig.vm.set_user_memory_region(1, AT, ram)
        del ram
        gc.collect()
        assert seen() is not None
        rig.vm.set_user_memory_region(1, AT, None)
        gc.collect()
        assert seen() is None


def test_dirty_log() -> None:
    ram = page(pages=66)
    with Rig() as rig:
        rig.vm.set_user_memory_region(1, AT, ram, log_dirty_pages=True)
        size = len(ram)
        assert rig.vm.get_dirty_log(1, size) == bytes(16), "two words of 64 pages"
        start(rig)
        regs = rig.vcpu.get_regs()
        regs.rbx = AT + 65 * 4096
        rig.vcpu.set_regs(regs)
        rig.run()
        assert rig.vm.get_dirty_log(1, size) == (1 << 65).to_bytes(16, "little")
        assert rig.vm.get_dirty_log(1, size) == bytes(16), "reading it clears it"


def test_flags_of_a_slot_can_change() -> None:
    ram = page()
    with Rig() as rig:
        rig.vm.set_user_memory_region(1, AT, ram)
        with pytest.raises(KvmError, match="KVM_GET_DIRTY_LOG"):
            rig.vm.get_dirty_log(1, 4096)
        rig.vm.set_user_memory_region(1, AT, ram, log_dirty_pages=True)
        start(rig)
        rig.run()
        assert rig.vm.get_dirty_log(1, 4096)[0] == 1


@pytest.mark.parametrize(
    ("gpa", "buffer", "message"),
    [
        (0x8000, page(), "File exists"),  # overlaps slot 0
        (AT + 1, page(), "Invalid argument"),
        (AT, memoryview(page(pages=2))[1:4097], "Invalid argument"),
    ],
    ids=["overlap", "address not of a page", "buffer not of a page"],
)
def test_slots_that_kvm_refuses(gpa: int, buffer: mmap.mmap | memoryview, message: str) -> None:
    with Rig() as rig, pytest.raises(KvmError, match=f"KVM_SET_USER_MEMORY_REGION: {message}"):
        rig.vm.set_user_memory_region(1, gpa, buffer)


def test_a_buffer_that_cannot_be_written_is_refused() -> None:
    with Rig() as rig, pytest.raises((TypeError, BufferError)):
        rig.vm.set_user_memory_region(1, AT, bytes(4096))


def test_two_vms_do_not_share_memory() -> None:
    with Rig() as one, Rig() as other:
        one.code("b0 01 a2 00 80 e6 f4")  # mov al, 1; mov [0x8000], al; out 0xf4, al
        assert one.run() == ([], 1)
        assert one.memory.read(0x8000, 1) == b"\x01"
        assert other.memory.read(0x8000, 1) == b"\x00"
        other.code("a0 00 80 e6 f4")
        assert list(other.exits()) == [PioOut(DEBUG_EXIT, 1, 0)]
