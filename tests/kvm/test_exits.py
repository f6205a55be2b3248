"""The exits that are not I/O: each kind that a guest or its monitor can cause, decoded."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import threading
import time

import pytest

from kvm_cffi import CpuidEntry, Exit, ExitRecord, KvmError, MsiRoute, catch_signal, constants
from kvm_cffi import vcpu as vcpu_module
from kvm_cffi.exits import (
    Debug,
    ExceptionExit,
    FailEntry,
    Hlt,
    InternalError,
    Intr,
    IoapicEoi,
    IrqWindowOpen,
    MmioWrite,
    PioIn,
    PioOut,
    SetTpr,
    Shutdown,
    SystemEvent,
    UnknownExit,
)
from pyvmm.board.layout import DEBUG_EXIT, DEBUGCON
from pyvmm.guests import load
from tests.rig.rig import HARDWARE, Rig, interrupted_after, said

OTHER = vcpu_module._OTHER
"""What KVM_RUN comes back with in the binding where an exit is neither port I/O nor MMIO."""
SPIN = "eb fe"
"""1: jmp 1b"""
MSI_TO_CPU_0 = 0xFEE00000
LEVEL_ASSERTED = 1 << 15 | 1 << 14
"""Of an MSI's data: level-triggered, asserted (Intel SDM volume 3, 10.11.2)."""


def test_hlt_without_an_in_kernel_irqchip() -> None:
    with Rig("hlt") as rig:
        assert rig.run() == ([Hlt(), Hlt(), Hlt()], 0)
        assert rig.value("halts") == 3


def test_hlt_with_one_sleeps_in_the_kernel_until_an_nmi() -> None:
    with Rig("hlt", irqchip="kernel") as rig:
        rig.memory.write(0x600, b"\xcf")  # iret
        rig.memory.write_int(2 * 4, 4, 0x600)
        for halts in range(3):
            state = None
            while (state, rig.value("halts")) != (constants.KVM_MP_STATE_HALTED, halts):
                with interrupted_after(0.02):  # on a busy machine before it has got there
                    assert rig.vcpu.run() == Intr()
                state = rig.vcpu.get_mp_state()
            rig.vcpu.nmi()
        assert rig.run() == ([], 0)
        assert rig.value("halts") == 3


def test_a_lowered_task_priority() -> None:
    with Rig("tpr") as rig:
        # Where the guest's code is emulated, so is CR8, without an exit.
        assert rig.run() == ([SetTpr(4), SetTpr(0)] if HARDWARE else [], 0)


def test_shutdown() -> None:
    with Rig("shutdown") as rig:
        assert rig.vcpu.run() == Shutdown()
        assert [record.reason for record in rig.vcpu.last_exits()] == [constants.KVM_EXIT_SHUTDOWN]


def test_internal_error_gives_the_instruction() -> None:
    with Rig("internal-error") as rig:
        exit = rig.vcpu.run()
        assert isinstance(exit, InternalError)
        assert exit.suberror == constants.KVM_INTERNAL_ERROR_EMULATION
        assert exit.name == "KVM_INTERNAL_ERROR_EMULATION"
        assert rig.vcpu.get_regs().rip == rig.symbol("culprit")
        assert exit.insn_bytes[:2] == b"\xd9\x03", "flds (%rbx)"
        assert len(exit.insn_bytes) <= 15


def test_internal_error_where_nothing_can_be_fetched() -> None:
    with Rig("fetch-mmio") as rig:
        exit = rig.vcpu.run()
        assert isinstance(exit, InternalError)
        assert exit.suberror == constants.KVM_INTERNAL_ERROR_EMULATION
        assert rig.vcpu.get_regs().rip == 0xD0000000
        assert exit.insn_bytes == b""


def test_irq_window_opens_when_the_guest_lets_interrupts_in() -> None:
    seen = []
    with Rig("irq-window") as rig:
        for exit in rig.exits():
            if said(exit, "R"):
                seen.append(exit)
                assert not rig.vcpu.if_flag
                assert not rig.vcpu.ready_for_interrupt_injection
                rig.vcpu.request_interrupt_window(True)
            elif isinstance(exit, IrqWindowOpen):
                seen.append(exit)
                assert rig.vcpu.if_flag
                assert rig.vcpu.ready_for_interrupt_injection
                rig.vcpu.interrupt(0x21)
                rig.vcpu.request_interrupt_window(False)
        assert seen == [PioOut(DEBUGCON, 1, ord("R")), IrqWindowOpen()] * 3
        assert rig.value("taken") == 3


def test_no_irq_window_when_none_was_asked_for() -> None:
    with Rig("irq-window") as rig:
        exits = rig.exits()
        assert any(said(exit, "R") for exit in exits)
        with interrupted_after(0.1):
            assert rig.vcpu.run() == Intr()


def test_interrupt_is_held_and_refused_with_an_in_kernel_irqchip() -> None:
    with Rig("irq-window") as rig:
        assert any(said(exit, "R") for exit in rig.exits())
        rig.vcpu.interrupt(0x2F)
        assert rig.vcpu.get_sregs().interrupt_bitmap == 1 << 0x2F
    with Rig(irqchip="kernel") as rig, pytest.raises(KvmError, match="KVM_INTERRUPT"):
        rig.vcpu.interrupt(0x20)


def test_nmi_reaches_a_guest_with_interrupts_off() -> None:
    with Rig(load("nmi").with_parameters(count=3)) as rig:
        for exit in rig.exits():
            if said(exit, "R"):
                rig.vcpu.nmi()
        assert exit == PioOut(DEBUG_EXIT, 1, 0)
        assert rig.value("taken") == 3


def test_immediate_exit() -> None:
    with Rig() as rig:
        rig.code(SPIN)
        rig.vcpu.immediate_exit = True
        assert rig.vcpu.run() == Intr()
        assert rig.vcpu.run() == Intr(), "until it is set back"
        rig.vcpu.immediate_exit = False
        with interrupted_after(0.02):
            assert rig.vcpu.run() == Intr()
        assert rig.vcpu.get_regs().rip == 0x1000
        assert (rig.vcpu.exits, rig.vcpu.last_exits()) == (0, []), "an interrupted KVM_RUN is no exit of the guest"
        with pytest.raises(AttributeError):
            _ = rig.vcpu.immediate_exit


def test_immediate_exit_completes_the_access_that_was_under_way() -> None:
    """What a monitor does before it saves a vCPU: the read is answered, no instruction runs."""
    with Rig() as rig:
        rig.code("e4 50 88 c3 e6 f4")  # in al, 0x50; mov bl, al; out 0xf4, al
        rig.vcpu.run()
        rig.vcpu.immediate_exit = True
        assert rig.vcpu.run(0x5A) == Intr()
        regs = rig.vcpu.get_regs()
        assert (regs.rax & 0xFF, regs.rip) == (0x5A, 0x1002)
        rig.vcpu.immediate_exit = False
        assert rig.vcpu.run() == PioOut(DEBUG_EXIT, 1, 0x5A)


def test_a_signal_from_another_thread() -> None:
    number = signal.SIGRTMIN + 2
    catch_signal(number)
    main = threading.get_ident()
    running = threading.Event()

    def kick() -> None:
        running.wait()
        for _ in range(100):  # the first may come before KVM_RUN
            time.sleep(0.02)
            if done:
                break
            signal.pthread_kill(main, number)

    done = False
    with Rig() as rig:
        rig.code(SPIN)
        thread = threading.Thread(target=kick)
        thread.start()
        running.set()
        assert rig.vcpu.run() == Intr()
        done = True
        thread.join()


def test_signal_mask_lets_only_some_signals_end_kvm_run() -> None:
    """KVM_SET_SIGNAL_MASK: a signal blocked outside and let in by the mask ends KVM_RUN, and stays pending."""
    number = signal.SIGRTMIN + 3
    others = {s for s in range(1, signal.NSIG) if s != number}
    catch_signal(number)
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        with Rig() as rig:
            rig.code("90 " * 8 + "e6 f4")
            signal.pthread_kill(threading.get_ident(), number)  # a thread that is just ending might take the process's
            rig.vcpu.set_signal_mask(others)
            assert rig.vcpu.run() == Intr()
            assert number in signal.sigpending()
            assert rig.vcpu.get_regs().rip == 0x1000
            rig.vcpu.set_signal_mask(None)
            assert rig.vcpu.run() == PioOut(DEBUG_EXIT, 1, 0), "blocked again"
    finally:
        signal.sigtimedwait({number}, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})


def test_fail_entry_by_a_state_that_the_processor_refuses() -> None:
    """CS.L and CS.D both set: reserved in long mode, and refused at VM entry (AMD APM volume 2, 15.5.1; Intel SDM
    volume 3, 27.3.1.2). Software-backed KVM enters nothing, so there the guest just runs."""
    with Rig("mmio") as rig:
        sregs = rig.vcpu.get_sregs()
        sregs.cs.db = 1
        rig.vcpu.set_sregs(sregs)
        exit = rig.vcpu.run()
        if HARDWARE:
            assert isinstance(exit, FailEntry)
            assert exit.hardware_entry_failure_reason != 0
            assert 0 <= exit.cpu < (os.cpu_count() or 1)
        else:
            assert isinstance(exit, MmioWrite)


def test_system_event_by_the_hyperv_crash_msrs() -> None:
    """The kernel may be built without Hyper-V's interface; then the MSR is a #GP and the guest ends with 1."""
    hyperv = [
        CpuidEntry(0x40000000, eax=0x40000005, ebx=0x7263694D, ecx=0x666F736F, edx=0x76482074),  # "Microsoft Hv"
        CpuidEntry(0x40000001, eax=0x31237648),  # "Hv#1"
        CpuidEntry(0x40000003, edx=1 << 10),  # HV_FEATURE_GUEST_CRASH_MSR_AVAILABLE
    ]
    with Rig("hyperv-crash") as rig:
        others = [e for e in rig.system.get_supported_cpuid() if not 0x40000000 <= e.function < 0x40000100]
        rig.vcpu.set_cpuid([*others, *hyperv])
        exit = rig.vcpu.run()
        if HARDWARE:
            assert isinstance(exit, SystemEvent)
            assert exit.type == constants.KVM_SYSTEM_EVENT_CRASH
            assert rig.vcpu.run() == PioOut(DEBUG_EXIT, 1, 0), "the guest may go on"
        else:
            assert exit == PioOut(DEBUG_EXIT, 1, 1)


@pytest.mark.parametrize("by", ["signal_msi", "irq_line"])
def test_ioapic_eoi_with_a_split_irqchip(by: str) -> None:
    """The guest's EOI of a level-triggered vector that a route of the first 24 GSIs sends."""
    data = 0x45 | LEVEL_ASSERTED
    with Rig(load("msi").with_parameters(count=3), irqchip="split") as rig:
        rig.vm.set_gsi_routing([MsiRoute(5, MSI_TO_CPU_0, data)])
        ends = 0
        for exit in rig.exits():
            if said(exit, "R"):
                if by == "signal_msi":
                    assert rig.vm.signal_msi(MSI_TO_CPU_0, data)
                else:
                    rig.vm.irq_line(5, True)
                    rig.vm.irq_line(5, False)
            elif isinstance(exit, IoapicEoi):
                assert exit.vector == 0x45
                ends += 1
        if ends == 2:  # the last one may come after the guest's own end
            assert rig.vcpu.run() == IoapicEoi(0x45)
            ends += 1
        assert ends == 3
        assert rig.value("taken") == 3


def test_an_exit_that_has_no_type_here() -> None:
    """A read of an MSR that nobody has, where user space asked for those (KVM_CAP_X86_USER_SPACE_MSR)."""
    with Rig() as rig:
        rig.vm.enable_cap("KVM_CAP_X86_USER_SPACE_MSR", constants.KVM_MSR_EXIT_REASON_UNKNOWN)
        rig.code("66 b9 99 99 00 00 0f 32")  # mov ecx, 0x9999; rdmsr
        assert rig.vcpu.run() == UnknownExit(constants.KVM_EXIT_X86_RDMSR, 0)
        assert constants.exit_name(constants.KVM_EXIT_X86_RDMSR) == "KVM_EXIT_X86_RDMSR"
        assert constants.exit_name(12345) == "KVM_EXIT 12345"


KVM_RUN_EXIT_REASON, KVM_RUN_UNION = 8, 32
"""Offsets in struct kvm_run (<linux/kvm.h>): the exit's number, and what goes with it."""


@pytest.mark.parametrize(
    ("reason", "details", "exit"),
    [
        ("KVM_EXIT_EXCEPTION", struct.pack("<II", 14, 0x12), ExceptionExit(14, 0x12)),
        ("KVM_EXIT_UNKNOWN", struct.pack("<Q", 0x123456789), UnknownExit(0, 0x123456789)),
        ("KVM_EXIT_FAIL_ENTRY", struct.pack("<QI", 0x80000021, 3), FailEntry(0x80000021, 3)),
        ("KVM_EXIT_DEBUG", struct.pack("<IIQQQ", 1, 0, 2, 3, 4), Debug(1, 2, 3, 4)),
        ("KVM_EXIT_IOAPIC_EOI", b"\x45", IoapicEoi(0x45)),
        ("KVM_EXIT_SYSTEM_EVENT", struct.pack("<II3Q", 3, 2, 5, 6, 7), SystemEvent(3, (5, 6))),
        ("KVM_EXIT_SYSTEM_EVENT", struct.pack("<II16Q", 3, 99, *range(16)), SystemEvent(3, tuple(range(16)))),
        ("KVM_EXIT_INTERNAL_ERROR", struct.pack("<II16Q", 3, 99, *range(16)), InternalError(3, tuple(range(16)), b"")),
        ("KVM_EXIT_INTERNAL_ERROR", struct.pack("<IIQB", 1, 1, 1, 3) + b"abcde", InternalError(1, (1,), b"abc")),
        ("KVM_EXIT_INTERNAL_ERROR", struct.pack("<IIQB", 1, 1, 1, 99) + b"x" * 20, InternalError(1, (1,), b"x" * 15)),
        ("KVM_EXIT_INTERNAL_ERROR", struct.pack("<IIQB", 1, 1, 0, 3) + b"abcde", InternalError(1, (0,), b"")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_exits_that_no_guest_here_can_cause(
    reason: str, details: bytes, exit: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel would write into the page that it shares with us; the sizes in it are not trusted."""
    with Rig() as rig, mmap.mmap(rig.vcpu.fd, rig.system.vcpu_mmap_size) as kvm_run:

        def exits(*arguments: object) -> int:
            kvm_run[KVM_RUN_EXIT_REASON : KVM_RUN_EXIT_REASON + 4] = struct.pack("<I", getattr(constants, reason))
            kvm_run[KVM_RUN_UNION : KVM_RUN_UNION + len(details)] = details
            return OTHER

        monkeypatch.setattr(vcpu_module, "_shim_run", exits)
        assert rig.vcpu.run() == exit
        assert type(rig.vcpu.run()) is type(exit), "they are tuples, which are equal to others"


def test_the_last_exits_are_kept() -> None:
    with Rig() as rig:
        rig.code("b9 64 00 88 c8 e6 80 e2 fa e4 80 e6 f4")  # 100 times out 0x80, al; in al, 0x80; out 0xf4, al
        exits, value = rig.run(lambda exit: 0x42)
        assert (len(exits), value, rig.vcpu.exits) == (101, 0x42, 102)
        records = rig.vcpu.last_exits()
        assert [record.number for record in records] == list(range(70, 102))
        assert all(record.reason == constants.KVM_EXIT_IO and record.size == 1 for record in records)
        assert [record.data for record in records[:-2]] == list(range(30, 0, -1))
        assert records[-2:] == [
            ExitRecord(100, constants.KVM_EXIT_IO, 0x80, 1, 1, False, 0x42),
            ExitRecord(101, constants.KVM_EXIT_IO, 0xF4, 1, 1, True, 0x42),
        ]


def test_kvm_run_that_fails_is_an_error() -> None:
    """A VM belongs to the process that made it: in a child of it KVM_RUN is EIO."""
    with Rig("pio") as rig:
        child = os.fork()
        if child == 0:
            try:
                rig.vcpu.run()
            except KvmError as error:
                os._exit(error.errno or 0 if str(error) == "KVM_RUN: Input/output error" else 254)
            os._exit(255)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EIO
        assert rig.vcpu.run() == PioOut(0x5000, 1, 0x11), "nothing happened to the parent's"


def test_one_interrupt_an_entry() -> None:
    """A second one between the items of string I/O would take the place of the first."""
    with Rig() as rig:
        rig.memory.write_int(0x20 * 4, 4, 0x600)
        rig.memory.write(0x600, bytes.fromhex("b0 07 e6 f4"))
        rig.code("fb 90 b9 0400 bf 0020 ba 0050 f3 6c  b0 01 e6 f4")
        assert rig.vcpu.run() == PioIn(0x5000, 1)
        assert rig.vcpu.ready_for_interrupt_injection
        rig.vcpu.interrupt(0x20)
        assert not rig.vcpu.ready_for_interrupt_injection
        for _ in range(3):
            assert rig.vcpu.run() == PioIn(0x5000, 1) and rig.vcpu.exits == 1, "the next item, no entry"
            assert not rig.vcpu.ready_for_interrupt_injection
        assert rig.run() == ([], 7), "the handler"
