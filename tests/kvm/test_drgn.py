"""drgn on small guests: what it reads is what is in the machine's memory, running and paused."""

from __future__ import annotations

import pytest
from drgn import FaultError

from pyvmm import End, Machine, MachineConfig, guests, machine_program, vcpu_trace


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
