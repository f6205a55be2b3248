"""drgn, unchanged, by QMP: what `drgn --qemu` asks for, and what a client can make of descriptors."""

from __future__ import annotations

import array
import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from drgn import Program

from pyvmm import Machine, MachineConfig, QmpServer
from pyvmm.cli.arguments import main
from pyvmm.control.qmp.descriptors import MOST_NAMED
from pyvmm.units import MIB


@contextmanager
def served(tmp_path: Path) -> Iterator[tuple[Machine, str]]:
    path = str(tmp_path / "qmp")
    with Machine(MachineConfig(guest="keyboard", memory=64 * MIB)) as machine, QmpServer(machine, path):
        machine.start()
        assert machine.wait(lambda: "> " in machine.screen, 60)
        yield machine, path


class Client:
    """One that has negotiated."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(120)
        self.socket.connect(path)
        self._lines = self.socket.makefile("rb")
        self._lines.readline()
        assert self.ask("qmp_capabilities") == {}

    def ask(self, command: str, *fds: int, **arguments: object) -> Any:
        """What it returns, or the description of the error."""
        data = json.dumps({"execute": command, "arguments": arguments}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], rights)
        while True:
            said = json.loads(self._lines.readline())
            if "event" not in said:
                return said["return"] if "return" in said else said["error"]["desc"]

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def drgn(path: str, *lines: str) -> list[str]:
    """What *lines* print in drgn, connected to *path*: in a process of its own, as its users have it."""
    program = ["import sys", "from drgn import FaultError, Program", "program = Program()"]
    program += ["program.set_qemu_qmp(sys.argv[1])", *lines]
    ran = subprocess.run([sys.executable, "-c", "\n".join(program), path], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_drgn_reads_memory(tmp_path: Path) -> None:
    with served(tmp_path) as (machine, path):
        machine.pause()
        machine.memory.write(0x600000, b"read by QMP\0")
        code = machine.memory.read(0x100000, 8192)
        read, fault = "program.read({}, {}, physical=True)", "except FaultError as error: print(error)"
        said = drgn(
            path,
            "print(program.platform.arch.name)",
            f"print({read.format(0x600000, 12)})",
            f"print({read.format(0x100000, 8192)}.hex())",
            f"try: {read.format(64 * MIB, 8)}",
            fault,
        )
        assert said[:3] == ["X86_64", repr(b"read by QMP\0"), code.hex()] and "access memory" in said[3], said[3]
        assert machine.state == "paused"


def test_dumps(tmp_path: Path) -> None:
    """To a path and to a descriptor, of all RAM and of a page."""
    core = tmp_path / "core"
    with served(tmp_path) as (machine, path), Client(path) as client:
        machine.pause()
        machine.memory.write(0x600000, b"dumped\0")
        assert client.ask("dump-guest-memory", paging=True, protocol=f"file:{core}") == {}
        program = Program()
        program.set_core_dump(core)
        assert program.read_c_string(0x600000) == b"dumped"
        before = open_descriptors()
        part = os.memfd_create("part")
        assert client.ask("getfd", part, fdname="x") == {}
        assert client.ask("dump-guest-memory", paging=False, protocol="fd:x", begin=0x600001, length=1) == {}
        assert os.pread(part, 4096, 4096)[:7] == b"dumped\0" and os.fstat(part).st_size == 8192
        os.close(part)
        assert open_descriptors() == before
        for arguments, said in (
            ({"protocol": "fd:x"}, "File descriptor named 'x' has not been found"),
            ({"protocol": "tape:0"}, "Parameter 'protocol' is fd:NAME or file:PATH"),
            ({"protocol": f"file:{tmp_path}/no/core"}, "cannot write .*: No such file or directory"),
            ({"protocol": "file:core", "begin": 0}, "come together"),
            ({"protocol": "file:core", "begin": 1 << 40, "length": 1}, "there is no guest memory in that range"),
            ({"protocol": "file:core", "format": "kdump-zlib"}, "Parameter 'format' is elf"),
            ({"protocol": "file:core", "detach": True}, "leave 'detach' out"),
        ):
            answer = client.ask("dump-guest-memory", paging=False, **arguments)
            assert isinstance(answer, str)
            assert re.search(said, answer), answer
        read_end, write_end = os.pipe()
        assert client.ask("getfd", write_end, fdname="pipe") == {}
        assert "cannot write pipe" in client.ask("dump-guest-memory", paging=False, protocol="fd:pipe")
        os.close(read_end)
        os.close(write_end)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core, nowhere = tmp_path / "core", tmp_path / "no" / "core"
    with served(tmp_path) as (_, path):
        assert main(["dump", path, str(core)]) == 0
        assert f"{core}: " in capsys.readouterr().out and core.read_bytes()[:4] == b"\x7fELF"
        assert main(["dump", path, str(nowhere)]) == 2
        assert f"cannot write {nowhere}: No such file or directory" in capsys.readouterr().err
    assert main(["dump", path, str(core)]) == 2
    assert "is there a machine with --qmp?" in capsys.readouterr().err


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    """However many are sent, named and forgotten."""
    with served(tmp_path) as (_, path):
        before = open_descriptors()
        for _ in range(3):
            with Client(path) as client, open(os.devnull) as null:
                assert "SCM_RIGHTS" in client.ask("getfd", fdname="none")
                assert "digit" in client.ask("getfd", null.fileno(), fdname="1")
                for number in range(MOST_NAMED):
                    assert client.ask("getfd", null.fileno(), fdname=f"n{number % (MOST_NAMED - 1)}") == {}
                assert client.ask("getfd", null.fileno(), fdname="last") == {}
                assert "no more" in client.ask("getfd", null.fileno(), fdname="more")
                assert client.ask("closefd", fdname="last") == {}
                assert "not been found" in client.ask("closefd", fdname="last")
                assert client.ask("query-target", *[null.fileno()] * 4)["arch"] == "x86_64"
        with Client(path) as client:
            assert open_descriptors() <= before + 3, "the client's own two, and the server's for it"


def test_a_client_that_asks_at_random(tmp_path: Path) -> None:
    rng = random.Random(5)
    words: list[object] = [
        0,
        1,
        -1,
        1 << 70,
        True,
        "",
        "fd:a",
        "fd:b",
        "xp /4096xb 0",
        "info mtree -f",
        "gpa2hva 0",
        None,
    ]
    names = ["fdname", "paging", "protocol", "begin", "length", "command-line", "detach"]
    commands = ["getfd", "closefd", "dump-guest-memory", "human-monitor-command", "query-target"]
    with served(tmp_path) as (machine, path), Client(path) as client:
        for _ in range(2000):
            arguments = {rng.choice(names): rng.choice(words) for _ in range(rng.randrange(4))}
            client.ask(rng.choice(commands), *[client.socket.fileno()] * rng.randrange(3), **arguments)
        assert client.ask("query-status")["status"] == "running" and machine.outcome is None
