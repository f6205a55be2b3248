"""Devices of this host for the guest: the container, its groups, and what stands in the way of one.

What they reach is in dma.py, how their INTx comes to the guest in intx_line.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from kvm_cffi import KvmError, Vm
from kvm_cffi.iommufd import DEVICE as IOMMU
from kvm_cffi.iommufd import IommuFd, open_device
from kvm_cffi.vfio import CONTAINER, Container, Group, KvmVfio, VfioDevice
from pyvmm.board.dma import DmaMap, PeerWindows
from pyvmm.board.eventfd import watched_eventfd
from pyvmm.board.host_address import locate
from pyvmm.board.intx_line import KernelLine, LoopLine, RelayLine
from pyvmm.board.irqchip import Irqchip
from pyvmm.board.memslots import MemorySlots
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.memory import GuestMemory
from pyvmm.pci.device import PciDevice
from pyvmm.pci.host import PciHost
from pyvmm.trace import Trace
from pyvmm.vfio.sysfs import VFIO_DRIVER, HostFunction, Pci, full_name

if TYPE_CHECKING:
    from pyvmm.backends.worker import Worker

GROUPS: Final = Path("/dev/vfio")


NOT_REMAPPED: Final = (
    "this host does not remap interrupts, so that a device could send the host any: switch interrupt remapping on in "
    "the firmware (or, where every guest is trusted, load vfio_iommu_type1 with allow_unsafe_interrupts=1)"
)


class BoardPassthrough:
    """See vfio.host.Passthrough."""

    def __init__(
        self,
        vm: Vm,
        memory: GuestMemory,
        loop: Loop,
        irqchip: Irqchip,
        pci: PciHost,
        slots: MemorySlots,
        trace: Trace,
        say: Callable[[str], None],
    ) -> None:
        self._vm = vm
        self._memory = memory
        self._loop = loop
        self._irqchip = irqchip
        self._pci = pci
        self._slots = slots
        self._trace = trace
        self.say = say
        self._host = Pci()
        self._space: Container | IommuFd | None = None
        self._kvm: KvmVfio | None = None
        self._groups: dict[str, Group] = {}
        self._devices: dict[str, VfioDevice] = {}
        self._group_of: dict[str, str] = {}
        """The groups of the devices, as sysfs had them when they were opened."""
        self._worker: Worker[_Job] | None = None
        self._trace_watchers: list[Callable[[], None]] = []
        self._follows_trace = False
        self.dma: DmaMap | None = None
        """Once there is a device."""
        self.peers: PeerWindows | None = None
        """Once the BARs of one are to be reached by others."""

    def open(self, name: str) -> VfioDevice:
        function = self._host.find(name)
        name = function.name
        if name in self._devices and self._devices[name].fd >= 0:
            raise UserError(f"device {name} is given to this guest already: leave one of the two away")
        self._check(function)
        assert function.group is not None
        try:
            device = self._open(function)
        except BaseException:
            self._let_go()
            raise
        self._devices[name], self._group_of[name] = device, function.group
        return device

    def _open(self, function: HostFunction) -> VfioDevice:
        """By the way that this host has. Raises UserError; what it has opened until then, _let_go() closes."""
        if self._space is None and self._host.cdev(function) is not None and IOMMU.exists():
            self._space = _open_iommufd()
        if isinstance(self._space, IommuFd):
            return self._open_cdev(function, self._space)
        group = self._group(function)
        try:
            return group.device(function.name)
        except OSError as error:
            raise UserError(f"device {function.name}: {error}: is it in use, or has it gone? See dmesg") from None

    def _open_cdev(self, function: HostFunction, iommu: IommuFd) -> VfioDevice:
        """By /dev/iommu. Raises UserError."""
        node = self._host.cdev(function)
        if node is None:
            raise UserError(f"device {function.name}: {GROUPS}/devices has no file for it: see dmesg")
        try:
            if self._kvm is None:
                self._kvm = KvmVfio(self._vm)
            device = open_device(node, iommu, self._kvm.add, self._forget)
        except OSError as error:
            if error.errno == errno.EPERM and isinstance(error, KvmError):
                raise UserError(NOT_REMAPPED) from None
            others = self._host.in_the_way(function)
            if others:
                raise UserError(_not_viable(function, others)) from None
            raise UserError(f"device {function.name}: {_why_not_open(node, error)}") from None
        try:
            self._map_memory(iommu, function)
        except BaseException as error:
            self._forget(device.fd)
            device.close()
            if isinstance(error, OSError):
                raise UserError(f"device {function.name}: {error}: see dmesg") from None
            raise
        return device

    def give_back(self, name: str) -> None:
        """Its group too where no other device of it is the guest's, and with the last one the address space: another
        may have to be of another kind."""
        name = full_name(name)
        device = self._devices.pop(name, None)
        if device is None:
            return
        del self._group_of[name]
        if isinstance(self._space, IommuFd):
            self._forget(device.fd)
        device.close()
        self._let_go()

    def _let_go(self) -> None:
        """Close what no device needs."""
        for number in self._groups.keys() - self._group_of.values():
            group = self._groups.pop(number)
            self._forget(group.fd)
            group.close()
        if not self._devices:
            self._close_space()

    def _forget(self, fd: int) -> None:
        """KVM holds a group or a device as long as it knows of it."""
        if self._kvm is not None:
            with suppress(OSError):
                self._kvm.remove(fd)

    def _close_space(self) -> None:
        if self.peers is not None:
            self._slots.watch_windows(None)
        if self.dma is not None:
            self._memory.unwatch(self.dma)
        if self._space is not None:
            self._space.close()
        self.dma = self.peers = self._space = None

    def hot_reset(self, name: str) -> None:
        device = self._devices[full_name(name)]
        needed = device.hot_reset_groups()
        if needed is None:
            device.hot_reset([])
            return
        groups = [self._groups.get(str(number)) for number in needed]
        if None in groups:
            raise OSError(errno.EPERM, "its bus has devices that are not this guest's")
        device.hot_reset([group for group in groups if group is not None])

    # What takes long

    def submit(self, job: Callable[[], None], done: Callable[[], None]) -> None:
        if self._worker is None:
            from pyvmm.backends.worker import Worker

            self._worker = Worker("vfio", lambda item: item.job(), _done, self._loop.post)
        try:
            self._worker.submit(_Job(job, done))
        except (OSError, RuntimeError):  # this host gives no thread: all wait for it
            self._worker = None
            job()
            done()

    def drain(self) -> None:
        if self._worker is not None:
            self._worker.drain()

    def watch_trace(self, call: Callable[[], None]) -> None:
        if not self._follows_trace:
            self._follows_trace = True
            self._trace.watch(lambda: self._loop.post(self._trace_changed))
        self._trace_watchers.append(call)

    def unwatch_trace(self, call: Callable[[], None]) -> None:
        if call in self._trace_watchers:
            self._trace_watchers.remove(call)

    def _trace_changed(self) -> None:
        for call in list(self._trace_watchers):
            call()

    def _check(self, function: HostFunction) -> None:
        """Raises UserError for what stands in the way before VFIO is asked."""
        name = function.name
        if function.is_bridge:
            raise UserError(f"device {name} is a bridge: give a device behind it")
        if function.group is None:
            raise UserError(
                f"device {name} has no IOMMU group: switch the IOMMU on in the firmware, and boot this host with "
                "intel_iommu=on or amd_iommu=on"
            )
        if function.noiommu:
            raise UserError(
                f"device {name} is in a group without an IOMMU, and would reach all of this host's memory: boot this "
                "host with intel_iommu=on or amd_iommu=on"
            )
        if function.driver != VFIO_DRIVER:
            raise UserError(f"device {function} is the host's: pyvmm vfio bind {name}")

    def _group(self, function: HostFunction) -> Group:
        """Its group, in our container. Raises UserError."""
        number = function.group
        assert number is not None
        if number in self._groups:
            return self._groups[number]
        if self._space is None:
            self._space = _open_container()
        assert isinstance(self._space, Container)
        path = GROUPS / number
        try:
            group = Group(path)
        except OSError as error:
            raise UserError(f"device {function.name}: {_why_not_open(path, error)}") from None
        try:
            if not group.viable:
                raise UserError(_not_viable(function, self._host.in_the_way(function)))
            group.set_container(self._space)
            self._open_address_space(self._space, function)
            assert self._kvm is not None
            self._kvm.add(group.fd)
        except KvmError as error:
            group.close()
            raise UserError(f"device {function.name}: {error}: see dmesg") from None
        except BaseException:
            group.close()
            raise
        self._groups[number] = group
        return group

    def _open_address_space(self, container: Container, function: HostFunction) -> None:
        """Once, when a group is in the container."""
        if self.dma is not None:
            return
        try:
            container.set_iommu()
        except KvmError as error:
            if error.errno != errno.EPERM:
                raise
            raise UserError(NOT_REMAPPED) from None
        if self._kvm is None:  # a VM has one, for good
            self._kvm = KvmVfio(self._vm)
        self._map_memory(container, function)

    def _map_memory(self, space: Container | IommuFd, function: HostFunction) -> None:
        """Once, when a device is in *space*: what it maps depends on them. Raises UserError."""
        if self.dma is None:
            dma = DmaMap(space, self._memory, self._host.mappable(function))
            self._memory.watch(dma)
            self.dma = dma

    def let_peers_reach(self, memory: memoryview) -> None:
        assert self._space is not None
        if self.peers is None:
            self.peers = PeerWindows(self._space, self.say)
            self._slots.watch_windows(self.peers)
        self.peers.allow(memory)

    def iova(self, address: int) -> str:
        if self.dma is None:
            return f"IOVA {address:#x} -> nothing: the device is this host's again"
        host = locate(self._memory, address)
        if host is not None:
            return f"IOVA {address:#x} -> guest physical {address:#x} (mapped at its own address) -> {host}"
        if self.peers is not None and (where := self.peers.find(address)) is not None:
            return f"IOVA {address:#x} -> guest physical {address:#x}, a BAR for peers -> host virtual {where:#x}"
        ranges = self.dma.ranges
        if ranges and not any(low <= address <= high for low, high in ranges):
            return f"IOVA {address:#x} -> nothing: this host's IOMMU maps none there (0xfee00000 is for interrupts)"
        return f"IOVA {address:#x} -> nothing: no guest RAM is there, and the IOMMU refuses"

    def watch(self, call: Callable[[], None]) -> int:
        return watched_eventfd(self._loop, call)

    def unwatch(self, fd: int) -> None:
        self._loop.remove(fd)
        os.close(fd)

    def intx(
        self,
        function: PciDevice,
        raised: Callable[[], None],
        ended: Callable[[], None],
        seen: Callable[[str], None] | None,
    ) -> KernelLine | LoopLine | RelayLine:
        pirq = self._pci.pirq_of(function, function.interrupt_pin)
        if not self._irqchip.resamples:
            return LoopLine(self._loop, self._irqchip, pirq, raised, ended)
        if seen is None:
            return KernelLine(self._irqchip, pirq)
        return RelayLine(self._loop, self._irqchip, pirq, ended, seen)

    def close(self) -> None:
        """Give all of it back; once is enough."""
        if self._worker is not None:
            with suppress(UserError):
                self._worker.close()
        for name in list(self._devices):
            self.give_back(name)
        self._let_go()
        if self._kvm is not None:
            self._kvm.close()
            self._kvm = None


class _Job(NamedTuple):
    job: Callable[[], None]
    done: Callable[[], None]


def _done(batch: list[_Job]) -> None:
    for item in batch:
        item.done()


def _not_viable(function: HostFunction, others: list[HostFunction]) -> str:
    if not others:
        return (
            f"device {function.name}: its group {function.group} is not viable: see dmesg, which driver has part of it"
        )
    return (
        f"device {function.name}: its group {function.group} is not viable, for of its devices the host has "
        f"{', '.join(map(str, others))}: pyvmm vfio bind them too"
    )


def _open_iommufd() -> IommuFd:
    try:
        return IommuFd()
    except PermissionError:
        raise UserError(f"no permission for {IOMMU}: as root, chmod 666 it") from None
    except OSError as error:
        raise UserError(f"{IOMMU}: {error.strerror}: modprobe iommufd, see dmesg") from None


def _open_container() -> Container:
    try:
        return Container()
    except FileNotFoundError:
        raise UserError(f"{CONTAINER} does not exist: modprobe vfio-pci") from None
    except PermissionError:
        raise UserError(f"no permission for {CONTAINER}: as root, chmod 666 it, as udev does by default") from None
    except OSError as error:
        raise UserError(f"{CONTAINER}: {error.strerror}: modprobe vfio_iommu_type1, see dmesg") from None


def _why_not_open(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.EBUSY:
            return f"{path} is in use: another guest has a device of this group"
        case errno.EACCES | errno.EPERM:
            return f"no permission for {path}: as root, chown {path} to who runs pyvmm"
        case errno.ENOENT:
            return f"{path} does not exist: is the device vfio-pci's? pyvmm vfio list"
    return f"{path}: {error}: see dmesg" if isinstance(error, KvmError) else f"{path}: {error.strerror}"
