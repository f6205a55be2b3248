"""`monitor …`: what gdb has no command for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.control.core.write import write_core
from pyvmm.control.gdb.debugger import Debugger
from pyvmm.errors import UserError, printable
from pyvmm.machine.snapshot import Snapshot
from pyvmm.report.code import INSN_LIMIT, NO_CAPSTONE, disassembler
from pyvmm.report.exits import exit_lines
from pyvmm.report.page import page

MOST_LINES: Final = 1000


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UserError(f"{text or 'nothing'} is no number: 0x7c00, for one") from None


class Monitor:
    """Commands by name, of one client."""

    def __init__(self, debugger: Debugger) -> None:
        self._debugger = debugger
        self._snapshots: dict[str, Snapshot] = {}

    def run(self, line: str) -> str:
        """What *line* says: text for gdb's user, mistakes too."""
        name, _, rest = line.strip().partition(" ")
        command = self._commands.get(name)
        if command is None:
            return f"there is no {name!r}\n{self._help('')}" if name else self._help("")
        try:
            return command(self, rest.strip())
        except (UserError, ValueError) as error:
            return f"{error}\n"

    def _registers(self, _rest: str) -> str:
        """the registers, in words, with the code, the stack and the last exits"""
        return "\n".join([*page(self._debugger.cpu()), ""])

    def _exits(self, _rest: str) -> str:
        """the last exits of this vCPU"""
        return "\n".join([*exit_lines(self._debugger.cpu().records, (), ()), ""])

    def _instructions(self, rest: str) -> str:
        """x/i [ADDRESS [COUNT]]: instructions in the mode that the processor is in"""
        words = rest.split()
        cpu = self._debugger.cpu()
        address = _number(words[0]) if words else cpu.rip
        count = min(_number(words[1]) if len(words) > 1 else 8, MOST_LINES)
        code = self._debugger.read(address, count * INSN_LIMIT)
        made = disassembler(cpu.bits)
        if made is None:
            raise UserError(f"there is no disassembler: {NO_CAPSTONE}")
        found = list(made.disasm_lite(code, address, count))
        if not found:
            raise UserError(f"no instruction at {address:#x}")
        return "".join(f"{'=>' if at == cpu.rip else '  '} {at:#x}: {name} {what}\n" for at, _, name, what in found)

    def _translate(self, rest: str) -> str:
        """translate ADDRESS: its way through the page tables, to this host's memory"""
        return f"{self._debugger.machine.translate(_number(rest), self._debugger.current)}\n"

    def _reset(self, _rest: str) -> str:
        """press the reset button; the guest stands before its first instruction"""
        self._debugger.machine.reset()
        return "reset\n"

    def _snapshot(self, rest: str) -> str:
        """snapshot [NAME]: keep the machine as it is now"""
        self._snapshots[rest] = self._debugger.machine.snapshot()
        return f"kept{f' as {rest}' if rest else ''}\n"

    def _restore(self, rest: str) -> str:
        """restore [NAME]: make it what it was then"""
        if rest not in self._snapshots:
            raise UserError("there is no such snapshot" if rest else "take one first: monitor snapshot")
        self._debugger.machine.restore(self._snapshots[rest])
        return "restored\n"

    def _dump(self, rest: str) -> str:
        """dump PATH: write memory and registers to an ELF core file, as pyvmm sees PATH"""
        if not rest:
            raise UserError("name a file: monitor dump /tmp/core")
        write_core(self._debugger.machine, rest)
        return f"written to {printable(rest)}\n"

    def _help(self, _rest: str) -> str:
        """this list"""
        lines = []
        for name, command in self._commands.items():
            text = command.__doc__ or ""
            lines.append(f"{text if text.startswith(name) else f'{name}: {text}'}\n")
        return "".join(lines)

    _commands: Final[dict[str, Callable[[Monitor, str], str]]] = {
        "registers": _registers,
        "x/i": _instructions,
        "translate": _translate,
        "exits": _exits,
        "reset": _reset,
        "snapshot": _snapshot,
        "restore": _restore,
        "dump": _dump,
        "help": _help,
    }
