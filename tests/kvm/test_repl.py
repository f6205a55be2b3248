"""Python at a machine that runs: at the terminal (Ctrl-A c) and by a socket; what it cannot do to the guest."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import Machine, MachineConfig
from pyvmm.host.repl.server import PromptServer
from pyvmm.host.repl.wire import LINE, packed
from tests.rig.board import board, count, counting
from tests.rig.console import Console

ROOT = Path(__file__).resolve().parents[2]
PYVMM = Path(sys.executable).with_name("pyvmm")
GREETING = "q powers off.\r\n"
PROMPT, MORE = ">>> ", "... "


@pytest.fixture(autouse=True)
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("INPUTRC", os.devnull)
    monkeypatch.setenv("TERM", "dumb")  # no bracketed paste between what is expected
    return tmp_path / "state" / "pyvmm" / "prompt_history"


@pytest.fixture
def at_prompt() -> Iterator[Console]:
    """The guest `hello` on a terminal, and Ctrl-A c."""
    with Console([PYVMM, "run", "hello"], on_pty=True) as console:
        console.expect(GREETING)
        console.send("\x01c")
        console.expect(PROMPT)
        yield console


def say(console: Console, line: str) -> str:
    """What a line is answered with."""
    console.send(f"{line}\n")
    console.expect("\r\n")
    return console.expect(PROMPT).removesuffix(PROMPT).replace("\r\n", "\n")


def until_raw(console: Console) -> None:
    """The guest has the terminal again: readline leaves signals on, and after it the shell's settings come first."""
    patience = console.patience()
    while console.terminal()[3] & (termios.ICANON | termios.ECHO | termios.ISIG):  # type: ignore[operator]
        assert not patience.is_over, console.output
        time.sleep(0.01)


def child(console: Console) -> int:
    """The prompt's process."""
    found = Path(f"/proc/{console.pid}/task").glob("*/children")
    (number,) = [int(word) for file in found for word in file.read_text().split()]
    return number


# On the terminal that the guest has


def test_ctrl_a_c_and_back(at_prompt: Console, history: Path) -> None:
    assert say(at_prompt, "machine.config.guest, machine.state") == "('hello', 'running')\n"
    at_prompt.send("\x04")
    until_raw(at_prompt)
    at_prompt.send("for the guest")
    at_prompt.expect("for the guest")
    assert history.read_text() == "machine.config.guest, machine.state\n"
    at_prompt.send("\x01c")
    at_prompt.expect(PROMPT)
    at_prompt.send("\x10\n")  # Ctrl-P: the line before
    at_prompt.expect("('hello', 'running')")
    at_prompt.expect(PROMPT)
    at_prompt.send("machine.end()\n")
    assert at_prompt.wait() == 7
    assert at_prompt.terminal() == at_prompt.cooked


def test_completion_by_tab(at_prompt: Console) -> None:
    at_prompt.send("machine.sta\t\t")
    assert "machine.start" in at_prompt.expect("machine.state")


def test_a_machine_that_ends_takes_its_prompt_along(at_prompt: Console) -> None:
    """The terminal is as it was, in the middle of a line."""
    at_prompt.send("import time; time.sleep(0.2); machine.end()\n")
    assert at_prompt.wait() == 7
    assert at_prompt.terminal() == at_prompt.cooked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_prompt_that_is_killed_gives_the_terminal_back(at_prompt: Console, number: signal.Signals) -> None:
    at_prompt.send("half a li")
    at_prompt.expect("half a li")
    os.kill(child(at_prompt), number)
    until_raw(at_prompt)
    at_prompt.send("again")
    at_prompt.expect("again")
    at_prompt.send("\x01x")
    assert at_prompt.wait() == 7
    assert at_prompt.terminal() == at_prompt.cooked


def test_a_signal_that_ends_pyvmm(at_prompt: Console) -> None:
    at_prompt.send("half")
    at_prompt.expect("half")
    at_prompt.signal(signal.SIGTERM)
    assert at_prompt.wait() == 128 + signal.SIGTERM
    assert at_prompt.terminal() == at_prompt.cooked


def test_ctrl_c_is_the_statements(at_prompt: Console) -> None:
    at_prompt.send("while True: pass\n")
    at_prompt.expect(MORE)
    at_prompt.send("\n")
    at_prompt.expect("\n")  # echoed, and so read: Ctrl-C takes what waits with it
    at_prompt.send("\x03")
    assert "KeyboardInterrupt" in at_prompt.expect(PROMPT)
    assert say(at_prompt, "machine.state") == "'running'\n"


def test_with_the_guests_screen_in_the_terminal() -> None:
    with Console([PYVMM, "run", "keyboard", "--display", "text"], on_pty=True) as console:
        console.expect("\x1b[?1049h")
        console.send("\x01c")
        console.expect("\x1b[?1049l")
        console.expect(PROMPT)
        assert say(console, "1 + 1") == "2\n"
        console.send("exit()\n")
        console.expect("\x1b[?1049h")
        console.send("\x01x")
        assert console.wait() == 7
        assert console.terminal() == console.cooked


# By a socket


def attached(path: Path) -> Console:
    console = Console([PYVMM, "attach", path], on_pty=True)
    console.expect(PROMPT)
    return console


def documented() -> list[tuple[list[str], str]]:
    """The session of docs/prompt.md: lines that belong together, and what is shown."""
    (session,) = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs" / "prompt.md").read_text(), re.MULTILINE | re.DOTALL)
    steps: list[tuple[list[str], str]] = []
    for line in session.splitlines(keepends=True):
        if line.startswith(PROMPT):
            steps.append(([line[4:]], ""))
        elif line.startswith(MORE):
            steps[-1][0].append(line[4:])
        else:
            steps[-1] = steps[-1][0], steps[-1][1] + line
    return steps


def test_the_session_of_the_documentation(tmp_path: Path) -> None:
    with board("keyboard") as machine, PromptServer(machine, str(tmp_path / "socket")):
        assert machine.wait(lambda: "> " in machine.screen, 60)
        with attached(tmp_path / "socket") as console:
            for lines, shown in documented():
                for line in lines[:-1]:
                    console.send(line)
                    console.expect(MORE)
                console.send(lines[-1])
                console.expect("\r\n")
                if shown.startswith("^C"):
                    time.sleep(0.1)
                    console.send("\x03")
                    said = console.expect(PROMPT)
                    assert said.endswith("KeyboardInterrupt\r\n>>> ")
                else:
                    assert console.expect(PROMPT).replace("\r\n", "\n") == f"{shown}{PROMPT}", lines


def test_the_socket_is_its_owners_and_goes_with_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Console([PYVMM, "run", "hello", "--prompt", path], on_pty=True) as console:
        console.expect(GREETING)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with attached(path) as user:
            console.send("q")
            assert console.wait() == 0 and user.wait() == 0
            assert user.terminal() == user.cooked
    assert not path.exists()


def test_lines_from_a_pipe(tmp_path: Path) -> None:
    with board("keyboard") as machine, PromptServer(machine, str(tmp_path / "socket")):
        machine.start()
        lines = "x = machine.state\nfor n in range(2):\n  print(x, n)\n\n1/0\n'after'\n"
        command = [str(PYVMM), "attach", str(tmp_path / "socket")]
        ran = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\nrunning 0\nrunning 1\n" in ran.stdout and ran.stdout.endswith("division by zero\n'after'\n")


def test_two_users_have_their_own_names(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with board("keyboard") as machine, PromptServer(machine, str(path)):
        machine.start()
        with attached(path) as one, attached(path) as two:
            say(one, "mine = 1")
            assert "NameError" in say(two, "mine")
            assert say(one, "mine") == "1\n"


def test_no_statement_stops_the_guest_or_keeps_its_lock(tmp_path: Path) -> None:
    """A guest that counts goes on counting beside an endless loop; under call() Ctrl-C reaches it."""
    path = tmp_path / "socket"
    with counting(tmp_path) as machine, PromptServer(machine, str(path)):
        machine.start()
        with attached(path) as console:
            console.send("while True: pass\n\n")
            console.expect(MORE)
            seen = count(machine)
            while count(machine) == seen:
                pass
            assert machine.call(lambda: True), "the lock is to be had"
            console.send("\x03")
            console.expect(PROMPT)
            assert say(console, "machine.call(lambda: print('under the lock'))") == "under the lock\n"
            for line in ("machine.life.lock", "machine.call(lambda: machine.life.lock.acquire())"):
                assert say(console, line).startswith("the machine lock is not for a prompt")
            console.send("machine.call(lambda: any(iter(lambda: 0, 1)))\n")
            while not machine.life.lock.locked() or not machine.life.typed:
                pass
            time.sleep(0.1)
            console.send("\x03")
            assert "KeyboardInterrupt" in console.expect(PROMPT)
            assert machine.call(lambda: True)
            console.send("machine.call(lambda: any(iter(lambda: 0, 1)))\n")
            time.sleep(0.1)
        assert machine.wait(lambda: True, 60), "a user who goes away in the middle of it takes it along"


@pytest.mark.parametrize("garbage", [b"\xff" * 100, b"L\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"L\5\0\0\0exit("])
def test_who_speaks_something_else_is_let_go(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "socket"
    with board("keyboard") as machine, PromptServer(machine, str(path)):
        machine.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(garbage)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass
        with attached(path) as console:
            assert say(console, "machine.state") == "'running'\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["attach", "/nowhere"], "attach /nowhere: No such file or directory; pyvmm run --prompt PATH makes it"),
        (["run", "pio", "--prompt", "/nowhere/s"], "--prompt: socket /nowhere/s: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str) -> None:
    ran = subprocess.run([PYVMM, *arguments], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (2, f"pyvmm: {line}\n")


def test_who_reads_nothing_does_not_keep_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More is printed than the socket takes: the server ends all the same, however long it would wait for a user."""
    monkeypatch.setattr("pyvmm.host.repl.server.SEND_TIMEOUT", 600.0)
    path = str(tmp_path / "prompt")
    with Machine(MachineConfig(guest="keyboard")) as machine, socket.socket(socket.AF_UNIX) as user:
        server = PromptServer(machine, path)
        user.connect(path)
        user.sendall(packed(LINE, "print('x' * (1 << 24))"))
        user.recv(1)
        while user.recv(1) != b"x":
            pass
        closer = threading.Thread(target=server.close, daemon=True)
        closer.start()
        closer.join(60)
        assert not closer.is_alive()
