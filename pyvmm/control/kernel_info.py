"""The VMCOREINFO of the Linux that runs in a machine."""

from __future__ import annotations

from pyvmm.machine.machine import Machine
from pyvmm.report import vmcoreinfo


def kernel_info(machine: Machine) -> vmcoreinfo.Vmcoreinfo | None:
    """Of *machine*, which stands: from the note that the guest's driver of fw_cfg has told of, where it has, else from
    what looks like it in RAM. None where no kernel is found whose page tables a vCPU uses."""
    memory = machine.memory
    told = getattr(machine.parts.get("fw_cfg"), "vmcoreinfo_note", None)
    text = None if told is None else vmcoreinfo.of_note(memory, told.paddr, told.size)
    registers = [vcpu.get_sregs() for vcpu in machine.vcpus]
    return vmcoreinfo.find(memory, registers, [] if text is None else [text])
