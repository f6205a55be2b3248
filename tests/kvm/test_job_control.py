"""Stopped and continued by a shell: the terminal is the user's while pyvmm does not have it, and the guest's after."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.testing.process import catches, is_stopped, rests
from tests.rig.console import Console
from tests.rig.emulator import Emulator

PYVMM = Path(sys.executable).with_name("pyvmm")
STOPS = [signal.SIGTSTP, signal.SIGSTOP]
PROMPT = "ready> "
GREETING = "q powers off"
ALTERNATE, NORMAL = "\x1b[?1049h", "\x1b[?1049l"


class Shell:
    """An interactive bash on a terminal, which it leaves cooked at its prompt; and the pyvmm that it runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        console.expect(PROMPT)
        self.cooked = console.terminal()
        self.raw: list[object] = []

    def start(self, *, screen: bool = False) -> None:
        """Run pyvmm in the foreground, until its guest is ready."""
        if screen:
            self.console.send(f"{PYVMM} run keyboard --display text\n")
            self.until(lambda: "> " in self.screen())
        else:
            self.console.send(f"{PYVMM} run hello\n")
            self.console.expect(GREETING)
        self.raw = self.console.terminal()
        assert self.raw != self.cooked

    def screen(self) -> str:
        """What is on the alternate screen, if that is shown now."""
        shown = self.console.output.rpartition(ALTERNATE)[2]
        if NORMAL in shown or ALTERNATE not in self.console.output:
            return ""
        emulator = Emulator(80, 25)
        emulator.feed(re.sub(r"\x1b[^A-Za-z]*$", "", shown).encode())  # up to a sequence that has come only half
        return "\n".join(emulator.text())

    @property
    def children(self) -> list[int]:
        bash = self.console.pid
        return [int(pid) for pid in Path(f"/proc/{bash}/task/{bash}/children").read_text().split()]

    @property
    def pid(self) -> int:
        """pyvmm's."""
        return self.children[0]

    def stop(self, number: int) -> None:
        os.kill(self.pid, number)
        self.console.expect("Stopped")
        self.console.expect(PROMPT)
        assert self.console.terminal() == self.cooked

    def fg(self) -> None:
        self.console.send("fg\n")
        self.until(lambda: self.console.terminal() == self.raw)

    def until(self, condition: Callable[[], bool]) -> None:
        patience = self.console.patience()
        while not condition():
            assert not patience.is_over, self.console.output
            time.sleep(0.01)

    def answers(self, text: str) -> None:
        """The guest has the keyboard: it sends back what is typed, which the terminal itself does not."""
        self.console.send(text)
        self.console.expect(text)


@pytest.fixture
def shell() -> Iterator[Shell]:
    command = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
    with Console(command, on_pty=True, env={"PS1": PROMPT}) as console:
        shell = Shell(console)
        yield shell
        for pid in shell.children:  # where a test failed; what is in the background would outlive the terminal
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", STOPS)
def test_stopped_and_continued(shell: Shell, number: int) -> None:
    shell.start()
    for text in ("one", "two"):
        shell.stop(number)
        shell.fg()
        shell.answers(text)
    shell.console.send("q")
    shell.console.expect("Bye.")
    shell.console.expect(PROMPT)
    assert shell.console.terminal() == shell.cooked


@pytest.mark.parametrize("number", STOPS)
def test_the_screen_on_the_terminal(shell: Shell, number: int) -> None:
    shell.start(screen=True)
    shell.console.send("abc")
    shell.until(lambda: "> abc" in shell.screen())
    os.kill(shell.pid, number)
    if number == signal.SIGTSTP:
        shell.console.expect(NORMAL)
    shell.console.expect("Stopped")
    shell.console.expect(PROMPT)
    assert shell.console.terminal() == shell.cooked
    shell.fg()
    shell.console.expect(ALTERNATE)
    shell.console.send("de")
    shell.until(lambda: "> abcde" in shell.screen())
    shell.console.send("\x01x")
    shell.console.expect(NORMAL)
    shell.console.expect("pyvmm: quit")
    shell.console.expect(PROMPT)
    assert shell.console.terminal() == shell.cooked


@pytest.mark.parametrize("number", STOPS)
def test_in_the_background_and_back(shell: Shell, number: int) -> None:
    """The shell has the terminal, and nothing that is typed there stops the guest; fg sends no signal then."""
    shell.start()
    shell.stop(number)
    shell.console.send("bg\n")
    shell.console.expect(PROMPT)
    shell.console.send("stty -icanon; sleep 0.5; stty icanon; echo don''e\nxyz")  # typed characters, not lines
    shell.console.expect("done")
    shell.console.send("\n")
    shell.console.expect(PROMPT)
    assert not is_stopped(shell.pid)
    assert shell.console.terminal() == shell.cooked
    shell.fg()
    shell.answers("back")
    shell.console.send("\x01x")
    shell.console.expect("pyvmm: quit")
    assert shell.console.terminal() == shell.cooked


@pytest.mark.parametrize("number", STOPS)
def test_the_end_in_the_background(shell: Shell, number: int) -> None:
    shell.start()
    shell.stop(number)
    shell.console.send("bg\n")
    shell.console.expect(PROMPT)
    os.kill(shell.pid, signal.SIGTERM)
    shell.console.expect("pyvmm: signal 15")
    shell.console.send("wait; echo $?\n")
    shell.console.expect("143")
    assert shell.console.terminal() == shell.cooked


def test_ended_while_it_is_stopped(shell: Shell) -> None:
    shell.start(screen=True)
    shell.stop(signal.SIGTSTP)
    os.kill(shell.pid, signal.SIGTERM)
    shell.console.send("fg\n")
    shell.console.expect("pyvmm: signal 15")
    shell.console.expect(PROMPT)
    assert shell.console.terminal() == shell.cooked
    assert shell.console.output.count(ALTERNATE) == shell.console.output.count(NORMAL)


def test_started_in_the_background(shell: Shell) -> None:
    """As any program that uses the terminal it stops there; and what it gives back is not the shell's own settings."""
    shell.console.send(f"stty -echo; {PYVMM} run hello &\n")
    shell.until(lambda: any(is_stopped(pid) for pid in shell.children))
    shell.console.send("stty echo; jobs\n")
    shell.console.expect("Stopped")
    shell.console.expect(PROMPT)
    shell.console.send("fg\n")
    shell.console.expect(GREETING)
    shell.answers("here")
    shell.console.send("q")
    shell.console.expect("Bye.")
    shell.console.expect(PROMPT)
    assert shell.console.terminal() == shell.cooked


def test_a_stop_where_nobody_could_continue(tmp_path: Path) -> None:
    """In an orphaned process group SIGTSTP does nothing, and the guest keeps the terminal."""
    with Console([PYVMM, "run", "hello"], on_pty=True) as console:
        console.expect(GREETING)
        raw = console.terminal()
        assert rests(console.pid)
        console.signal(signal.SIGTSTP)
        assert rests(console.pid)
        assert console.terminal() == raw
        console.send("still here")
        console.expect("still here")


def test_a_stop_while_the_kernel_is_being_read(shell: Shell, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    shell.console.send(f"{PYVMM} run -k {fifo}\n")
    shell.until(lambda: any(catches(pid, signal.SIGTSTP) for pid in shell.children))
    assert rests(shell.pid)
    os.kill(shell.pid, signal.SIGTSTP)
    shell.console.expect("Stopped")
    shell.console.expect(PROMPT)
    shell.console.send("fg\n")
    shell.until(lambda: not is_stopped(shell.pid))
    os.kill(shell.pid, signal.SIGTERM)
    shell.console.expect("pyvmm: signal 15")
