"""The slots that RAM is plugged into while a guest runs, and the addresses that it gets there.

A chip raises a general-purpose event, and the board's AML tells the guest, which lets go of memory by _EJ0. All who
must know of a region (KVM, VFIO, vhost, the PCI decoder) have heard of it before the guest does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from pyvmm.board import layout
from pyvmm.board.memslots import host_memory, map_ram, plug_window
from pyvmm.config import ConfigError
from pyvmm.devices.memory_hotplug import GPE_MEMORY_HOTPLUG, MEMORY_HOTPLUG_LENGTH, MemoryHotplug
from pyvmm.errors import UserError
from pyvmm.memory import GuestMemory, Region
from pyvmm.trace import OFF, Channel
from pyvmm.units import MIB, size_text

if TYPE_CHECKING:
    from pyvmm.board.dimm import Dimm
    from pyvmm.board.placement import Parts
    from pyvmm.config import MachineConfig
    from pyvmm.devices.acpi_pm import AcpiPm

PART: Final = "memory-hotplug"


class MemoryBanks:
    """The chip, which it puts among *parts*, and the slots of *config*, whose RAM comes into *memory*.

    *ejected* is called, in the middle of a guest's access, with what the guest was asked to let go of and has;
    *refused* with what it does not let go of (true) or does not take (false), and its status code.
    """

    def __init__(
        self, parts: Parts, config: MachineConfig, memory: GuestMemory, pm: AcpiPm, trace: Channel = OFF
    ) -> None:
        assert config.max_memory is not None
        self._config = config
        self._memory = memory
        self._pm = pm
        self.window = plug_window(config.ram_size, config.max_memory)
        """[start, end) of the addresses for it."""
        self._dimms: list[Dimm | None] = [None] * config.memory_slots
        self.ejected: Callable[[Dimm], None] = lambda dimm: None
        self.refused: Callable[[Dimm, bool, int], None] = lambda dimm, was_leaving, status: None
        self._chip = parts.add(
            PART,
            MemoryHotplug(
                self._place, partial(pm.raise_gpe, GPE_MEMORY_HOTPLUG), self._slot_ejected, self._slot_refused, trace
            ),
            ports=[(layout.MEMORY_HOTPLUG, MEMORY_HOTPLUG_LENGTH)],
        )

    @property
    def count(self) -> int:
        """Of the slots."""
        return len(self._dimms)

    def _there(self) -> Iterator[Dimm]:
        return (dimm for dimm in self._dimms if dimm is not None)

    def _place(self, slot: int) -> tuple[int, int] | None:
        dimm = self._dimms[slot] if slot < len(self._dimms) else None
        if dimm is None or dimm.region is None:
            return None
        return dimm.region.gpa, dimm.size

    def file_offsets(self) -> dict[tuple[int, int], int]:
        """Where in a file of all RAM that is which is plugged in, in bytes, by (address, bytes): behind the RAM of the
        start, in the order of addresses."""
        offsets, at = {}, self._config.ram_size
        for place in sorted((dimm.region.gpa, dimm.size) for dimm in self._there() if dimm.region is not None):
            offsets[place] = at
            at += place[1]
        return offsets

    # What comes and goes

    def plug(self, dimm: Dimm, slot: int | None = None) -> None:
        """Give the machine the RAM of *dimm*; the guest is not told. Raises UserError, and nothing has changed."""
        slot = self._free_slot(slot)
        address = self._free_address(dimm)
        ram = self._memory.size
        if ram + dimm.size > host_memory():
            raise UserError(
                f"this host has {host_memory() // MIB} MiB of memory and swap, and the guest {ram // MIB}: ask for less"
            )
        shared, hugetlb = self._config.memory_shared, self._config.memory_hugetlb
        if hugetlb is not None and dimm.size % hugetlb:
            raise UserError(f"the machine's RAM is in pages of {size_text(hugetlb)}, and the size is no multiple of it")
        try:
            buffer, fd = map_ram(dimm.size, shared=shared, hugetlb=hugetlb)
        except ConfigError as error:
            raise UserError(error.why) from None
        region = Region(address, buffer, fd)
        try:
            self._memory.add(region)
        except BaseException as error:
            buffer.release()
            if fd is not None:
                os.close(fd)
            if isinstance(error, ConfigError):
                raise UserError(error.why) from None
            if isinstance(error, OSError):
                raise UserError(f"a device of the machine does not take it: {error}") from None
            raise
        dimm.address, dimm.slot, dimm.region = address, slot, region
        self._dimms[slot] = dimm

    def _free_slot(self, wanted: int | None) -> int:
        if wanted is not None:
            if not 0 <= wanted < len(self._dimms):
                raise UserError(f"there is no slot {wanted} for memory: there are 0 to {len(self._dimms) - 1}")
            if self._dimms[wanted] is not None:
                raise UserError(f"slot {wanted} has memory already: leave slot away")
            return wanted
        for slot, dimm in enumerate(self._dimms):
            if dimm is None:
                return slot
        raise UserError(f"each of the {len(self._dimms)} slots for memory is taken: unplug some")

    def _free_address(self, dimm: Dimm) -> int:
        start, end = self.window
        taken = sorted((other.region.gpa, other.size) for other in self._there() if other.region is not None)
        free = end - start - sum(size for _, size in taken)
        if dimm.size > free:
            most = self._config.max_memory
            assert most is not None
            raise UserError(f"with it there would be more than {size_text(most)}: ask for at most {size_text(free)}")
        gaps = []
        for gpa, size in [*taken, (end, 0)]:
            gaps.append((start, gpa))
            start = gpa + size
        for first, last in gaps:
            address = first if dimm.address is None else dimm.address
            if first <= address and address + dimm.size <= last:
                return address
        if dimm.address is not None:
            first, last = self.window
            raise UserError(f"it does not fit at {dimm.address:#x}: memory is plugged in at {first:#x}-{last - 1:#x}")
        largest = max(last - first for first, last in gaps)
        raise UserError(f"no gap between the others is large enough: ask for at most {size_text(largest)}")

    def tell(self, dimm: Dimm) -> None:
        """Tell the guest of *dimm*, which is there now."""
        if dimm.slot is not None:
            self._chip.plugged(dimm.slot)

    def ask_to_eject(self, dimm: Dimm) -> None:
        """Ask the guest to let go of *dimm*; once more where it has been asked. Raises UserError where nobody in the
        guest would hear of it."""
        if not self._pm.hears(GPE_MEMORY_HOTPLUG):
            raise UserError("its guest does not use ACPI, and would not hear of it: end the machine to take it out")
        if dimm.slot is not None:
            self._chip.ask_to_eject(dimm.slot)

    def leaving(self, dimm: Dimm) -> bool:
        """Whether the guest has been asked to let go of *dimm*, and has not refused."""
        return dimm.slot is not None and self._chip.leaving(dimm.slot)

    def stays(self, dimm: Dimm) -> None:
        """It cannot go after all."""
        if dimm.slot is not None:
            self._chip.stays(dimm.slot)

    def remove(self, dimm: Dimm) -> None:
        """Take *dimm* out; while nobody uses its RAM. Views that somebody holds keep the mapping until they go."""
        if dimm.slot is None or dimm.region is None:
            return
        region = dimm.region
        self._memory.remove(region.gpa)
        self._dimms[dimm.slot] = None
        self._chip.unplugged(dimm.slot)
        dimm.slot = dimm.region = None
        if region.fd is not None:
            os.close(region.fd)

    def close(self) -> None:
        """Give back what is beside the mappings, which go with guest memory."""
        for dimm in self._there():
            if dimm.region is not None and dimm.region.fd is not None:
                os.close(dimm.region.fd)
        self._dimms = [None] * len(self._dimms)

    def _slot_ejected(self, slot: int) -> None:
        if (dimm := self._dimms[slot]) is not None:
            self.ejected(dimm)

    def _slot_refused(self, slot: int, was_leaving: bool, status: int) -> None:
        if (dimm := self._dimms[slot]) is not None:
            self.refused(dimm, was_leaving, status)
