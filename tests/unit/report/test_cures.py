"""KVM's own errors: what they mean and what helps."""

from __future__ import annotations

import errno

import pytest

from kvm_cffi import Dtable, KvmError, Segment
from kvm_cffi.exits import FailEntry, InternalError
from pyvmm.report.cures import failed_entry, internal_error, invalid_state, run_error
from tests.rig.paged import CODE, Paged, real_cpu


def test_a_state_that_is_valid() -> None:
    paged = Paged()
    assert invalid_state(paged.regs, paged.sregs) == []


@pytest.mark.parametrize(
    ("where", "field", "value", "says"),
    [
        ("regs", "rflags", 0, "RFLAGS 0x0 has a reserved bit wrong"),
        ("regs", "rflags", 0x8002, "RFLAGS 0x8002 has"),
        ("regs", "rflags", 0x20002, "RFLAGS.VM in long mode"),
        ("regs", "rip", 1 << 62, "is not canonical"),
        ("sregs", "cr0", 1 << 31, "PG without PE"),
        ("sregs", "cr0", 1 << 31 | 1 << 29 | 1, "NW without CD"),
        ("sregs", "cr4", 0, "EFER.LMA without CR0.PG and CR4.PAE"),
        ("sregs", "efer", 0x400, "LMA is not LME with CR0.PG"),
        ("sregs", "cs", Segment(type=11, present=1, s=1, l=1, db=1), "CS has both L and D"),
        ("sregs", "cs", Segment(type=2, present=1, s=1, l=1), "CS type 0x2 is no accessed code"),
        ("sregs", "cs", Segment(type=11, s=1, l=1), "CS is not present"),
        ("sregs", "tr", Segment(type=9, present=1), "TR holds no busy TSS (type 0x9)"),
        ("sregs", "ds", Segment(limit=0xFFFFF, g=0, present=1), ""),
        ("sregs", "ds", Segment(limit=0x12345, g=1, present=1), "DS limit 0x12345 does not go with G=1"),
        ("sregs", "ds", Segment(limit=0xFFFFFFFF, g=0, present=1), "DS limit 0xffffffff does not go with G=0"),
        ("sregs", "fs", Segment(base=1 << 63, present=1), "FS base 0x8000000000000000 is not canonical"),
        ("sregs", "idt", Dtable(1 << 62, 0), "IDT base 0x4000000000000000 is not canonical"),
    ],
)
def test_what_no_processor_enters_with(where: str, field: str, value: object, says: str) -> None:
    paged = Paged()
    setattr(getattr(paged, where), field, value)
    wrong = invalid_state(paged.regs, paged.sregs)
    assert any(says in line for line in wrong) if says else not wrong


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (0x80000021, "entry failed: invalid guest state: dmesg on the host"),
        (0x80000022, "entry failed: an MSR could not be loaded"),
        (0x80000029, "entry failed: a machine check"),
        (0x80000063, "entry failed: basic reason 99"),
        (7, "entry failed: invalid control fields"),
        (12, "entry failed: VM-instruction error 12"),
        (0xFFFFFFFF, "VMRUN found the guest's state invalid"),
        (0xFFFFFFFFFFFFFFFF, "VMRUN found the guest's state invalid"),
    ],
)
def test_failed_entries(reason: int, says: str) -> None:
    paged = Paged().code(b"\xf4")
    assert failed_entry(FailEntry(reason, 0), paged.cpu()).startswith(says)
    assert failed_entry(FailEntry(reason, 0), None).startswith(says)
    paged.regs.rflags = 0
    assert "RFLAGS 0x0 has a reserved bit wrong" in failed_entry(FailEntry(reason, 0), paged.cpu())


def test_a_failed_entry_in_real_mode() -> None:
    cpu = real_cpu()
    cpu.sregs.cs.type = 11
    cpu.sregs.tr = Segment(type=11, present=1)
    assert "unrestricted_guest=1" in failed_entry(FailEntry(0x80000021, 0), cpu)


@pytest.mark.parametrize(
    ("exit", "says"),
    [
        (InternalError(2, (), b""), "unrestricted_guest=1"),
        (InternalError(3, (), b""), "IDT, GDT, TSS or stack is in no RAM"),
        (
            InternalError(3, (0x80000B0E, 48, 0x181, 0xD0000000, 1), b""),
            "#PF could not be delivered (exit reason 0x30 at",
        ),
        (InternalError(3, (0x80000B0E, 48, 0x181, 0xD0000000, 1), b""), "GPA 0xd0000000"),
        (InternalError(3, (0x80000020, 0x30, 1), b""), "vector 0x20 could not be delivered (exit reason 0x30): IDT"),
        (InternalError(4, (0x4A, 0), b""), "KVM does not know exit reason 0x4a"),
        (InternalError(4711, (), b""), "suberror 4711"),
    ],
)
def test_internal_errors(exit: InternalError, says: str) -> None:
    assert says in internal_error(exit, Paged().code(b"\xf4").cpu())


def test_what_could_not_be_emulated() -> None:
    paged = Paged().code(b"\xd9\x03")
    paged.map(0xD0000000, 0xD0000000)
    paged.regs.rbx = 0xD0000000
    error = InternalError(1, (), b"\xd9\x03")
    told = internal_error(error, paged.cpu())
    assert "at 0x10000, fld dword ptr [rbx]: it touches GPA 0xd0000000, which is no RAM: use a plain mov there" in told
    paged.regs.rbx = CODE
    assert "fld dword ptr [rbx]: a KVM" in internal_error(error, paged.cpu())
    paged.regs.rip = 0xD0000000
    assert internal_error(error, paged.cpu()).startswith("RIP leads to GPA 0xd0000000, where there is no RAM")
    paged.regs.rip = 0x9999999999
    assert internal_error(error, paged.cpu()) == "KVM could not fetch an instruction at 0x9999999999: not present"


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EFAULT, "hugetlb"),
        (errno.ENOMEM, "give the guest less RAM"),
        (errno.EIO, "dmesg"),
        (errno.EINVAL, "dmesg"),
        (errno.EPERM, "dmesg"),
    ],
)
def test_errors_of_kvm_run(number: int, says: str) -> None:
    assert says in run_error(KvmError(number, "KVM_RUN"))
