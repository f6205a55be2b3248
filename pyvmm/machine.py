"""The board: the only file that knows devices and addresses and interrupt lines."""

from __future__ import annotations

import mmap
import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from kvm_cffi import Exit, KvmError, System, Vcpu
from kvm_cffi.exits import FailEntry, InternalError, Shutdown, SystemEvent, UnknownExit

from . import guests, layout
from .boot.e820 import E820_TYPE_RESERVED, E820Entry, e820_map
from .boot.entry import CpuState, long_mode, protected_mode, real_mode
from .boot.error import BootError
from .boot.flat import Flat
from .boot.load import load
from .boot.mptable import write_bda, write_mptable
from .bus import Bus
from .config import MachineConfig
from .console import Console
from .cpuid import guest_cpuid
from .devices.cmos_rtc import CmosRtc
from .devices.debug_exit import DebugExit
from .devices.debugcon import Debugcon
from .devices.i8042 import I8042
from .devices.post_port import PostPort
from .devices.ps2_keyboard import Ps2Keyboard
from .devices.ps2_mouse import Ps2Mouse
from .devices.reset_control import ResetControl
from .devices.system_control import SystemControlA
from .devices.uart16550 import Uart16550
from .devices.vga_text import VGA_PORT_BASE, VGA_PORT_COUNT, VgaText
from .errors import UserError
from .irqchip import KernelIrqchip, virtual_wire
from .loop import Loop
from .outcome import End, Outcome
from .panic import PanicWatch
from .ram import Ram
from .report import vcpu_report
from .startup import set_cpu_state
from .trace import Sink, Trace
from .vcpu import VcpuThread

PANIC_SILENCE_NS = 500_000_000
PANIC_SAMPLES = 6
"""A kernel that has panicked says nothing more and spins: this many looks, PANIC_SILENCE_NS apart, must find it so."""
REPORTED = (End.PANIC, End.TRIPLE_FAULT, End.INTERNAL_ERROR, End.TIMEOUT)


class Machine:
    """A PC, ready to run; a context manager. Raises UserError or BootError for what the user got wrong.

    *serial* gets what the guest sends on COM1, under the machine lock; *trace_sink* gets the lines of the trace.
    """

    def __init__(
        self,
        config: MachineConfig,
        serial: Callable[[bytes], None] | None = None,
        trace_sink: Sink | None = None,
    ) -> None:
        self.config = config
        self.lock = threading.Lock()
        self.outcome: Outcome | None = None
        self.threads: list[VcpuThread] = []
        self._serial = serial or (lambda data: None)
        self._panic = PanicWatch()
        self._resources = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._resources.close)
            self._build(Trace(config.trace, trace_sink))
            undo.pop_all()

    # Building

    def _build(self, trace: Trace) -> None:
        config = self.config
        self.trace = trace
        keep = self._resources
        self.loop = Loop(self.lock)
        keep.callback(self.loop.close)
        self.system = open_kvm()
        keep.callback(self.system.close)
        if config.cpus > self.system.check_extension("KVM_CAP_MAX_VCPUS"):
            most = self.system.check_extension("KVM_CAP_MAX_VCPUS")
            raise UserError(f"-c {config.cpus}: this host's KVM runs at most {most} vCPUs: ask for fewer")
        self.ram = Ram(config.memory)
        keep.callback(self.ram.close)
        self.memory = self.ram.memory
        self.vm = self.system.create_vm()
        keep.callback(self.vm.close)
        self.vm.set_identity_map_addr(layout.IDENTITY_MAP)
        self.vm.set_tss_addr(layout.TSS)
        slots = self.ram.attach(self.vm)
        self.irqchip = KernelIrqchip(self.vm, trace.channel("irq"))
        self.pio = Bus("PIO", 1 << 16)
        self.mmio = Bus("MMIO", 1 << 52)
        self._add_devices(trace, slots)
        self.vcpus = [self._create_vcpu(n) for n in range(config.cpus)]
        state = self._load()
        set_cpu_state(self.vcpus[0], state)
        if self.irqchip.local_apic:
            self.vcpus[0].set_lapic(virtual_wire(self.vcpus[0].get_lapic()))
        self.threads = [
            VcpuThread(
                vcpu,
                self.lock,
                self.pio,
                self.mmio,
                self._on_exit,
                self._on_error,
                self.irqchip.pic if vcpu.id == 0 else None,
                trace.channel("exits"),
                trace.channel("irq"),
            )
            for vcpu in self.vcpus
        ]

    def _add_devices(self, trace: Trace, slot: int) -> None:
        pio, loop, line = self.pio, self.loop, self.irqchip.line

        self.serial = Uart16550(line(layout.IRQ_COM1), self._transmit, loop, trace.channel("serial"))
        pio.map(layout.COM1, 8, self.serial)

        self.rtc = CmosRtc(
            line(layout.IRQ_RTC),
            loop,
            time.time_ns,
            self.ram.below_4g,
            self.ram.above_4g,
            self._set_nmi_mask,
            trace.channel("rtc"),
        )
        pio.map(layout.CMOS, 2, self.rtc)

        self.ps2_keyboard = Ps2Keyboard(loop, trace=trace.channel("i8042"))
        self.ps2_mouse = Ps2Mouse(loop, trace=trace.channel("i8042"))
        self.i8042 = I8042(
            line(layout.IRQ_KEYBOARD),
            line(layout.IRQ_MOUSE),
            lambda: self._reset("port 0x64"),
            None,
            self.ps2_keyboard,
            self.ps2_mouse,
            trace.channel("i8042"),
        )
        pio.map(layout.I8042_DATA, 1, self.i8042)
        pio.map(layout.I8042_COMMAND, 1, self.i8042, 4)

        control = trace.channel("control")
        pio.map(layout.POST, 1, PostPort(control))
        pio.map(
            layout.SYSTEM_CONTROL_A, 1, SystemControlA(lambda: self._reset("port 0x92"), lambda is_open: None, control)
        )
        reset_control = ResetControl(lambda: self._reset("port 0xcf9"), lambda: self._reset("port 0xcf9"), control)
        pio.map(layout.RESET_CONTROL, 1, reset_control)
        pio.map(layout.DEBUGCON, 1, Debugcon(self._transmit))
        pio.map(layout.DEBUG_EXIT, 4, DebugExit(lambda value: self.end(Outcome(End.DEBUG_EXIT, value))))

        text = mmap.mmap(-1, layout.VGA_TEXT_SIZE)
        self._vga_slot = slot
        self.vm.set_user_memory_region(slot, layout.VGA_TEXT, text, log_dirty_pages=True)
        self.vga = VgaText(memoryview(text), loop, self._vga_memory_changed, trace.channel("vga"))
        pio.map(VGA_PORT_BASE, VGA_PORT_COUNT, self.vga)

    def _create_vcpu(self, number: int) -> Vcpu:
        try:
            vcpu = self.vm.create_vcpu(number)
        except KvmError as error:
            raise UserError(f"-c {self.config.cpus}: KVM makes no vCPU {number} ({error}): ask for fewer") from None
        self._resources.callback(vcpu.close)
        supported = self.system.get_supported_cpuid()
        deadline = bool(self.system.check_extension("KVM_CAP_TSC_DEADLINE_TIMER"))
        local_apic = self.irqchip.local_apic
        vcpu.set_cpuid(guest_cpuid(supported, number, self.config.cpus, local_apic=local_apic, tsc_deadline=deadline))
        return vcpu

    def _load(self) -> CpuState:
        """Put what the user boots into RAM, and the tables that it will look for."""
        config, memory = self.config, self.memory
        if config.kernel is None:
            return self._load_guest()
        flat = Flat.parse(config.flat) if config.flat else None
        e820 = e820_map(memory.regions, [E820Entry(layout.ECAM_START, layout.ECAM_SIZE, E820_TYPE_RESERVED)])
        state = load(memory, config.kernel, cmdline=config.cmdline, initrd=config.initrd, e820=e820, flat=flat)
        write_bda(memory)
        if self.irqchip.local_apic:
            write_mptable(memory, range(min(config.cpus, 255)))
        return state

    def _load_guest(self) -> CpuState:
        config, memory = self.config, self.memory
        if config.initrd is not None or config.cmdline:
            raise UserError("-i and -p go with a kernel: name one with -k")
        try:
            guest = guests.load(config.guest or guests.DEFAULT).with_parameters(**dict(config.guest_parameters))
        except guests.GuestError as error:
            raise UserError(str(error)) from None
        if guest.address + len(guest.image) > memory.size or guest.memory > config.memory:
            raise UserError(f"guest {guest.name} needs {guest.memory >> 10} KiB: give it that with -m")
        memory.write(guest.address, guest.image)
        if guest.mode == "real":
            return real_mode(0, guest.entry, sp=0x7000)
        if guest.mode == "protected":
            return protected_mode(memory, guest.entry, esp=0x80000)
        return long_mode(memory, guest.entry, rsp=0x80000)

    # What devices and vCPUs tell the board, under the machine lock

    def _transmit(self, data: bytes) -> None:
        self._serial(data)
        panicked = self._panic.message
        self._panic.feed(data)
        if self._panic.message and not panicked:
            self._watch_for_death(PANIC_SAMPLES)

    def _set_nmi_mask(self, masked: bool) -> None:
        self.nmi_masked = masked

    def _vga_memory_changed(self) -> bool:
        return any(self.vm.get_dirty_log(self._vga_slot, layout.VGA_TEXT_SIZE))

    def _reset(self, how: str) -> None:
        if self._panic.message:
            self.end(Outcome(End.PANIC, message=self._panic.message))
        else:
            self.end(Outcome(End.RESET, message=how))

    def _watch_for_death(self, samples: int) -> None:
        """The console said that the kernel panicked. Believe it if some vCPU then spins on in the kernel: a shell that
        printed an old log would soon halt."""
        spinning: list[bool] = []

        def sample(thread: VcpuThread) -> None:
            if thread.vcpu.get_mp_state() == 0 and not thread.halted and thread.vcpu.get_sregs().ss.dpl == 0:
                spinning.append(True)

        def ask() -> None:
            for thread in self.threads:
                thread.call(lambda thread=thread: sample(thread))  # type: ignore[misc]
            self.loop.timer(judge).arm(self.loop.now() + PANIC_SILENCE_NS // 2)

        def judge() -> None:
            if not spinning:
                self._panic.message = ""
            elif samples > 1:
                self._watch_for_death(samples - 1)
            else:
                self.end(Outcome(End.PANIC, message=self._panic.message))

        self.loop.timer(ask).arm(self.loop.now() + PANIC_SILENCE_NS // 2)

    def _on_exit(self, thread: VcpuThread, exit: Exit) -> None:
        """The exits that are not I/O."""
        match exit:
            case Shutdown():
                self._dead = thread.vcpu
                self.end(Outcome(End.TRIPLE_FAULT, message=f"vCPU {thread.vcpu.id}: KVM_EXIT_SHUTDOWN"))
            case InternalError():
                self._dead, self._insn = thread.vcpu, exit.insn_bytes
                self.end(Outcome(End.INTERNAL_ERROR, message=f"vCPU {thread.vcpu.id}: {exit.name}"))
            case FailEntry(reason, cpu):
                self._dead = thread.vcpu
                message = f"vCPU {thread.vcpu.id}: KVM_EXIT_FAIL_ENTRY, reason {reason:#x} on host CPU {cpu}"
                self.end(Outcome(End.INTERNAL_ERROR, message=message))
            case SystemEvent(kind):
                self.end(Outcome(End.RESET if kind == 2 else End.POWER_OFF, message=f"KVM_EXIT_SYSTEM_EVENT {kind}"))
            case UnknownExit(reason):
                self._dead = thread.vcpu
                self.end(Outcome(End.INTERNAL_ERROR, message=f"vCPU {thread.vcpu.id}: unknown exit {reason}"))
            case _:
                self._dead = thread.vcpu
                self.end(Outcome(End.INTERNAL_ERROR, message=f"vCPU {thread.vcpu.id}: unexpected {exit}"))

    def _on_error(self, thread: VcpuThread, error: BaseException) -> None:
        """A bug of ours in a device: end the machine and raise it again where run() was called."""
        self._error = error
        self._dead = thread.vcpu
        self.end(Outcome(End.INTERNAL_ERROR, message="".join(traceback.format_exception_only(error)).strip()))

    # What the host does

    _error: BaseException | None = None
    _dead: Vcpu | None = None
    _insn: bytes = b""
    nmi_masked = False

    def end(self, outcome: Outcome) -> None:
        """End the machine, once: the first outcome stands. From any thread or signal handler, lock held or not."""
        if self.outcome is None:
            self.outcome = outcome
            for thread in self.threads:
                thread.stop()
            self.loop.stop()

    def hold(self, held: bool) -> None:
        """Hold the vCPUs at their next exit while their output has nowhere to go, or let them go on."""
        for thread in self.threads:
            if held:
                thread.throttled = True
            else:
                thread.resume()

    def attach_console(self, console: Console) -> None:
        """Put COM1 on *console*, until console.detach()."""
        console.attach(self.loop, self.serial, self.hold, self._command)

    def _command(self, letter: str) -> None:
        """What the user typed after Ctrl-A."""
        if letter == "x":
            self.end(Outcome(End.QUIT))
        elif letter == "r":
            for thread in self.threads:
                thread.call(lambda vcpu=thread.vcpu: self._print_registers(vcpu))  # type: ignore[misc]

    def _print_registers(self, vcpu: Vcpu) -> None:
        self._serial(("\n" + vcpu_report(vcpu, self.memory) + "\n").replace("\n", "\r\n").encode())

    def inject_nmi(self) -> None:
        """The NMI button: every vCPU gets one, unless the guest has masked NMIs through port 0x70."""
        if not self.nmi_masked:
            for thread in self.threads:
                thread.nmi()

    def run(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends or end() is called; *timeout* in seconds. Raises what a device of ours raised."""
        if timeout is not None:
            expired = self.loop.timer(lambda: self.end(Outcome(End.TIMEOUT, message=f"after {timeout:g} s")))
            expired.arm(self.loop.now() + int(timeout * 1e9))
        try:
            if self.outcome is None:
                for thread in self.threads:
                    thread.start()
                self.loop.run()
        finally:
            for thread in self.threads:
                thread.stop()
            for thread in self.threads:
                thread.join()
        if self._error is not None:
            raise self._error
        assert self.outcome is not None
        if self.outcome.end in REPORTED and not self.outcome.report:
            self.outcome = replace(self.outcome, report=self.report())
        return self.outcome

    def report(self) -> str:
        """The state of the vCPU that died, or of all; only while they do not run."""
        vcpus = [self._dead] if self._dead is not None else self.vcpus
        return "\n".join(vcpu_report(vcpu, self.memory, self._insn) for vcpu in vcpus)

    def close(self) -> None:
        """Give everything back: descriptors, memory, threads."""
        for thread in self.threads:
            thread.stop()
            thread.join()
        self._resources.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_kvm(path: str = "/dev/kvm") -> System:
    """/dev/kvm; UserError says what to do where it cannot be opened."""
    try:
        return System(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: load kvm_intel or kvm_amd, enable virtualization in the firmware, "
            "or ask `pyvmm doctor`"
        ) from None
    except PermissionError:
        raise UserError(f"no permission for {path}: add yourself to group kvm (usermod -aG kvm $USER)") from None
    except KvmError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{path}: {os.strerror(error.errno or 0)}: ask `pyvmm doctor`") from None


__all__ = ["BootError", "Machine", "open_kvm"]
