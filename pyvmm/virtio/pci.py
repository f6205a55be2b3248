"""virtio-pci, modern: a virtio device as a PCI function (virtio 1.2, section 4.1).

BAR 0, 64-bit memory, 0x4000 bytes; each part has a vendor capability that says where it is:
  0x0000  common configuration (section 4.1.4.3)    features, status, and the registers of the selected queue
  0x1000  notify                                    a write of 16 or 32 bits to 4 * q kicks queue q
  0x2000  ISR status                                bit 0 a queue, bit 1 configuration; a read clears it, lowers INTx
  0x3000  device configuration
BAR 2, 32-bit memory: MSI-X table and pending bits; one vector a queue and one for configuration changes.
A fifth capability reaches BAR 0 through configuration space (section 4.1.4.9), for whoever has no mapping of it.
Interrupt: MSI-X while the guest has it on (NO_VECTOR is silence), else INTA with the ISR.
Undefined offsets read zero and ignore writes, at every width.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar, Final

from pyvmm.pci.device import PciDevice
from pyvmm.pci.doorbell import Doorbell
from pyvmm.pci.regs import PCI_CAP_ID_VNDR
from pyvmm.state import Plain
from pyvmm.trace import OFF
from pyvmm.virtio.abi import (
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
    VIRTIO_MSI_NO_VECTOR,
    VIRTIO_PCI_CAP_COMMON_CFG,
    VIRTIO_PCI_CAP_DEVICE_CFG,
    VIRTIO_PCI_CAP_ISR_CFG,
    VIRTIO_PCI_CAP_NOTIFY_CFG,
    VIRTIO_PCI_CAP_PCI_CFG,
    VIRTIO_PCI_DEVICE_ID_BASE,
    VIRTIO_PCI_ISR_CONFIG,
    VIRTIO_PCI_ISR_QUEUE,
    VIRTIO_PCI_VENDOR_ID,
)
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.queue import VirtQueue

BAR_SIZE: Final = 0x4000
COMMON, NOTIFY, ISR, DEVICE = 0x0000, 0x1000, 0x2000, 0x3000
COMMON_LENGTH: Final = 0x100
NOTIFY_LENGTH: Final = 0x100
ISR_LENGTH: Final = 0x20
DEVICE_LENGTH: Final = 0x100
NOTIFY_OFF_MULTIPLIER: Final = 4
MSIX_BAR: Final = 2

COMMON_CFG: Final = struct.Struct("<IIIIHHBBHHHHHQQQ")
"""struct virtio_pci_common_cfg up to queue_device: 56 bytes, each field aligned to its size."""
_WRITABLE: Final = (
    (0, 4, "device_feature_select"),
    (8, 4, "driver_feature_select"),
    (12, 4, "driver_feature"),
    (16, 2, "config_msix_vector"),
    (20, 1, "device_status"),
    (22, 2, "queue_select"),
    (24, 2, "queue_size"),
    (26, 2, "queue_msix_vector"),
    (28, 2, "queue_enable"),
    (32, 8, "queue_desc"),
    (40, 8, "queue_driver"),
    (48, 8, "queue_device"),
)
_PCI_CFG_BAR: Final = 4
_PCI_CFG_OFFSET: Final = 8
_PCI_CFG_LENGTH: Final = 12
_PCI_CFG_DATA: Final = 16


class PciTransport:
    """The Transport of a device behind the PCI function *function*."""

    def __init__(self, function: VirtioPci) -> None:
        self._function = function

    def interrupt(self, queue: VirtQueue) -> None:
        self._function.queue_interrupt(queue)

    def config_changed(self) -> None:
        self._function.config_changed()

    def needs_reset(self, why: str) -> None:
        self._function.needs_reset(why)

    def defer(self, call: Callable[[], None]) -> None:
        slot = self._function.slot
        if slot is not None:
            slot.defer(call)

    def call_fd(self, queue: VirtQueue) -> int | None:
        return self._function.call_fd(queue)


class VirtioPci(PciDevice):
    """The PCI function of *device*."""

    vendor_id = VIRTIO_PCI_VENDOR_ID
    revision_id = 1
    subsystem_vendor_id = VIRTIO_PCI_VENDOR_ID
    interrupt_pin = 1
    # fmt: off
    STATE: ClassVar[tuple[str, ...]] = (
        "device", "status", "isr", "config_generation", "_device_feature_select", "_driver_feature_select",
        "_driver_features", "_config_vector", "_queue_select",
    )
    # fmt: on

    def __init__(
        self,
        device: VirtioDevice,
        *,
        subsystem_id: int = 0x1100,
        class_code: int | None = None,
    ) -> None:
        self.device_id = VIRTIO_PCI_DEVICE_ID_BASE + device.device_id
        self.class_code = device.class_code if class_code is None else class_code
        self.subsystem_id = subsystem_id
        super().__init__()
        self.device = device
        bar = self.add_memory_bar(0, BAR_SIZE, self, bits64=True)
        self.vectors = self.add_msix(len(device.queues) + 1, MSIX_BAR)
        self._add_virtio_capability(VIRTIO_PCI_CAP_COMMON_CFG, COMMON, COMMON_LENGTH)
        multiplier = NOTIFY_OFF_MULTIPLIER.to_bytes(4, "little")
        self._add_virtio_capability(VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY, NOTIFY_LENGTH, multiplier)
        self._add_virtio_capability(VIRTIO_PCI_CAP_ISR_CFG, ISR, ISR_LENGTH)
        self._add_virtio_capability(VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE, DEVICE_LENGTH)
        writable = bytes(2) + b"\xff" + bytes(3) + b"\xff" * 12
        self._cfg_access = self._add_virtio_capability(VIRTIO_PCI_CAP_PCI_CFG, 0, 0, bytes(4), writable)

        self.status = 0
        self.isr = 0
        self.config_generation = 0
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self._driver_features = 0
        self._config_vector = VIRTIO_MSI_NO_VECTOR
        self._queue_select = 0
        for queue in device.queues:
            queue.paused = True
            kicked = Doorbell(queue.kicked) if queue.kick_fd is None else Doorbell(fd=queue.kick_fd)
            bar.add_doorbell(NOTIFY + NOTIFY_OFF_MULTIPLIER * queue.index, kicked)
        device.connect(PciTransport(self))

    def _add_virtio_capability(
        self, kind: int, offset: int, length: int, more: bytes = b"", writable: bytes = b""
    ) -> int:
        body = struct.pack("<BBBBHII", 16 + len(more), kind, 0, 0, 0, offset, length) + more
        return self.add_capability(PCI_CAP_ID_VNDR, body, writable)

    def attached(self) -> None:
        if self.device.trace is OFF:
            self.device.trace = self.trace
        for queue in self.device.queues:
            queue.trace = self.trace

    def uses(self, gpa: int, length: int) -> bool:
        return any(queue.lies_in(gpa, length) for queue in self.device.queues)

    def contract(self) -> dict[str, object]:
        device = self.device
        return {
            "virtio device": device.device_id,
            "queue_sizes": tuple(queue.max_size for queue in device.queues),
            "features": f"{device.features:#x}",
        }

    def check_saved(self, saved: Plain) -> None:
        if isinstance(saved, dict):
            self.device.check_saved(saved.get("device"))

    def portable(self, saved: Plain) -> Plain:
        return saved | {"device": self.device.portable(saved.get("device"))} if isinstance(saved, dict) else saved

    def close(self) -> None:
        self.device.close()

    # Status and features

    def reset(self) -> None:
        """Status 0, or a bus reset: queues, features and interrupts go back to their initial state."""
        self.status = 0
        self.config_generation = 0
        self._driver_features = 0
        self._device_feature_select = self._driver_feature_select = self._queue_select = 0
        self._config_vector = VIRTIO_MSI_NO_VECTOR
        self._update_driver_ok()
        for queue in self.device.queues:
            queue.reset()
        self.isr = 0
        self.set_intx(False)
        self.vectors.drop_pending()  # section 2.4.1: no notification of before comes after
        self.device.driver_features = 0
        self.device.reset()

    def needs_reset(self, reason: str) -> None:
        """The driver broke the rules (section 2.1.2): stop, say so in the status, and tell it once."""
        if self.device.trace.enabled:
            self.device.trace(f"{self.name} needs a reset: {reason}")
        if not self.status & VIRTIO_CONFIG_S_NEEDS_RESET:
            running = self.status & VIRTIO_CONFIG_S_DRIVER_OK
            self.status |= VIRTIO_CONFIG_S_NEEDS_RESET
            self._update_driver_ok()
            if running:
                self.config_changed()

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        # Bits are cleared by a reset only (section 2.1.1), so nothing that was negotiated can change under a queue.
        status = self.status | value & ~VIRTIO_CONFIG_S_NEEDS_RESET
        if not self.status & VIRTIO_CONFIG_S_FEATURES_OK:
            features = self._driver_features
            offered = not features & ~self.device.features
            if not (offered and features >> VIRTIO_F_VERSION_1 & 1 and self.device.agrees(features)):
                status &= ~VIRTIO_CONFIG_S_FEATURES_OK
            if not status & VIRTIO_CONFIG_S_FEATURES_OK:
                status &= ~VIRTIO_CONFIG_S_DRIVER_OK
        if self.device.trace.enabled:
            self.device.trace(f"{self.name} status {self.status:#04x} -> {status:#04x}")
        self.status = status
        if status & VIRTIO_CONFIG_S_FEATURES_OK:
            self.device.driver_features = self._driver_features
        self._update_driver_ok()

    def _update_driver_ok(self) -> None:
        wrong = VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED
        ok = self.status & (VIRTIO_CONFIG_S_DRIVER_OK | wrong) == VIRTIO_CONFIG_S_DRIVER_OK
        device = self.device
        if ok == device.driver_ok:
            return
        device.driver_ok = ok
        if ok:
            for queue in device.queues:
                self._start(queue)
        # A ring that could not be one has already ended it again.
        if device.driver_ok != ok:
            return
        if not ok:
            for queue in device.queues:
                queue.stop()
        device.driver_ok_changed(ok)
        if ok:
            device.kick_all()

    def _start(self, queue: VirtQueue) -> None:
        """Take a ring into use, as soon as it is enabled, the driver is ready, and there is memory."""
        if queue.enabled and not queue.started and self.device.driver_ok and self.bus_master:
            assert self.slot is not None
            queue.start(self.slot.memory, self._driver_features)  # not `dma`, which may be watched at this moment

    def bus_master_changed(self, enabled: bool) -> None:
        for queue in self.device.queues:
            queue.paused = not enabled
        if enabled:
            for queue in self.device.queues:
                self._start(queue)
            self.device.kick_all()

    def restored(self) -> None:
        """After a load: rings are where the registers say, as far as they had got. A kick that was on its way then is
        lost, and so may be an interrupt that came after; a spurious one does no harm."""
        super().restored()
        if self.slot is None:
            return
        for queue in self.device.queues:
            queue.resume(self.slot.memory, self._driver_features)
        if any(queue.running for queue in self.device.queues):
            self.slot.defer(self._look_again)

    def _look_again(self) -> None:
        self.device.kick_all()
        for queue in self.device.queues:
            if queue.running:
                self.queue_interrupt(queue)

    # Queues and interrupts

    def kick(self, index: int) -> None:
        """A doorbell: let the device look at queue *index*."""
        if index < len(self.device.queues):
            self.device.queues[index].kicked()

    def queue_interrupt(self, queue: VirtQueue) -> None:
        """Tell the driver that *queue* has used buffers."""
        if self.trace.enabled:
            self.trace(f"queue {queue.index}: the driver is told of used buffers", ("interrupt", queue.index))
        self._interrupt(queue.vector, VIRTIO_PCI_ISR_QUEUE)

    def call_fd(self, queue: VirtQueue) -> int | None:
        """The eventfd that interrupts for *queue* without us: that of its MSI-X vector, if it has one."""
        return self.vectors.fd(queue.vector) if self.vectors.enabled else None

    def config_changed(self) -> None:
        """Tell the driver that the device configuration has changed."""
        self.config_generation = (self.config_generation + 1) & 0xFF
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK:
            self._interrupt(self._config_vector, VIRTIO_PCI_ISR_CONFIG)

    def _interrupt(self, vector: int, isr: int) -> None:
        self.isr |= isr
        if not self.vectors.enabled:
            self.set_intx(True)
        elif vector != VIRTIO_MSI_NO_VECTOR:
            if self.trace.enabled:
                self.trace(self.vectors.describe(vector))
            self.vectors.pulse(vector)

    # BAR 0

    def read(self, offset: int, size: int) -> int:
        if offset < COMMON + COMMON_LENGTH:
            return int.from_bytes(self._common()[offset : offset + size], "little")
        if offset == ISR:
            isr = self.isr
            if self.trace.enabled:
                self.trace(f"read of the ISR status returns {isr:#x}", ("isr", isr))
            self.isr = 0
            self.set_intx(False)
            return isr
        if DEVICE <= offset < DEVICE + DEVICE_LENGTH:
            return self.device.config_read(offset - DEVICE, size)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if NOTIFY <= offset < NOTIFY + NOTIFY_LENGTH:
            index, rest = divmod(offset - NOTIFY, NOTIFY_OFF_MULTIPLIER)
            if rest == 0:
                self.kick(index)
        elif offset < COMMON + COMMON_LENGTH:
            self._write_common(offset, size, value)
        elif DEVICE <= offset < DEVICE + DEVICE_LENGTH:
            self.device.config_write(offset - DEVICE, size, value)

    def _selected(self) -> VirtQueue | None:
        queues = self.device.queues
        return queues[self._queue_select] if self._queue_select < len(queues) else None

    def _common(self) -> bytes:
        offered = self.device.features >> 32 * self._device_feature_select if self._device_feature_select < 2 else 0
        accepted = self._driver_features >> 32 * self._driver_feature_select if self._driver_feature_select < 2 else 0
        queue = self._selected()
        registers = (0, VIRTIO_MSI_NO_VECTOR, 0, 0, 0, 0, 0)
        if queue is not None:
            registers = (
                queue.size,
                queue.vector,
                int(queue.enabled),
                queue.index,
                queue.desc,
                queue.driver,
                queue.device,
            )
        return COMMON_CFG.pack(
            self._device_feature_select,
            offered & 0xFFFFFFFF,
            self._driver_feature_select,
            accepted & 0xFFFFFFFF,
            self._config_vector,
            len(self.device.queues),
            self.status or (VIRTIO_CONFIG_S_FAILED if self.device.busy else 0),
            self.config_generation,
            self._queue_select,
            *registers,
        )

    def _write_common(self, offset: int, size: int, value: int) -> None:
        image = bytearray(self._common())
        end = min(offset + size, len(image))
        if offset < end:
            image[offset:end] = value.to_bytes(size, "little")[: end - offset]
        for at, width, name in _WRITABLE:
            if at < end and at + width > offset:
                self._write_field(name, int.from_bytes(image[at : at + width], "little"))

    def _write_field(self, name: str, value: int) -> None:
        match name:
            case "device_feature_select":
                self._device_feature_select = value
            case "driver_feature_select":
                self._driver_feature_select = value
            case "driver_feature":
                if self._driver_feature_select < 2 and not self.status & VIRTIO_CONFIG_S_FEATURES_OK:
                    shift = 32 * self._driver_feature_select
                    self._driver_features = self._driver_features & ~(0xFFFFFFFF << shift) | value << shift
            case "config_msix_vector":
                self._config_vector = self._vector(value)
            case "device_status":
                self._write_status(value)
            case "queue_select":
                self._queue_select = value
            case _:
                queue = self._selected()
                if queue is not None:
                    self._write_queue_field(queue, name, value)

    def _write_queue_field(self, queue: VirtQueue, name: str, value: int) -> None:
        if name == "queue_msix_vector":
            queue.vector = self._vector(value)
            queue.call_changed()
        elif queue.enabled:
            return  # section 4.1.4.3.2: what an enabled queue is made of does not change until a reset
        elif name == "queue_size":
            queue.size = value
        elif name == "queue_desc":
            queue.desc = value
        elif name == "queue_driver":
            queue.driver = value
        elif name == "queue_device":
            queue.device = value
        elif name == "queue_enable" and value == 1:
            queue.enabled = True
            if self.device.driver_ok:
                self._start(queue)
                queue.kicked()

    def _vector(self, value: int) -> int:
        """A vector that does not exist reads back as NO_VECTOR (section 4.1.5.1.2)."""
        return value if value < self.vectors.count else VIRTIO_MSI_NO_VECTOR

    # The capability that reaches the BAR through configuration space

    def config_read(self, offset: int, size: int) -> int:
        data = self._cfg_access + _PCI_CFG_DATA
        if offset < data + 4 and offset + size > data:
            target = self._cfg_target()
            if target is not None:
                at, length = target
                self.config.set(data, 4, self.read(at, length) & ((1 << 8 * length) - 1))
        return super().config_read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        enabled = self.vectors.enabled
        super().config_write(offset, size, value)
        if self.vectors.enabled != enabled:
            for queue in self.device.queues:
                queue.call_changed()
        data = self._cfg_access + _PCI_CFG_DATA
        if offset < data + 4 and offset + size > data:
            target = self._cfg_target()
            if target is not None:
                at, length = target
                self.write(at, length, self.config.get(data, length))

    def _cfg_target(self) -> tuple[int, int] | None:
        """(offset in BAR 0, length), None where section 4.1.4.9.1 forbids the access."""
        at = self._cfg_access
        offset, length = self.config.get(at + _PCI_CFG_OFFSET, 4), self.config.get(at + _PCI_CFG_LENGTH, 4)
        bar = self.config.get(at + _PCI_CFG_BAR, 1)
        if bar != 0 or length not in (1, 2, 4) or offset % length or offset + length > BAR_SIZE:
            return None
        return offset, length
