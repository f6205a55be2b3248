"""How a Linux guest can end, and the exit status and last words of `pyvmm run`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.machine.outcome import End, Outcome
from pyvmm.report.cpu import Cpu
from pyvmm.report.kaslr import find_shift
from pyvmm.report.page import Context, page
from pyvmm.report.symbols import load_symbols
from pyvmm.units import MIB
from tests.rig.console import Console, Start
from tests.rig.guest import USERSPACE, Guest
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS, PYVMM

LINUX = ("-k", CLOUD_KERNEL, "-i", INITRAMFS, "-m", "256M")


IDLE = ("do_idle", "cpu_startup_entry", "rest_init", "start_kernel")
"""Who has called what halts an idle CPU, from its start on, in Linux 6.1."""


def boot(cmdline: str = "", symbols: Path | None = None) -> Guest:
    """At its shell."""
    config = MachineConfig(
        kernel=CLOUD_KERNEL,
        initrd=INITRAMFS,
        memory=256 * MIB,
        cmdline=f"console=ttyS0 quiet {cmdline}",
        symbols=symbols,
    )
    guest = Guest(config)
    guest.expect(USERSPACE)
    guest.expect("# ")
    return guest


@pytest.fixture(scope="module")
def unmoved() -> Iterator[Guest]:
    with boot("nokaslr") as guest:
        yield guest


@pytest.fixture(scope="module")
def kallsyms(unmoved: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the kernel's symbols, each with the one that follows, as it was linked: all would take minutes."""
    names = "|".join(("asm_exc_.*", ".*safe_halt", "default_idle.*", "cpuidle_.*", "panic", "delay_.*", *IDLE))
    unmoved.shell("echo 0 >/proc/sys/kernel/kptr_restrict")
    path = tmp_path_factory.mktemp("symbols") / "kallsyms"
    path.write_text(unmoved.shell(f"grep -A1 -E ' [tT] ({names})$' /proc/kallsyms"))
    return path


def linux(pyvmm: Start, cmdline: str, *words: str) -> Console:
    return pyvmm("run", *LINUX, "-p", f"console=ttyS0 quiet {cmdline}", *words)


def test_a_reset_that_may_not_reboot(pyvmm: Start) -> None:
    console = linux(pyvmm, "pyvmm.run=true pyvmm.end=reboot", "--no-reboot")
    console.expect(USERSPACE)
    assert console.wait() == 3
    assert console.output.splitlines()[-1] == "pyvmm: reset: port 0xcf9"


@pytest.mark.parametrize("then", ["panic=-1", "panic=0"], ids=["resets", "spins"])
def test_a_panic(pyvmm: Start, kallsyms: Path, then: str) -> None:
    """Whether the kernel resets the machine after it or spins for ever. Its own text is told, once more, and where it
    spins."""
    console = linux(pyvmm, f"pyvmm.run=true pyvmm.end=panic {then}", "--symbols", str(kallsyms))
    console.expect(USERSPACE)
    console.expect("pyvmm: panic: Kernel panic - not syncing: sysrq triggered crash")
    assert console.wait() == 4
    assert console.output.count(USERSPACE) == 1
    report = console.output.rpartition("pyvmm: panic: ")[2].splitlines()
    assert report[0] == "Kernel panic - not syncing: sysrq triggered crash"
    ends = "---[ end Kernel panic - not syncing: sysrq triggered crash ]---"
    for words in ("Kernel panic - not syncing: sysrq", "sysrq_handle_crash+0x", *([ends] if then == "panic=0" else [])):
        assert any(words in line for line in report[2:]), words
    if then == "panic=0":
        assert re.fullmatch(r"vCPU 0 (spins|runs) in delay_\w+", report[1]), report[1]
    assert len(report) < 40 and all(len(line) <= 100 for line in report)
    assert "last exits of" not in console.output


def test_a_panic_that_is_only_read_about(pyvmm: Start) -> None:
    """A shell that prints an old kernel's log has not panicked."""
    console = linux(pyvmm, "pyvmm.run=\"echo 'Kernel panic - not syncing: long ago'; sleep 4\"")
    console.expect("\nKernel panic - not syncing: long ago")
    assert console.wait() == 0


def test_timeout(pyvmm: Start) -> None:
    console = linux(pyvmm, "", "--timeout", "4")
    assert console.wait() == 124
    assert "pyvmm: timeout: after 4 s" in console.output and "vCPU 0: " in console.output


def test_ctrl_a_x_gives_the_terminal_back(start: Start) -> None:
    words = " ".join(map(str, LINUX))
    run = f"{PYVMM} run {words} -p 'console=ttyS0'"
    console = start("sh", "-c", f"stty -g; {run}; echo status $?; stty -g", on_pty=True)
    before = console.expect("\n").strip()
    console.expect("Linux version")
    console.send("\x01h")
    console.expect("Ctrl-A x  quit the machine")
    console.send("\x01x")
    console.expect("status 7\r\n")
    assert console.expect("\n").strip() == before
    assert console.wait() == 0


def names_of_callers(lines: list[str]) -> list[str]:
    """In the stack of a report."""
    return [match[1] for line in lines if (match := re.match(r"  (?:\? )?0x[0-9a-f]+ (\w+)\+0x", line))]


def is_idle(lines: list[str]) -> bool:
    """The code at RIP is what halts, and those who have called it are the right ones, in their order."""
    halts = any(re.match(r"code at 0x[0-9a-f]+ \w*(safe_halt|default_idle)\w*\+0x", line) for line in lines)
    callers = [name for name in names_of_callers(lines) if name in IDLE]
    return halts and callers == [name for name in IDLE if name in callers] and "do_idle" in callers


def test_symbols_of_a_kernel_where_it_was_linked(unmoved: Guest, kallsyms: Path) -> None:
    machine = unmoved.machine
    with machine.paused():
        cpu = Cpu.of(machine.vcpus[0], machine.memory)
        symbols = load_symbols(kallsyms)
        find_shift([cpu], machine.memory, symbols)
        lines = page(cpu, Context(symbols))
    assert (symbols.shift, symbols.shift_source) == (0, "IDT")
    assert is_idle(lines), lines


def test_symbols_of_a_kernel_that_has_moved(kallsyms: Path) -> None:
    """KASLR is undone by its interrupt descriptor table; RIP in what halts, as all who called it."""
    with boot(symbols=kallsyms) as guest:
        machine = guest.machine
        machine.call(lambda: machine.life.timed_out(Outcome(End.TIMEOUT)))
        report = guest.wait().report
    lines = report.splitlines()
    assert lines[0] == "vCPU 0 halted with interrupts on"
    assert re.search(rf"^symbols: {kallsyms}, shifted by 0x[1-9a-f][0-9a-f]*00000 \(from the IDT\)$", report, re.M), (
        report
    )
    assert is_idle(lines), report
    assert len(lines) < 40 and all(len(line) <= 100 for line in lines)
