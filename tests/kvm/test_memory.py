"""Memory slots: RAM, ROM, the dirty log, and what a hole is."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import struct
import weakref

import pytest

from kvm_cffi import KvmError, constants
from kvm_cffi.exits import MmioRead, MmioWrite, PioOut
from pyvmm.board.layout import DEBUG_EXIT
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from tests.rig.board import board
from tests.rig.rig import HARDWARE, Rig

AT = 32 * MIB
FLUSHES = 100
"""How often the guest `testdev` writes its page and has it flushed."""
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


def statistic(fd: int, wanted: str) -> int:
    """A counter of a VM or vCPU (KVM documentation, 4.133: header, descriptors, data)."""
    stats = fcntl.ioctl(fd, constants.KVM_GET_STATS_FD, 0)
    try:
        _, name_size, count, _, descriptors, data = struct.unpack("<6I", os.pread(stats, 24, 0))
        for at in range(descriptors, descriptors + count * (16 + name_size), 16 + name_size):
            _, _, _, offset, _ = struct.unpack("<IhHII", os.pread(stats, 16, at))
            if os.pread(stats, name_size, at + 16).partition(b"\0")[0] == wanted.encode():
                return int.from_bytes(os.pread(stats, 8, data + offset), "little")
    finally:
        os.close(stats)
    raise AssertionError(f"KVM counts no {wanted}")


def test_a_flushed_page_leaves_the_second_level_tables() -> None:
    """With a processor behind KVM the next access is a fault that KVM mends; where KVM emulates, there is none."""
    with board("testdev", devices=("testdev", "pci-testdev")) as machine:
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 0), f"step {machine.value('step')}"
        faults = statistic(machine.vcpus[0].fd, "pf_fixed")
        page = machine.memory.read(machine.value("flushed"), 16)
    assert page[8:12] == (FLUSHES - 1).to_bytes(4, "little")
    assert faults >= FLUSHES if HARDWARE else faults == 0
