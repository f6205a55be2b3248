"""Why a guest died, for a person: the exit, the mode, the registers, the code at RIP, and the last exits."""

from __future__ import annotations

from kvm_cffi import ExitRecord, KvmError, Regs, Sregs, Vcpu, constants
from pyvmm.memory import GuestMemory, GuestMemoryError

CODE_BEFORE, CODE_AFTER = 16, 16
RESET_CS = 0xF000
"""The selector in CS after reset or INIT (Intel SDM volume 3, table 9-1)."""
RFLAGS_NAMES = ((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"))


def describe_mode(sregs: Sregs, rflags: int) -> str:
    """The CPU's mode in words (Intel SDM volume 3, 2.2)."""
    if not sregs.cr0 & 1:
        return "real mode"
    if rflags & 1 << 17:
        return "virtual-8086 mode"
    paging = "paging on" if sregs.cr0 >> 31 else "paging off"
    if sregs.efer & 1 << 10:
        mode = "64-bit long mode" if sregs.cs.l else "compatibility mode"
    else:
        mode = "32-bit protected mode" if sregs.cs.db else "16-bit protected mode"
    return f"{mode}, {paging}, CPL {sregs.ss.dpl}"


def describe_exit(record: ExitRecord) -> str:
    """One of the last exits on a line."""
    name = constants.exit_name(record.reason)
    if record.reason == constants.KVM_EXIT_IO:
        way = "out" if record.is_write else "in "
        items = f" x{record.items}" if record.items != 1 else ""
        return f"{name:<18} {way} {record.address:#06x} size {record.size}{items}, {record.data:#x}"
    if record.reason == constants.KVM_EXIT_MMIO:
        way = "write" if record.is_write else "read"
        return f"{name:<18} {way} {record.address:#x} size {record.size}, {record.data:#x}"
    return name


def code_at(vcpu: Vcpu, memory: GuestMemory, linear: int) -> str:
    """The bytes around *linear*, the one at it in brackets; ?? where no RAM is mapped."""
    out = []
    for address in range(linear - CODE_BEFORE, linear + CODE_AFTER):
        text = "??"
        try:
            translation = vcpu.translate(address & 0xFFFFFFFFFFFFFFFF)
            if translation.valid:
                text = f"{memory.read_int(translation.physical_address, 1):02x}"
        except (GuestMemoryError, KvmError):
            pass
        out.append(f"[{text}]" if address == linear else text)
    return " ".join(out)


def _registers(regs: Regs, sregs: Sregs) -> list[str]:
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
    lines = []
    for i in range(0, len(names), 4):
        lines.append("  ".join(f"{name.upper():>3} {getattr(regs, name):016x}" for name in names[i : i + 4]))
    flags = " ".join(name for bit, name in RFLAGS_NAMES if regs.rflags >> bit & 1)
    lines.append(f"RIP {regs.rip:016x}  RFLAGS {regs.rflags:08x} [{flags}]")
    lines.append(
        f"CR0 {sregs.cr0:08x}  CR2 {sregs.cr2:016x}  CR3 {sregs.cr3:016x}  CR4 {sregs.cr4:08x}  EFER {sregs.efer:04x}"
    )
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr"):
        s = getattr(sregs, name)
        lines.append(f"{name.upper():>3} {s.selector:04x} base {s.base:016x} limit {s.limit:08x} type {s.type:x}")
    lines.append(f"GDT base {sregs.gdt.base:016x} limit {sregs.gdt.limit:04x}")
    lines.append(f"IDT base {sregs.idt.base:016x} limit {sregs.idt.limit:04x}")
    return lines


def vcpu_report(vcpu: Vcpu, memory: GuestMemory, insn_bytes: bytes = b"") -> str:
    """Everything about one vCPU, several lines; call it while the vCPU is not in KVM_RUN."""
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    except KvmError as error:  # KVM refuses every call to a VM that it has given up; how it died must still be told
        return f"vCPU {vcpu.id}: {error}"
    linear = (sregs.cs.base if not sregs.cs.l else 0) + regs.rip
    lines = [f"vCPU {vcpu.id}: {describe_mode(sregs, regs.rflags)}", *_registers(regs, sregs)]
    lines.append(f"code at {linear:#x}: {code_at(vcpu, memory, linear)}")
    if insn_bytes:
        lines.append(f"instruction that KVM could not emulate: {insn_bytes.hex(' ')}")
    records = vcpu.last_exits()
    if records and records[-1].reason == constants.KVM_EXIT_SHUTDOWN and sregs.cs.selector == RESET_CS:
        lines.append("an AMD processor loses its state in a shutdown: these are the registers as KVM's INIT left them")
    lines.append(f"last exits of {vcpu.exits}:" if records else "no exit yet")
    lines.extend(f"  {record.number:>8} {describe_exit(record)}" for record in records)
    return "\n".join(lines)
