"""What Ctrl-A and a letter do on the user's terminal: one table, and Ctrl-A h is made from it.

Each call runs in the loop, under the machine lock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pyvmm.errors import UserError
from pyvmm.machine.machine import Machine
from pyvmm.machine.snapshot import Snapshot
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm.host.writer import SnapshotWriter


class Seat(Protocol):
    """Where the user sits: what the commands act on, and where they answer."""

    @property
    def machine(self) -> Machine: ...

    def say(self, text: str) -> None:
        """Show lines to the user, on the terminal where the letter was typed."""

    def ask(self, question: str, answer: Callable[[str | None], None]) -> None:
        """Let the user type a line; *answer* gets it, None where it is given up."""

    snapshot: Snapshot | None
    """The last that was taken here."""
    writer: SnapshotWriter | None
    """Where --save puts snapshots."""

    def screenshot(self) -> Path:
        """Write the screen to a file, and return which; raises UserError."""

    def prompt(self) -> None:
        """Let the terminal be that of a Python prompt until the user leaves it."""


class KeyCommand(NamedTuple):
    help: str
    call: Callable[[Seat], None]


def _registers(seat: Seat) -> None:
    from pyvmm.report.page import vcpu_report

    for thread in seat.machine.life.cpus.seated:  # a running vCPU answers in its own thread
        thread.call(partial(lambda vcpu: seat.say(vcpu_report(vcpu, seat.machine.memory)), thread.vcpu))


def _screenshot(seat: Seat) -> None:
    try:
        seat.say(f"pyvmm: wrote {seat.screenshot().absolute()}")
    except UserError as error:
        seat.say(f"pyvmm: {error}")


PAUSED: Final = "console"
"""The reason of a pause by Ctrl-A z."""


def _pause(seat: Seat) -> None:
    life = seat.machine.life
    if PAUSED in life.reasons:
        life.resume(PAUSED, wait=False)
        seat.say("pyvmm: the machine goes on")
    else:
        life.pause(PAUSED, wait=False)
        seat.say("pyvmm: the machine stands still: Ctrl-A z lets it go on")


def _stand_for(
    seat: Seat, what: str, function: Callable[[], str], failed: Callable[[UserError], None] | None = None
) -> None:
    """Run *function* soon, while everything stands still, and say what it returns, or why it did not come about, unless
    *failed* wants to know."""
    life = seat.machine.life

    def run() -> None:
        said = function()
        with life.lock:
            seat.say(f"pyvmm: {said}")

    life.when_standing(what, run, failed or (lambda error: seat.say(f"pyvmm: {error}")))


def take_snapshot(seat: Seat, failed: Callable[[UserError], None] | None = None) -> None:
    """Soon, in memory and into the file of --save; *failed* hears why it did not come about."""

    from pyvmm.host.writer import Slowly

    def slow(text: str) -> None:
        with seat.machine.life.lock:
            seat.say(f"pyvmm: {text}")

    def take() -> str:
        seat.snapshot = taken = seat.machine.snapshots.take(Slowly("taking a snapshot", slow))
        if seat.writer is not None:
            seat.writer.write(taken)
        return f"snapshot of {taken.size / MIB:.1f} MiB: Ctrl-A u goes back to it"

    _stand_for(seat, "a snapshot", take, failed)


def _go_back(seat: Seat) -> None:
    snapshot = seat.snapshot
    if snapshot is None:
        seat.say("pyvmm: there is no snapshot to go back to: Ctrl-A w takes one")
        return

    def go_back() -> str:
        seat.machine.snapshots.go_back(snapshot)
        return "the machine is what it was at the last snapshot"

    _stand_for(seat, "going back", go_back)


def _reload(seat: Seat) -> None:
    """Each device of a file, one after another."""
    names = list(seat.machine.replacer.files)
    if not names:
        seat.say("pyvmm: there is no device of a file of yours: --device FILE.py:CLASS plugs one in")
    for name in names:

        def load(name: str = name) -> str:
            left = seat.machine.replacer.replace(name, None)
            return f"{name} is loaded anew{'' if not left else ', all but ' + ', '.join(left) + ' as it was'}"

        _stand_for(seat, "loading a device anew", load)


def _translate(seat: Seat) -> None:
    def look() -> str:
        from pyvmm.machine.translation import translate

        machine = seat.machine
        vcpu = machine.vcpus[0]
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        addresses = (("RIP", sregs.cs.base + regs.rip), ("RSP", sregs.ss.base + regs.rsp), ("CR2", sregs.cr2))
        return "\n".join(f"{name} {translate(machine.board, vcpu, address)}" for name, address in addresses)

    _stand_for(seat, "a translation", look)


def _trace(seat: Seat) -> None:
    """Each channel that is named is switched over."""
    trace = seat.machine.trace

    def switch(text: str | None) -> None:
        names = (text or "").replace(",", " ").split()
        try:
            if "all" in names:
                trace.on("all")
            elif "none" in names:
                trace.off("all")
            else:
                on = trace.enabled
                trace.on(*(name for name in names if name not in on))
                trace.off(*(name for name in names if name in on))
        except UserError as error:
            seat.say(f"pyvmm: {error}")
        if names:
            seat.say(f"pyvmm: traced: {', '.join(trace.enabled) or 'nothing'}")

    channels = " ".join(f"[{name}]" if name in trace.enabled else name for name in trace.names)
    seat.ask(f"pyvmm: channels, those in brackets are on: {channels}\nswitch (names, all, none):", switch)


COMMANDS: Final[dict[str, KeyCommand]] = {
    "h": KeyCommand("this help", lambda seat: seat.say(help_text())),
    "x": KeyCommand("quit the machine", lambda seat: seat.machine.end()),
    "r": KeyCommand("print the vCPUs' registers", _registers),
    "p": KeyCommand("press the power button", lambda seat: seat.machine.power_button()),
    "n": KeyCommand("press the NMI button", lambda seat: seat.machine.nmi()),
    "b": KeyCommand("send a break on COM1 (SysRq, kgdb)", lambda seat: seat.machine.board.com1.receive_break()),
    "z": KeyCommand("let the machine stand still, or go on", _pause),
    "w": KeyCommand("take a snapshot, in memory and into the file of --save", take_snapshot),
    "u": KeyCommand("undo: go back to the last snapshot", _go_back),
    "l": KeyCommand("load the devices of your own files anew, while the guest runs on", _reload),
    "c": KeyCommand("Python on this terminal, with `machine`; the guest goes on", lambda seat: seat.prompt()),
    "t": KeyCommand("switch channels of the trace on and off", _trace),
    "m": KeyCommand("map RIP, RSP and CR2 of vCPU 0: page tables, guest physical, this host's memory", _translate),
    "s": KeyCommand("write the screen to a PNG file (--screenshot FILE, or pyvmm.png)", _screenshot),
}


def help_text() -> str:
    """A line for each command."""
    lines = [f"Ctrl-A {letter}  {command.help}" for letter, command in COMMANDS.items()]
    return "\n".join([*lines, "Ctrl-A Ctrl-A  send Ctrl-A"])


def perform(letter: str, seat: Seat) -> None:
    """Do what Ctrl-A and *letter* (one character, in lower case) ask for, or say that they ask for nothing."""
    command = COMMANDS.get(letter)
    if command is not None:
        command.call(seat)
    else:
        seat.say(f"pyvmm: Ctrl-A {key_name(letter)} is no command: Ctrl-A h shows them")


def key_name(character: str) -> str:
    """How a character is typed, for one that would do something to a terminal: Ctrl-[, 0x9b."""
    code = ord(character)
    if code < 0x20:
        return f"Ctrl-{chr(code + 0x40)}"
    return character if 0x20 < code < 0x7F else f"0x{code:02x}"
