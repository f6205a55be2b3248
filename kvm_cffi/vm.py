"""A virtual machine's file descriptor: memory slots, interrupt controllers, routing, eventfds."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from kvm_cffi._call import KvmError, ioctl, ioctl_value
from kvm_cffi._kvm import ffi, lib
from kvm_cffi.attributes import get_device_attr, has_device_attr, set_device_attr
from kvm_cffi.pages import PAGE_SIZE, bitmap, harvest
from kvm_cffi.vcpu import Vcpu

ROUTING_ENTRY: Final = struct.Struct("=II8xIII20x")
"""struct kvm_irq_routing_entry: gsi, type; of the union irqchip and pin, or the message's address (low, high) and data.

A table has thousands, and field by field through cffi each takes 4 µs."""


@dataclass(frozen=True)
class IrqchipRoute:
    """A GSI that drives a pin of an in-kernel chip (KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC)."""

    gsi: int
    irqchip: int
    pin: int

    @property
    def entry(self) -> bytes:
        """struct kvm_irq_routing_entry."""
        return ROUTING_ENTRY.pack(self.gsi, lib.KVM_IRQ_ROUTING_IRQCHIP, self.irqchip, self.pin, 0)


@dataclass(frozen=True)
class MsiRoute:
    """A GSI that sends the message *data* to *address*."""

    gsi: int
    address: int
    data: int

    @property
    def entry(self) -> bytes:
        """struct kvm_irq_routing_entry."""
        low, high = self.address & 0xFFFFFFFF, self.address >> 32
        return ROUTING_ENTRY.pack(self.gsi, lib.KVM_IRQ_ROUTING_MSI, low, high, self.data)


class DeviceFd:
    """A device made by KVM_CREATE_DEVICE, and its attributes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def set_attr(self, group: int, attr: int, value: bytes) -> None:
        set_device_attr(self.fd, group, attr, value)

    def get_attr(self, group: int, attr: int, size: int) -> bytes:
        return get_device_attr(self.fd, group, attr, size)

    def has_attr(self, group: int, attr: int) -> bool:
        return has_device_attr(self.fd, group, attr)


class Vm:
    """A VM; a context manager. Made by System.create_vm(). Closing it does not close its vCPUs."""

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        self.fd = fd
        self._vcpu_mmap_size = vcpu_mmap_size
        self._memory: dict[int, Any] = {}  # keeps each slot's buffer alive while the kernel may write to it
        self._ring_offset = self.check_extension("KVM_CAP_COALESCED_MMIO") * PAGE_SIZE

    def close(self) -> None:
        """Close the descriptor; the memory given to slots is let go."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._memory.clear()

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def check_extension(self, capability: str) -> int:
        """KVM_CHECK_EXTENSION on the VM: 0 where absent, else 1 or the capability's value."""
        return ioctl_value(self.fd, "KVM_CHECK_EXTENSION", getattr(lib, capability))

    def enable_cap(self, capability: str, *args: int) -> None:
        """KVM_ENABLE_CAP with up to four arguments."""
        cap = ffi.new("struct kvm_enable_cap *")
        cap.cap = getattr(lib, capability)
        for i, value in enumerate(args):
            cap.args[i] = value
        ioctl(self.fd, "KVM_ENABLE_CAP", cap)

    # Memory

    def set_user_memory_region(
        self, slot: int, gpa: int, buffer: Any, *, readonly: bool = False, log_dirty_pages: bool = False
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: *buffer* (page-aligned, writable, such as an mmap) becomes guest memory at *gpa*.

        Buffer None deletes the slot. The flags of a slot may be changed by a second call with the same buffer.
        """
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot, region.guest_phys_addr = slot, gpa
        region.flags = (lib.KVM_MEM_READONLY if readonly else 0) | (
            lib.KVM_MEM_LOG_DIRTY_PAGES if log_dirty_pages else 0
        )
        if buffer is not None:
            with ffi.from_buffer(buffer, require_writable=True) as pointer:
                region.userspace_addr = int(ffi.cast("uintptr_t", pointer))
                region.memory_size = len(pointer)
        ioctl(self.fd, "KVM_SET_USER_MEMORY_REGION", region)
        if buffer is None:
            self._memory.pop(slot, None)
        else:
            self._memory[slot] = buffer

    def get_dirty_log(self, slot: int, size: int) -> bytes:
        """KVM_GET_DIRTY_LOG: one bit a page of the slot of *size* bytes, little-endian, cleared by the reading."""
        bits = bitmap(size)
        words = ffi.from_buffer(bits, require_writable=True)
        log = ffi.new("struct kvm_dirty_log *")
        log.slot, log.dirty_bitmap = slot, words
        ioctl(self.fd, "KVM_GET_DIRTY_LOG", log)
        return bytes(bits)

    def harvest_dirty_log(self, slot: int, dirty: bytearray, scratch: bytearray, size: int) -> None:
        """KVM_GET_DIRTY_LOG or-ed to *dirty* without the GIL; *scratch* is room for it: bitmaps for *size* bytes."""
        harvest(self.fd, slot, dirty, scratch, size)

    def set_tss_addr(self, gpa: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB that Intel hosts need for real mode."""
        ioctl_value(self.fd, "KVM_SET_TSS_ADDR", gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one page below 4 GiB, likewise; before any vCPU is made."""
        ioctl(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", ffi.new("uint64_t *", gpa))

    # Interrupts

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: PIC pair, IOAPIC and local APICs in the kernel."""
        ioctl(self.fd, "KVM_CREATE_IRQCHIP")

    def enable_split_irqchip(self, pins: int = 24) -> None:
        """KVM_CAP_SPLIT_IRQCHIP: local APICs in the kernel, PIC and an IOAPIC of *pins* inputs in user space."""
        self.enable_cap("KVM_CAP_SPLIT_IRQCHIP", pins)

    def create_pit2(self, speaker_dummy: bool = True) -> None:
        """KVM_CREATE_PIT2; speaker_dummy lets the kernel answer port 0x61 too."""
        config = ffi.new("struct kvm_pit_config *")
        config.flags = lib.KVM_PIT_SPEAKER_DUMMY if speaker_dummy else 0
        ioctl(self.fd, "KVM_CREATE_PIT2", config)

    def get_pit2(self) -> bytes:
        """KVM_GET_PIT2: struct kvm_pit_state2 as bytes."""
        state = ffi.new("struct kvm_pit_state2 *")
        ioctl(self.fd, "KVM_GET_PIT2", state)
        return bytes(ffi.buffer(state))

    def set_pit2(self, state: bytes) -> None:
        """KVM_SET_PIT2: what get_pit2 gave."""
        argument = ffi.new("struct kvm_pit_state2 *")
        ffi.memmove(argument, state, min(len(state), ffi.sizeof("struct kvm_pit_state2")))
        ioctl(self.fd, "KVM_SET_PIT2", argument)

    def get_irqchip(self, chip: int) -> bytes:
        """KVM_GET_IRQCHIP: the 512 state bytes of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC."""
        state = ffi.new("struct kvm_irqchip *")
        state.chip_id = chip
        ioctl(self.fd, "KVM_GET_IRQCHIP", state)
        return bytes(ffi.buffer(state.chip.dummy))

    def set_irqchip(self, chip: int, data: bytes) -> None:
        """KVM_SET_IRQCHIP: what get_irqchip gave."""
        state = ffi.new("struct kvm_irqchip *")
        state.chip_id = chip
        ffi.memmove(state.chip.dummy, data, min(len(data), 512))
        ioctl(self.fd, "KVM_SET_IRQCHIP", state)

    def irq_line(self, gsi: int, level: bool) -> None:
        """KVM_IRQ_LINE: drive the wire of *gsi*."""
        ioctl(self.fd, "KVM_IRQ_LINE", ffi.new("struct kvm_irq_level *", (gsi, 1 if level else 0)))

    def set_gsi_routing(self, routes: Iterable[IrqchipRoute | MsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING: replaces the whole table."""
        entries = [route.entry for route in routes]
        table = ffi.new("struct kvm_irq_routing *", {"entries": len(entries)})
        table.nr = len(entries)
        data = b"".join(entries)
        ffi.memmove(table.entries, data, len(data))
        ioctl(self.fd, "KVM_SET_GSI_ROUTING", table)

    def signal_msi(self, address: int, data: int) -> bool:
        """KVM_SIGNAL_MSI: send one message now; False where the guest blocked it, or no vCPU is where it goes."""
        msi = ffi.new("struct kvm_msi *")
        msi.address_lo, msi.address_hi, msi.data = address & 0xFFFFFFFF, address >> 32, data
        try:
            return ioctl(self.fd, "KVM_SIGNAL_MSI", msi) > 0
        except KvmError as error:
            if error.errno == errno.EPERM:  # what the kernel's search for the destination ends with where there is none
                return False
            raise

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, deassign: bool = False) -> None:
        """KVM_IRQFD: a write to eventfd *fd* raises *gsi*; with resamplefd, a level that the guest's EOI re-samples."""
        argument = ffi.new("struct kvm_irqfd *")
        argument.fd, argument.gsi = fd, gsi
        if deassign:
            argument.flags |= lib.KVM_IRQFD_FLAG_DEASSIGN
        if resamplefd is not None:
            argument.flags |= lib.KVM_IRQFD_FLAG_RESAMPLE
            argument.resamplefd = resamplefd
        ioctl(self.fd, "KVM_IRQFD", argument)

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int,
        *,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """KVM_IOEVENTFD: a guest write of *length* bytes (0 any, else 1, 2, 4, 8) signals *fd* without an exit."""
        argument = ffi.new("struct kvm_ioeventfd *")
        argument.fd, argument.addr, argument.len = fd, address, length
        if datamatch is not None:
            argument.flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
            argument.datamatch = datamatch
        if pio:
            argument.flags |= lib.KVM_IOEVENTFD_FLAG_PIO
        if deassign:
            argument.flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        ioctl(self.fd, "KVM_IOEVENTFD", argument)

    def _coalesced_zone(self, request: str, address: int, size: int, pio: bool) -> None:
        zone = ffi.new("struct kvm_coalesced_mmio_zone *")
        zone.addr, zone.size, zone.pio = address, size, 1 if pio else 0
        ioctl(self.fd, request, zone)

    def register_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO: writes there gather in a ring; Vcpu.coalesced_writes() takes them out."""
        self._coalesced_zone("KVM_REGISTER_COALESCED_MMIO", address, size, pio)

    def unregister_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO."""
        self._coalesced_zone("KVM_UNREGISTER_COALESCED_MMIO", address, size, pio)

    # The rest

    def get_clock(self) -> int:
        """KVM_GET_CLOCK: nanoseconds of the guest's kvm-clock."""
        data = ffi.new("struct kvm_clock_data *")
        ioctl(self.fd, "KVM_GET_CLOCK", data)
        return int(data.clock)

    def set_clock(self, ns: int) -> None:
        """KVM_SET_CLOCK."""
        data = ffi.new("struct kvm_clock_data *")
        data.clock = ns
        ioctl(self.fd, "KVM_SET_CLOCK", data)

    def create_device(self, device_type: int) -> DeviceFd:
        """KVM_CREATE_DEVICE (KVM_DEV_TYPE_*)."""
        argument = ffi.new("struct kvm_create_device *")
        argument.type = device_type
        ioctl(self.fd, "KVM_CREATE_DEVICE", argument)
        return DeviceFd(argument.fd)

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU; the id is the vCPU's APIC id."""
        fd = ioctl_value(self.fd, "KVM_CREATE_VCPU", vcpu_id)
        return Vcpu(fd, vcpu_id, self._vcpu_mmap_size, self._ring_offset)
