"""The PC: which chips, at which addresses, on which lines. The only file that knows all three.

    PIC, PIT, IOAPIC   irqchip.py, by where they live          COM1      0x3F8, IRQ 4
    CMOS RTC           0x70, IRQ 8                              i8042     0x60 and 0x64, IRQ 1 and 12
    port 0x61          the PIT's channel 2 and the speaker      POST      0x80
    port 0x92          A20 and fast reset                       ACPI PM   0x600, APM 0xB2, SCI IRQ 9
    debug console      0xE9, debug exit 0xF4                    VGA       0x3C0-0x3DF, 0xA0000, 0xB8000
    fw_cfg             0x510                                    BIOS log  0x402, its calls 0x404
    CPU hot-plug       0xCD8, where CPUs come and go            memory hot-plug, where asked 0xA00
    PCI                0xCF8 and ECAM, host bridge 00:00.0, virtio-input 00:0A, hot-plug 0xAE00
    IDE, where asked   0x1F0, 0x3F6, IRQ 14, and 0x170, 0x376, IRQ 15

It is built on a Vm, or on a FakeVm to find out what would be built; vCPUs and threads are not its business.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, Protocol

from kvm_cffi import Vm
from pyvmm.board import layout
from pyvmm.board.doorbell import IoeventfdDoorbells
from pyvmm.board.hotplug import Hotplug
from pyvmm.board.irqchip import Irqchip, KernelIrqchip
from pyvmm.board.memslots import MemorySlots, Ram, check_reach, pci_memory64
from pyvmm.board.msi import EventfdMsiRouter, NoMsi
from pyvmm.board.placement import Parts
from pyvmm.board.sockets import CpuSockets
from pyvmm.bus import Bus
from pyvmm.clock import Clock
from pyvmm.config import MachineConfig
from pyvmm.devices.acpi_pm import APM_LENGTH, PM_LENGTH, AcpiPm
from pyvmm.devices.bios_port import BiosCalls, BiosLog
from pyvmm.devices.cmos_rtc import CmosRtc
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.devices.debugcon import Debugcon
from pyvmm.devices.fw_cfg import FW_CFG_LENGTH, FwCfg
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
from pyvmm.loop import Loop
from pyvmm.memory import Region
from pyvmm.pci.firmware import assign_resources
from pyvmm.pci.host import PciHost
from pyvmm.pci.host_bridge import HostBridge
from pyvmm.trace import Trace

if TYPE_CHECKING:
    from pyvmm.acpi.platform import Platform
    from pyvmm.backends.disks import Disks
    from pyvmm.backends.networks import HostNetworks
    from pyvmm.board.fw_cfg_files import Told
    from pyvmm.board.memory_banks import MemoryBanks
    from pyvmm.board.passthrough import BoardPassthrough
    from pyvmm.board.vhost import BoardVhost
    from pyvmm.pci.device import PciDevice
    from pyvmm.pci.piix_ide import PiixIde
    from pyvmm.virtio.input import VirtioInput

PIO_SIZE: Final = 1 << 16
MMIO_SIZE: Final = 1 << 52


class Signals(Protocol):
    """What the chips pull on; called under the machine lock."""

    def transmit(self, data: bytes) -> None:
        """The guest sends on COM1 or on the debug console."""

    def reset_requested(self, how: str) -> None:
        """One of the reset lines."""

    def power_off(self) -> None: ...

    def debug_exit(self, value: int) -> None:
        """The guest wrote *value*, 32 bits, to the debug-exit port."""

    def smi(self, command: int) -> None:
        """A command for a BIOS in SMM, other than those of the FADT."""

    def sleep(self) -> bool:
        """The guest asks for S3; whether it comes to it."""

    def wake(self, reason: str) -> None:
        """S3 is to end."""

    def wake_boot_cpu(self) -> None:
        """INTR of a PIC in user space is up."""

    def io_error(self, line: str) -> None:
        """A file of this host fails a device; *line* is for the user."""

    def catch_up(self) -> None:
        """Somebody is about to look: carry out the writes that KVM has gathered."""


class Pc:
    """The board that *config* asks for, on *vm*; close() gives back what it holds. Raises UserError."""

    STATE = ("nmi_masked",)

    def __init__(
        self,
        config: MachineConfig,
        vm: Vm,
        ram: Ram,
        phys_bits: int,
        loop: Loop,
        clock: Clock,
        trace: Trace,
        signals: Signals,
    ) -> None:
        check_reach(config.ram_size, phys_bits, config.max_memory)
        self.config = config
        self.phys_bits = phys_bits
        """How many bits the guest's physical addresses have."""
        self.vm = vm
        self.ram = ram
        self.memory = ram.memory
        self.loop = loop
        self.clock = clock
        self.trace = trace
        self.nmi_masked = False
        """The guest has masked NMIs through port 0x70."""
        self.pio = Bus("PIO", PIO_SIZE)
        self.mmio = Bus("MMIO", MMIO_SIZE)
        self.parts = Parts(self.pio, self.mmio)
        self.router = Router(config.input, trace.channel("input"))
        self.devices: dict[str, object] = {}
        """What the user has plugged in, by its id or kind."""
        self.banks: MemoryBanks | None = None
        """Where RAM comes and goes; None where the user has asked for no slots."""
        self.disks: Disks | None = None
        """Where a device of ours has files that it reads and writes in threads."""
        self.networks: HostNetworks | None = None
        """Where a device has a wire to this host."""
        self.io_error = signals.io_error
        self._signals = signals
        self._resources = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._open()
            undo.pop_all()

    def _open(self) -> None:
        vm = self.vm
        vm.set_identity_map_addr(layout.IDENTITY_MAP)
        vm.set_tss_addr(layout.TSS)
        self.slots = MemorySlots(vm)
        self.memory.watch(self.slots)
        if self.config.fw_cfg or self.config.smbios or self.config.runs_seabios:
            _ = self.told  # what is wrong with it is said now
        self.irqchip = self._make_irqchip()
        self._add_chips()
        self._add_input()
        self._add_vga()
        # After the functions: one may never have been plugged in.
        self._resources.callback(self._close_disks)
        self._resources.callback(self._close_networks)
        self._add_pci()
        self._add_memory_slots()
        self._add_virtio_input()
        self.parts.keep("irqchip", self.irqchip)
        self.parts.keep("router", self.router)
        self.parts.keep("board", self)

    def _make_irqchip(self) -> Irqchip:
        irq, vm = self.trace.channel("irq"), self.vm
        if self.config.irqchip == "kernel":
            return KernelIrqchip(vm, self.parts, irq)
        from pyvmm.board.user_irqchip import SplitIrqchip, UserIrqchip

        kind = SplitIrqchip if self.config.irqchip == "split" else UserIrqchip
        return kind(vm, self.parts, self.clock, self._signals.wake_boot_cpu, irq)

    def _reset_line(self, how: str) -> Callable[[], None]:
        return partial(self._signals.reset_requested, how)

    def _add_chips(self) -> None:
        add, line, clock, channel = self.parts.add, self.irqchip.line, self.clock, self.trace.channel
        signals, config = self._signals, self.config
        self.com1 = add(
            "com1",
            Uart16550(line(layout.IRQ_COM1), signals.transmit, clock, channel("com1")),
            ports=[(layout.COM1, 8)],
            irqs=[layout.IRQ_COM1],
        )
        ram = self.ram
        self.rtc = add(
            "rtc",
            CmosRtc(
                line(layout.IRQ_RTC),
                clock,
                time.time_ns,
                ram.below_4g,
                ram.above_4g,
                self._set_nmi_mask,
                channel("rtc"),
                lambda: self.acpi_pm.rtc_alarm(),
            ),
            ports=[(layout.CMOS, 2)],
            irqs=[layout.IRQ_RTC],
        )
        self._gather(layout.CMOS, 1)  # the index: what it is for comes with the data, in an exit
        add("post", PostPort(channel("post")), ports=[(layout.POST, 1)])
        # Old kernels write there to let time pass; an exit each time would make a loop over the PIT miss its period.
        self._gather(layout.POST, 1)
        port_92 = SystemControlA(self._reset_line("port 0x92"), _no_a20, channel("port92"))
        add("port92", port_92, ports=[(layout.SYSTEM_CONTROL_A, 1)])
        add("debugcon", Debugcon(signals.transmit), ports=[(layout.DEBUGCON, 1)])
        self.fw_cfg = add(
            "fw_cfg",
            FwCfg(
                ram.memory,
                config.ram_size,
                config.possible_cpus,
                self._fw_cfg_files,
                self.loop.post,
                channel("fw_cfg"),
                present=lambda: len(self.sockets.present),
            ),
            ports=[(layout.FW_CFG, FW_CFG_LENGTH)],
        )
        add("bios-log", BiosLog(channel("bios")), ports=[(layout.BIOS_LOG, 1)])
        add("bios-calls", BiosCalls(self.memory, channel("bios")), ports=[(layout.BIOS_CALLS, 4)])
        add("debug-exit", DebugExit(signals.debug_exit), ports=[(layout.DEBUG_EXIT, 4)])
        self.acpi_pm = AcpiPm(
            line(layout.IRQ_SCI),
            clock,
            signals.power_off,
            channel("acpi-pm"),
            signals.smi,
            signals.sleep,
            signals.wake,
        )
        self.router.on_press = self.acpi_pm.key
        add(
            "acpi-pm",
            self.acpi_pm,
            ports=[(layout.ACPI_PM, PM_LENGTH), (layout.APM, APM_LENGTH, self.acpi_pm.apm)],
            irqs=[layout.IRQ_SCI],
        )
        self.sockets = CpuSockets(
            self.parts, self.acpi_pm, self.config.cpus, self.config.max_cpus, channel("cpu-hotplug")
        )

    def _add_input(self) -> None:
        line, clock, channel = self.irqchip.line, self.clock, self.trace.channel
        keyboard = Ps2Keyboard(clock, self.router.set_leds, channel("ps2-keyboard"))
        mouse = Ps2Mouse(clock, trace=channel("ps2-mouse"))
        self.i8042 = self.parts.add(
            "i8042",
            I8042(
                line(layout.IRQ_KEYBOARD),
                line(layout.IRQ_MOUSE),
                self._reset_line("port 0x64"),
                None,
                keyboard,
                mouse,
                channel("i8042"),
            ),
            ports=[(layout.I8042_DATA, 1), (layout.I8042_COMMAND, 1, None, 4)],
        )
        self.router.add_ps2_keyboard(self.parts.add("ps2-keyboard", keyboard, irqs=[layout.IRQ_KEYBOARD]))
        self.router.add_ps2_mouse(self.parts.add("ps2-mouse", mouse, irqs=[layout.IRQ_MOUSE]))

    def _add_vga(self) -> None:
        text = mmap.mmap(-1, layout.VGA_TEXT_SIZE)
        frame = mmap.mmap(-1, layout.VGA_FRAME_SIZE)
        self.memory.add(Region(layout.VGA_TEXT, memoryview(text), kind="video"))
        self.memory.add(Region(layout.VGA_FRAME, memoryview(frame), kind="video"))
        self.vga = self.parts.add(
            "vga",
            VgaText(
                memoryview(text),
                self.clock,
                self._vga_memory_changed,
                self.trace.channel("vga"),
                memoryview(frame),
            ),
            ports=[(VGA_PORT_BASE, VGA_PORT_COUNT)],
        )
        self._gather(VGA_PORT_BASE, VGA_PORT_COUNT)  # a palette is 64 writes; text moves the cursor with each character

    def _gather(self, port: int, count: int) -> None:
        """Let KVM keep writes to these ports until the next exit: what they change shows only when a port is read, or
        to somebody who calls catch_up() first."""
        if self.vm.check_extension("KVM_CAP_COALESCED_PIO"):
            self.vm.register_coalesced(port, count, pio=True)

    @cached_property
    def passthrough(self) -> BoardPassthrough:
        """What gives devices of this host."""
        from pyvmm.board.passthrough import BoardPassthrough  # with all of VFIO, which few machines want

        return BoardPassthrough(
            self.vm, self.memory, self.loop, self.irqchip, self.pci, self.slots, self.trace, self.io_error
        )

    @cached_property
    def vhost(self) -> BoardVhost:
        """What gives servers of virtqueues in the kernel."""
        from pyvmm.board.vhost import BoardVhost

        return BoardVhost(self.memory, self.loop)

    def _close_vhost(self) -> None:
        if "vhost" in self.__dict__:
            self.vhost.close()

    @cached_property
    def ide(self) -> PiixIde:
        """The IDE controller, in the first free slot of bus 0. ValueError where none is free."""
        from pyvmm.pci.piix_ide import PiixIde  # few machines want one

        ide = PiixIde([self.irqchip.line(irq) for irq in layout.IRQ_IDE])
        self.pci.root.add(ide, self.pci.root.free_slot(), trace=self.trace.channel("ide"))
        return ide

    def _close_passthrough(self) -> None:
        if "passthrough" in self.__dict__:
            self.passthrough.close()

    def _add_pci(self) -> None:
        self._resources.callback(self._close_passthrough)  # after the functions, which are closed before
        self._resources.callback(self._close_vhost)
        router: EventfdMsiRouter | NoMsi = NoMsi()
        if self.irqchip.local_apic:
            router = EventfdMsiRouter(self.vm, self.irqchip.gsi, self.loop.post, self.trace.channel("irq"))
        self._resources.callback(router.close)
        doorbells = IoeventfdDoorbells(self.vm, self.loop, self.pio)
        self._resources.callback(doorbells.close)
        reset = self._reset_line("port 0xcf9")
        reset_control = self.parts.add("reset-control", ResetControl(reset, reset, self.trace.channel("reset-control")))
        self.pci = PciHost(
            self.mmio,
            self.pio,
            self.memory,
            [self.irqchip.pci_line(n) for n in range(4)],
            router,
            interrupt_lines=layout.PCI_IRQS,
            doorbells=doorbells,
            windows=self.slots,
            reset_control=reset_control,
            clock=self.clock,
            defer=self.loop.post,
            trace=self.trace.channel("pci"),
        )
        self._resources.callback(self._close_pci, doorbells)
        self.parts.add(
            "pci",
            self.pci,
            ports=[(layout.PCI_CONFIG, 8, self.pci.config_ports)],
            memory=[(layout.ECAM_START, layout.ECAM_SIZE, self.pci.ecam)],
        )
        self.pci.root.add(self._host_bridge(), 0)
        self.hotplug = Hotplug(self.parts, self.pci, self.acpi_pm, self.trace.channel("pci-hotplug"))

    def _host_bridge(self) -> PciDevice:
        """SeaBIOS knows another one than a machine without firmware needs."""
        if not self.config.runs_seabios:
            return HostBridge(layout.ECAM_START)
        from pyvmm.pci.i440fx import I440fx

        return I440fx()

    def _add_memory_slots(self) -> None:
        if not self.config.memory_slots:
            return
        from pyvmm.board.memory_banks import MemoryBanks  # few machines want them

        channel = self.trace.channel("memory-hotplug")
        self.banks = MemoryBanks(self.parts, self.config, self.memory, self.acpi_pm, channel)
        self._resources.callback(self.banks.close)

    def _add_virtio_input(self) -> None:
        """virtio-input at 00:0A, one function a device."""
        config, trace = self.config, self.trace.channel("input")
        identity = config.virtio_input
        if identity is None or identity == "none":
            return
        from pyvmm.virtio.input import VirtioKeyboard, VirtioMouse, VirtioTablet, virtio_input_functions

        keyboard = VirtioKeyboard(identity, trace=trace)
        mouse = VirtioMouse(identity, trace=trace)
        self.router.add_virtio_keyboard(keyboard)
        self.router.add_virtio_mouse(mouse)
        devices: list[VirtioInput] = [keyboard, mouse]
        if config.tablet:
            tablet = VirtioTablet(identity, trace=trace)
            self.router.add_virtio_tablet(tablet)
            devices.append(tablet)
        for function, device in enumerate(virtio_input_functions(devices)):
            self.pci.root.add(device, layout.VIRTIO_INPUT_SLOT, function, self.trace.channel("virtio-input"))

    def assign_pci_resources(self) -> None:
        """What firmware would do: a guest that does not place BARs itself finds them placed. Raises UserError."""
        if len(self.pci.all_functions()) == 1:  # the host bridge has none
            return
        try:
            memory64 = pci_memory64(self.config.ram_size, self.phys_bits, self.config.max_memory)
            assign_resources(self.pci, layout.PCI_IO, (layout.PCI_MMIO_START, layout.PCI_MMIO_END), memory64)
        except ValueError as error:
            raise UserError(f"{error}: leave a device away") from None

    @property
    def channels(self) -> set[str]:
        """The trace channels of what is on the board and not in the kernel: of its parts, and of PCI functions."""
        functions = {function.trace.name for function in self.pci.all_functions()}
        return functions | {placement.name for placement in self.parts if placement.part is not None}

    @cached_property
    def told(self) -> Told:
        """What the user tells the guest's firmware and kernel. Raises ConfigError."""
        from pyvmm.board.fw_cfg_files import Told  # a guest of ours asks for nothing of it

        return Told(self.config)

    def _fw_cfg_files(self) -> dict[str, bytes]:
        from pyvmm.board.fw_cfg_files import firmware_files

        return firmware_files(self.platform(), self.pci, self.devices.values(), self.config, self.told)

    def platform(self) -> Platform:
        """What the tables say of this board."""
        from pyvmm.board.tables import describe  # with all that describes ACPI, which a guest of ours has no use for

        config = self.config
        return describe(
            self.parts,
            self.sockets,
            config.ram_size,
            self.phys_bits,
            self.pci.last_bus,
            self.hotplug.slots,
            config.memory_slots,
            config.max_memory,
            seabios=config.runs_seabios,
        )

    def reset(self) -> None:
        """The RESET line of the whole board, under the machine lock, while no vCPU runs."""
        self.router.reset()
        self.parts.reset()
        self.rest()  # what the guest had begun may still come into RAM, which is about to be filled
        self.irqchip.reset()
        self.assign_pci_resources()

    def rest(self) -> None:
        """Wait until no thread of a back end reads or writes RAM; under the machine lock. Raises UserError."""
        if self.disks is not None:
            self.disks.drain()
        if "passthrough" in self.__dict__:
            self.passthrough.drain()

    def stand_still(self) -> None:
        """No back end touches RAM from here to go_on(), as no vCPU does. Under the machine lock. Raises UserError, and
        they go on."""
        self.rest()
        if "vhost" in self.__dict__:
            self.vhost.rest()

    def go_on(self) -> None:
        """Under the machine lock."""
        if "vhost" in self.__dict__:
            self.vhost.go_on()

    def restored(self) -> None:
        """After a load of the parts: the rest is done by the loop, when all of the machine is back."""
        self.loop.post(self._catch_up_with_the_host)

    def _catch_up_with_the_host(self) -> None:
        """The guest may believe keys held that nobody holds, and the host may have bytes that there is room for."""
        self.router.release_unheld()
        self.com1.tell_room()

    def _set_nmi_mask(self, masked: bool) -> None:
        self.nmi_masked = masked

    def _vga_memory_changed(self) -> bool:
        self._signals.catch_up()  # its registers too
        if self.vga.shows_frame:
            return self.slots.changed(layout.VGA_FRAME, layout.VGA_FRAME_SIZE)
        return self.slots.changed(layout.VGA_TEXT, layout.VGA_TEXT_SIZE)

    def _close_disks(self) -> None:
        if self.disks is not None:
            self.disks.close()

    def _close_networks(self) -> None:
        if self.networks is not None:
            self.networks.close()

    def _close_pci(self, doorbells: IoeventfdDoorbells) -> None:
        try:
            doorbells.close()  # first, for a doorbell that was rung is still answered
        finally:
            self.pci.close()

    def close(self) -> None:
        """Give eventfds back; once is enough."""
        self._resources.close()


def _no_a20(is_open: bool) -> None:
    """KVM has no A20 gate: the line is always open."""
