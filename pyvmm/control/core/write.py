"""Write a machine's memory and registers to an ELF core file.

All of RAM is in it, at its guest physical addresses. Where vCPU 0 has paging on, what its page tables map is there at
its linear addresses too, in the same bytes of the file; physical memory is then at PHYSICAL_AT plus its address, which
is no address that a processor has. A kernel's VMCOREINFO is a note, as in Linux' own /proc/vmcore.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from kvm_cffi import Vcpu, pages
from pyvmm.board.pages import runs_of
from pyvmm.boot.lowmem import align_up
from pyvmm.control.core.elf_core import LoadedRange, headers, headers_size, note, prstatus
from pyvmm.control.kernel_info import kernel_info
from pyvmm.errors import UserError, printable
from pyvmm.machine.machine import Machine
from pyvmm.machine.new_file import new_file, write_all
from pyvmm.memory import GuestMemory, Region
from pyvmm.report import vmcoreinfo
from pyvmm.units import MIB, PAGE_SIZE
from pyvmm.vcpu.mappings import Mapping, mappings

PHYSICAL_AT: Final = 1 << 56
MOST_MAPPINGS: Final = 16384
"""Segments by linear address; where there are more the largest are kept. A file has 65,534 at the most (PN_XNUM)."""
REASON: Final = "core"
_PIECE: Final = 64 * MIB


def write_core(machine: Machine, path: str | os.PathLike[str]) -> None:
    """Write a new file, which then takes the place of *path*; the machine, which may have ended, stands meanwhile.

    The file is as long as RAM, and takes what of it is not zero. Raises UserError where it cannot be written, and as
    Machine.pause() does.
    """
    target = os.fspath(path)
    try:
        with new_file(target) as fd, machine.paused(REASON):
            write_core_to(fd, machine)
    except OSError as error:
        raise UserError(f"cannot write {printable(target)}: {error.strerror}") from None


def write_core_to(fd: int, machine: Machine, regions: Sequence[Region] | None = None, linear: bool = True) -> None:
    """The same from offset 0 of *fd*, of a machine that stands: all RAM, or what *regions* have; *linear* addresses are
    there, or are not. Raises OSError."""
    memory = machine.memory
    regions = memory.ram if regions is None else regions
    found = kernel_info(machine)
    notes = _notes(machine.vcpus, found)
    mapped = _mapped(memory, machine.vcpus[0], found, regions) if linear else []
    start = align_up(headers_size(notes, len(regions) + len(mapped)), PAGE_SIZE)
    places, end = {}, start
    for region in regions:
        places[region.gpa] = end
        end += align_up(len(region.buffer), PAGE_SIZE)
    segments = [LoadedRange(places[gpa] + inside, address, gpa + inside, size) for gpa, inside, address, size in mapped]
    elsewhere = PHYSICAL_AT if mapped else 0
    segments += [
        LoadedRange(places[region.gpa], region.gpa + elsewhere, region.gpa, len(region.buffer)) for region in regions
    ]
    os.ftruncate(fd, end)
    write_all(fd, memoryview(headers(notes, segments)), 0)
    for region in regions:
        for offset, data in _content(region, machine.snapshots.ram.mapped_from_file):
            write_all(fd, data, places[region.gpa] + offset)


def _notes(vcpus: Sequence[Vcpu], found: vmcoreinfo.Vmcoreinfo | None) -> bytes:
    made = [prstatus(vcpu.id, vcpu.get_regs(), vcpu.get_sregs()) for vcpu in vcpus]
    if found is not None:
        made.append(note(b"VMCOREINFO", 0, found.text))
    return b"".join(made)


def _mapped(
    memory: GuestMemory, vcpu: Vcpu, found: vmcoreinfo.Vmcoreinfo | None, regions: Sequence[Region]
) -> list[tuple[int, int, int, int]]:
    """What the page tables of *vcpu*, or a kernel's own where they are isolated, map of *regions*: the region's
    address, where in it, the linear address, bytes."""
    registers = vcpu.get_sregs()
    if found is not None and found.cr3 == registers.cr3 & ~vmcoreinfo.PTI_USER_PGTABLE:
        registers.cr3 = found.cr3
    pieces = [piece for each in mappings(memory.read_int, registers) for piece in _inside(each, regions)]
    largest = sorted(pieces, key=lambda piece: -piece[3])[:MOST_MAPPINGS]
    return sorted(largest, key=lambda piece: piece[2])


def _inside(mapping: Mapping, regions: Sequence[Region]) -> Iterator[tuple[int, int, int, int]]:
    for region in regions:
        start = max(mapping.physical, region.gpa)
        end = min(mapping.physical + mapping.length, region.gpa + len(region.buffer))
        if start < end:
            yield region.gpa, start - region.gpa, mapping.linear + start - mapping.physical, end - start


def _content(region: Region, untouched: bool) -> Iterator[tuple[int, memoryview]]:
    """What of *region* is not zero, where in it: a copy, which lasts until the next is asked for. Pages that nobody has
    touched are looked at only where *untouched* says so."""
    for start in range(0, len(region.buffer), _PIECE):
        piece = region.buffer[start : start + _PIECE]
        own = pages.bitmap(len(piece))
        with pages.store(len(piece)) as store:
            pages.copy_touched(piece, store, own, region.fd, region.fd_offset + start, untouched=untouched)
            with memoryview(store) as view:
                for first, count in runs_of(own):
                    with view[first * PAGE_SIZE : (first + count) * PAGE_SIZE] as data:
                        yield start + first * PAGE_SIZE, data
