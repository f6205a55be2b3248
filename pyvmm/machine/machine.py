"""The board: the only file that knows devices and addresses and interrupt lines."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvm_cffi import Exit, KvmError, System, Vcpu
from kvm_cffi.exits import IoapicEoi, Shutdown
from pyvmm.board import layout
from pyvmm.board.doorbell import IoeventfdDoorbells
from pyvmm.board.irqchip import Irqchip, KernelIrqchip, virtual_wire
from pyvmm.board.memslots import Ram, check_reach
from pyvmm.board.msi import EventfdMsiRouter, NoMsi
from pyvmm.boot.entry import CpuState
from pyvmm.bus import Bus
from pyvmm.config import ConfigError, MachineConfig
from pyvmm.devices.acpi_pm import APM_LENGTH, PM_LENGTH, AcpiPm
from pyvmm.devices.cmos_rtc import CmosRtc
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.devices.debugcon import Debugcon
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.post_port import PostPort
from pyvmm.devices.ps2_keyboard import Ps2Keyboard
from pyvmm.devices.ps2_mouse import Ps2Mouse
from pyvmm.devices.reset_control import ResetControl
from pyvmm.devices.system_control import SystemControlA
from pyvmm.devices.uart16550 import Uart16550
from pyvmm.devices.vga_text import VGA_PORT_BASE, VGA_PORT_COUNT, VgaText
from pyvmm.errors import UserError
from pyvmm.input.router import Router
from pyvmm.input.typist import Typist
from pyvmm.machine.guest import load_guest
from pyvmm.machine.inject import Injection, Keyboard
from pyvmm.machine.life import Lifecycle
from pyvmm.machine.outcome import DeviceFault, End, Outcome
from pyvmm.pci.host import PciHost
from pyvmm.pci.host_bridge import HostBridge
from pyvmm.trace import Sink, Trace
from pyvmm.vcpu.cpuid import guest_cpuid, phys_bits, with_apic_id
from pyvmm.vcpu.model import CpuModel
from pyvmm.vcpu.registers import hide_local_apic, set_cpu_state, set_mtrrs
from pyvmm.vcpu.thread import VcpuThread

if TYPE_CHECKING:
    from pyvmm.screen.screen import Screen
    from pyvmm.virtio.input import VirtioInput, VirtioKeyboard, VirtioMouse, VirtioTablet


class Machine(Lifecycle, Injection):
    """A PC, ready to run; a context manager. Raises UserError for what the user got wrong.

    *serial* gets what the guest sends on COM1, under the machine lock; *trace_sink* gets the lines of the trace;
    *nvram* is what the CMOS RAM of the machine before a reset held (rtc.nvram).
    """

    def __init__(
        self,
        config: MachineConfig,
        serial: Callable[[bytes], None] | None = None,
        trace_sink: Sink | None = None,
        nvram: bytes = b"",
    ) -> None:
        config.check()
        self._nvram = nvram
        self.config = config
        self.trace = Trace(config.trace, trace_sink)
        self._serial = serial or (lambda data: None)
        try:
            super().__init__()
            self._build()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise UserError(
                f"the machine needs more than the {most} descriptors that this process may have (each vCPU takes one): "
                "raise ulimit -n, or ask for fewer vCPUs"
            ) from None

    # Building

    def _build(self) -> None:
        with ExitStack() as resources:
            resources.callback(self.loop.close)
            self._resources = resources
            self._create_vm()
            self._add_devices()
            self._add_pci()
            self._add_input()
            self._plug_in()
            self._assign_pci_resources()
            self.vcpus = [self._create_vcpu(n) for n in range(self.config.cpus)]
            self._start_at(self._load())
            self._resources = resources.pop_all()
            self._built = True

    def _create_vm(self) -> None:
        config, keep = self.config, self._resources
        self.system = open_kvm()
        keep.callback(self.system.close)
        most = self.system.check_extension("KVM_CAP_MAX_VCPUS")
        if config.cpus > most:
            raise ConfigError(f"this host's KVM runs at most {most} vCPUs: ask for fewer", {"cpus": config.cpus})
        self.ram = Ram(config.memory, shared=config.memory_shared, hugetlb=config.memory_hugetlb)
        keep.callback(self.ram.close)
        self.memory = self.ram.memory
        self._choose_cpu()
        self.vm = self.system.create_vm()
        keep.callback(self.vm.close)
        self.vm.set_identity_map_addr(layout.IDENTITY_MAP)
        self.vm.set_tss_addr(layout.TSS)
        self._vga_slot = self.ram.attach(self.vm)
        self.pio = Bus("PIO", 1 << 16)
        self.mmio = Bus("MMIO", 1 << 52)
        self.irqchip = self._create_irqchip()

    def _choose_cpu(self) -> None:
        """What CPUID says, and with it how far the guest's addresses reach."""
        config = self.config
        self._cpuid = guest_cpuid(
            self.system.get_supported_cpuid(),
            config.cpus,
            local_apic=config.irqchip != "user",
            tsc_deadline=bool(self.system.check_extension("KVM_CAP_TSC_DEADLINE_TIMER")),
            model=CpuModel.parse(config.cpu),
        )
        check_reach(config.memory, phys_bits(self._cpuid))

    def _create_irqchip(self) -> Irqchip:
        irq, vm = self.trace.channel("irq"), self.vm
        if self.config.irqchip == "kernel":
            return KernelIrqchip(vm, irq)
        from pyvmm.board.user_irqchip import SplitIrqchip, UserIrqchip

        def wake() -> None:
            if self.threads:
                self.threads[0].kick()

        if self.config.irqchip == "split":
            return SplitIrqchip(vm, self.pio, self.mmio, self.loop, wake, irq)
        return UserIrqchip(vm, self.pio, self.loop, wake, irq)

    def _add_devices(self) -> None:
        pio, loop, line, channel = self.pio, self.loop, self.irqchip.line, self.trace.channel

        self.serial = Uart16550(line(layout.IRQ_COM1), self._transmit, loop, channel("serial"))
        pio.map(layout.COM1, 8, self.serial)

        ram = self.ram
        self.rtc = CmosRtc(
            line(layout.IRQ_RTC), loop, time.time_ns, ram.below_4g, ram.above_4g, self._set_nmi_mask, channel("rtc")
        )
        if self._nvram:
            self.rtc.nvram = self._nvram
        pio.map(layout.CMOS, 2, self.rtc)

        self.ps2_keyboard = Ps2Keyboard(loop, lambda mask: self.router.set_leds(mask), channel("i8042"))
        self.ps2_mouse = Ps2Mouse(loop, trace=channel("i8042"))
        self.i8042 = I8042(
            line(layout.IRQ_KEYBOARD),
            line(layout.IRQ_MOUSE),
            lambda: self.reset_requested("port 0x64"),
            None,
            self.ps2_keyboard,
            self.ps2_mouse,
            channel("i8042"),
        )
        pio.map(layout.I8042_DATA, 1, self.i8042)
        pio.map(layout.I8042_COMMAND, 1, self.i8042, 4)

        control = channel("control")
        pio.map(layout.POST, 1, PostPort(control))
        # Old kernels write here to let time pass; an exit each time would make a loop over the PIT miss its period.
        if self.vm.check_extension("KVM_CAP_COALESCED_PIO"):
            self.vm.register_coalesced(layout.POST, 1, pio=True)
        port_92 = SystemControlA(lambda: self.reset_requested("port 0x92"), lambda is_open: None, control)
        pio.map(layout.SYSTEM_CONTROL_A, 1, port_92)
        pio.map(layout.DEBUGCON, 1, Debugcon(self._transmit))
        pio.map(layout.DEBUG_EXIT, 4, DebugExit(lambda value: self.end(Outcome(End.DEBUG_EXIT, value))))

        self.acpi_pm = AcpiPm(line(layout.IRQ_SCI), loop, self.power_off, channel("acpi"))
        pio.map(layout.ACPI_PM, PM_LENGTH, self.acpi_pm)
        pio.map(layout.APM, APM_LENGTH, self.acpi_pm.apm)

        text = mmap.mmap(-1, layout.VGA_TEXT_SIZE)
        self.vm.set_user_memory_region(self._vga_slot, layout.VGA_TEXT, text, log_dirty_pages=True)
        self.vga = VgaText(memoryview(text), loop, self._vga_memory_changed, channel("vga"))
        pio.map(VGA_PORT_BASE, VGA_PORT_COUNT, self.vga)

    def _add_pci(self) -> None:
        router: EventfdMsiRouter | NoMsi = NoMsi()
        if self.irqchip.local_apic:
            router = EventfdMsiRouter(self.vm, self.irqchip.gsi, self.loop.post, self.trace.channel("irq"))
        self._resources.callback(router.close)
        doorbells = IoeventfdDoorbells(self.vm, self.loop, self.pio)
        self._resources.callback(doorbells.close)

        def reset() -> None:
            self.reset_requested("port 0xcf9")

        self.pci = PciHost(
            self.mmio,
            self.pio,
            self.memory,
            [self.irqchip.pci_line(n) for n in range(4)],
            router,
            interrupt_lines=layout.PCI_IRQS,
            doorbells=doorbells,
            reset_control=ResetControl(reset, reset, self.trace.channel("control")),
            clock=self.loop,
            defer=self.loop.post,
            trace=self.trace.channel("pci"),
        )
        self._resources.callback(self._close_devices)
        self.pio.map(layout.PCI_CONFIG, 8, self.pci.config_ports)
        self.mmio.map(layout.ECAM_START, layout.ECAM_SIZE, self.pci.ecam)
        self.pci.root.add(HostBridge(layout.ECAM_START), 0)

    def _plug_in(self) -> None:
        """What the user adds."""
        if self.config.root_ports or self.config.devices or self.config.rng:
            from pyvmm.machine.slots import plug_in

            plug_in(self.config, self.pci.root, self.trace.channel("pci"))

    def _assign_pci_resources(self) -> None:
        """What firmware would do: a guest that does not place BARs itself finds them placed."""
        if len(self.pci.all_functions()) > 1:  # the host bridge has none
            from pyvmm.machine.slots import place_bars

            place_bars(self.pci)

    def _add_input(self) -> None:
        """virtio-input at 00:0A, one function a device, and the router that chooses between it and PS/2."""
        config, trace = self.config, self.trace.channel("input")
        keyboard: VirtioKeyboard | None = None
        mouse: VirtioMouse | None = None
        tablet: VirtioTablet | None = None
        if config.virtio_input != "none":
            from pyvmm.virtio.input import VirtioKeyboard, VirtioMouse, VirtioTablet, virtio_input_functions

            identity = config.virtio_input
            keyboard = VirtioKeyboard(
                identity,
                on_led=lambda led, on: self.router.set_led(led, on),
                on_driver_ok=lambda ok: self.router.virtio_keyboard_driver(ok),
                trace=trace,
            )
            mouse = VirtioMouse(identity, on_driver_ok=lambda ok: self.router.virtio_mouse_driver(ok), trace=trace)
            devices: list[VirtioInput] = [keyboard, mouse]
            if config.tablet:
                tablet = VirtioTablet(
                    identity, on_driver_ok=lambda ok: self.router.virtio_tablet_driver(ok), trace=trace
                )
                devices.append(tablet)
            for function, device in enumerate(virtio_input_functions(devices)):
                self.pci.root.add(device, layout.VIRTIO_INPUT_SLOT, function)
        self.virtio_keyboard, self.virtio_mouse, self.virtio_tablet = keyboard, mouse, tablet
        self.router = Router(
            config.input,
            ps2_keyboard=self.ps2_keyboard,
            ps2_mouse=self.ps2_mouse,
            virtio_keyboard=keyboard,
            virtio_mouse=mouse,
            virtio_tablet=tablet,
            trace=trace,
        )
        self.typist = Typist(self.router)
        self.keyboard = Keyboard(self.loop, self.typist, lambda: keyboard is not None and keyboard.driver_ok)

    def _create_vcpu(self, number: int) -> Vcpu:
        try:
            vcpu = self.vm.create_vcpu(number)
        except KvmError as error:
            if error.errno == errno.EMFILE:
                raise
            raise ConfigError(
                f"KVM makes no vCPU {number} ({error}): ask for fewer", {"cpus": self.config.cpus}
            ) from None
        self._resources.callback(vcpu.close)
        vcpu.set_cpuid(with_apic_id(self._cpuid, number))
        set_mtrrs(vcpu)
        if not self.irqchip.local_apic:
            hide_local_apic(vcpu)
        pic = self.irqchip.pic if number == 0 else None
        exits, irq = self.trace.channel("exits"), self.trace.channel("irq")
        self.threads.append(
            VcpuThread(vcpu, self.lock, self.pio, self.mmio, self.on_exit, self.on_error, pic, exits, irq)
        )
        return vcpu

    def _load(self) -> CpuState:
        """Put what the user boots into RAM, and the tables that it will look for."""
        if self.config.kernel is None:
            return load_guest(self.config, self.memory)
        from pyvmm.machine.payload import load_kernel

        return load_kernel(self.config, self.memory, phys_bits(self._cpuid))

    def _start_at(self, state: CpuState) -> None:
        set_cpu_state(self.vcpus[0], state)
        if self.irqchip.local_apic:
            self.vcpus[0].set_lapic(virtual_wire(self.vcpus[0].get_lapic()))

    # What devices and vCPUs tell the board, under the machine lock

    def on_exit(self, thread: VcpuThread, exit: Exit) -> None:
        if isinstance(exit, IoapicEoi):
            self.irqchip.eoi(exit.vector)
        elif isinstance(exit, Shutdown) and self.config.triple_fault == "reset":
            self.reset_requested("triple fault")
        else:
            super().on_exit(thread, exit)

    def _transmit(self, data: bytes) -> None:
        self._serial(data)
        self.console_output(data)

    def _set_nmi_mask(self, masked: bool) -> None:
        self.nmi_masked = masked

    def _vga_memory_changed(self) -> bool:
        return any(self.vm.get_dirty_log(self._vga_slot, layout.VGA_TEXT_SIZE))

    # What the host does

    def power_button(self) -> None:
        """Press the power button: a guest with an ACPI driver shuts down."""
        self.loop.post(self.acpi_pm.power_button)

    @property
    def screen(self) -> Screen:
        """The guest's screen as it is now; take it under the machine lock."""
        from pyvmm.screen.screen import Screen

        return Screen.of(self.vga)

    def watch_serial(self, watcher: Callable[[bytes], None]) -> None:
        """Call *watcher* too with what the guest sends on COM1, under the machine lock."""
        before = self._serial

        def both(data: bytes) -> None:
            before(data)
            watcher(data)

        self._serial = both

    def _close_devices(self) -> None:
        try:
            with self.lock:
                self.pci.close()
        except BaseException as error:
            from pyvmm.machine import fault

            outcome = fault.outcome_of(error, self.pci)
            if outcome is None:
                raise
            if self._built:  # else what has kept it from being made is told
                raise DeviceFault(outcome) from error

    def close(self) -> None:
        """Give everything back: devices, threads, descriptors, memory. Raises DeviceFault for a device that raises."""
        self.join()
        self._resources.close()

    def __enter__(self) -> Self:
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
