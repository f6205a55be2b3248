"""What of a vCPU can be read and set: registers, FPU, MSRs, local APIC, events, CPUID, its clock."""

from __future__ import annotations

import signal
import struct
from dataclasses import fields, replace

import pytest

from kvm_cffi import CpuidEntry, KvmError, Regs, Segment, System, VcpuEvents, catch_signal, constants
from kvm_cffi.attributes import get_device_attr, has_device_attr, set_device_attr
from kvm_cffi.exits import Intr, PioOut
from pyvmm.vcpu import state as vcpu_state
from tests.rig.rig import HARDWARE, Rig, said

MSR_IA32_TSC = 0x10
MSR_IA32_CR_PAT = 0x277
MSR_KERNEL_GS_BASE = 0xC0000102
MSR_LSTAR = 0xC0000082
NO_SUCH_MSR = 0x9999
LAPIC_ID, LAPIC_SPIV, LAPIC_LVT0 = 0x20, 0xF0, 0x350
EXTINT = 0x700
RFLAGS_IF = 1 << 9


def test_regs() -> None:
    with Rig() as rig:
        names = [f.name for f in fields(Regs) if f.name != "rflags"]
        regs = Regs(**{name: 0x1111111111111111 * (n % 15 + 1) & (1 << 64) - 1 for n, name in enumerate(names)})
        regs.rip, regs.rflags = 0x123456, 0x246
        rig.vcpu.set_regs(regs)
        assert rig.vcpu.get_regs() == regs


def test_the_guest_sees_the_registers_that_were_set() -> None:
    with Rig() as rig:
        rig.code("66 ef ef ee 88 d8 e6 f4")  # out dx, eax; out dx, ax; out dx, al; mov al, bl; out 0xf4, al
        regs = rig.vcpu.get_regs()
        regs.rax, regs.rdx, regs.rbx = 0x11223344, 0x5678, 0x99
        rig.vcpu.set_regs(regs)
        assert rig.run() == (
            [PioOut(0x5678, 4, 0x11223344), PioOut(0x5678, 2, 0x3344), PioOut(0x5678, 1, 0x44)],
            0x99,
        )


def test_sregs_after_reset() -> None:
    """Intel SDM volume 3, table 9-1."""
    with System() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
        assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (0xF000, 0xFFFF0000, 0xFFFF)
        assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (0x60000010, 0, 0, 0)
        assert (regs.rip, regs.rflags) == (0xFFF0, 2)
        assert (sregs.gdt.limit, sregs.idt.limit) == (0xFFFF, 0xFFFF)


def test_sregs() -> None:
    with Rig() as rig:
        sregs = rig.vcpu.get_sregs()
        sregs.ds = Segment(0x12340, 0xFFFF, 0x1234, type=3, present=1, s=1)
        sregs.gdt.base, sregs.gdt.limit = 0x5000, 0x27
        sregs.idt.base, sregs.idt.limit = 0x6000, 0x7FF
        sregs.cr2 = 0xDEADBEEF
        rig.vcpu.set_sregs(sregs)
        assert rig.vcpu.get_sregs() == sregs
        rig.code("a0 10 00 e6 f4")  # mov al, [0x10]; out 0xf4, al
        sregs = rig.vcpu.get_sregs()
        sregs.ds = Segment(0x12340, 0xFFFF, 0x1234, type=3, present=1, s=1)
        rig.vcpu.set_sregs(sregs)
        rig.memory.write(0x12350, b"\x2a")
        assert rig.run() == ([], 0x2A), "through the segment's base"


def test_sregs_that_no_processor_has_are_refused() -> None:
    with Rig() as rig:
        sregs = rig.vcpu.get_sregs()
        sregs.cr0, sregs.efer = 1 << 31 | 1, 1 << 8  # long mode without PAE and LMA
        with pytest.raises(KvmError, match="KVM_SET_SREGS: Invalid argument"):
            rig.vcpu.set_sregs(sregs)


def test_fpu() -> None:
    with Rig() as rig:
        fpu = rig.vcpu.get_fpu()
        assert (fpu.fcw, fpu.fsw) == (0x37F, 0)
        assert (len(fpu.fpr), len(fpu.xmm)) == (8, 16)
        wanted = replace(
            fpu,
            fcw=0x27F,
            fpr=tuple(bytes([n] * 10 + [0] * 6) for n in range(8)),
            xmm=tuple(bytes([0x10 + n] * 16) for n in range(16)),
        )
        rig.vcpu.set_fpu(wanted)
        assert rig.vcpu.get_fpu() == wanted


def test_xsave_holds_what_fpu_holds() -> None:
    """Offsets: Intel SDM volume 1, 13.4 (XSTATE_BV at 512, MXCSR at 24, XMM from 160)."""
    with Rig() as rig:
        area = bytearray(rig.vcpu.get_xsave())
        assert len(area) == 4096
        assert struct.unpack_from("<H", area)[0] == 0x37F, "FCW"
        struct.pack_into("<I", area, 24, 0x1FA0)
        area[160 : 160 + 256] = b"".join(bytes([n] * 16) for n in range(1, 17))
        struct.pack_into("<Q", area, 512, 3)
        rig.vcpu.set_xsave(bytes(area))
        assert rig.vcpu.get_fpu().xmm == tuple(bytes([n] * 16) for n in range(1, 17))
        assert rig.vcpu.get_xsave()[:512] == area[:512]
        with pytest.raises(ValueError, match="KVM_SET_XSAVE takes 4096 bytes, not 10"):
            rig.vcpu.set_xsave(bytes(10))


def test_msrs() -> None:
    with Rig() as rig:
        wanted = {MSR_KERNEL_GS_BASE: 0xFFFF888012345678, MSR_LSTAR: 0x1000, MSR_IA32_CR_PAT: 0x0606060606060606}
        rig.vcpu.set_msrs(wanted)
        assert rig.vcpu.get_msrs(wanted) == wanted
        assert rig.vcpu.get_msrs([]) == {}


def test_msrs_stop_at_the_first_that_is_refused() -> None:
    with Rig() as rig:
        assert rig.vcpu.get_msrs([MSR_LSTAR, NO_SUCH_MSR, MSR_KERNEL_GS_BASE]) == {MSR_LSTAR: 0}
        with pytest.raises(KvmError, match="MSR 0x9999"):
            rig.vcpu.set_msrs({MSR_LSTAR: 0x1000, NO_SUCH_MSR: 1, MSR_KERNEL_GS_BASE: 0x2000})
        assert rig.vcpu.get_msrs([MSR_LSTAR, MSR_KERNEL_GS_BASE]) == {MSR_LSTAR: 0x1000, MSR_KERNEL_GS_BASE: 0}


def test_msr_index_list_can_be_read_back() -> None:
    with Rig(irqchip="kernel") as rig:
        indices = rig.system.get_msr_index_list()
        assert {MSR_IA32_TSC, MSR_IA32_CR_PAT, MSR_LSTAR} <= set(indices)
        readable = [index for index in indices if rig.vcpu.get_msrs([index])]
        assert len(readable) > len(indices) // 2
        assert set(rig.vcpu.get_msrs(readable)) == set(readable)


def test_lapic() -> None:
    with Rig(irqchip="kernel") as rig:
        second = rig.create_vcpu(local_apic=True)
        state = bytearray(second.get_lapic())
        assert len(state) == 1024
        assert struct.unpack_from("<I", state, LAPIC_ID)[0] >> 24 == 1
        struct.pack_into("<I", state, LAPIC_SPIV, 0x1FF)
        second.set_lapic(bytes(state))
        assert struct.unpack_from("<I", second.get_lapic(), LAPIC_SPIV)[0] == 0x1FF
        with pytest.raises(ValueError, match="1024"):
            second.set_lapic(b"")
    with Rig() as rig, pytest.raises(KvmError, match="KVM_GET_LAPIC"):
        rig.vcpu.get_lapic()


def test_vcpu_events_queue_an_nmi() -> None:
    with Rig("nmi") as rig:
        assert any(said(exit, "R") for exit in rig.exits())
        rig.vcpu.nmi()
        events = rig.vcpu.get_vcpu_events()
        assert events.nmi_pending == 1
        events.nmi_pending = 0
        events.flags = constants.KVM_VCPUEVENT_VALID_NMI_PENDING
        rig.vcpu.set_vcpu_events(events)
        assert rig.vcpu.get_vcpu_events().nmi_pending == 0
        rig.vcpu.set_vcpu_events(VcpuEvents(nmi_pending=1, flags=constants.KVM_VCPUEVENT_VALID_NMI_PENDING))
        assert rig.run()[1] == 0
        assert rig.value("taken") == 1


def test_vcpu_events_show_a_queued_interrupt() -> None:
    with Rig() as rig:
        rig.vcpu.interrupt(0x33)
        events = rig.vcpu.get_vcpu_events()
        assert (events.interrupt_injected, events.interrupt_nr, events.interrupt_soft) == (1, 0x33, 0)


def test_a_split_irqchip_shows_a_queued_interrupt_after_run_nothing() -> None:
    """Until then KVM holds the vector where no ioctl shows it; the guest takes it where it has stood."""
    number = signal.SIGRTMIN + 3
    catch_signal(number)
    with Rig(irqchip="split") as rig:
        rig.memory.write_int(0x33 * 4, 4, 0x2000)
        rig.memory.write(0x2000, bytes.fromhex("b033 e6f4"))  # mov al, 0x33; out 0xf4, al
        rig.code("90 " * 8 + "e6 f4")
        lapic = bytearray(rig.vcpu.get_lapic())
        struct.pack_into("<I", lapic, LAPIC_LVT0, EXTINT)
        rig.vcpu.set_lapic(bytes(lapic))
        regs = rig.vcpu.get_regs()
        rig.vcpu.set_regs(replace(regs, rflags=regs.rflags | RFLAGS_IF))
        assert not rig.vcpu.may_hold_vector
        rig.vcpu.interrupt(0x33)
        assert rig.vcpu.may_hold_vector
        rig.vcpu.immediate_exit = True
        assert rig.vcpu.run() == Intr()
        rig.vcpu.immediate_exit = False
        assert rig.vcpu.may_hold_vector and not rig.vcpu.get_vcpu_events().interrupt_injected
        assert rig.vcpu.run_nothing(number) == Intr()
        events = rig.vcpu.get_vcpu_events()
        assert (events.interrupt_injected, events.interrupt_nr) == (1, 0x33)
        assert rig.vcpu.get_regs().rip == regs.rip
        assert number not in signal.sigpending()
        assert rig.run() == ([], 0x33)
        assert not rig.vcpu.may_hold_vector


def test_vcpu_events_inject_an_exception() -> None:
    """The handler runs as if the guest had caused it."""
    with Rig() as rig:
        rig.memory.write_int(6 * 4, 4, 0x2000)
        rig.memory.write(0x2000, bytes.fromhex("b006 e6f4"))  # mov al, 6; out 0xf4, al
        rig.code("b0 00 e6 f4")
        rig.vcpu.set_vcpu_events(VcpuEvents(exception_injected=1, exception_nr=6))
        assert rig.run() == ([], 6)


def test_mp_state() -> None:
    with Rig(irqchip="kernel") as rig:
        assert rig.vcpu.get_mp_state() == constants.KVM_MP_STATE_RUNNABLE
        second = rig.create_vcpu(local_apic=True)
        assert second.get_mp_state() == constants.KVM_MP_STATE_UNINITIALIZED, "it waits for INIT and SIPI"
        second.set_mp_state(constants.KVM_MP_STATE_RUNNABLE)
        assert second.get_mp_state() == constants.KVM_MP_STATE_RUNNABLE
        with pytest.raises(KvmError, match="KVM_SET_MP_STATE"):
            second.set_mp_state(99)


def test_cpuid() -> None:
    """CPUID of leaf 0x40000010, whose EBX nobody but this test gives."""
    with Rig() as rig:
        supported = [e for e in rig.system.get_supported_cpuid() if not 0x40000000 <= e.function < 0x40000100]
        mine = [CpuidEntry(0x40000000, eax=0x40000010, ebx=1), CpuidEntry(0x40000010, ebx=0x5A)]
        rig.vcpu.set_cpuid([*supported, *mine])
        rig.code("66 b8 10 00 00 40 0f a2 88 d8 e6 f4")  # mov eax, 0x40000010; cpuid; mov al, bl; out 0xf4, al
        assert rig.run() == ([], 0x5A)


def test_supported_cpuid() -> None:
    with System() as kvm:
        table = {(e.function, e.index): e for e in kvm.get_supported_cpuid()}
        assert table[0, 0].eax >= 1
        assert table[1, 0].edx & 1, "an FPU"
        signature = table[0x40000000, 0]
        assert struct.pack("<III", signature.ebx, signature.ecx, signature.edx) == b"KVMKVMKVM\0\0\0"


def test_tsc_frequency() -> None:
    with Rig() as rig:
        khz = rig.vcpu.get_tsc_khz()
        assert 100_000 < khz < 10_000_000
        rig.vcpu.set_tsc_khz(khz)
        assert rig.vcpu.get_tsc_khz() == khz


def test_tsc_offset_is_a_device_attribute_of_the_vcpu() -> None:
    group, attr = constants.KVM_VCPU_TSC_CTRL, constants.KVM_VCPU_TSC_OFFSET
    with Rig() as rig:
        assert has_device_attr(rig.vcpu.fd, group, attr)
        assert not has_device_attr(rig.vcpu.fd, group, 99)
        offset = int.from_bytes(get_device_attr(rig.vcpu.fd, group, attr, 8), "little")
        moved = offset + (1 << 50) & (1 << 64) - 1
        set_device_attr(rig.vcpu.fd, group, attr, moved.to_bytes(8, "little"))
        kept = int.from_bytes(get_device_attr(rig.vcpu.fd, group, attr, 8), "little")
        if HARDWARE:
            assert abs(kept - moved) < 1 << 40, "where the host's TSC is unstable, KVM corrects it a little"
        else:
            assert kept == 0, "software-backed KVM gives its guests the host's TSC"
        with pytest.raises(KvmError, match="KVM_SET_DEVICE_ATTR"):
            set_device_attr(rig.vcpu.fd, group, 99, bytes(8))


def test_kvmclock_ctrl_needs_a_guest_that_uses_kvmclock() -> None:
    with Rig() as rig, pytest.raises(KvmError, match="KVM_KVMCLOCK_CTRL"):
        rig.vcpu.kvmclock_ctrl()


def test_kvmclock_ctrl() -> None:
    msr_kvm_system_time_new = 0x4B564D01  # Documentation/virt/kvm/x86/msr.rst
    with Rig() as rig:
        rig.vcpu.set_msrs({msr_kvm_system_time_new: 0x8000 | 1})
        rig.code("b0 00 e6 f4")
        rig.run()
        version, _, _, system_time = struct.unpack_from("<IIQQ", rig.memory.read(0x8000, 32))
        assert version and version % 2 == 0, "kvm-clock's page was filled in"
        assert system_time > 0
        rig.vcpu.kvmclock_ctrl()


MSR_EFER, EFER_SVME = 0xC0000080, 1 << 12
NESTED_SVM = (constants.KVM_STATE_NESTED_GIF_SET, constants.KVM_STATE_NESTED_FORMAT_SVM, 128)


def test_nested_state_where_the_host_has_none() -> None:
    with Rig() as rig:
        if not rig.system.check_extension("KVM_CAP_NESTED_STATE"):
            with pytest.raises(KvmError, match="KVM_GET_NESTED_STATE"):
                rig.vcpu.get_nested_state(128)


def test_a_load_leaves_what_the_guests_hypervisor_was_in() -> None:
    """On AMD: SVM on and the global interrupt flag clear, as between a hypervisor's CLGI and its VMRUN."""
    with Rig() as rig:
        size = rig.system.check_extension("KVM_CAP_NESTED_STATE")
        rig.vcpu.set_cpuid(rig.system.get_supported_cpuid())
        made = vcpu_state.save(rig.vcpu, rig.system.get_msr_index_list(), size)
        if made.nested is None or struct.unpack_from("<HHI", made.nested) != NESTED_SVM:
            assert not size or not HARDWARE
            return
        sregs = rig.vcpu.get_sregs()
        sregs.efer |= EFER_SVME
        rig.vcpu.set_sregs(sregs)
        rig.vcpu.set_nested_state(struct.pack("<HHI", 0, constants.KVM_STATE_NESTED_FORMAT_SVM, 128).ljust(128, b"\0"))
        busy = vcpu_state.save(rig.vcpu, rig.system.get_msr_index_list(), size)
        assert busy.nested != made.nested
        for saved in (made, busy, made):
            vcpu_state.load(rig.vcpu, saved)
            assert rig.vcpu.get_nested_state(size) == saved.nested
            assert rig.vcpu.get_sregs().efer == saved.sregs.efer
