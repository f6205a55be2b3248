"""A vCPU's file descriptor: running it, and reading and writing its state."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol

from kvm_cffi import exits, state
from kvm_cffi._call import KvmError, ioctl, ioctl_value
from kvm_cffi._kvm import ffi, lib
from kvm_cffi.attributes import get_device_attr, has_device_attr, set_device_attr
from kvm_cffi.exits import (
    Debug,
    ExceptionExit,
    Exit,
    ExitRecord,
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

_PIO_OUT, _PIO_IN, _MMIO_WRITE, _MMIO_READ, _OTHER = (
    int(lib.KVM_CFFI_PIO_OUT),
    int(lib.KVM_CFFI_PIO_IN),
    int(lib.KVM_CFFI_MMIO_WRITE),
    int(lib.KVM_CFFI_MMIO_READ),
    int(lib.KVM_CFFI_OTHER),
)
_PIO_INS = int(lib.KVM_CFFI_PIO_INS)
_COALESCED = int(lib.KVM_CFFI_COALESCED)
_NESTED = struct.Struct("<HHI")
"""flags, format and size of struct kvm_nested_state."""
_NESTED_HEADER = 128
"""Bytes of struct kvm_nested_state before its data."""
_shim_run = lib.kvm_cffi_run
_make = tuple.__new__
"""Of a NamedTuple, without its own __new__, which is Python and takes three times as long."""
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


class Io(Protocol):
    """An address space that the guest's accesses go to; sizes are 1, 2, 4 or 8 bytes."""

    def read(self, address: int, size: int) -> int: ...

    def write(self, address: int, size: int, value: int) -> None: ...


class Vcpu:
    """A vCPU; a context manager. Made by Vm.create_vcpu(); run() belongs to one thread."""

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int, ring_offset: int) -> None:
        self.fd = fd
        self.id = vcpu_id
        self._c: Any = lib.kvm_cffi_vcpu_new(fd, mmap_size, ring_offset)
        if self._c == ffi.NULL:
            os.close(fd)
            raise KvmError(ffi.errno, "mmap of kvm_run")
        self._interrupted_at = -1  # the number of exits when interrupt() was last called, if KVM_RUN has not run since
        self._queued_at = -1  # the number of exits when interrupt() was last called
        self.coalesced = False
        """Set by run() where writes wait in the ring, all older than the exit it returned: take them out first."""

    def close(self) -> None:
        if self.fd >= 0:
            freed, self._c = self._c, None  # not NULL: whoever uses it now gets a TypeError, not a crash
            lib.kvm_cffi_vcpu_free(freed)
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Vcpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Running

    def run(self, result: int = 0) -> Exit:
        """KVM_RUN until the next exit; *result* answers the PioIn or MmioRead that the last call returned.

        The GIL is released inside. EINTR and EAGAIN come back as Intr; any other errno raises KvmError.
        """
        c = self._c
        c.result = result
        packed: int = _shim_run(c)
        if packed & _COALESCED:
            packed ^= _COALESCED
            self.coalesced = True
        kind = packed & 0xFF
        if kind == _PIO_OUT:
            return _make(PioOut, (packed >> 16 & 0xFFFF, packed >> 8 & 0xFF, packed >> 32))
        if kind in (_PIO_IN, _PIO_INS):
            return _make(PioIn, (packed >> 16 & 0xFFFF, packed >> 8 & 0xFF))
        if kind == _MMIO_WRITE:
            return _make(MmioWrite, (c.address, packed >> 8 & 0xFF, c.data))
        if kind == _MMIO_READ:
            return _make(MmioRead, (c.address, packed >> 8 & 0xFF))
        return self._decode(kind)

    def run_io(self, lock: AbstractContextManager[object], pio: Io, mmio: Io) -> Exit | None:
        """run(), but the guest's reads and writes are carried out on *pio* and *mmio* under *lock*, coalesced writes
        first, and give None; any other exit is returned decoded. The lock is not held while the guest runs.

        Most exits come here, and each finds the processor's caches cold: so no object is made but the arguments, and
        little is touched.
        """
        packed: int = _shim_run(self._c)
        with lock:
            if packed & _COALESCED:
                packed ^= _COALESCED
                for is_pio, address, size, value in self.coalesced_writes():
                    (pio if is_pio else mmio).write(address, size, value)
            kind = packed & 0xFF
            if kind == _PIO_OUT:
                pio.write(packed >> 16 & 0xFFFF, packed >> 8 & 0xFF, packed >> 32)
            elif kind == _PIO_IN:
                self._c.result = pio.read(packed >> 16 & 0xFFFF, packed >> 8 & 0xFF)
            elif kind == _MMIO_WRITE:
                mmio.write(self._c.address, packed >> 8 & 0xFF, self._c.data)
            elif kind == _MMIO_READ:
                self._c.result = mmio.read(self._c.address, packed >> 8 & 0xFF)
            elif kind == _PIO_INS:
                self._read_string(pio, packed >> 16 & 0xFFFF, packed >> 8 & 0xFF)
            else:
                return self._decode(kind)
        return None

    def _read_string(self, pio: Io, port: int, size: int) -> None:
        """INS with a REP prefix: an address space that has read_string() may answer all of it at once."""
        read_string = getattr(pio, "read_string", None)
        data: bytes | None = None if read_string is None else read_string(port, size, self._c.count)
        if data is None:
            self._c.result = pio.read(port, size)
        else:
            lib.kvm_cffi_answer_string(self._c, data)

    def _decode(self, kind: int) -> Exit:
        """An exit that is neither port I/O nor MMIO."""
        if kind != _OTHER:
            if self._c.error not in (errno.EINTR, errno.EAGAIN):
                raise KvmError(self._c.error, "KVM_RUN")
            self._interrupted_at = -1
            return Intr()
        details = ffi.new("struct kvm_cffi_exit *")
        lib.kvm_cffi_exit_details(self._c, details)
        match details.reason:
            case lib.KVM_EXIT_HLT:
                return Hlt()
            case lib.KVM_EXIT_INTR:
                return Intr()
            case lib.KVM_EXIT_IRQ_WINDOW_OPEN:
                return IrqWindowOpen()
            case lib.KVM_EXIT_SHUTDOWN:
                return Shutdown()
            case lib.KVM_EXIT_SET_TPR:
                return SetTpr(lib.kvm_cffi_cr8(self._c))
            case lib.KVM_EXIT_IOAPIC_EOI:
                return IoapicEoi(details.vector)
            case lib.KVM_EXIT_DEBUG:
                debug = details.debug
                return Debug(debug.exception, debug.pc, debug.dr6, debug.dr7)
            case lib.KVM_EXIT_FAIL_ENTRY:
                return FailEntry(details.hardware_reason, details.hardware_cpu)
            case lib.KVM_EXIT_INTERNAL_ERROR:
                insn = bytes(ffi.buffer(details.insn_bytes))[: details.insn_size]
                return InternalError(details.suberror, tuple(details.data[0 : details.ndata]), insn)
            case lib.KVM_EXIT_SYSTEM_EVENT:
                return SystemEvent(details.event_type, tuple(details.event_data[0 : details.event_ndata]))
            case lib.KVM_EXIT_EXCEPTION:
                return ExceptionExit(details.exception, details.error_code)
            case reason:
                return UnknownExit(reason, details.hardware_reason)

    @property
    def immediate_exit(self) -> bool:
        """Write only: True makes this KVM_RUN or the next return Intr at once, until set back; nothing once closed."""
        raise AttributeError("immediate_exit is write-only")

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        if self._c is not None:
            lib.kvm_cffi_set_immediate_exit(self._c, 1 if value else 0)

    @property
    def exits(self) -> int:
        """How often KVM_RUN has come back with an exit."""
        return int(self._c.exits)

    def last_exits(self) -> list[ExitRecord]:
        """Up to 32 exits, the latest last."""
        record = ffi.new("struct kvm_cffi_record *")
        total = self.exits
        return [
            ExitRecord(n, record.reason, record.address, record.size, record.count, bool(record.write), record.data)
            for n in range(max(0, total - int(lib.KVM_CFFI_RECORDS)), total)
            if lib.kvm_cffi_record(self._c, n, record)
        ]

    def coalesced_writes(self) -> Iterator[tuple[bool, int, int, int]]:
        """Take out the coalesced writes that there are now, oldest first: (is_pio, address, size, value).

        The ring belongs to the VM: only one vCPU may do this at a time, so hold the machine lock. What other vCPUs add
        meanwhile stays: they could go on for ever.
        """
        self.coalesced = False
        entry = ffi.new("struct kvm_cffi_coalesced *")
        for _ in range(lib.kvm_cffi_coalesced_count(self._c)):
            lib.kvm_cffi_coalesced_next(self._c, entry)
            yield bool(entry.pio), entry.address, entry.size, entry.data

    # Interrupts without an in-kernel irqchip

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: inject an external interrupt; only while ready_for_interrupt_injection."""
        ioctl(self.fd, "KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", (vector,)))
        self._interrupted_at = self._queued_at = self.exits

    @property
    def may_hold_vector(self) -> bool:
        """Since interrupt() no exit has come: with a split irqchip KVM may hold the vector where no ioctl shows it."""
        return self._queued_at == self.exits

    def run_nothing(self, signal_number: int) -> Exit:
        """KVM_RUN that takes the vector of interrupt() to where KVM_GET_VCPU_EVENTS shows it, and executes nothing.

        *signal_number*, which must have a handler, is pending on entry: KVM looks at what is to be injected first, at
        signals next, and gives up the entry (vcpu_enter_guest() of arch/x86/kvm/x86.c). The signal is taken back.
        Intr at once where immediate_exit is set.
        """
        only = {signal_number}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, only)
        try:
            signal.pthread_kill(threading.get_ident(), signal_number)
            self.set_signal_mask(before - only)
            try:
                return self.run()
            finally:
                self.set_signal_mask(None)
                signal.sigtimedwait(only, 0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def nmi(self) -> None:
        """KVM_NMI: queue a non-maskable interrupt."""
        ioctl(self.fd, "KVM_NMI")

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """As of the last exit: interrupt() would be taken at the next entry. False once it has been called, until then:
        while string I/O is handed out item by item there is no entry, and a second vector would replace the first."""
        return bool(lib.kvm_cffi_interrupt_state(self._c) & 1) and self._interrupted_at != self.exits

    @property
    def if_flag(self) -> bool:
        """As of the last exit: RFLAGS.IF."""
        return bool(lib.kvm_cffi_interrupt_state(self._c) & 2)

    def request_interrupt_window(self, value: bool) -> None:
        """Ask for IrqWindowOpen as soon as the guest can take an interrupt."""
        lib.kvm_cffi_set_request_interrupt_window(self._c, 1 if value else 0)

    # Registers

    def get_regs(self) -> state.Regs:
        """KVM_GET_REGS."""
        c = ffi.new("struct kvm_regs *")
        ioctl(self.fd, "KVM_GET_REGS", c)
        regs: state.Regs = state.read_fields(state.Regs, c)
        return regs

    def set_regs(self, regs: state.Regs) -> None:
        """KVM_SET_REGS."""
        c = ffi.new("struct kvm_regs *")
        state.write_fields(regs, c)
        ioctl(self.fd, "KVM_SET_REGS", c)

    def get_sregs(self) -> state.Sregs:
        """KVM_GET_SREGS."""
        c = ffi.new("struct kvm_sregs *")
        ioctl(self.fd, "KVM_GET_SREGS", c)
        sregs = state.Sregs(**{name: getattr(c, name) for name in _CONTROL})
        for name in _SEGMENTS:
            setattr(sregs, name, state.read_fields(state.Segment, getattr(c, name)))
        sregs.gdt = state.Dtable(c.gdt.base, c.gdt.limit)
        sregs.idt = state.Dtable(c.idt.base, c.idt.limit)
        sregs.interrupt_bitmap = sum(word << (64 * i) for i, word in enumerate(c.interrupt_bitmap))
        return sregs

    def set_sregs(self, sregs: state.Sregs) -> None:
        """KVM_SET_SREGS."""
        c = ffi.new("struct kvm_sregs *")
        for name in _CONTROL:
            setattr(c, name, getattr(sregs, name))
        for name in _SEGMENTS:
            state.write_fields(getattr(sregs, name), getattr(c, name))
        state.write_fields(sregs.gdt, c.gdt)
        state.write_fields(sregs.idt, c.idt)
        for i in range(len(c.interrupt_bitmap)):
            c.interrupt_bitmap[i] = sregs.interrupt_bitmap >> (64 * i) & 0xFFFFFFFFFFFFFFFF
        ioctl(self.fd, "KVM_SET_SREGS", c)

    def get_fpu(self) -> state.Fpu:
        """KVM_GET_FPU."""
        c = ffi.new("struct kvm_fpu *")
        ioctl(self.fd, "KVM_GET_FPU", c)
        return state.Fpu(
            fpr=tuple(bytes(r) for r in c.fpr),
            fcw=c.fcw,
            fsw=c.fsw,
            ftwx=c.ftwx,
            last_opcode=c.last_opcode,
            last_ip=c.last_ip,
            last_dp=c.last_dp,
            xmm=tuple(bytes(r) for r in c.xmm),
            mxcsr=c.mxcsr,
        )

    def set_fpu(self, fpu: state.Fpu) -> None:
        """KVM_SET_FPU."""
        c = ffi.new("struct kvm_fpu *")
        for name in ("fcw", "fsw", "ftwx", "last_opcode", "last_ip", "last_dp", "mxcsr"):
            setattr(c, name, getattr(fpu, name))
        c.fpr = fpu.fpr
        c.xmm = fpu.xmm
        ioctl(self.fd, "KVM_SET_FPU", c)

    def _get_bytes(self, request: str, ctype: str) -> bytes:
        c = ffi.new(f"{ctype} *")
        ioctl(self.fd, request, c)
        return bytes(ffi.buffer(c))

    def _set_bytes(self, request: str, ctype: str, data: bytes) -> None:
        if len(data) != ffi.sizeof(ctype):
            raise ValueError(f"{request} takes {ffi.sizeof(ctype)} bytes, not {len(data)}")
        c = ffi.new(f"{ctype} *")
        ffi.memmove(c, data, len(data))
        ioctl(self.fd, request, c)

    def get_xsave(self) -> bytes:
        """KVM_GET_XSAVE: 4096 bytes as the XSAVE instruction lays them out."""
        return self._get_bytes("KVM_GET_XSAVE", "struct kvm_xsave")

    def set_xsave(self, data: bytes) -> None:
        """KVM_SET_XSAVE."""
        self._set_bytes("KVM_SET_XSAVE", "struct kvm_xsave", data)

    def get_xcrs(self) -> bytes:
        """KVM_GET_XCRS: struct kvm_xcrs as bytes; empty where the host's processor has no XSAVE, and so no XCR."""
        data = self._get_bytes("KVM_GET_XCRS", "struct kvm_xcrs")
        return data if int.from_bytes(data[:4], "little") else b""

    def set_xcrs(self, data: bytes) -> None:
        """KVM_SET_XCRS: what get_xcrs gave."""
        self._set_bytes("KVM_SET_XCRS", "struct kvm_xcrs", data)

    def get_lapic(self) -> bytes:
        """KVM_GET_LAPIC: the local APIC's 1024 register bytes (32-bit registers 16 bytes apart)."""
        return self._get_bytes("KVM_GET_LAPIC", "struct kvm_lapic_state")

    def set_lapic(self, data: bytes) -> None:
        """KVM_SET_LAPIC."""
        self._set_bytes("KVM_SET_LAPIC", "struct kvm_lapic_state", data)

    def get_debugregs(self) -> state.Debugregs:
        """KVM_GET_DEBUGREGS."""
        c = ffi.new("struct kvm_debugregs *")
        ioctl(self.fd, "KVM_GET_DEBUGREGS", c)
        return state.Debugregs((c.db[0], c.db[1], c.db[2], c.db[3]), c.dr6, c.dr7, c.flags)

    def set_debugregs(self, debugregs: state.Debugregs) -> None:
        """KVM_SET_DEBUGREGS."""
        c = ffi.new("struct kvm_debugregs *")
        c.db, c.dr6, c.dr7, c.flags = debugregs.db, debugregs.dr6, debugregs.dr7, debugregs.flags
        ioctl(self.fd, "KVM_SET_DEBUGREGS", c)

    def get_nested_state(self, size: int) -> bytes:
        """KVM_GET_NESTED_STATE: struct kvm_nested_state with its data; *size* is the most it takes, in bytes, and what
        KVM_CAP_NESTED_STATE answers. KvmError where the host lets no guest have guests."""
        c = ffi.new("char[]", size)
        _NESTED.pack_into(ffi.buffer(c), 0, 0, 0, size)
        ioctl(self.fd, "KVM_GET_NESTED_STATE", c)
        used: int = _NESTED.unpack_from(ffi.buffer(c))[2]
        return bytes(ffi.buffer(c, used))

    def set_nested_state(self, data: bytes) -> None:
        """KVM_SET_NESTED_STATE: what get_nested_state gave; after KVM_SET_SREGS, which lets the CPU have it."""
        ioctl(self.fd, "KVM_SET_NESTED_STATE", ffi.from_buffer(data))

    def leave_nested(self, state: bytes) -> None:
        """Out of the guest's guest and of VMX operation; *state* is of this vCPU, its format says VMX or SVM."""
        if _NESTED.unpack_from(state)[1] == lib.KVM_STATE_NESTED_FORMAT_SVM:
            header = _NESTED.pack(lib.KVM_STATE_NESTED_GIF_SET, lib.KVM_STATE_NESTED_FORMAT_SVM, _NESTED_HEADER)
        else:  # no VMXON region and no VMCS: INVALID_GPA
            header = _NESTED.pack(0, 0, _NESTED_HEADER) + b"\xff" * 16
        self.set_nested_state(header.ljust(_NESTED_HEADER, b"\0"))

    def get_vcpu_events(self) -> state.VcpuEvents:
        """KVM_GET_VCPU_EVENTS."""
        c = ffi.new("struct kvm_cffi_vcpu_events *")
        if lib.kvm_cffi_get_vcpu_events(self.fd, c) < 0:
            raise KvmError(ffi.errno, "KVM_GET_VCPU_EVENTS")
        events: state.VcpuEvents = state.read_fields(state.VcpuEvents, c)
        return events

    def set_vcpu_events(self, events: state.VcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS."""
        c = ffi.new("struct kvm_cffi_vcpu_events *")
        state.write_fields(events, c)
        if lib.kvm_cffi_set_vcpu_events(self.fd, c) < 0:
            raise KvmError(ffi.errno, "KVM_SET_VCPU_EVENTS")

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE (KVM_MP_STATE_*)."""
        c = ffi.new("struct kvm_mp_state *")
        ioctl(self.fd, "KVM_GET_MP_STATE", c)
        return int(c.mp_state)

    def set_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE."""
        ioctl(self.fd, "KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *", {"mp_state": mp_state}))

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: the MSRs the kernel knows of those asked for; it stops at the first that it refuses."""
        wanted = list(indices)
        msrs = ffi.new("struct kvm_msrs *", {"entries": len(wanted)})
        msrs.nmsrs = len(wanted)
        for i, index in enumerate(wanted):
            msrs.entries[i].index = index
        got = ioctl(self.fd, "KVM_GET_MSRS", msrs)
        return {msrs.entries[i].index: msrs.entries[i].data for i in range(got)}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_MSRS; raises KvmError naming the first MSR that the kernel refuses."""
        done = self.try_set_msrs(values)
        if done < len(values):
            raise KvmError(errno.EINVAL, f"KVM_SET_MSRS, MSR {list(values)[done]:#x}")

    def try_set_msrs(self, values: Mapping[int, int]) -> int:
        """KVM_SET_MSRS, which stops at the first that it refuses: how many it has set."""
        msrs = ffi.new("struct kvm_msrs *", {"entries": len(values)})
        msrs.nmsrs = len(values)
        for i, (index, data) in enumerate(values.items()):
            msrs.entries[i].index, msrs.entries[i].data = index, data
        return ioctl(self.fd, "KVM_SET_MSRS", msrs)

    def set_cpuid(self, entries: Iterable[state.CpuidEntry]) -> None:
        """KVM_SET_CPUID2."""
        table = list(entries)
        c = ffi.new("struct kvm_cpuid2 *", {"entries": len(table)})
        c.nent = len(table)
        for i, entry in enumerate(table):
            state.write_fields(entry, c.entries[i])
        ioctl(self.fd, "KVM_SET_CPUID2", c)

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ."""
        return ioctl_value(self.fd, "KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ."""
        ioctl_value(self.fd, "KVM_SET_TSC_KHZ", khz)

    # Debugging and addresses

    def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG: control is KVM_GUESTDBG_* or-ed; debugreg gives DR0–DR7 for hardware breakpoints."""
        c = ffi.new("struct kvm_guest_debug *")
        c.control = control
        for i, value in enumerate(debugreg):
            c.arch.debugreg[i] = value
        ioctl(self.fd, "KVM_SET_GUEST_DEBUG", c)

    def translate(self, linear_address: int) -> state.Translation:
        """KVM_TRANSLATE: through the guest's page tables as they are now."""
        c = ffi.new("struct kvm_translation *")
        c.linear_address = linear_address
        ioctl(self.fd, "KVM_TRANSLATE", c)
        return state.Translation(c.physical_address, bool(c.valid), bool(c.writeable), bool(c.usermode))

    def set_signal_mask(self, signals: Iterable[int] | None) -> None:
        """KVM_SET_SIGNAL_MASK: the signals blocked while KVM_RUN runs; None takes the mask away."""
        mask = sum(1 << (signal - 1) for signal in signals or ())
        if lib.kvm_cffi_signal_mask(self.fd, mask, 0 if signals is None else 1) < 0:
            raise KvmError(ffi.errno, "KVM_SET_SIGNAL_MASK")

    # Time

    @property
    def has_tsc_offset(self) -> bool:
        """Whether tsc_offset is there (Linux 5.16)."""
        return has_device_attr(self.fd, lib.KVM_VCPU_TSC_CTRL, lib.KVM_VCPU_TSC_OFFSET)

    @property
    def tsc_offset(self) -> int:
        """KVM_VCPU_TSC_OFFSET: what the guest's TSC is ahead of the host's (scaled), modulo 2**64."""
        return int.from_bytes(get_device_attr(self.fd, lib.KVM_VCPU_TSC_CTRL, lib.KVM_VCPU_TSC_OFFSET, 8), "little")

    @tsc_offset.setter
    def tsc_offset(self, offset: int) -> None:
        value = (offset & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
        set_device_attr(self.fd, lib.KVM_VCPU_TSC_CTRL, lib.KVM_VCPU_TSC_OFFSET, value)

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest's watchdog that it was paused."""
        ioctl(self.fd, "KVM_KVMCLOCK_CTRL")


def catch_signal(signal: int) -> None:
    """Give *signal* a handler that does nothing, so that sending it to a thread makes its KVM_RUN return Intr."""
    if lib.kvm_cffi_catch_signal(signal) < 0:
        raise KvmError(ffi.errno, "sigaction")


__all__ = ["Vcpu", "catch_signal", "exits"]
