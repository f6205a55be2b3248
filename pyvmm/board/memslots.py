"""The guest's RAM: one mapping, laid out around the VGA window and the 3-4 GiB hole.

KVM maps 2 MiB at once where a huge page of the host is one of the guest too: so the mapping begins at a multiple of
2 MiB, and every address of the guest and the host's address of it are equal modulo 2 MiB (1 GiB in pages of that size).

  by default  anonymous memory, in transparent huge pages where the host gives them (Linux admin-guide/mm/transhuge.rst)
  shared      a memfd, which other processes can map; huge where the host's shmem_enabled allows it
  hugetlb     a memfd in pages of the host's pool, all reserved at the start (Linux admin-guide/mm/hugetlbpage.rst)
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from kvm_cffi import KvmError, Vm, drop_translations, map_memory
from kvm_cffi.rings import PackedFiller, SplitFiller
from pyvmm.board.layout import (
    HIGH_MEMORY,
    HOLE_END,
    HOLE_START,
    LOW_RAM_END,
    PCI_MMIO64_END,
    PCI_MMIO64_START,
)
from pyvmm.config import HUGE_PAGE_SIZES, MEMORY_BLOCK, ConfigError
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory, Region
from pyvmm.units import GIB, KIB, MIB, size_text

HUGE_PAGE: Final = 2 * MIB
"""What a page directory entry maps on x86-64."""
POOLS: Final = Path("/sys/kernel/mm/hugepages")
_MFD_SIZES: Final = {size: (size.bit_length() - 1) << os.MFD_HUGE_SHIFT for size in HUGE_PAGE_SIZES}


def host_memory() -> int:
    """The host's RAM and swap, in bytes (MemTotal + SwapTotal of /proc/meminfo)."""
    total = 0
    with open("/proc/meminfo") as meminfo:
        for line in meminfo:
            if line.startswith(("MemTotal:", "SwapTotal:")):
                total += int(line.split()[1]) << 10
    return total


def ram_end(size: int) -> int:
    """The guest physical address where *size* bytes of RAM end."""
    return size if size <= HOLE_START else HOLE_END + size - HOLE_START


def plug_window(size: int, most: int) -> tuple[int, int]:
    """[start, end) of the addresses for RAM that is plugged into a machine of *size* bytes, up to *most*: from 4 GiB
    up and above all that it has, in whole blocks."""
    start = -(-max(ram_end(size), HOLE_END) // MEMORY_BLOCK) * MEMORY_BLOCK
    return start, start + max(0, most - size) // MEMORY_BLOCK * MEMORY_BLOCK


def last_ram_end(size: int, most: int | None) -> int:
    """Where RAM ends when all of *most* bytes is plugged in; None for a machine into which none can be."""
    return ram_end(size) if most is None else plug_window(size, most)[1]


def pci_memory64(size: int, phys_bits: int, most: int | None = None) -> tuple[int, int] | None:
    """[start, end) of PCI memory above 4 GiB, beside *size* bytes of RAM, which may become *most*: where it always is,
    or behind the RAM of a machine that has more than fits below; smaller where addresses do not reach so far, down to
    1 GiB, and then none."""
    room = PCI_MMIO64_END - PCI_MMIO64_START
    while room >= GIB:
        start = max(room, HOLE_END, (last_ram_end(size, most) + room - 1) // room * room)
        if start + room <= 1 << phys_bits:
            return start, start + room
        room //= 2
    return None


def check_reach(size: int, phys_bits: int, most: int | None = None) -> None:
    """Raises ConfigError where physical addresses of so many bits do not reach all of the RAM, or *most* bytes of
    it."""
    if most is not None and last_ram_end(size, most) > 1 << phys_bits:
        raise ConfigError(
            f"the guest's processor has {phys_bits} physical address bits, and RAM is plugged in from 4 GiB up: "
            "ask for less",
            {"memory": size, "max_memory": most},
        )
    if ram_end(size) > 1 << phys_bits:
        reach = size_text((1 << phys_bits) - (HOLE_END - HOLE_START))
        raise ConfigError(
            f"the guest's processor has {phys_bits} physical address bits: ask for at most {reach}", {"memory": size}
        )


def map_ram(
    size: int, *, shared: bool = False, hugetlb: int | None = None, image: tuple[int, int] | None = None
) -> tuple[memoryview, int | None]:
    """*size* bytes of this host's memory, and the memfd that they are in, as Ram has them. Raises ConfigError."""
    fd: int | None = None
    try:
        if hugetlb is not None:
            fd = os.memfd_create("pyvmm-ram", os.MFD_CLOEXEC | os.MFD_HUGETLB | _MFD_SIZES[hugetlb])
        elif shared:
            fd = os.memfd_create("pyvmm-ram", os.MFD_CLOEXEC)
        if fd is not None:
            os.ftruncate(fd, size)
        if fd is None and image is not None:
            return map_memory(size, HUGE_PAGE, *image, private=True), None
        return map_memory(size, max(HUGE_PAGE, hugetlb or 0), fd), fd
    except OSError as error:
        if fd is not None:
            os.close(fd)
        if error.errno == errno.EMFILE:
            raise
        raise _refused(size, hugetlb, error) from None


class Ram:
    """*size* bytes, page-aligned and at least 1 MiB; raises UserError when this host cannot give so much.

    *shared* makes it a memfd; *hugetlb* one in pages of that many bytes, of which *size* is a multiple. Else it begins
    as what is in *image*, an open file and an offset, read as it is touched; nothing is written there.
    """

    def __init__(
        self, size: int, *, shared: bool = False, hugetlb: int | None = None, image: tuple[int, int] | None = None
    ) -> None:
        if size > host_memory():
            raise ConfigError(
                f"this host has {host_memory() // MIB} MiB of memory and swap: ask for less", {"memory": size}
            )
        self.size = size
        self._page = hugetlb or mmap.PAGESIZE
        whole, fd = map_ram(size, shared=shared, hugetlb=hugetlb, image=image)
        self._whole, self.fd = whole, fd
        low = min(size, HOLE_START)
        pieces = [(0, 0, min(LOW_RAM_END, low)), (HIGH_MEMORY, HIGH_MEMORY, low)]
        if size > HOLE_START:
            pieces.append((HOLE_END, HOLE_START, size))
        self.regions = [Region(gpa, whole[start:end], fd, start) for gpa, start, end in pieces if end > start]
        """What of it the guest sees at first; RAM behind the VGA window is not used."""
        self.memory = GuestMemory(self.regions)
        self.memory.make_split_filler = SplitFiller
        self.memory.make_packed_filler = PackedFiller

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The (gpa, length) of each of its regions."""
        return [(region.gpa, len(region.buffer)) for region in self.regions]

    @property
    def below_4g(self) -> int:
        """Bytes of RAM below the hole, the unused VGA window counted as a PC counts it."""
        return min(self.size, HOLE_START)

    @property
    def above_4g(self) -> int:
        """Bytes of RAM from 4 GiB up."""
        return max(0, self.size - HOLE_START)

    def flush_page(self, gpa: int) -> None:
        """Take the page of *gpa* out of KVM's second-level tables until the guest touches it again; where there is no
        RAM nothing happens."""
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + len(region.buffer):
                start = (region.fd_offset + gpa - region.gpa) & -self._page
                with suppress(OSError):  # of a host that forbids it (SELinux's execmem)
                    drop_translations(self._whole[start : start + self._page])

    def close(self) -> None:
        """Give the memory back; views that somebody still holds keep the mapping until they go."""
        if self.fd is not None:
            os.close(self.fd)
        self.memory.release()
        for region in self.regions:
            region.buffer.release()
        self.regions.clear()
        self._whole.release()


class WindowListener(Protocol):
    """Hears of memory of the host that a guest reaches at an address of a BAR."""

    def opened(self, address: int, buffer: memoryview) -> None: ...

    def closed(self, address: int) -> None: ...


class MemorySlots:
    """KVM's memory slots: a Listener that gives each region of guest memory the lowest slot that is free."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._slots: dict[int, int] = {}
        """By the guest physical address where a region begins."""
        self._window_listener: WindowListener | None = None

    def watch_windows(self, listener: WindowListener | None) -> None:
        """Tell *listener* of windows from now on."""
        self._window_listener = listener

    def _free_slot(self) -> int:
        return next(number for number in range(len(self._slots) + 1) if number not in self._slots.values())

    def open(self, address: int, buffer: memoryview) -> SlotWindow | None:
        """See pci.window.Windows."""
        slot = self._free_slot()
        try:
            self._vm.set_user_memory_region(slot, address, buffer)
        except KvmError:  # no slot is left, or the guest's processor does not reach so far
            return None
        self._slots[address] = slot
        if self._window_listener is not None:
            self._window_listener.opened(address, buffer)
        return SlotWindow(self, address)

    def close_window(self, address: int) -> None:
        if self._window_listener is not None:
            self._window_listener.closed(address)
        self._vm.set_user_memory_region(self._slots.pop(address), address, None)

    def added(self, region: Region) -> None:
        slot = self._free_slot()
        try:
            self._vm.set_user_memory_region(
                slot,
                region.gpa,
                region.buffer,
                readonly=region.kind == "rom",
                log_dirty_pages=region.kind == "video",
            )
        except KvmError as error:
            if region.kind == "rom":
                raise UserError(f"KVM refuses a ROM at {region.gpa:#x} ({error}): leave the firmware away") from None
            size = len(region.buffer)
            raise ConfigError(
                f"KVM refuses {size // MIB} MiB of guest RAM ({error}): ask for less", {"memory": size}
            ) from None
        self._slots[region.gpa] = slot

    def removed(self, region: Region) -> None:
        self._vm.set_user_memory_region(self._slots.pop(region.gpa), region.gpa, None)

    def slot(self, gpa: int) -> int:
        """The slot of the region that begins at *gpa*."""
        return self._slots[gpa]

    def log(self, region: Region, on: bool) -> None:
        """Begin or end the dirty log of a region of RAM, at any time; it splits the huge pages that KVM has mapped."""
        self._vm.set_user_memory_region(self._slots[region.gpa], region.gpa, region.buffer, log_dirty_pages=on)

    def changed(self, gpa: int, size: int) -> bool:
        """Whether the guest has written to a video region of *size* bytes since the last look."""
        return any(self._vm.get_dirty_log(self._slots[gpa], size))


class SlotWindow:
    """See pci.window.OpenWindow."""

    def __init__(self, slots: MemorySlots, address: int) -> None:
        self._slots = slots
        self._address = address

    def remove(self) -> None:
        self._slots.close_window(self._address)


def _refused(size: int, hugetlb: int | None, error: OSError) -> ConfigError:
    """Why there is no RAM of *size*, and what to do."""
    if hugetlb is None:
        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        limit = "" if most == resource.RLIM_INFINITY else f", or raise ulimit -v (it is {most >> 10} KiB)"
        return ConfigError(f"{error.strerror}: ask for less{limit}", {"memory": size})
    pages = size_text(hugetlb)
    what = {"memory": size, "memory_hugetlb": hugetlb}
    pool = POOLS / f"hugepages-{hugetlb // KIB}kB"
    if not pool.is_dir():
        return ConfigError(f"this host's kernel has no pages of {pages}: leave hugetlb away", what)
    needed = size // hugetlb
    return ConfigError(
        f"{error.strerror}: of {needed} pages of {pages} this host has {free_pages(pool)} free: "
        f"put more into {pool}/nr_hugepages, or leave hugetlb away",
        what,
    )


def free_pages(pool: Path) -> int:
    """The pages of *pool* that are neither used nor promised."""
    free, promised = (int((pool / name).read_text()) for name in ("free_hugepages", "resv_hugepages"))
    return free - promised
