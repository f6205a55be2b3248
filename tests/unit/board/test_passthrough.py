"""What stands between a guest and a device of the host, one line each, and guest RAM in the device's address space."""

from __future__ import annotations

import errno
import gc
import mmap
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from kvm_cffi import KvmError
from kvm_cffi.vfio import KvmVfio
from pyvmm import threads
from pyvmm.board import passthrough
from pyvmm.board.dma import DmaMap
from pyvmm.board.fake_vm import FakeVm
from pyvmm.board.memslots import MemorySlots
from pyvmm.board.passthrough import BoardPassthrough
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory, Region
from pyvmm.trace import Trace
from pyvmm.vfio.sysfs import HostFunction

PLACE = "0000:00:08.0"
FUNCTION = HostFunction(PLACE, 0x1234, 0x11E8, 0x00FF00, "vfio-pci", "7", False, None)


said: list[str] = []


class FakeContainer:
    """*iova* is what it can map; *error* what the kernel says to the call that it names."""

    iova: ClassVar[list[tuple[int, int]]] = [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1)]
    errors: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        self.mapped: dict[int, int] = {}
        self.closed = False

    def _fail(self, what: str) -> None:
        if what in self.errors:
            raise KvmError(self.errors[what], what)

    def set_iommu(self) -> None:
        self._fail("set_iommu")

    def iova_ranges(self) -> list[tuple[int, int]]:
        return self.iova

    def map_dma(self, iova: int, buffer: memoryview) -> None:
        self._fail("map_dma")
        self.mapped[iova] = len(buffer)

    def unmap_dma(self, iova: int, size: int) -> None:
        assert self.mapped.pop(iova) == size

    def close(self) -> None:
        self.closed = True


class FakeGroup:
    errors: ClassVar[dict[str, int]] = {}
    viable = True
    fd = 9

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False
        if "open" in self.errors:
            raise OSError(self.errors["open"], "open")

    def set_container(self, container: FakeContainer) -> None:
        pass

    def device(self, name: str) -> Any:
        if "device" in self.errors:
            raise KvmError(self.errors["device"], "VFIO_GROUP_GET_DEVICE_FD")
        return SimpleNamespace(fd=5, name=name, close=lambda: None)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory([Region(0, memoryview(bytearray(0xA0000))), Region(0x100000, memoryview(bytearray(0x100000)))])


@pytest.fixture
def there(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BoardPassthrough]:
    """Makes one, on a host with changes to FUNCTION, the container and the group."""

    def make(
        container_errors: dict[str, int] | None = None, group_errors: dict[str, int] | None = None, **changes: Any
    ) -> BoardPassthrough:
        monkeypatch.setattr(passthrough, "Container", type("C", (FakeContainer,), {"errors": container_errors or {}}))
        viable = changes.pop("viable", True)
        monkeypatch.setattr(
            passthrough, "Group", type("G", (FakeGroup,), {"errors": group_errors or {}, "viable": viable})
        )
        function = HostFunction(**{**FUNCTION.__dict__, **changes})
        slots = MemorySlots(FakeVm())
        made = BoardPassthrough(FakeVm(), memory, None, None, None, slots, Trace(), said.append)  # type: ignore[arg-type]
        others = [HostFunction(**{**FUNCTION.__dict__, "name": "0000:00:08.1", "driver": "nvme"})]
        made._host = SimpleNamespace(  # type: ignore[assignment]
            find=lambda name: function, in_the_way=lambda _: others, cdev=lambda _: None, mappable=lambda _: []
        )
        return made

    return make


def test_guest_ram_is_what_a_device_reaches(there: Callable[..., BoardPassthrough], memory: GuestMemory) -> None:
    made = there()
    made.open(PLACE)
    container: Any = made._space
    assert container.mapped == {0: 0xA0000, 0x100000: 0x100000}
    memory.add(Region(0x200000, memoryview(bytearray(0x10000))))
    memory.add(Region(0xB8000, memoryview(bytearray(0x8000)), kind="video"))
    assert container.mapped == {0: 0xA0000, 0x100000: 0x100000, 0x200000: 0x10000}
    memory.remove(0x100000)
    memory.remove(0xB8000)
    assert container.mapped == {0: 0xA0000, 0x200000: 0x10000}
    assert made.iova(0x200010).startswith(
        "IOVA 0x200010 -> guest physical 0x200010 (mapped at its own address) -> RAM 0x20"
    )
    assert "no guest RAM is there" in made.iova(0xB8000)
    assert "0xfee00000 is for interrupts" in made.iova(0xFEE00000)
    with pytest.raises(UserError, match=f"{PLACE} is given to this guest already"):
        made.open(PLACE)
    made.close()
    memory.remove(0x200000)
    assert container.closed


def test_what_is_given_back_takes_along_what_nobody_else_needs(
    there: Callable[..., BoardPassthrough], memory: GuestMemory
) -> None:
    """Its group, and with the last device the address space; the next one begins anew."""
    made = there()
    made.open(PLACE)
    container: Any = made._space
    (group,) = made._groups.values()
    made._devices["0000:00:08.1"] = made._devices[PLACE]  # of the same group
    made._group_of["0000:00:08.1"] = "7"
    made.give_back(PLACE)
    assert not group.closed and not container.closed  # type: ignore[attr-defined]
    assert "IOVA 0x10 -> guest physical 0x10" in made.iova(0x10)

    def gone(name: str) -> HostFunction:
        raise UserError(f"this host has no PCI device {name}")

    host: Any = made._host
    find, host.find = host.find, gone
    made.give_back("00:08.1")
    host.find = find
    assert group.closed and container.closed and made._space is None  # type: ignore[attr-defined]
    assert "this host's again" in made.iova(0x10)
    memory.add(Region(0x200000, memoryview(bytearray(0x10000))))
    assert 0x200000 not in container.mapped
    made.give_back(PLACE)
    made.open(PLACE)
    again: Any = made._space
    assert again is not container and again.mapped.keys() == {0, 0x100000, 0x200000}
    made.close()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"driver": "nvme"}, rf"device {PLACE} \(nvme\) is the host's: pyvmm vfio bind {PLACE}"),
        ({"driver": None}, rf"device {PLACE} \(no driver\) is the host's: pyvmm vfio bind {PLACE}"),
        ({"group": None}, "has no IOMMU group: switch the IOMMU on"),
        ({"noiommu": True}, "without an IOMMU, and would reach all of this host's memory"),
        ({"class_code": 0x060400}, "is a bridge: give a device behind it"),
        ({"viable": False}, r"group 7 is not viable, .* 0000:00:08.1 \(nvme\): pyvmm vfio bind them too"),
        ({"group_errors": {"open": errno.EBUSY}}, "/dev/vfio/7 is in use: another guest"),
        ({"group_errors": {"open": errno.EACCES}}, "no permission for /dev/vfio/7: as root, chown"),
        ({"group_errors": {"open": errno.ENOENT}}, "/dev/vfio/7 does not exist"),
        ({"group_errors": {"device": errno.ENODEV}}, "is it in use, or has it gone"),
        ({"container_errors": {"set_iommu": errno.EPERM}}, "does not remap interrupts"),
        ({"container_errors": {"map_dma": errno.EINVAL}}, "cannot be given to devices"),
    ],
)
def test_what_stands_in_the_way(there: Callable[..., BoardPassthrough], changes: dict[str, Any], line: str) -> None:
    made = there(**changes)
    with pytest.raises(UserError, match=line):
        made.open(PLACE)
    assert made._space is None and made.dma is None and made._groups == {}, "what could not be had holds nothing"
    made.close()


def test_what_could_not_be_had_can_be_had_later(
    there: Callable[..., BoardPassthrough], memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group that was open, and the RAM that was mapped, are given back, however far it came."""
    made = there()
    opened: list[Any] = []

    def group(path: Path) -> FakeGroup:
        opened.append(FakeGroup(path))
        return opened[-1]  # type: ignore[no-any-return]

    def refuse(self: object, fd: int) -> None:
        raise KvmError(errno.EINVAL, "KVM_SET_DEVICE_ATTR")

    monkeypatch.setattr(passthrough, "Group", group)
    for owner, name, fails in (
        (FakeGroup, "device", lambda self, name: refuse(self, 0)),
        (KvmVfio, "add", refuse),
        (KvmVfio, "__init__", refuse),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            with pytest.raises(
                UserError, match=f"device {PLACE}: KVM_SET_DEVICE_ATTR: Invalid argument: .*dmesg|See dmesg"
            ):
                made.open(PLACE)
        assert opened.pop().closed and not opened and made._space is None
        memory.add(Region(0x200000, memoryview(bytearray(0x10000))))
        memory.remove(0x200000)
        made._kvm = None
    made.open(PLACE)
    container: Any = made._space
    assert container.mapped == {0: 0xA0000, 0x100000: 0x100000}
    made.close()
    made.close()
    assert container.closed and opened.pop().closed


def test_a_group_that_is_not_viable_and_nobody_knows_why(
    there: Callable[..., BoardPassthrough],
) -> None:
    made = there(viable=False)
    host: Any = made._host
    host.in_the_way = lambda _: []
    with pytest.raises(UserError, match="its group 7 is not viable: see dmesg"):
        made.open(PLACE)


@pytest.mark.parametrize(
    ("limit", "line"),
    [
        (64 << 10, r"pins all of guest RAM, 1664 KiB, and this process may lock 64: raise ulimit -l"),
        (resource.RLIM_INFINITY, "ask for less"),
    ],
)
def test_too_little_may_be_locked(
    there: Callable[..., BoardPassthrough], monkeypatch: pytest.MonkeyPatch, limit: int, line: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    with pytest.raises(UserError, match=line):
        there({"map_dma": errno.ENOMEM}).open(PLACE)


def test_ram_where_the_iommu_does_not_map(memory: GuestMemory) -> None:
    container: Any = FakeContainer()
    memory.watch(DmaMap(container, memory))
    with pytest.raises(UserError, match=r"guest RAM at 0x7fffff0000-0x800000ffff is not where .*0x0-0xfedfffff"):
        memory.add(Region((1 << 39) - 0x10000, memoryview(bytearray(0x20000))))
    assert len(container.mapped) == 2


def test_no_vfio_in_this_kernel(there: Callable[..., BoardPassthrough], monkeypatch: pytest.MonkeyPatch) -> None:
    for error, line in (
        (FileNotFoundError(), "/dev/vfio/vfio does not exist: modprobe vfio-pci"),
        (PermissionError(), "no permission for /dev/vfio/vfio"),
        (OSError(errno.ENODEV, "No such device"), "modprobe vfio_iommu_type1"),
    ):
        made = there()

        def fails(error: OSError = error) -> None:
            raise error

        monkeypatch.setattr(passthrough, "Container", fails)
        with pytest.raises(UserError, match=line):
            made.open(PLACE)


def test_a_hot_reset_takes_all_groups_of_the_bus(there: Callable[..., BoardPassthrough]) -> None:
    made = there()
    made.open(PLACE)
    reset: list[list[Any]] = []
    device: Any = made._devices[PLACE]
    device.hot_reset_groups, device.hot_reset = lambda: frozenset({7}), reset.append
    made.hot_reset("00:08.0")
    assert reset == [[made._groups["7"]]]
    device.hot_reset_groups = lambda: frozenset({7, 8})
    with pytest.raises(PermissionError, match="devices that are not this guest's"):
        made.hot_reset(PLACE)
    device.hot_reset_groups = lambda: None  # of /dev/iommu, which has looked
    made.hot_reset(PLACE)
    assert reset[1:] == [[]]
    made.close()


def test_peers_reach_the_bars_that_they_may(there: Callable[..., BoardPassthrough]) -> None:
    made = there()
    made.open(PLACE)
    space: Any = made._space
    before = dict(space.mapped)
    mine, other = memoryview(mmap.mmap(-1, 0x4000)), memoryview(mmap.mmap(-1, 0x1000))
    made.let_peers_reach(mine)
    windows = [made._slots.open(0xC0000000, mine[0x1000:]), made._slots.open(0xC1000000, other)]
    assert space.mapped == before | {0xC0000000: 0x3000}
    assert "0xc0000010, a BAR for peers -> host virtual" in made.iova(0xC0000010)
    assert "no guest RAM is there" in made.iova(0xC1000000)
    for window in windows:
        assert window is not None
        window.remove()
    assert space.mapped == before
    said.clear()
    space.errors = {"map_dma": errno.EFAULT}
    for _ in range(2):
        window = made._slots.open(0xC0000000, mine)
        assert window is not None
        window.remove()
    assert len(said) == 1 and "leave p2p=on away" in said[0], "a guest moves it as often as it likes"
    made.close()


def test_peers_do_not_reach_what_is_where_a_bar_was(there: Callable[..., BoardPassthrough]) -> None:
    """A device with p2p=on is unplugged, and the kernel maps the BAR of one without at the same place."""
    made = there()
    made.open(PLACE)
    space: Any = made._space
    room = mmap.mmap(-1, 0x4000)
    made.let_peers_reach(memoryview(room))
    gc.collect()
    before = dict(space.mapped)
    assert made._slots.open(0xC0000000, memoryview(room)) is not None
    assert space.mapped == before
    made.close()


def test_where_this_host_gives_no_thread_it_is_done_all_the_same(
    there: Callable[..., BoardPassthrough], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest asks for a reset at any time."""
    made = there()
    made._loop = SimpleNamespace(post=lambda call: None)  # type: ignore[assignment]
    done: list[str] = []

    def no_thread(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threads, "start", no_thread)
        made.submit(lambda: done.append("job"), lambda: done.append("done"))
    assert done == ["job", "done"]
    made.submit(lambda: done.append("job"), lambda: done.append("done"))
    made.drain()
    assert done == ["job", "done"] * 2
    made.close()


def test_who_hears_of_the_trace_may_go(there: Callable[..., BoardPassthrough]) -> None:
    made = there()
    posted: list[Callable[[], None]] = []
    made._loop = SimpleNamespace(post=posted.append)  # type: ignore[assignment]
    heard: list[int] = []
    calls = [partial(heard.append, number) for number in range(3)]
    for call in calls:
        made.watch_trace(call)
    made.unwatch_trace(calls[1])
    made.unwatch_trace(calls[1])
    heard.clear()
    made._trace.channel("vfio")
    posted.clear()
    made._trace.on("vfio")
    for told in posted:
        told()
    assert heard == [0, 2]


class FakeIommuFd(FakeContainer):
    """Of /dev/iommu."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (None, None),
        (KvmError(errno.EPERM, "VFIO_DEVICE_BIND_IOMMUFD"), "does not remap interrupts"),
        (OSError(errno.EACCES, "no"), "no permission for /dev/vfio/devices/vfio0: as root, chown"),
        (OSError(errno.EBUSY, "busy"), "is in use: another guest"),
        (KvmError(errno.EINVAL, "VFIO_DEVICE_BIND_IOMMUFD"), r"is not viable, .* 0000:00:08.1 \(nvme\)"),
    ],
)
def test_by_dev_iommu_where_the_kernel_has_it(
    there: Callable[..., BoardPassthrough],
    monkeypatch: pytest.MonkeyPatch,
    memory: GuestMemory,
    error: OSError | None,
    line: str | None,
) -> None:
    made = there()
    host: Any = made._host
    host.cdev = lambda _: Path("/dev/vfio/devices/vfio0")
    if not isinstance(error, KvmError):
        host.in_the_way = lambda _: []
    told: list[int] = []

    def open_device(path: Path, iommu: FakeIommuFd, before: Callable[[int], None], undo: Callable[[int], None]) -> Any:
        assert path.name == "vfio0"
        if error is not None:
            raise error
        before(11)
        told.append(11)
        return SimpleNamespace(fd=11, close=lambda: None)

    monkeypatch.setattr(passthrough, "IommuFd", FakeIommuFd)
    monkeypatch.setattr(passthrough, "IOMMU", Path("/dev/null"))
    monkeypatch.setattr(passthrough, "open_device", open_device)
    if line is not None:
        with pytest.raises(UserError, match=line):
            made.open(PLACE)
    else:
        made.open(PLACE)
        space: Any = made._space
        assert told == [11] and space.mapped == {0: 0xA0000, 0x100000: 0x100000} and made._groups == {}
    made.close()


class FakeKvmVfio:
    """Holds what it was told of, as KVM does: `held` has the descriptors."""

    held: ClassVar[set[int]] = set()
    errors: ClassVar[dict[str, int]] = {}

    def __init__(self, vm: object) -> None:
        if "create" in self.errors:
            raise KvmError(self.errors["create"], "KVM_CREATE_DEVICE")

    def add(self, fd: int) -> None:
        self.held.add(fd)

    def remove(self, fd: int) -> None:
        if fd not in self.held:
            raise KvmError(errno.ENOENT, "KVM_SET_DEVICE_ATTR")
        self.held.discard(fd)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("create", "KVM_CREATE_DEVICE: Cannot allocate memory"),
        ("bind", "VFIO_DEVICE_BIND_IOMMUFD: Cannot allocate memory: see dmesg"),
        ("iova_ranges", "IOMMU_IOAS_IOVA_RANGES: Cannot allocate memory: see dmesg"),
        ("map_dma", "raise ulimit -l|ask for less"),
        (None, None),
    ],
)
def test_kvm_keeps_no_device_of_dev_iommu_open(
    there: Callable[..., BoardPassthrough], monkeypatch: pytest.MonkeyPatch, where: str | None, line: str | None
) -> None:
    made = there()
    host: Any = made._host
    host.cdev, host.in_the_way = lambda _: Path("/dev/vfio/devices/vfio0"), lambda _: []
    spaces: list[FakeIommuFd] = []
    closed: list[set[int]] = []

    class Space(FakeIommuFd):
        errors = {where or "": errno.ENOMEM}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            spaces.append(self)

        def iova_ranges(self) -> list[tuple[int, int]]:
            if where == "iova_ranges":
                raise KvmError(errno.ENOMEM, "IOMMU_IOAS_IOVA_RANGES")
            return super().iova_ranges()

    class Kvm(FakeKvmVfio):
        held: ClassVar[set[int]] = set()
        errors: ClassVar[dict[str, int]] = Space.errors

    def open_device(path: Path, iommu: Space, before: Callable[[int], None], undo: Callable[[int], None]) -> Any:
        before(11)
        if where == "bind":
            undo(11)
            raise KvmError(errno.ENOMEM, "VFIO_DEVICE_BIND_IOMMUFD")
        return SimpleNamespace(fd=11, close=lambda: closed.append(set(Kvm.held)))

    monkeypatch.setattr(passthrough, "IommuFd", Space)
    monkeypatch.setattr(passthrough, "IOMMU", Path("/dev/null"))
    monkeypatch.setattr(passthrough, "KvmVfio", Kvm)
    monkeypatch.setattr(passthrough, "open_device", open_device)
    if line is None:
        made.open(PLACE)
        assert Kvm.held == {11}
        made.close()
    else:
        with pytest.raises(UserError, match=line):
            made.open(PLACE)
    assert Kvm.held == set() and all(held == set() for held in closed), "before it is closed"
    assert made._space is None and spaces[0].closed
