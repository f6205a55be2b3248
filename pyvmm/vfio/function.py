"""The PCI function that a device of the host is to the guest.

Its identity, class and capabilities are the device's own, and so is all that its registers do. Ours is what lies
between it and the guest:

  BARs        where they are, is the guest's business alone. What VFIO lets us map becomes memory slots (Bar.back); the
              rest traps and is passed on: I/O, BARs of less than a page, and the pages that hold the MSI-X table or
              its pending bits, which are ours
  COMMAND     the device's decode bits follow the guest's. Before memory decoding goes off, the slots go: an access to a
              BAR that does not decode would be an error of KVM_RUN. Power states other than D0 likewise
  MSI, MSI-X  the guest programs our capability; the device's vectors signal eventfds, which KVM makes interrupts
              (irqfd). A masked vector's eventfd counts, and is the pending bit
  INTx        level-triggered; VFIO masks it when it signals, and unmasks it when the guest has ended the interrupt
  reset       the function level reset that the guest asks for is VFIO's, as a reset of the machine is; it takes some
              100 ms of another thread, in which the function answers as one that is not ready

Source: Linux Documentation/driver-api/vfio.rst, <linux/vfio.h>; PCI Local Bus Specification 3.0, chapter 6; PCI Bus
Power Management Interface Specification 1.2, section 3.2; PCI Express Base Specification 3.0, section 6.6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from kvm_cffi import constants
from kvm_cffi.vfio import VfioRegion
from pyvmm.bus import ALL_ONES, Device
from pyvmm.errors import UserError
from pyvmm.pci.device import PciDevice
from pyvmm.pci.msi import Msi, Msix
from pyvmm.pci.regs import (
    PCI_BASE_ADDRESS_0,
    PCI_BASE_ADDRESS_MEM_PREFETCH,
    PCI_BASE_ADDRESS_MEM_TYPE_64,
    PCI_BASE_ADDRESS_MEM_TYPE_MASK,
    PCI_BASE_ADDRESS_SPACE_IO,
    PCI_CAP_ID_MSI,
    PCI_CAP_ID_MSIX,
    PCI_CAP_ID_PM,
    PCI_CAP_ID_VPD,
    PCI_CARDBUS_CIS,
    PCI_CLASS_PROG,
    PCI_COMMAND,
    PCI_COMMAND_IO,
    PCI_COMMAND_MASTER,
    PCI_COMMAND_MEMORY,
    PCI_DEVICE_ID,
    PCI_HEADER_TYPE,
    PCI_HEADER_TYPE_MULTI_FUNCTION,
    PCI_HEADER_TYPE_NORMAL,
    PCI_INTERRUPT_PIN,
    PCI_MIN_GNT,
    PCI_MSI_FLAGS,
    PCI_MSI_FLAGS_64BIT,
    PCI_MSI_FLAGS_MASKBIT,
    PCI_MSI_FLAGS_QMASK,
    PCI_MSIX_ENTRY_SIZE,
    PCI_MSIX_FLAGS,
    PCI_MSIX_FLAGS_QSIZE,
    PCI_MSIX_PBA,
    PCI_MSIX_TABLE,
    PCI_MSIX_TABLE_BIR,
    PCI_PM_CTRL,
    PCI_PM_CTRL_STATE_MASK,
    PCI_REVISION_ID,
    PCI_STD_HEADER_SIZEOF,
    PCI_STD_NUM_BARS,
    PCI_SUBSYSTEM_ID,
    PCI_SUBSYSTEM_VENDOR_ID,
    PCI_VENDOR_ID,
)
from pyvmm.pci.rom import read_rom
from pyvmm.state import StateError
from pyvmm.trace import OFF, Channel
from pyvmm.vfio.access import Access
from pyvmm.vfio.bar import HostBar, MsixTable, PendingBits, mappable
from pyvmm.vfio.config import HostConfigSpace
from pyvmm.vfio.flr import FunctionLevelReset
from pyvmm.vfio.host import HostDevice, Passthrough
from pyvmm.vfio.interrupts import INTX, MSI, MSIX, Interrupts
from pyvmm.vfio.jobs import Jobs, Say
from pyvmm.vfio.vpd import VpdWindow

DECODE: Final = PCI_COMMAND_IO | PCI_COMMAND_MEMORY


class VfioPci(PciDevice):
    """A PCI device of the host, given to the guest by VFIO; docs/passthrough.md."""

    STATE = ()

    def __init__(
        self,
        host: str,
        *,
        rom: Path | None = None,
        p2p: bool = False,
        passthrough: Passthrough,
        wiring: Channel = OFF,
    ) -> None:
        """*host* is where the device is, [DDDD:]BB:DD.F; *rom* is a file to be its expansion ROM, which is hidden
        without; with *p2p* the guest's other devices reach its BARs by DMA. Raises UserError."""
        rom_image = None if rom is None else read_rom(rom)
        self._host = host
        self._p2p = p2p
        self._passthrough = passthrough
        self._device = passthrough.open(host)
        try:
            self._take(self._device, rom_image, wiring)
        except BaseException as error:
            passthrough.give_back(host)
            if isinstance(error, OSError):
                raise UserError(f"device {host}: {error}: see dmesg") from None
            raise

    def _take(self, device: HostDevice, rom_image: bytes | None, wiring: Channel) -> None:
        """All that the function is, from what *device* says. Raises UserError, ValueError, OSError."""
        host, passthrough = self._host, self._passthrough
        self._access = Access(device, host, wiring)
        region = device.region(constants.VFIO_PCI_CONFIG_REGION_INDEX)
        image = b"" if region is None else device.read(region, 0, region.size)
        if region is None or len(image) < PCI_STD_HEADER_SIZEOF or image.startswith(b"\xff\xff"):
            raise UserError(f"device {host} does not answer: see dmesg")
        self._config_region = region
        self._image = image

        def get(offset: int, size: int) -> int:
            return int.from_bytes(image[offset : offset + size], "little")

        if get(PCI_HEADER_TYPE, 1) & ~PCI_HEADER_TYPE_MULTI_FUNCTION != PCI_HEADER_TYPE_NORMAL:
            raise UserError(f"device {host} is a bridge: give a device behind it")
        self.vendor_id = get(PCI_VENDOR_ID, 2)
        self.device_id = get(PCI_DEVICE_ID, 2)
        self.class_code = get(PCI_CLASS_PROG, 3)
        self.revision_id = get(PCI_REVISION_ID, 1)
        self.subsystem_vendor_id = get(PCI_SUBSYSTEM_VENDOR_ID, 2)
        self.subsystem_id = get(PCI_SUBSYSTEM_ID, 2)
        self.interrupt_pin = get(PCI_INTERRUPT_PIN, 1) if device.irq(INTX).count else 0
        if self.interrupt_pin > 4:
            raise UserError(f"device {host} has an interrupt pin {self.interrupt_pin}, and there are four: see dmesg")
        self._host_command = 0
        self._power = 0
        """D0 to D3."""
        self._closed = self._resetting = False
        self._signals: dict[int, int] = {}
        """Eventfds of what the host has to say of the device, by VFIO's number of it."""
        self._vpd: VpdWindow | None = None
        super().__init__()
        self._jobs = Jobs(passthrough.submit, self._access.tell)
        self._interrupts = Interrupts(self, self._access, passthrough, self._jobs)
        self.config.define(PCI_CARDBUS_CIS, 4, get(PCI_CARDBUS_CIS, 4))
        self.config.define(PCI_MIN_GNT, 2, get(PCI_MIN_GNT, 2))
        self._pm = self.config.find_capability(PCI_CAP_ID_PM)
        self._flr = FunctionLevelReset(self.config)
        if vpd := self.config.find_capability(PCI_CAP_ID_VPD):
            self._vpd = VpdWindow(vpd, self._jobs, partial(device.write, region), self._interrupts.follow)
        self._add_host_msi(get)
        ours = self._add_host_msix(get)
        for index in range(PCI_STD_NUM_BARS):
            bar = device.region(constants.VFIO_PCI_BAR0_REGION_INDEX + index)
            if bar is not None:
                self._add_host_bar(index, bar, get(PCI_BASE_ADDRESS_0 + 4 * index, 4), ours.get(index, []))
        if rom_image is not None:
            self.add_rom(rom_image)

    def make_config(self) -> HostConfigSpace:
        return HostConfigSpace(self._image, self._read_config, self._write_config)

    def _read_config(self, offset: int, size: int) -> bytes:
        data = self._access.read(self._config_region, offset, size)
        return data if self._vpd is None else self._vpd.read(offset, data)

    def _write_config(self, offset: int, data: bytes) -> None:
        if self._vpd is None or not self._vpd.write(offset, data):
            self._access.write(self._config_region, offset, data)

    def _add_host_msi(self, get: Get) -> None:
        at = self.config.find_capability(PCI_CAP_ID_MSI)
        if not at:
            return
        flags = get(at + PCI_MSI_FLAGS, 2)
        vectors = 1 << min((flags & PCI_MSI_FLAGS_QMASK) >> 1, 5)
        bits64, maskable = bool(flags & PCI_MSI_FLAGS_64BIT), bool(flags & PCI_MSI_FLAGS_MASKBIT)
        self.msi = Msi(self.config, vectors, bits64, maskable, lambda: self.bus_master, self._write_message, at)

    def _add_host_msix(self, get: Get) -> dict[int, list[tuple[int, int, Device]]]:
        """What is ours in its BARs."""
        at = self.config.find_capability(PCI_CAP_ID_MSIX)
        if not at:
            return {}
        vectors = (get(at + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1
        table = vectors * PCI_MSIX_ENTRY_SIZE
        self.msix = Msix(self.config, vectors, 0, table, lambda: self.bus_master, self._write_message, at)
        ours: dict[int, list[tuple[int, int, Device]]] = {}
        parts: tuple[tuple[int, int, Device], ...] = (
            (PCI_MSIX_TABLE, table, MsixTable(self.msix, self._interrupts.follow)),
            (PCI_MSIX_PBA, (vectors + 63) // 64 * 8, PendingBits(vectors, partial(self._interrupts.pending, MSIX))),
        )
        for register, size, device in parts:
            where = get(at + register, 4)
            start = where & ~PCI_MSIX_TABLE_BIR
            ours.setdefault(where & PCI_MSIX_TABLE_BIR, []).append((start, start + size, device))
        return ours

    def _add_host_bar(self, index: int, region: VfioRegion, register: int, ours: list[tuple[int, int, Device]]) -> None:
        """The BAR that *region* is, by the low bits of its register."""
        device = HostBar(self._access, region, ours)
        if register & PCI_BASE_ADDRESS_SPACE_IO:
            self.add_io_bar(index, region.size, device)
            return
        bits64 = register & PCI_BASE_ADDRESS_MEM_TYPE_MASK == PCI_BASE_ADDRESS_MEM_TYPE_64
        prefetchable = bool(register & PCI_BASE_ADDRESS_MEM_PREFETCH)
        bar = self.add_memory_bar(index, region.size, device, bits64=bits64, prefetchable=prefetchable)
        for start, end in mappable(region, [(start, end) for start, end, _ in ours]):
            try:
                memory = self._device.map(region, start, end - start)
            except OSError as error:
                self._access.tell(f"BAR {index}: {start:#x} to {end:#x} cannot be mapped, and traps: {error}")
                continue
            bar.back(start, memory)
            if self._p2p:
                self._passthrough.let_peers_reach(memory)

    # Being plugged in, reset and thrown away

    def attached(self) -> None:
        self._set_host_command(0)
        self._interrupts.follow()
        self._passthrough.watch_trace(self._follow_trace)
        self._hear(constants.VFIO_PCI_REQ_IRQ_INDEX, self._wanted_back)
        self._hear(constants.VFIO_PCI_ERR_IRQ_INDEX, self._failed)

    def _hear(self, index: int, call: Callable[[], None]) -> None:
        """Let *call* hear of what the host says by interrupt *index*, where the device has that."""
        try:
            if self._device.irq(index).count:
                fd = self._signals[index] = self._passthrough.watch(call)
                self._device.set_triggers(index, (fd,))
        except OSError as error:  # a host that gives no descriptor, or knows no such thing of the device
            self._access.tell(f"its errors and requests: {error}")

    def _wanted_back(self) -> None:
        """The host's driver is told to let go of it, which waits until we have."""
        self._passthrough.say(
            f"device {self._host}: this host wants it back, and has it: to the guest it is as one that was pulled out"
        )
        self.close()

    def _failed(self) -> None:
        self._passthrough.say(f"device {self._host}: an error of its bus (AER) that is not corrected: see dmesg")

    def reset_function(self) -> None:
        super().reset_function()
        if not self._closed:
            self._interrupts.follow()

    def reset(self) -> None:
        """The guest meets the device again once it is done: until then it answers as one that is not ready."""
        if self._closed or self._resetting:
            return
        self._power = 0
        self._resetting = True
        self._interrupts.hold(lambda: self._jobs.add(self._reset_job, self._reset_done))

    def _reset_job(self, say: Say) -> None:
        if self._device.can_reset:
            self._device.reset()
            return
        try:
            self._passthrough.hot_reset(self._host)
        except OSError as error:
            say(f"it has no reset, and its registers stay: {error}")
            self._wake()

    def _wake(self) -> None:
        """As after a reset it is in D0. Raises OSError."""
        if self._pm:
            at = self._pm + PCI_PM_CTRL
            state = self._device.read(self._config_region, at, 1)[0]
            if state & PCI_PM_CTRL_STATE_MASK:
                self._device.write(self._config_region, at, bytes((state & ~PCI_PM_CTRL_STATE_MASK,)))

    def _reset_done(self) -> None:
        if self._closed:
            return
        self._resetting = False
        if self._pm:  # one that did not wake does not decode
            self._power = self._read_config(self._pm + PCI_PM_CTRL, 1)[0] & PCI_PM_CTRL_STATE_MASK
        self._set_host_command(self._host_command)
        self._interrupts.release()

    def disconnect(self) -> None:
        """The kernel resets the device as it is closed, and lets go of the eventfds, which are ours to close then."""
        self.close()
        super().disconnect()

    def _follow_trace(self) -> None:
        if not self._closed:
            self._interrupts.follow()

    def close(self) -> None:
        """The device is the host's again; once is enough."""
        if self._closed:
            return
        with suppress(UserError):  # what does not come to rest ends with its file
            self._passthrough.drain()
        self._interrupts.close()
        self._passthrough.unwatch_trace(self._follow_trace)
        for index, fd in self._signals.items():
            self._access.attempt("its errors and requests", partial(self._device.disable, index))
            self._passthrough.unwatch(fd)
        self._signals.clear()
        self._closed = True
        for bar in self.bars.values():
            claim, bar.claim = bar.claim, None
            if claim is not None:
                claim.release()
            bar.backing.clear()  # what is mapped of a device keeps it open
        self._passthrough.give_back(self._host)

    def iova(self, address: int) -> str:
        """What the device reaches at *address* by DMA, and where that is on this host, or why it reaches nothing."""
        return self._passthrough.iova(address)

    def save(self) -> None:
        """What a device of the host holds, only its driver knows."""
        name = self._access.name
        raise StateError(f"{name} is a device of the host, whose state nobody can read: leave it away")

    def load(self, saved: object) -> None:
        self.save()

    # Configuration space

    @property
    def command(self) -> int:
        """The COMMAND register; in a power state other than D0 the function neither decodes nor masters the bus."""
        command = super().command
        return command & ~(DECODE | PCI_COMMAND_MASTER) if self._power else command

    @property
    def _absent(self) -> bool:
        """It does not answer: it is being reset, or the host has it again."""
        return self._resetting or self._closed

    def config_read(self, offset: int, size: int) -> int:
        if self._absent:
            return ALL_ONES[size]
        if self.msi is not None and offset < self.msi.pending_at + 4 and offset + size > self.msi.pending_at > 0:
            self.config.set(self.msi.pending_at, 4, self._interrupts.pending(MSI, range(self.msi.count)))
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        if self._absent:
            return
        if self._flr.is_asked_by(offset, size, value):
            self._access.tell("function level reset")
            self.reset_function()
            return
        pmcsr = self._pm + PCI_PM_CTRL
        power = self._pm and offset <= pmcsr < offset + size
        if power:  # what leaves D0 decodes no more from here on
            self._set_power(value >> 8 * (pmcsr - offset) & PCI_PM_CTRL_STATE_MASK or self._power)
        super().config_write(offset, size, value)
        if power:
            self._set_power(self._read_config(pmcsr, 1)[0] & PCI_PM_CTRL_STATE_MASK)
        self._interrupts.follow()

    def _set_power(self, state: int) -> None:
        if state != self._power:
            self._access.tell(f"power state D{state}")
            self._power = state
            self.update_bus_master()
            self.update_decode()

    def bus_master_changed(self, enabled: bool) -> None:
        master = PCI_COMMAND_MASTER if enabled else 0
        self._set_host_command(self._host_command & ~PCI_COMMAND_MASTER | master)

    def update_decode(self) -> None:
        command = self.command & ~PCI_COMMAND_MASTER | (PCI_COMMAND_MASTER if self.bus_master else 0)
        # What begins to decode does so before the guest reaches it, and what ends, after.
        self._set_host_command(command | self._host_command & DECODE)
        super().update_decode()
        self._set_host_command(command)

    def _set_host_command(self, command: int) -> None:
        self._host_command = command
        if not self._absent:  # while it is reset the kernel would let us wait
            self._write_config(PCI_COMMAND, command.to_bytes(2, "little"))


Get = Callable[[int, int], int]
"""Reads what the device's own configuration space held at the start: (offset, size)."""
