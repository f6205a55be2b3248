"""A kernel that says of itself what its symbols and types are, in some pages of RAM; and a hostile one."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import pytest
from drgn import Architecture, FaultError, Object, Platform, Program
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.control.drgn.kernel import Kernel
from pyvmm.control.drgn.reader import physical_segment
from pyvmm.report import vmcoreinfo
from tests.rig.btf_table import kernel_like
from tests.rig.linux_memory import PHYS_BASE, SWAPPER
from tests.rig.paged import Paged

IMAGE, RAM = 0xFFFFFFFF82000000, 0x20000
"""Where its first page is mapped, and lies."""
NAMES, TOKENS, INDEX, OFFSETS, COUNT, BASE, BTF, DATA = (0x1000 * number for number in range(1, 9))
SYMBOLS = {
    "Tstext": 0, "T_stext": 0, "Tschedule": 0x100, "T_end": 0x9000, "Djiffies": DATA, "Dinit_task": DATA + 0x40,
    "Druns": DATA + 0x80, "D__start_BTF": BTF,
}  # fmt: skip


class Linux:
    """Pages from IMAGE on."""

    def __init__(self) -> None:
        self.paged = Paged()
        for page in range(16):
            self.paged.map(IMAGE + 0x1000 * page, RAM + 0x1000 * page)
        self.paged.map(SWAPPER, self.paged.cr3)
        self.lines = {
            "OSRELEASE": "6.1.0", "PAGESIZE": "4096", "SYMBOL(swapper_pg_dir)": f"{SWAPPER:x}", "KERNELOFFSET": "0",
            "SYMBOL(_stext)": f"{IMAGE:x}", "NUMBER(phys_base)": str(PHYS_BASE), "NUMBER(pgtable_l5_enabled)": "0",
            "SYMBOL(kallsyms_names)": f"{IMAGE + NAMES:x}", "SYMBOL(kallsyms_num_syms)": f"{IMAGE + COUNT:x}",
            "SYMBOL(kallsyms_token_table)": f"{IMAGE + TOKENS:x}", "SYMBOL(kallsyms_token_index)": f"{IMAGE + INDEX:x}",
            "SYMBOL(kallsyms_offsets)": f"{IMAGE + OFFSETS:x}", "SYMBOL(kallsyms_relative_base)": f"{IMAGE + BASE:x}",
        }  # fmt: skip

    def put(self, offset: int, data: bytes) -> None:
        self.paged.memory.write(RAM + offset, data)

    def symbols(self, symbols: Mapping[str, int]) -> None:
        """As scripts/kallsyms.c writes them, without compression: a token a character."""
        self.put(NAMES, b"".join(bytes([len(name)]) + name.encode() for name in symbols))
        self.put(TOKENS, b"".join(bytes([n or 1, 0]) for n in range(256)))
        self.put(INDEX, struct.pack("<256H", *range(0, 512, 2)))
        self.put(OFFSETS, struct.pack(f"<{len(symbols)}i", *symbols.values()))
        self.put(COUNT, struct.pack("<I", len(symbols)))
        self.put(BASE, struct.pack("<Q", IMAGE))

    def program(self) -> Program:
        """Of this kernel, with what it knows of itself."""
        made = Program(Platform(Architecture.X86_64))
        made.add_memory_segment(0, 1 << 52, physical_segment(self.paged.memory), physical=True)
        info = "".join(f"{name}={value}\n" for name, value in self.lines.items()).encode()
        assert vmcoreinfo.symbol(vmcoreinfo.parse(info), "swapper_pg_dir") == SWAPPER
        made.set_linux_kernel_custom(info, True)
        kernel = Kernel(made, info)
        kernel.register()
        kernel.place()
        return made


def linux() -> Linux:
    """With types, and two objects."""
    made, table = Linux(), kernel_like().bytes()
    made.put(BTF, table)
    made.symbols(dict(sorted({**SYMBOLS, "D__stop_BTF": BTF + len(table)}.items(), key=lambda each: each[1])))
    made.put(DATA, struct.pack("<Q", 4_294_937_296))
    made.put(DATA + 0x40, struct.pack("<I16s4xQ", 0, b"swapper/0", IMAGE + DATA + 0x40))
    return made


def test_symbols() -> None:
    program = linux().program()
    assert program.symbol("schedule").address == IMAGE + 0x100
    assert program.symbol(IMAGE + 0x105).name == "schedule"
    with pytest.raises(LookupError):
        program.symbol("nothing")
    assert program.main_module().address_range == (IMAGE, IMAGE + 0x9000)


def test_types_and_objects() -> None:
    made = linux()
    program = made.program()
    task = program["init_task"]
    assert task.comm.string_() == b"swapper/0" and task.next.next.pid.value_() == 0
    assert program["PIDTYPE_MAX"].value_() == 4
    assert program["jiffies"].value_() == 4_294_937_296
    made.put(DATA, struct.pack("<Q", 4_294_937_297))
    assert program["jiffies"].value_() == 4_294_937_297, "as it is now"
    assert Object(program, "struct task_struct", address=program.symbol("runs").address).pid.value_() == 0
    for name in ("printk", "init_mm", "nothing"):  # no symbol, no type, neither
        with pytest.raises(LookupError):
            program[name]


def test_a_kernel_that_tells_less() -> None:
    """Before 6.0 VMCOREINFO does not lead to kallsyms; without BTF there are symbols alone."""
    old = linux()
    del old.lines["SYMBOL(kallsyms_names)"]
    program = old.program()
    for ask in (program.symbol, program.type, program.variable):
        with pytest.raises((LookupError, SyntaxError)):
            ask("init_task")
    bare = Linux()
    bare.symbols({"T_stext": 0, "Tschedule": 0x100})
    program = bare.program()
    assert program.symbol("schedule").address == IMAGE + 0x100
    with pytest.raises(LookupError):
        program.type("struct task_struct")


@pytest.mark.parametrize("count", [0, 1 << 31, 4_000_001])
def test_a_number_of_symbols_that_is_none(count: int) -> None:
    made = linux()
    made.put(COUNT, struct.pack("<I", count))
    with pytest.raises(LookupError):
        made.program().symbol("schedule")


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 1 << 32), st.sampled_from([NAMES, TOKENS, INDEX, OFFSETS, COUNT, BASE, BTF]))
def test_any_memory(seed: int, where: int) -> None:
    """Some of it is not what the kernel has written: nothing but what drgn's users know comes of it."""
    rng, made = random.Random(seed), linux()
    for _ in range(rng.randrange(1, 20)):
        made.put(where + rng.randrange(0x40), rng.randbytes(1))
    program = made.program()
    for name in ("schedule", "nothing"):
        try:
            program.symbol(name)
        except LookupError:
            pass
    for name in ("jiffies", "init_task", "PIDTYPE_MAX"):
        try:
            str(program[name])
        except (LookupError, FaultError, ValueError):
            pass
