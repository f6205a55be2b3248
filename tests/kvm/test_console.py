"""The serial console as a person, a pipe and a script have it: nothing lost, nothing stuck, the terminal given back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.cli.signals import ENDING
from pyvmm.testing.patience import PATIENCE
from pyvmm.testing.process import catches, memory, rests
from tests.rig.console import Console

PYVMM = Path(sys.executable).with_name("pyvmm")
GREETING = "q powers off.\r\n"
# Prints 'R' on COM1, waits there for a key, then resets by port 0xCF9.
RESET_AFTER_A_KEY = bytes.fromhex("ba f803 b0 52 ee  ba fd03 ec a8 01 74 fb  ba f90c b0 06 ee f4")
ALPHABET = bytes(range(0x41, 0x41 + 26))
# Prints A's for ever.
PRINT_FOR_EVER = bytes.fromhex("ba f803 b0 41 ee eb fd")
HLT = bytes.fromhex("fa f4 eb fc")
# A main loop as games and monitors have it: waits for the transmitter, draws a dot, looks once for a key; with one it
# prints that and ends with 0.
DRAW_AND_LOOK = bytes.fromhex(
    "ba fd03 ec a8 20 74 fb  ba f803 b0 2e ee  ba fd03 ec a8 01 74 ea  ba f803 ec ee b0 0a ee 30 c0 e6 f4 f4"
)


@pytest.fixture
def on_terminal() -> Iterator[Console]:
    with Console([PYVMM, "run", "hello"], on_pty=True) as console:
        yield console


def flat(tmp_path: Path, code: bytes) -> list[str]:
    """Arguments that run *code* in real mode."""
    path = tmp_path / "code.bin"
    path.write_bytes(code)
    return ["run", "-m", "16M", "-k", str(path), "--flat", "real@0x1000"]


def printer(rounds: int) -> bytes:
    """Code that prints ALPHABET *rounds* times on COM1, then ends with 7."""
    count = rounds.to_bytes(2, "little").hex()
    return bytes.fromhex(f"ba f803 b9 {count} b0 41 bb 1a00 ee fe c0 4b 75 fa 49 75 f2  b0 07 e6 f4")


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([PYVMM, *map(str, arguments)], stderr=subprocess.PIPE, timeout=PATIENCE, **options)  # type: ignore[call-overload, no-any-return]


# On a terminal


def test_the_terminal_is_raw_and_what_is_typed_comes_back(on_terminal: Console) -> None:
    on_terminal.expect(GREETING)
    assert not local_flags(on_terminal) & (termios.ICANON | termios.ECHO | termios.ISIG)
    on_terminal.send("abc\x03\x1a\x1c")
    on_terminal.expect("abc\x03\x1a\x1c")
    on_terminal.send("q")
    on_terminal.expect("Bye.")
    assert on_terminal.wait() == 0
    assert on_terminal.terminal() == on_terminal.cooked


def test_ctrl_a_x_quits(on_terminal: Console) -> None:
    on_terminal.expect(GREETING)
    on_terminal.send("\x01x")
    on_terminal.expect("pyvmm: quit")
    assert on_terminal.wait() == 7
    assert on_terminal.terminal() == on_terminal.cooked


def test_ctrl_a_ctrl_a_sends_one(on_terminal: Console) -> None:
    on_terminal.expect(GREETING)
    on_terminal.send("<\x01\x01>")
    on_terminal.expect("<\x01>")


def test_ctrl_a_h_helps_and_the_guest_sees_nothing_of_it(on_terminal: Console) -> None:
    on_terminal.expect(GREETING)
    on_terminal.send("<\x01h>")
    passed = on_terminal.expect("send Ctrl-A\r\n")
    assert "Ctrl-A x" in passed
    on_terminal.send("!")
    on_terminal.expect("!")
    assert "h" not in on_terminal.output.partition(GREETING)[2].replace(passed.partition("Ctrl")[2], "").replace(
        "h  this help", ""
    )


def test_ctrl_a_r_prints_the_registers_of_a_guest_that_sleeps(on_terminal: Console) -> None:
    on_terminal.expect(GREETING)
    on_terminal.send("\x01r")
    on_terminal.expect("vCPU 0: real mode")
    on_terminal.expect("RIP 0000")
    on_terminal.expect("last exits of")
    on_terminal.send("and on")
    on_terminal.expect("and on")


def test_ctrl_a_and_another_letter_says_so_and_the_guest_sees_nothing_of_it(on_terminal: Console) -> None:
    on_terminal.expect(GREETING)
    on_terminal.send("<\x01~>")
    on_terminal.expect("pyvmm: Ctrl-A ~ is no command: Ctrl-A h shows them\r\n")
    on_terminal.send("!")
    on_terminal.expect("!")
    shown = on_terminal.output.partition(GREETING)[2]
    assert shown.count("~") == 1 and "<" in shown and ">" in shown


def test_ctrl_a_w_and_u(on_terminal: Console) -> None:
    """Taken while it runs, gone back to while it stands still: it goes on from there."""
    on_terminal.expect(GREETING)
    on_terminal.send("\x01u")
    on_terminal.expect("there is no snapshot to go back to: Ctrl-A w takes one\r\n")
    on_terminal.send("\x01w")
    on_terminal.expect(re.compile(r"snapshot of [0-9.]+ MiB: Ctrl-A u goes back to it\r\n"))
    on_terminal.send("abc")
    on_terminal.expect("abc")
    on_terminal.send("\x01z\x01u")
    on_terminal.expect("the machine is what it was at the last snapshot\r\n")
    on_terminal.send("\x01zdef")
    on_terminal.expect("def")
    on_terminal.send("q")
    on_terminal.expect("Bye.")
    assert on_terminal.wait() == 0


def test_ctrl_a_z_and_t(on_terminal: Console) -> None:
    """What is typed while the machine stands still comes when it goes on; a channel is switched on by its name."""
    on_terminal.expect(GREETING)
    on_terminal.send("\x01z")
    on_terminal.expect("stands still: Ctrl-A z lets it go on\r\n")
    on_terminal.send("abc\x01t")
    on_terminal.expect("switch (names, all, none):")
    on_terminal.send("i8042\r")
    on_terminal.expect("traced: i8042\r\n")
    on_terminal.send("\x01z")
    on_terminal.expect("the machine goes on\r\n")
    on_terminal.expect("abc")
    on_terminal.send("\x01tnone\rq")
    on_terminal.expect("traced: nothing\r\n")
    on_terminal.expect("Bye.")
    assert on_terminal.wait() == 0


def test_a_guest_that_looks_for_a_key_between_its_output_gets_it(tmp_path: Path) -> None:
    with Console([PYVMM, *flat(tmp_path, DRAW_AND_LOOK)]) as console:
        console.expect("." * 10)
        console.send("x")
        console.expect("x\n")
        assert console.wait() == 16


def test_what_was_typed_before_the_guest_listens_is_not_lost() -> None:
    with Console([PYVMM, "run", "hello"], on_pty=True) as console:
        wait_until_raw(console)
        console.send("early and longer than sixteen bytes q")
        assert console.wait() == 0
        assert "early and longer than sixteen bytes" in console.output


def test_ctrl_a_x_after_typing_at_a_guest_that_does_not_listen(tmp_path: Path) -> None:
    with Console([PYVMM, *flat(tmp_path, HLT)], on_pty=True) as console:
        wait_until_raw(console)
        console.send("anybody there?")
        assert rests(console.pid)
        console.send("\x01x")
        assert console.wait() == 7


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_gives_the_terminal_back(on_terminal: Console, number: int) -> None:
    on_terminal.expect(GREETING)
    on_terminal.signal(number)
    on_terminal.expect(f"pyvmm: signal {number}")
    assert on_terminal.wait() == 128 + number
    assert on_terminal.terminal() == on_terminal.cooked


@pytest.mark.parametrize(
    ("guest", "status"), [("shutdown", 5), ("internal-error", 6), ("pio", 16), ("hlt", 124), ("reset-cf9", 16)]
)
def test_each_end_gives_the_terminal_back(guest: str, status: int) -> None:
    timeout = 0.4 if status == 124 else PATIENCE
    with Console([PYVMM, "run", guest, "--timeout", str(timeout)], on_pty=True) as console:
        assert console.wait() == status
        assert console.terminal() == console.cooked
        assert not staircase(console.output), "the terminal was cooked again by then"


def test_lines_of_ours_on_the_raw_terminal(tmp_path: Path) -> None:
    """A trace and a complaint: what follows starts at the left edge, though the terminal goes there by itself no more.

    The trace's lines come when they come: within the guest's, and between its CR and its LF too.
    """
    picture = tmp_path / "gone" / "place.png"
    picture.parent.mkdir()
    arguments: list[str | Path] = [PYVMM, "run", "hello", "--trace", "com1,irq", "--screenshot", picture]
    with Console(arguments, on_pty=True) as console:
        wait_until_raw(console)
        shutil.rmtree(picture.parent)
        console.send("a\x01s")
        console.expect(f"pyvmm: cannot write {picture}: No such file or directory")
        console.send("q")
        assert console.wait() == 0
        assert " com1 " in console.output and "KVM_IRQ_LINE" in console.output
        assert not staircase(console.output)


def test_a_mistake_gives_the_terminal_back(tmp_path: Path) -> None:
    """The kernel is gone when the machine resets."""
    arguments = flat(tmp_path, RESET_AFTER_A_KEY)
    with Console([PYVMM, *arguments], on_pty=True) as console:
        console.expect("R")
        (tmp_path / "code.bin").unlink()
        console.send("k")
        console.expect("No such file or directory")
        assert console.wait() == 2
        assert console.terminal() == console.cooked


def test_a_reset_keeps_what_was_typed(tmp_path: Path) -> None:
    with Console([PYVMM, *flat(tmp_path, RESET_AFTER_A_KEY)], on_pty=True) as console:
        console.expect("R")
        console.send("abc")  # one key for each of three starts
        for _ in range(3):
            console.expect("R")
        console.send("\x01x")
        assert console.wait() == 7
        assert console.output.partition("\r\n")[0].count("R") + console.output.count("\nR") >= 4


def test_a_terminal_that_goes_away(tmp_path: Path) -> None:
    """Its window is closed: the kernel sends SIGHUP, and every write fails."""
    ours, theirs = os.openpty()
    errors = tmp_path / "errors"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            [PYVMM, "run", "hello"],
            stdin=theirs,
            stdout=theirs,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the controlling terminal
        ) as process,
    ):
        os.close(theirs)
        got = b""
        while GREETING.encode() not in got:
            got += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    assert errors.read_text() == "pyvmm: signal 1\n"


# Without one


def test_through_pipes() -> None:
    ran = run("run", "hello", input=b"some text\rq", stdout=subprocess.PIPE)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.endswith(b"some text\r\n\r\nBye.\r\n") or ran.stdout.endswith(b"some text\r\n\r\nBye."), (
        ran.stdout
    )


def test_escapes_are_for_terminals_only() -> None:
    ran = run("run", "hello", input=b"<\x01x>q", stdout=subprocess.PIPE)
    assert ran.returncode == 0
    assert b"<\x01x>" in ran.stdout


def test_from_and_to_regular_files(tmp_path: Path) -> None:
    text = b"x" * 5_000
    (tmp_path / "in").write_bytes(text + b"q")
    with (tmp_path / "in").open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        ran = run("run", "hello", stdin=stdin, stdout=stdout)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert text in (tmp_path / "out").read_bytes()


def test_from_and_to_dev_null() -> None:
    ran = run("run", "hello", "--timeout", "0.5", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert ran.returncode == 124


def test_the_end_of_input_does_not_end_the_guest() -> None:
    with Console([PYVMM, "run", "hello"]) as console:
        console.send("abc")
        console.close_input()
        console.expect("abc")
        assert rests(console.pid)
        console.signal(signal.SIGTERM)
        assert console.wait() == 128 + signal.SIGTERM
        assert console.output.endswith("abcpyvmm: signal 15\n")


@pytest.mark.parametrize("closed", [[0], [1], [0, 1], [0, 1, 2]])
def test_descriptors_that_are_closed(closed: list[int]) -> None:
    def close() -> None:
        for fd in closed:
            os.close(fd)

    ran = run("run", "pio", preexec_fn=close)
    assert ran.returncode == 16, ran.stderr
    assert ran.stderr == (b"" if 2 in closed else b"pyvmm: debug-exit 0\n")


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    """The guest goes on without a console; nothing raises."""
    with subprocess.Popen(
        [PYVMM, *flat(tmp_path, printer(1000))], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1000)
        process.stdout.close()
        assert process.stderr.read() == b"pyvmm: debug-exit 7\n"
        assert process.wait() == 16 + 7


# Output faster than its reader


def test_much_output_through_a_pipe_loses_nothing(tmp_path: Path) -> None:
    ran = run(*flat(tmp_path, printer(1500)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert ran.returncode == 16 + 7
    assert ran.stdout == ALPHABET * 1500


@pytest.mark.parametrize("on_pty", [False, True], ids=["pipe", "terminal"])
def test_a_reader_that_stops_holds_the_guest_and_loses_nothing(tmp_path: Path, on_pty: bool) -> None:
    rounds = 5500 if on_pty else 2800  # more than HIGH_WATER and what the kernel keeps for the reader
    arguments: list[str | Path] = [PYVMM, *flat(tmp_path, printer(rounds))]
    ours, theirs = small_pipe(on_pty)
    with subprocess.Popen(arguments, stdin=theirs if on_pty else subprocess.DEVNULL, stdout=theirs) as process:
        os.close(theirs)
        got = bytearray(os.read(ours, 1))
        rest = rests(process.pid)
        assert process.poll() is None, "it waits for its reader"
        assert rest, "and does nothing meanwhile"
        with contextlib.suppress(OSError):  # EIO at the end of a terminal
            while data := os.read(ours, 65536):
                got += data
        assert process.wait() == 16 + 7
    os.close(ours)
    assert got == ALPHABET * rounds


@pytest.mark.parametrize(("how", "on_pty"), [("SIGTERM", False), ("timeout", True)])
def test_a_guest_that_prints_for_ever_to_nobody_can_be_ended(tmp_path: Path, on_pty: bool, how: str) -> None:
    timeout = ["--timeout", "1.5"] if how == "timeout" else []
    arguments: list[str | Path] = [PYVMM, *flat(tmp_path, PRINT_FOR_EVER), *timeout]
    ours, theirs = small_pipe(on_pty)
    with subprocess.Popen(
        arguments, stdin=theirs if on_pty else subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        os.read(ours, 1)
        if how != "timeout":
            assert rests(process.pid)
            assert memory(process.pid) < 64 << 20
            process.send_signal(getattr(signal, how))
        status = process.wait(PATIENCE)
    os.close(ours)
    assert status == {"SIGTERM": 143, "timeout": 124}[how]


@pytest.mark.parametrize("also", [[], ["--trace", "all"]], ids=["", "trace"])
def test_a_signal_ends_a_process_whose_terminal_nobody_reads(tmp_path: Path, also: list[str]) -> None:
    """The first one, though what it has to say goes nowhere."""
    ours, theirs = os.openpty()
    arguments: list[str | Path] = [PYVMM, *flat(tmp_path, PRINT_FOR_EVER), *also]
    with subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.read(ours, 1)
        assert also or rests(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 143
        finally:
            process.kill()
    os.close(ours)


def test_ctrl_a_x_while_nobody_reads(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    arguments: list[str | Path] = [PYVMM, *flat(tmp_path, PRINT_FOR_EVER)]
    with subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        os.read(ours, 1)
        assert rests(process.pid)
        os.write(ours, b"\x01x")
        assert process.wait(PATIENCE) == 7
    os.close(ours)


def staircase(output: str) -> bool:
    """Whether some line starts to the right of the left edge: a LF came when the cursor had left that."""
    return re.search(r"[^\r\n]\n", output) is not None


def local_flags(console: Console) -> int:
    """ICANON, ECHO and so on of its terminal."""
    flags = console.terminal()[3]
    assert isinstance(flags, int)
    return flags


def wait_until_raw(console: Console) -> None:
    while local_flags(console) & termios.ICANON:
        assert console.is_running, console.output
        time.sleep(0.001)


def small_pipe(on_pty: bool) -> tuple[int, int]:
    """A terminal, or a pipe of one page: the reader's end and the writer's."""
    if on_pty:
        return os.openpty()
    ours, theirs = os.pipe()
    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 4096)
    return ours, theirs


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_a_guest_that_sleeps(tmp_path: Path, number: int) -> None:
    arguments: list[str | Path] = [PYVMM, *flat(tmp_path, b"\xb0\x52\xba\xf8\x03\xee" + HLT), "-c", "2"]
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1) == b"R"
        process.send_signal(number)
        assert process.stderr.read() == f"pyvmm: signal {number}\n".encode()
        assert process.wait() == 128 + number


def test_nohup(tmp_path: Path) -> None:
    """A signal that was ignored before stays ignored; the next one ends the machine."""
    with Console(["nohup", PYVMM, *flat(tmp_path, HLT)]) as console:
        assert rests(console.pid) and catches(console.pid, signal.SIGTERM)
        console.signal(signal.SIGHUP)
        console.signal(signal.SIGTERM)
        assert console.wait() == 128 + signal.SIGTERM


def test_many_signals_at_once(tmp_path: Path) -> None:
    arguments: list[str | Path] = [PYVMM, *flat(tmp_path, PRINT_FOR_EVER)]
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1000)
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == 143


@pytest.mark.parametrize("how", ["signal", "timeout"])
def test_a_guest_that_resets_for_ever_can_be_ended(tmp_path: Path, how: str) -> None:
    arguments: list[str | Path] = [PYVMM, *flat(tmp_path, bytes.fromhex("ba f803 b0 52 ee ba f90c b0 06 ee f4"))]
    if how == "timeout":
        arguments += ["--timeout", "1.5"]
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        if how == "signal":
            assert process.stdout.read(2) == b"RR"
            process.terminate()
        process.stdout.read()
        assert (
            process.stderr.read().splitlines()[0]
            == {
                "signal": b"pyvmm: signal 15",
                "timeout": b"pyvmm: timeout: after 1.5 s",
            }[how]
        )
        assert process.wait() == {"signal": 143, "timeout": 124}[how]


@pytest.mark.parametrize("opened", [False, True], ids=["nobody opened", "nobody writes to"])
def test_a_signal_while_the_kernel_is_being_read(tmp_path: Path, opened: bool) -> None:
    """From a FIFO, which can take for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = -1
    with subprocess.Popen([PYVMM, "run", "-k", fifo], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while writer < 0 and opened:
            assert process.poll() is None
            with contextlib.suppress(OSError):  # ENXIO until there is a reader
                writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        while not catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
        assert rests(process.pid)
        process.terminate()
        assert process.wait(PATIENCE) == 143
        assert process.stderr.read() == b"pyvmm: signal 15\n"
    if opened:
        os.close(writer)
