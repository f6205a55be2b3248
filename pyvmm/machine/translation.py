"""From an address of the guest's program to a byte of this host's memory: both stages, and KVM's word on the first."""

from __future__ import annotations

from dataclasses import dataclass

from kvm_cffi import Translation, Vcpu
from pyvmm.board.host_address import HostAddress, locate
from pyvmm.board.pc import Pc
from pyvmm.errors import UserError
from pyvmm.units import size_text
from pyvmm.vcpu.paging import ControlRegisters, Walk, walk


@dataclass(frozen=True)
class Translated:
    """str() of it is for people."""

    walk: Walk
    """By the guest's page tables."""
    refused: str
    """Why a supervisor that runs may not fetch an instruction there; empty where it may."""
    host: HostAddress | None
    """None where the guest physical address is none, or no RAM's."""
    slot: int | None
    """KVM's memory slot of that RAM."""
    kvm: Translation
    """What KVM_TRANSLATE says."""

    @property
    def physical_address(self) -> int:
        """Guest physical; UserError where the page tables have none."""
        if self.walk.physical is None:
            raise UserError(f"{self.walk.linear:#x} leads nowhere: {self.walk.fault}")
        return self.walk.physical

    @property
    def agrees(self) -> bool:
        """Whether KVM says the same."""
        if self.walk.physical is None:
            return not self.kvm.valid
        return self.kvm.valid and self.kvm.physical_address == self.walk.physical

    def __str__(self) -> str:
        said = list(_steps(self.walk, self.refused))
        if self.walk.physical is not None:
            nobody = "no RAM: a device's address, or nobody's"
            said.append(f"  {nobody}" if self.host is None else f"  memory slot {self.slot}: {self.host}")
        kvm = f"{self.kvm.physical_address:#x}" if self.kvm.valid else "no translation"
        said.append(f"  KVM_TRANSLATE {'agrees' if self.agrees else f'differs: {kvm}'}")
        return "\n".join(said)


def _steps(found: Walk, refused: str) -> list[str]:
    """A line an entry, and where they lead."""
    said = [f"linear {found.linear:#x}{'' if found.shift or found.physical is None else ', paging is off'}"]
    for entry in found.entries:
        value = "no RAM is there" if entry.value is None else f"{entry.value:#x} ({entry.flags or 'nothing is set'})"
        said.append(f"  {entry.level}[{entry.index}] at {entry.address:#x}: {value}")
    if found.physical is None:
        return [*said, f"  no translation: {found.fault}"]
    if not found.shift:
        return [*said, f"  guest physical {found.physical:#x}"]
    rights = ["writable" if found.writable else "read-only", "user" if found.user else "supervisor"]
    rights.append("executable" if found.executable else "no execute")
    if refused.startswith("SMEP"):
        rights.append("SMEP: not by a supervisor")
    return [*said, f"  guest physical {found.physical:#x}, page of {size_text(1 << found.shift)}, {', '.join(rights)}"]


def translate(board: Pc, vcpu: Vcpu, address: int) -> Translated:
    """*vcpu* stands still."""
    registers: ControlRegisters = vcpu.get_sregs()
    found = walk(board.memory.read_int, registers, address & 0xFFFFFFFFFFFFFFFF)
    host = None if found.physical is None else locate(board.memory, found.physical)
    slot = None if host is None else board.slots.slot(host.region.gpa)
    return Translated(found, found.refuses("fetch", registers, user=False), host, slot, vcpu.translate(found.linear))
