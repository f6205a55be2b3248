"""drgn on small guests: what it reads is what is in the machine's memory, running and paused."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from drgn import FaultError

from pyvmm import End, Machine, MachineConfig, UserError, guests, machine_program, vcpu_trace
from pyvmm.boot.elf import parse_elf
from pyvmm.boot.image import Image


def test_memory_and_registers_of_a_guest() -> None:
    """In 64-bit mode, with page tables of its own."""
    with Machine(MachineConfig(guest="keyboard")) as machine:
        machine.start()
        assert machine.wait(lambda: "> " in machine.screen, 60)
        program = machine_program(machine)
        with machine.paused():
            assert program.read(0x100000, 4096) == machine.memory.read(0x100000, 4096)
            assert program.read(0x100000, 64, physical=True) == machine.memory.read(0x100000, 64)
            machine.memory.write(0x500, b"looked at")
            assert program.read_c_string(0x500) == b"looked at", "as it is now"
            trace = vcpu_trace(machine, program)
            regs = machine.vcpus[0].get_regs()
            assert trace[0].pc == regs.rip
            registers = trace[0].registers()
            assert (registers["rsp"], registers["rbx"]) == (regs.rsp, regs.rbx)
        with pytest.raises(FaultError, match="no guest RAM"):
            program.read(machine.memory.size + (1 << 32), 1, physical=True)
        with pytest.raises(FaultError, match="not present"):
            program.read(1 << 40, 1)
        with pytest.raises(FaultError, match="not canonical"):
            program.read(1 << 50, 1)


def test_real_mode_while_the_guest_runs() -> None:
    symbols = guests.load("timer").symbols
    with Machine(MachineConfig(guest="timer", guest_parameters=(("count", 0xFFFFFF),))) as machine:
        machine.start()
        assert machine.wait(lambda: machine.memory.read_int(symbols["ticks"], 4) > 1, 60)
        program = machine_program(machine)

        def ticks() -> int:
            value: int = program.read_u32(symbols["ticks"])
            return value

        seen = ticks()
        assert machine.wait(lambda: ticks() > seen, 60), "it runs on, and drgn sees it"


def test_after_the_end_and_after_close() -> None:
    with Machine(MachineConfig(guest="timer", guest_parameters=(("count", 2),))) as machine:
        assert machine.run(60).end is End.DEBUG_EXIT
        program = machine_program(machine)
        code = machine.memory.read(0x7C00, 16)
        assert program.read(0x7C00, 16, physical=True) == code
    with pytest.raises(FaultError):
        program.read(0x7C00, 16, physical=True)


PROGRAM = """
struct counter { int n; char name[8]; struct counter *next; };
struct counter first = { 7, "first", &first };
int inner(int x) { return first.n + x; }
void _start(void) { for (;;) first.n = inner(1); }
"""


def test_a_guest_of_ones_own_with_debugging_information(tmp_path: Path) -> None:
    """Types, variables and functions of an ELF file that lies where it was linked, and the stack of what it does."""
    (tmp_path / "own.c").write_text(PROGRAM)
    flags = ["-g", "-O0", "-static", "-nostdlib", "-no-pie", "-fcf-protection=none", "-Wl,-Ttext=0x700000"]
    subprocess.run(["gcc", *flags, "-o", "own.elf", "own.c"], cwd=tmp_path, check=True)
    own = tmp_path / "own.elf"
    with Machine(MachineConfig(guest="keyboard")) as machine:
        machine.start()
        assert machine.wait(lambda: "> " in machine.screen, 60)
        machine.pause()
        with Image(own) as image:
            for segment in parse_elf(image).segments:
                if 0x700000 <= segment.vaddr < 0x800000:
                    machine.memory.write(segment.vaddr, image.read(segment.offset, segment.filesz))
        program = machine_program(machine, [own])
        assert program["first"].n.value_() == 7 and program["first"].next.next.name.string_() == b"first"
        machine.memory.write_int(program["first"].address_of_().value_(), 4, 8)
        assert program["first"].n.value_() == 8
        inner, start = program.symbol("inner"), program.symbol("_start")
        stack = 0x650000
        machine.memory.write(stack, struct.pack("<4Q", stack + 16, start.address + 20, 0, 0))
        regs = machine.vcpus[0].get_regs()
        machine.vcpus[0].set_regs(replace(regs, rip=inner.address + 8, rsp=stack, rbp=stack))
        frames = list(vcpu_trace(machine, program))[:2]
        assert [frame.name for frame in frames] == ["inner", "_start"]
        assert frames[0].source()[0].endswith("own.c")
        with pytest.raises(UserError, match=r"debug_info .*missing: No such file"):
            machine_program(machine, [tmp_path / "missing"])
        subprocess.run(["strip", own], check=True)
        with pytest.raises(UserError, match="compile with -g"):
            machine_program(machine, [own])
