"""A machine that is there for a command in it: where its console goes, and what it means that it ends before that."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cli.run import run
from pyvmm.config import HostConfig, MachineConfig
from pyvmm.host.streams import NAMES, Streams
from pyvmm.machine.machine import Machine
from pyvmm.virtio.console import VirtioConsole

SAYS = b"\xb0a\xe6\xe9\xb0\x0d\xe6\xe9\xb0\x0a\xe6\xe9"
"""mov al, 'a'; out 0xe9, al; CR, LF."""
POWERS_OFF = b"\xba\x04\x06\xb8\x00\x20\xef"
"""mov dx, 0x604; mov ax, 0x2000; out dx, ax."""
RESETS = b"\xb0\xfe\xe6\x64"
"""mov al, 0xfe; out 0x64, al."""
HALTS = b"\xfa\xf4"


def ran(tmp_path: Path, code: bytes, **host: float) -> int:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(SAYS + code + HALTS)
    console = VirtioConsole(NAMES)
    config = MachineConfig(kernel=kernel, flat="real", memory=1 << 20, devices=(console,), no_reboot=True)

    def parse(words: list[str]) -> tuple[MachineConfig, HostConfig]:
        raise AssertionError("this guest needs no other command line")

    return run(lambda sink: Machine(config, sink), HostConfig(**host), parse, Streams(console))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [(POWERS_OFF, 3, "the guest powered off before the command ended"), (RESETS, 3, "reset: port 0x64")],
    ids=["power-off", "reset"],
)
def test_an_end_before_the_commands(
    tmp_path: Path, code: bytes, status: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard output is the command's alone; the console is on standard error, as lines."""
    assert ran(tmp_path, code) == status
    told = capfd.readouterr()
    assert told.out == "" and sorted(told.err.splitlines()) == ["a", f"pyvmm: {says}"]


def test_a_command_that_takes_too_long(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ran(tmp_path, b"", timeout=0.5) == 124
    assert "pyvmm: timeout: after 0.5 s" in capfd.readouterr().err
