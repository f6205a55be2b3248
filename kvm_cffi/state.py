"""vCPU state as plain Python values, named as the fields of the structures in <linux/kvm.h>."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Regs:
    """struct kvm_regs."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


@dataclass
class Segment:
    """struct kvm_segment: limit in bytes, whatever g says."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741  (the field's name)
    g: int = 0
    avl: int = 0
    unusable: int = 0


@dataclass
class Dtable:
    """struct kvm_dtable: GDTR or IDTR."""

    base: int = 0
    limit: int = 0


@dataclass
class Sregs:
    """struct kvm_sregs; interrupt_bitmap is one int of 256 bits."""

    cs: Segment = field(default_factory=Segment)
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=Segment)
    ldt: Segment = field(default_factory=Segment)
    gdt: Dtable = field(default_factory=Dtable)
    idt: Dtable = field(default_factory=Dtable)
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0
    interrupt_bitmap: int = 0


@dataclass
class Fpu:
    """struct kvm_fpu: eight 16-byte x87 registers, sixteen 16-byte SSE registers."""

    fpr: tuple[bytes, ...]
    fcw: int
    fsw: int
    ftwx: int
    last_opcode: int
    last_ip: int
    last_dp: int
    xmm: tuple[bytes, ...]
    mxcsr: int


@dataclass
class Debugregs:
    """struct kvm_debugregs."""

    db: tuple[int, int, int, int]
    dr6: int
    dr7: int
    flags: int = 0


@dataclass
class VcpuEvents:
    """struct kvm_vcpu_events, the parts a monitor reads or sets; flags are KVM_VCPUEVENT_VALID_*."""

    exception_injected: int = 0
    exception_nr: int = 0
    exception_has_error_code: int = 0
    exception_error_code: int = 0
    interrupt_injected: int = 0
    interrupt_nr: int = 0
    interrupt_soft: int = 0
    interrupt_shadow: int = 0
    nmi_injected: int = 0
    nmi_pending: int = 0
    nmi_masked: int = 0
    sipi_vector: int = 0
    flags: int = 0
    smm: int = 0
    smi_pending: int = 0
    smm_inside_nmi: int = 0
    latched_init: int = 0
    """An INIT came in system management mode; the last four count with KVM_VCPUEVENT_VALID_SMM."""


@dataclass
class CpuidEntry:
    """struct kvm_cpuid_entry2."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


@dataclass(frozen=True)
class Translation:
    """struct kvm_translation: valid is False where the guest's page tables map nothing."""

    physical_address: int
    valid: bool
    writeable: bool
    usermode: bool


def read_fields(into: type[Any], c: Any) -> Any:
    """A dataclass of plain ints from the C struct with fields of the same names."""
    return into(**{f.name: getattr(c, f.name) for f in fields(into)})


def write_fields(value: Any, c: Any) -> None:
    """The reverse of read_fields."""
    for f in fields(value):
        setattr(c, f.name, getattr(value, f.name))
