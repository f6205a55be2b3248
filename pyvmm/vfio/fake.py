"""VFIO's side of a device, without one: what the kernel lets through, refuses and remembers (drivers/vfio/pci)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from kvm_cffi import constants
from kvm_cffi.vfio import IrqInfo, VfioRegion
from pyvmm.pci.device import PciDevice
from pyvmm.pci.regs import PCI_COMMAND, PCI_COMMAND_MEMORY, PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK
from pyvmm.vfio.host import IntxLine

CONFIG: Final = constants.VFIO_PCI_CONFIG_REGION_INDEX
INTX: Final = constants.VFIO_PCI_INTX_IRQ_INDEX
REGION_SHIFT: Final = 40
"""VFIO_PCI_OFFSET_SHIFT of the kernel."""


class FakeHostDevice:
    """A device with the configuration space *config*, and BARs by their number: (size, what of it can be mapped).

    `fire()` is the device's interrupt; `log` has what was asked of the kernel. What must never happen raises
    AssertionError: a mapping that a guest can reach while the device does not decode, two kinds of interrupts at once.
    """

    def __init__(
        self,
        config: bytes | bytearray,
        bars: dict[int, tuple[int, tuple[tuple[int, int], ...]]],
        vectors: tuple[int, int, int] = (1, 0, 0),
        pm: int = 0,
    ) -> None:
        """*vectors* are those of INTx, MSI and MSI-X; *pm* is where the power management capability is."""
        self.config = bytearray(config)
        self.memory = {index: bytearray(size) for index, (size, _) in bars.items()}
        self._mappable = {index: pieces for index, (_, pieces) in bars.items()}
        self._vectors = vectors
        self._pm = pm
        self._made = bytes(config)
        self.can_reset = True
        self.heard: dict[int, int] | None = None
        """Eventfds of errors and requests, where the device has those."""
        self.closed = False
        self.resets = 0
        self.enabled: tuple[int, list[int | None]] | None = None
        self.intx_masked = False
        self.intx_up = False
        self.reachable: Callable[[], bool] = lambda: False
        """Whether the guest reaches a mapping of ours."""
        self.log: list[tuple[str, int, int]] = []

    @property
    def decodes(self) -> bool:
        awake = not self._pm or not self.config[self._pm + PCI_PM_CTRL] & PCI_PM_CTRL_STATE_MASK
        return awake and bool(self.config[PCI_COMMAND] & PCI_COMMAND_MEMORY)

    def region(self, index: int) -> VfioRegion | None:
        if index == CONFIG:
            return VfioRegion(CONFIG, len(self.config), CONFIG << REGION_SHIFT)
        if index not in self.memory:
            return None
        return VfioRegion(index, len(self.memory[index]), index << REGION_SHIFT, mappable=self._mappable[index])

    def read(self, region: VfioRegion, offset: int, size: int) -> bytes:
        assert not self.closed
        if region.index == CONFIG:
            return bytes(self.config[offset : offset + size])
        self._must_decode()
        return bytes(self.memory[region.index][offset : offset + size])

    def write(self, region: VfioRegion, offset: int, data: bytes) -> None:
        assert not self.closed
        if region.index == CONFIG:
            self._write_config(offset, data)
            return
        self._must_decode()
        assert offset + len(data) <= region.size
        self.memory[region.index][offset : offset + len(data)] = data

    def _write_config(self, offset: int, data: bytes) -> None:
        for i, byte in enumerate(data, offset):
            writable = i in (PCI_COMMAND, PCI_COMMAND + 1) or i >= 0x40
            self.config[i] = byte if writable else self.config[i]
        self.log.append(("config", offset, int.from_bytes(data, "little")))
        assert self.decodes or not self.reachable(), "the guest reaches what does not decode: KVM_RUN would fail"

    def _must_decode(self) -> None:
        if not self.decodes:
            raise OSError(errno.EIO, "memory decoding is off")

    def map(self, region: VfioRegion, offset: int, size: int) -> memoryview:
        assert any(start <= offset and offset + size <= start + length for start, length in region.mappable)
        return memoryview(self.memory[region.index])[offset : offset + size]

    def irq(self, index: int) -> IrqInfo:
        count = self._vectors[index] if index < len(self._vectors) else int(self.heard is not None)
        return IrqInfo(count, maskable=index == INTX, automasked=index == INTX, resizable=False)

    def set_triggers(self, index: int, fds: Sequence[int | None]) -> int:
        if index in (constants.VFIO_PCI_REQ_IRQ_INDEX, constants.VFIO_PCI_ERR_IRQ_INDEX):
            assert self.heard is not None and len(fds) == 1 and fds[0] is not None
            self.heard[index] = fds[0]
            return 0
        if self.enabled is not None or not 0 < len(fds) <= self._vectors[index]:
            raise OSError(errno.EINVAL, "another interrupt is on, or there are not so many vectors")
        self.enabled = index, list(fds)
        self.log.append(("on", index, len(fds)))
        self.intx_masked = False
        self._signal_intx()
        return 0

    def disable(self, index: int) -> None:
        if self.heard is not None and self.heard.pop(index, None) is not None:
            return
        if self.enabled is None or self.enabled[0] != index:
            raise OSError(errno.EINVAL, "that interrupt is not on")
        self.enabled = None
        self.log.append(("off", index, 0))

    def unmask(self, index: int) -> None:
        assert index == INTX
        self.intx_masked = False
        self._signal_intx()

    def unmask_by(self, index: int, fd: int) -> None:
        self.log.append(("unmask_by", index, fd))

    def reset(self) -> None:
        assert not self.reachable()
        self.resets += 1
        command = self.config[PCI_COMMAND : PCI_COMMAND + 2]
        self.config[:] = self._made  # which the kernel saves and restores around it
        self.config[PCI_COMMAND : PCI_COMMAND + 2] = command

    def close(self) -> None:
        assert self.enabled is None and not self.reachable()
        self.closed = True

    # The device's side

    def fire(self, vector: int = 0) -> None:
        """A message, of MSI or MSI-X as is on."""
        if self.enabled is not None and self.enabled[0] != INTX and vector < len(self.enabled[1]):
            fd = self.enabled[1][vector]
            if fd is not None:
                os.eventfd_write(fd, 1)

    def set_intx(self, level: bool) -> None:
        self.intx_up = level
        self._signal_intx()

    def _signal_intx(self) -> None:
        if self.enabled is not None and self.enabled[0] == INTX and self.intx_up and not self.intx_masked:
            self.intx_masked = True
            fd = self.enabled[1][0]
            assert fd is not None
            os.eventfd_write(fd, 1)


class FakeIntxLine:
    """`signalled()` is a turn of the loop, `eoi()` the guest's end of an interrupt."""

    is_up = False

    def __init__(self, raised: Callable[[], None], ended: Callable[[], None]) -> None:
        self.trigger = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.unmask: int | None = None
        self._raised = raised
        self.eoi = ended
        self.closed = False

    def signalled(self) -> None:
        if not self.closed and _read(self.trigger):
            self._raised()

    def close(self) -> None:
        os.close(self.trigger)
        self.closed = True


class FakePassthrough:
    """Gives the one device that it was made with. What is submitted is done at once, or, with *later*, in run()."""

    def __init__(self, device: FakeHostDevice, later: bool = False) -> None:
        self.device = device
        self.lines: list[FakeIntxLine] = []
        self.watched: dict[int, Callable[[], None]] = {}
        self.said: list[str] = []
        self.peers: list[memoryview] = []
        self.hot_resets = 0
        self.can_hot_reset = False
        self.later = later
        self._submitted: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._trace_watchers: list[Callable[[], None]] = []

    def open(self, name: str) -> FakeHostDevice:
        return self.device

    def give_back(self, name: str) -> None:
        self.device.close()

    def hot_reset(self, name: str) -> None:
        if not self.can_hot_reset:
            raise OSError(errno.ENODEV, "the bus has no reset")
        self.hot_resets += 1
        self.device.reset()

    def iova(self, address: int) -> str:
        return f"IOVA {address:#x}"

    def let_peers_reach(self, memory: memoryview) -> None:
        self.peers.append(memory)

    def submit(self, job: Callable[[], None], done: Callable[[], None]) -> None:
        self._submitted.append((job, done))
        if not self.later:
            self.drain()

    def drain(self) -> None:
        while self._submitted:
            job, done = self._submitted.pop(0)
            job()
            done()

    def say(self, line: str) -> None:
        self.said.append(line)

    def watch_trace(self, call: Callable[[], None]) -> None:
        self._trace_watchers.append(call)

    def unwatch_trace(self, call: Callable[[], None]) -> None:
        if call in self._trace_watchers:
            self._trace_watchers.remove(call)

    def trace_changed(self) -> None:
        for call in self._trace_watchers:
            call()

    def watch(self, call: Callable[[], None]) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watched[fd] = call
        return fd

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]
        os.close(fd)

    def run(self) -> None:
        """A turn of the loop."""
        self.drain()
        for fd, call in list(self.watched.items()):
            if fd in self.watched and _read(fd):
                call()

    def intx(
        self,
        function: PciDevice,
        raised: Callable[[], None],
        ended: Callable[[], None],
        seen: Callable[[str], None] | None,
    ) -> IntxLine:
        self.lines.append(FakeIntxLine(raised, ended))
        return self.lines[-1]


def _read(fd: int) -> bool:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True
