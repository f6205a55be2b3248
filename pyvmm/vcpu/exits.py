"""Every exit that is neither port I/O nor MMIO, in one match; those two are carried out by Vcpu.run_io().

KVM_EXIT_* by <linux/kvm.h>, what each means in Documentation/virt/kvm/api.rst, section 5.
"""

from __future__ import annotations

from typing import Final, Protocol

from kvm_cffi import Exit, Vcpu
from kvm_cffi.constants import KVM_SYSTEM_EVENT_RESET
from kvm_cffi.exits import (
    Debug,
    FailEntry,
    Hlt,
    InternalError,
    Intr,
    IoapicEoi,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    PioIn,
    PioOut,
    SetTpr,
    Shutdown,
    SystemEvent,
    UnknownExit,
)

SHUTDOWN: Final = "KVM_EXIT_SHUTDOWN"


class Running(Protocol):
    """The thread whose vCPU has exited: vcpu.thread.VcpuThread."""

    vcpu: Vcpu
    halted: bool

    @property
    def waits_for_pic(self) -> bool: ...

    def come_back(self) -> None: ...


class ExitHandler(Protocol):
    """What exits lead to on the machine; called under the machine lock."""

    def eoi(self, vector: int) -> None:
        """A local APIC has ended *vector*, which an IOAPIC in user space sent level-triggered."""

    def triple_fault(self, vcpu: Vcpu, message: str) -> None: ...

    def internal_error(self, vcpu: Vcpu, message: str, exit: Exit) -> None:
        """KVM cannot go on; *exit* says why, as far as it does."""

    def crashed(self, vcpu: Vcpu, message: str) -> None:
        """The guest has told KVM that it has crashed."""

    def reset_requested(self, how: str) -> None: ...

    def debugged(self, vcpu: Vcpu, exit: Debug | Hlt) -> bool:
        """A breakpoint or a step, or HLT, which may be one too; False where there is no debugger."""


def serve(thread: Running, exit: Exit, machine: ExitHandler) -> None:
    """Do what *exit* of *thread* asks for; under the machine lock."""
    who = f"vCPU {thread.vcpu.id}"
    match exit:
        case Intr():
            thread.come_back()
        case Hlt() if thread.waits_for_pic:
            thread.halted = True
            machine.debugged(thread.vcpu, exit)
        case IrqWindowOpen():
            pass  # the thread looks at the PIC before each KVM_RUN
        case SetTpr():
            pass  # the PIC knows no priorities of a processor
        case IoapicEoi(vector):
            machine.eoi(vector)
        case Debug() if machine.debugged(thread.vcpu, exit):
            pass
        case Shutdown():
            machine.triple_fault(thread.vcpu, f"{who}: {SHUTDOWN}")
        case InternalError():
            machine.internal_error(thread.vcpu, f"{who}: {exit.name}", exit)
        case FailEntry(reason, cpu):
            message = f"{who}: KVM_EXIT_FAIL_ENTRY, reason {reason:#x} on host CPU {cpu}"
            machine.internal_error(thread.vcpu, message, exit)
        case SystemEvent(kind) if kind == KVM_SYSTEM_EVENT_RESET:
            machine.reset_requested("KVM_SYSTEM_EVENT_RESET")
        case SystemEvent(kind):
            machine.crashed(thread.vcpu, f"{who}: KVM_EXIT_SYSTEM_EVENT {kind}")
        case UnknownExit(reason):
            machine.internal_error(thread.vcpu, f"{who}: unknown exit {reason}", exit)
        case _:
            machine.internal_error(thread.vcpu, f"{who}: unexpected {exit}", exit)


def describe(exit: Exit) -> str:
    """An exit as a line of the trace."""
    match exit:
        case PioOut(port, size, value):
            return f"KVM_EXIT_IO out port {port:#x} size {size} = {value:#x}"
        case PioIn(port, size):
            return f"KVM_EXIT_IO in port {port:#x} size {size}"
        case MmioWrite(address, size, value):
            return f"KVM_EXIT_MMIO write {address:#x} size {size} = {value:#x}"
        case MmioRead(address, size):
            return f"KVM_EXIT_MMIO read {address:#x} size {size}"
        case _:
            return str(exit)
