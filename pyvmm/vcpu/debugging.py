"""How a vCPU is stopped for a debugger: KVM_SET_GUEST_DEBUG, and what of it a host's KVM really does.

Debug registers by Intel SDM volume 3, 18.2; KVM_GUESTDBG_* by Documentation/virt/kvm/api.rst, section 4.87.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from kvm_cffi import KvmError, System, Vcpu, constants
from kvm_cffi.exits import Debug, Exit
from pyvmm.units import PAGE_SIZE

DB, BP = 1, 3
"""Exception vectors."""
INT3: Final = b"\xcc"
DR6_BS: Final = 1 << 14
DEBUG_REGISTERS: Final = 4
"""Addresses that a processor watches at a time."""

PointKind = Literal["execute", "write", "access"]
_TYPES: Final[dict[PointKind, int]] = {"execute": 0, "write": 1, "access": 3}
_LENGTHS: Final = {1: 0, 2: 1, 4: 3, 8: 2}


@dataclass(frozen=True)
class HardwarePoint:
    """What one of DR0 to DR3 watches for: *length* is 1, 2, 4 or 8 bytes, and *address* a multiple of it."""

    kind: PointKind
    address: int
    length: int = 1

    @property
    def possible(self) -> bool:
        """Whether a debug register can do it."""
        fits = self.length in _LENGTHS and self.address % self.length == 0
        return fits and (self.kind != "execute" or self.length == 1)


def debug_registers(points: Sequence[HardwarePoint]) -> tuple[int, ...]:
    """DR0 to DR7 for *points*, at most DEBUG_REGISTERS."""
    addresses = [point.address for point in points]
    dr7 = 0x400
    for i, point in enumerate(points):
        dr7 |= 2 << 2 * i | _TYPES[point.kind] << 16 + 4 * i | _LENGTHS[point.length] << 18 + 4 * i
    return (*addresses, *(0,) * (DEBUG_REGISTERS - len(points)), 0, 0, 0, dr7)


@dataclass(frozen=True)
class DebugAbilities:
    """What this host's KVM does of what KVM_SET_GUEST_DEBUG can be asked for. One whose processor is software stops at
    some of it only, and says nothing."""

    int3: bool
    """An INT3 of the guest's ends KVM_RUN."""
    execute: bool
    """A debug register's instruction breakpoint does."""
    write: bool
    """Its data breakpoint does."""
    step: bool
    """KVM_GUESTDBG_SINGLESTEP does."""
    block_irq: bool
    """KVM_GUESTDBG_BLOCKIRQ: no interrupt comes in a step (Linux 5.16)."""


_CODE, _DATA, _IVT_HALT = 0x600, 0x700, 0x6FF


def probe(system: System) -> DebugAbilities:
    """Try it out: four guests of two instructions, each in a machine of its own. Raises KvmError."""
    flags = system.check_extension("KVM_CAP_SET_GUEST_DEBUG2")
    enable = constants.KVM_GUESTDBG_ENABLE
    hardware = enable | constants.KVM_GUESTDBG_USE_HW_BP

    def stops(code: bytes, control: int, *points: HardwarePoint) -> bool:
        return isinstance(_run(system, code, control, debug_registers(points)), Debug)

    return DebugAbilities(
        int3=stops(INT3 + b"\xf4", enable | constants.KVM_GUESTDBG_USE_SW_BP),
        execute=stops(b"\x90\x90\xf4", hardware, HardwarePoint("execute", _CODE + 1)),
        write=stops(b"\xa2\x00\x07\x90\xf4", hardware, HardwarePoint("write", _DATA)),  # mov %al, 0x700
        step=stops(b"\x90\xf4", enable | constants.KVM_GUESTDBG_SINGLESTEP),
        block_irq=bool(flags & constants.KVM_GUESTDBG_BLOCKIRQ),
    )


def _run(system: System, code: bytes, control: int, registers: Sequence[int]) -> Exit | None:
    """The first exit of *code* in real mode, where every exception leads to HLT; None where KVM refuses *control*."""
    with mmap.mmap(-1, PAGE_SIZE) as buffer, system.create_vm() as vm:
        buffer[0:0x400] = _IVT_HALT.to_bytes(4, "little") * 256
        buffer[_IVT_HALT] = 0xF4
        buffer[_CODE : _CODE + len(code)] = code
        vm.set_user_memory_region(0, 0, buffer)
        with vm.create_vcpu(0) as vcpu:
            sregs = vcpu.get_sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            regs = vcpu.get_regs()
            regs.rip, regs.rsp = _CODE, PAGE_SIZE
            vcpu.set_regs(regs)
            try:
                vcpu.set_guest_debug(control, registers)
            except KvmError:
                return None
            return vcpu.run()


def inject(vcpu: Vcpu, control: int, exception: int) -> None:
    """Give the guest the exception that KVM took for ours; *control* is what goes on."""
    what = constants.KVM_GUESTDBG_INJECT_BP if exception == BP else constants.KVM_GUESTDBG_INJECT_DB
    vcpu.set_guest_debug(control | what)
