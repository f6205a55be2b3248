"""A drgn Program on a machine's memory, in this process: nothing is copied, and the guest may run meanwhile.

    from drgn.helpers.linux import for_each_task

    with machine.paused():
        for task in for_each_task(machine_program(machine)):
            print(task.pid.value_(), task.comm.string_().decode())

drgn's own structures and helpers read what the guest has in its memory: a guest that nobody trusts is better dumped,
and looked at in a process of its own.

Source: drgn's API reference (Program.set_linux_kernel_custom, add_memory_segment, stack_trace); Linux
arch/x86/include/asm/ptrace.h (struct pt_regs).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from kvm_cffi import Regs, Sregs
from pyvmm.boot.elf import parse_elf
from pyvmm.boot.image import Image
from pyvmm.control.kernel_info import kernel_info
from pyvmm.errors import UserError, one_line, printable
from pyvmm.machine.machine import Machine
from pyvmm.vcpu.paging import EFER_LMA

if TYPE_CHECKING:
    from drgn import Program, StackTrace

PHYSICAL: Final = 1 << 52
"""Bytes of guest physical addresses that there can be."""
LAST: Final = (1 << 64) - 1
"""The highest linear address."""
PT_REGS: Final = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di", "orig_ax", "ip",
    "cs", "flags", "sp", "ss",
)  # fmt: skip
"""The members of struct pt_regs, of eight bytes each."""
REASON: Final = "drgn"


def machine_program(machine: Machine, debug_info: Iterable[str | os.PathLike[str]] = ()) -> Program:
    """drgn's view of *machine*, whose memory it reads whenever it is asked something.

    Where a 64-bit Linux runs that says where its tables are (VMCOREINFO, see pyvmm.report.vmcoreinfo) it is a program
    about that kernel. Its types and symbols are those of *debug_info*, paths of a vmlinux and of modules, and besides
    those that the kernel has itself. Any other guest's is a program whose linear addresses go through the page tables
    of vCPU 0, and *debug_info* are ELF files that run where they were linked. Raises UserError where drgn is not
    installed, for what it cannot load, and as Machine.pause() does.
    """
    drgn = _drgn()
    from pyvmm.control.drgn.reader import linear_segment, physical_segment

    with machine.paused(REASON):
        found, registers = kernel_info(machine), machine.vcpus[0].get_sregs()
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.add_memory_segment(0, PHYSICAL, physical_segment(machine.memory), physical=True)
    info = None if found is None or not registers.efer & EFER_LMA else found.text
    if info is not None:
        try:
            program.set_linux_kernel_custom(info, True)
        except Exception:  # of libdrgn's many kinds: it says too little, and is hardly a kernel's
            info = None
    if info is None:
        tables = _CurrentTables(machine, registers)
        read = linear_segment(machine.memory, tables.now)
        program.add_memory_segment(0, LAST, read)
        program.add_memory_segment(LAST, 1, read)  # a segment's size has 64 bits too
    return _informed(program, info, debug_info)


def core_program(path: str | os.PathLike[str], debug_info: Iterable[str | os.PathLike[str]] = ()) -> Program:
    """The same of a core file that write_core() has made. Raises UserError."""
    drgn = _drgn()
    program = drgn.Program()
    try:
        program.set_core_dump(os.fspath(path))
    except Exception as error:  # of libdrgn's many kinds
        raise UserError(f"{printable(os.fspath(path))}: {one_line(error)}") from None
    info = program["VMCOREINFO"].string_() if program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL else None
    return _informed(program, info, debug_info)


def _drgn() -> ModuleType:
    try:
        import drgn
    except ImportError as error:
        raise UserError(f"this needs drgn: pip install 'drgn>=0.3' ({one_line(error)})") from None
    return drgn


def _informed(program: Program, info: bytes | None, debug_info: Iterable[str | os.PathLike[str]]) -> Program:
    """*program* with *debug_info*, and with what the kernel of *info* has itself."""
    from drgn import MissingDebugInfoError

    from pyvmm.control.drgn.kernel import Kernel

    kernel = None if info is None else Kernel(program, info)
    if kernel is not None:
        kernel.register()
    paths = [os.fspath(path) for path in debug_info]
    try:
        if kernel is None:
            for path in paths:
                _load_of_guest(program, path)
        elif paths:
            program.load_debug_info(paths)
    except (MissingDebugInfoError, OSError, ValueError) as error:
        raise UserError(f"debug_info: {one_line(error)}") from None
    if kernel is not None:
        kernel.place()
    return program


def _load_of_guest(program: Program, path: str) -> None:
    """The debugging information in ELF file *path*, of a guest that runs where it was linked."""
    from drgn import ModuleFileStatus

    with Image(Path(path), "debug_info") as image:
        segments = parse_elf(image).segments
    module = program.extra_module(path, create=True)
    module.try_file(path, force=True)
    if module.debug_file_status != ModuleFileStatus.HAVE:
        raise UserError(f"debug_info: {printable(path)} has no debugging information: compile with -g")
    module.address_ranges = [(each.vaddr, each.vaddr + each.memsz) for each in segments]


class _CurrentTables:
    """The control registers of vCPU 0: as they are while the machine stands, else as they were last seen."""

    def __init__(self, machine: Machine, seen: Sregs) -> None:
        self._machine = machine
        self._seen = seen

    def now(self) -> Sregs:
        if self._machine.state == "paused":
            self._seen = self._machine.vcpus[0].get_sregs()
        return self._seen


def vcpu_trace(machine: Machine, program: Program, number: int = 0) -> StackTrace:
    """The stack of what vCPU *number* does, as *program* (machine_program()) unwinds it. The machine stands meanwhile;
    let it stand longer to look at the frames' variables. Raises IndexError for no such vCPU, UserError as
    Machine.pause() does."""
    with machine.paused(REASON):
        vcpu = machine.vcpus[number]
        return program.stack_trace(_pt_regs(program, vcpu.get_regs(), vcpu.get_sregs()))


def _pt_regs(program: Program, regs: Regs, sregs: Sregs) -> object:
    import drgn

    word = program.int_type("unsigned long", 8, False)
    members = [drgn.TypeMember(word, name, 64 * place) for place, name in enumerate(PT_REGS)]
    layout = program.struct_type("pt_regs", 8 * len(PT_REGS), members)
    special = {"cs": sregs.cs.selector, "ss": sregs.ss.selector, "flags": regs.rflags, "orig_ax": (1 << 64) - 1}
    values = {
        name: special[name] if name in special else getattr(regs, name if name[1:].isdigit() else f"r{name}")
        for name in PT_REGS
    }
    return drgn.Object(program, layout, values)
