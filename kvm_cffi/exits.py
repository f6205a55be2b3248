"""Why KVM_RUN came back: one type an exit, decoded (Documentation/virt/kvm/api.rst, section 5).

Ports, addresses and values are ints; sizes are bytes. String I/O arrives as one PioOut or PioIn an item, and an MMIO
fragment of 3, 5, 6 or 7 bytes as single bytes, so a device sees sizes 1, 2, 4 and 8 only.
"""

from __future__ import annotations

from typing import NamedTuple


class PioOut(NamedTuple):
    """KVM_EXIT_IO, direction out."""

    port: int
    size: int
    value: int


class PioIn(NamedTuple):
    """KVM_EXIT_IO, direction in: the next run() takes the value read."""

    port: int
    size: int


class MmioWrite(NamedTuple):
    """KVM_EXIT_MMIO, a write."""

    address: int
    size: int
    value: int


class MmioRead(NamedTuple):
    """KVM_EXIT_MMIO, a read: the next run() takes the value read."""

    address: int
    size: int


class Hlt(NamedTuple):
    """KVM_EXIT_HLT: only without an in-kernel local APIC."""


class Shutdown(NamedTuple):
    """KVM_EXIT_SHUTDOWN: a triple fault."""


class Intr(NamedTuple):
    """KVM_EXIT_INTR, or KVM_RUN ended with EINTR: a signal, or immediate_exit."""


class IrqWindowOpen(NamedTuple):
    """KVM_EXIT_IRQ_WINDOW_OPEN: KVM_INTERRUPT will be taken now."""


class FailEntry(NamedTuple):
    """KVM_EXIT_FAIL_ENTRY: the processor refused the guest state; reason is the hardware's."""

    hardware_entry_failure_reason: int
    cpu: int


class InternalError(NamedTuple):
    """KVM_EXIT_INTERNAL_ERROR: KVM_INTERNAL_ERROR_* in suberror; the instruction's bytes where KVM gives them."""

    suberror: int
    data: tuple[int, ...]
    insn_bytes: bytes

    @property
    def name(self) -> str:
        return {
            1: "KVM_INTERNAL_ERROR_EMULATION",
            2: "KVM_INTERNAL_ERROR_SIMUL_EX",
            3: "KVM_INTERNAL_ERROR_DELIVERY_EV",
            4: "KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON",
        }.get(self.suberror, f"suberror {self.suberror}")


class Debug(NamedTuple):
    """KVM_EXIT_DEBUG: exception 1 (#DB) or 3 (#BP) at pc."""

    exception: int
    pc: int
    dr6: int
    dr7: int


class SetTpr(NamedTuple):
    """KVM_EXIT_SET_TPR: without an in-kernel local APIC, the guest lowered its task priority (CR8) to *cr8*."""

    cr8: int


class SystemEvent(NamedTuple):
    """KVM_EXIT_SYSTEM_EVENT: KVM_SYSTEM_EVENT_* in type."""

    type: int
    data: tuple[int, ...]


class ExceptionExit(NamedTuple):
    """KVM_EXIT_EXCEPTION."""

    exception: int
    error_code: int


class IoapicEoi(NamedTuple):
    """KVM_EXIT_IOAPIC_EOI: with a split irqchip, the guest ended a level-triggered vector."""

    vector: int


class UnknownExit(NamedTuple):
    """Any exit this binding has no type for, KVM_EXIT_UNKNOWN among them."""

    exit_reason: int
    hardware_exit_reason: int


Exit = (
    PioOut
    | PioIn
    | MmioWrite
    | MmioRead
    | Hlt
    | Shutdown
    | Intr
    | IrqWindowOpen
    | FailEntry
    | InternalError
    | Debug
    | SetTpr
    | SystemEvent
    | ExceptionExit
    | IoapicEoi
    | UnknownExit
)


class ExitRecord(NamedTuple):
    """One of the last exits of a vCPU, for a report: data of the first item only, of *items* in all."""

    number: int
    reason: int
    address: int
    size: int
    items: int
    is_write: bool
    data: int
