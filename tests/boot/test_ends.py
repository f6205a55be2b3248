"""How a Linux guest can end, and the exit status and last words of `pyvmm run`."""

from __future__ import annotations

import re

import pytest

from tests.rig.console import Console, Start
from tests.rig.guest import USERSPACE
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS, PYVMM

LINUX = ("-k", CLOUD_KERNEL, "-i", INITRAMFS, "-m", "256M")


def linux(pyvmm: Start, cmdline: str, *words: str) -> Console:
    return pyvmm("run", *LINUX, "-p", f"console=ttyS0 quiet {cmdline}", *words)


def test_a_reset_that_may_not_reboot(pyvmm: Start) -> None:
    console = linux(pyvmm, "pyvmm.run=true pyvmm.end=reboot", "--no-reboot")
    console.expect(USERSPACE)
    assert console.wait() == 3
    assert console.output.splitlines()[-1] == "pyvmm: reset: port 0xcf9"


@pytest.mark.parametrize("then", ["panic=-1", "panic=0"], ids=["resets", "spins"])
def test_a_panic(pyvmm: Start, then: str) -> None:
    """Whether the kernel resets the machine after it or spins for ever."""
    console = linux(pyvmm, f"pyvmm.run=true pyvmm.end=panic {then}")
    console.expect(USERSPACE)
    console.expect("pyvmm: panic: Kernel panic - not syncing: sysrq triggered crash")
    assert console.wait() == 4
    assert console.output.count(USERSPACE) == 1
    assert re.search(r"vCPU 0: 64-bit long mode, paging on, CPL 0", console.output)
    assert "last exits of" in console.output


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
