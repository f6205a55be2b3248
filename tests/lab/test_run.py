"""scripts/run: Debian's kernel to a shell, here where the processor helps and in the lab elsewhere."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.rig.console import Console

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "scripts" / "run"
QUIT = b"\x01x"  # Ctrl-A x


def test_without_a_terminal_it_prints_and_powers_off() -> None:
    ran = subprocess.run([RUN], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "pyvmm guest: userspace" in ran.stdout
    assert "Debian" in ran.stdout
    assert "pyvmm guest: exit 0" in ran.stdout
    assert "Hypervisor detected: KVM" in ran.stdout
    assert "/dev/kvm" in ran.stderr  # it says where the guest runs


def test_in_a_terminal_it_is_a_shell() -> None:
    with Console([RUN], on_pty=True) as console:
        before = console.terminal()
        console.expect("/ # ", 300)
        console.send("echo $((6 * 7)) $(nproc)\r")
        console.expect("\n42 2", 90)
        console.send("sh -c 'echo now; sleep 1000'\r")
        console.expect("\nnow", 90)  # the shell has handed the terminal to the command
        console.send(b"\x03")  # Ctrl-C is the guest's
        console.expect("/ # ", 90)
        console.send(QUIT)
        assert console.wait(60) == 7
        assert console.terminal() == before


def test_options_are_passed_on_and_so_is_the_status() -> None:
    ran = subprocess.run([RUN, "-m", "0"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 2
    assert "-m" in ran.stderr
