"""A vCPU that stands still, as a report looks at it: its registers, and the guest's memory by its page tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from kvm_cffi import ExitRecord, KvmError, Regs, Sregs, Vcpu, constants
from pyvmm.boot.entry import CR0_PE
from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.units import PAGE_SIZE
from pyvmm.vcpu.paging import EFER_LMA, RFLAGS_AC, Access, Walk, walk
from pyvmm.vcpu.sample import linear_rip

RFLAGS_IF: Final = 1 << 9
RFLAGS_VM: Final = 1 << 17
RESET_CS: Final = 0xF000
"""The selector in CS after reset or INIT (Intel SDM volume 3, table 9-1)."""
WALKS: Final = 256
"""So many pages are translated at the most; a report needs a dozen."""


@dataclass(frozen=True)
class Cpu:
    """Nothing here raises, whatever the guest has put into registers and tables, and nothing but RAM is read."""

    number: int
    regs: Regs
    sregs: Sregs
    memory: GuestMemory
    halted: bool = False
    """After HLT, or not started yet."""
    started: bool = True
    records: tuple[ExitRecord, ...] = ()
    """The last exits, oldest first."""
    exits: int = 0
    """How many there were in all."""
    _walks: dict[int, Walk] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, vcpu: Vcpu, memory: GuestMemory, halted: bool = False) -> Cpu:
        """As *vcpu* is now, outside KVM_RUN; *halted* says that it sleeps in user space. Raises KvmError."""
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        try:
            mp_state = vcpu.get_mp_state()
        except KvmError:  # without an in-kernel local APIC there is no such state
            mp_state = constants.KVM_MP_STATE_RUNNABLE
        waits = (constants.KVM_MP_STATE_UNINITIALIZED, constants.KVM_MP_STATE_INIT_RECEIVED)
        return cls(
            vcpu.id,
            regs,
            sregs,
            memory,
            halted or mp_state == constants.KVM_MP_STATE_HALTED,
            mp_state not in waits,
            tuple(vcpu.last_exits()),
            vcpu.exits,
        )

    # What it does

    @property
    def real_mode(self) -> bool:
        return not self.sregs.cr0 & CR0_PE

    @property
    def bits(self) -> Literal[16, 32, 64]:
        """How wide its code is."""
        if self.sregs.efer & EFER_LMA and self.sregs.cs.l:
            return 64
        return 32 if self.sregs.cs.db and not self.real_mode and not self.regs.rflags & RFLAGS_VM else 16

    @property
    def cpl(self) -> int:
        """Its privilege level; KVM keeps it in SS (arch/x86/kvm/svm/svm.c, svm_get_cpl)."""
        if self.real_mode:
            return 0
        return 3 if self.regs.rflags & RFLAGS_VM else self.sregs.ss.dpl & 3

    @property
    def mask(self) -> int:
        """All linear addresses there are."""
        return 0xFFFF_FFFF_FFFF_FFFF if self.sregs.efer & EFER_LMA else 0xFFFF_FFFF

    @property
    def rip(self) -> int:
        """The linear address of the next instruction."""
        return linear_rip(self.regs, self.sregs)

    @property
    def word(self) -> int:
        """The bytes of a slot of its stack."""
        if self.bits == 64:
            return 8
        return 4 if self.sregs.ss.db and self.bits == 32 else 2

    @property
    def rsp(self) -> int:
        """The linear address of the top of its stack."""
        if self.bits == 64:
            return self.regs.rsp
        return self.sregs.ss.base + (self.regs.rsp & (0xFFFF_FFFF if self.sregs.ss.db else 0xFFFF)) & self.mask

    @cached_property
    def lost(self) -> bool:
        """Its state went in a shutdown: these are the registers of KVM's INIT (arch/x86/kvm/svm/svm.c,
        shutdown_interception)."""
        died = bool(self.records) and self.records[-1].reason == constants.KVM_EXIT_SHUTDOWN
        return died and self.sregs.cs.selector == RESET_CS

    # What it sees

    def walk(self, linear: int) -> Walk:
        """Through the page tables that it uses."""
        return walk(self._read_int, self.sregs, linear)

    def refuses(self, linear: int, access: Access) -> str:
        """Why its page tables refuse an access at its privilege level; empty where they do not."""
        flags = self.regs.rflags & RFLAGS_AC if self.cpl < 3 else 0
        return self.walk(linear).refuses(access, self.sregs, self.cpl == 3, flags)

    def read(self, linear: int, size: int) -> bytes:
        """What is at *linear*: fewer bytes than *size* where the next page is not mapped, or no RAM."""
        out = bytearray()
        while len(out) < size:
            address = linear + len(out) & self.mask
            length = min(size - len(out), PAGE_SIZE - address % PAGE_SIZE)
            page = self._page(address)
            if page is None:
                break
            try:
                out += self.memory.read(page + address % PAGE_SIZE, length)
            except GuestMemoryError:
                break
        return bytes(out)

    def read_word(self, linear: int, size: int) -> int | None:
        """A little-endian int; None where not all of it can be read."""
        data = self.read(linear, size)
        return int.from_bytes(data, "little") if len(data) == size else None

    def executes(self, linear: int) -> bool:
        """Whether there is RAM that it could execute, at whatever level."""
        found = self._found(linear)
        return found is not None and found.executable and bool(self.read(linear, 1))

    def _found(self, linear: int) -> Walk | None:
        number = linear // PAGE_SIZE
        if number not in self._walks:
            if len(self._walks) >= WALKS:
                return None
            self._walks[number] = self.walk(number * PAGE_SIZE)
        return self._walks[number]

    def _page(self, linear: int) -> int | None:
        found = self._found(linear)
        return None if found is None else found.physical

    def _read_int(self, gpa: int, size: int) -> int:
        return self.memory.read_int(gpa, size)
