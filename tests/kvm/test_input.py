"""Input from a script to a guest's driver on a whole machine: each way in, each step of a key, on every irqchip."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pyvmm import guests
from pyvmm.config import MachineConfig
from pyvmm.input.codes import BTN_LEFT, KEY_A, KEY_B
from pyvmm.input.keymap import key_code
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from tests.rig.board import board
from tests.rig.console import Console
from tests.rig.xserver import read_text

PYVMM = Path(sys.executable).with_name("pyvmm")
IRQCHIPS = ["kernel", "split", "user"]


def settled(machine: Machine, text: str) -> None:
    assert machine.wait(lambda: text in machine.screen, 60), machine.screen.text()


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_keyboard_driver(irqchip: str) -> None:
    """What is typed reaches its screen; Ctrl-C kills the command that runs, Ctrl-D ends the guest."""
    with board("keyboard", irqchip=irqchip) as machine:
        settled(machine, "> ")
        machine.keyboard.type("echo Shift and 'quotes': ~!@#\n")
        settled(machine, "\nShift and 'quotes': ~!@#\n>")
        machine.keyboard.type("count\n")
        settled(machine, "> count\n1\n")
        machine.keyboard.press("ctrl", "c")
        settled(machine, "^C\n>")
        machine.keyboard.press("ctrl", "d")
        assert machine.finish() == Outcome(End.POWER_OFF)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("keys", [1, 3, 70])
def test_keys_typed_before_the_guest_runs(irqchip: str, keys: int) -> None:
    """The driver throws the first of them away as it starts, 16 at the most; the others come, and all after them."""
    with board("keyboard", irqchip=irqchip) as machine:
        machine.keyboard.type("x" * keys)
        settled(machine, "> ")
        machine.keyboard.type("\necho alive\n")
        settled(machine, "\nalive\n>")
        assert keys < 70 or "x" * (keys - 16) in machine.screen


def test_lines_from_a_pipe() -> None:
    """They are there before the guest, which then gets its first interrupt the moment it asks for one."""
    done = subprocess.run([PYVMM, "run"], input=b"echo one\necho two\n\4", capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"\r\none\r\n" in done.stdout and b"\r\ntwo\r\n" in done.stdout and done.stdout.endswith(b"Bye.\r\n")


def test_ten_thousand_keys_typed_fast(tmp_path: Path) -> None:
    """To a guest that polls the i8042, translating, and keeps each byte from 0x10000 on; after 20,000 it ends."""
    code = (
        "fa b0 60 e6 64 b0 44 e6 60 b8 0010 8e c0 31 ff fc e4 64 a8 01 74 fa e4 60 aa 81 ff 204e 72 f1 b0 00 e6 f4 f4"
    )
    (tmp_path / "code").write_bytes(bytes.fromhex(code))
    text = "the quick brown fox jumps over the lazy dog 0123456789" * 200
    with Machine(MachineConfig(memory=MIB, kernel=tmp_path / "code", flat="real@0x1000")) as machine:
        machine.keyboard.type(text[:10_000])
        assert machine.run(60) == Outcome(End.DEBUG_EXIT, 0)
        seen = machine.memory.read(0x10000, 20_000)
    keys = [key_code("space" if character == " " else character) for character in text[:10_000]]
    assert seen == bytes(byte for key in keys for byte in (key, key | 0x80)), (
        "of these keys scan code set 1 is the code"
    )


def test_what_finds_no_room_is_dropped_and_overwrites_nothing() -> None:
    with board("keyboard") as machine:
        settled(machine, "> ")
        machine.keyboard.type("sleep 300\n")
        # Only once the echo shows that the driver's buffer is empty: on a busy host it may lag behind.
        assert machine.wait(lambda: re.search(rb"sleep 300\r?\n$", machine.output) is not None, 60), machine.output
        machine.keyboard.type("x" * 200)
        machine.keyboard.press("ctrl", "c")
        settled(machine, "^C")
        machine.keyboard.type("buf\n")
        numbers = re.compile(rb"data (\d+) room (\d+) dropped (\d+)\r?\n")
        assert machine.wait(lambda: numbers.search(machine.output) is not None, 60), machine.output
        assert numbers.findall(machine.output) == [(b"0", b"128", b"%d" % (200 - 128))]


def test_the_cursor_blinks_every_half_second() -> None:
    with board("keyboard") as machine:
        settled(machine, "> ")
        for shown in (False, True, False):
            assert machine.wait(lambda: (machine.screen.cursor is not None) is shown, 30)  # noqa: B023
            assert machine.value("cursor_on") == shown
            assert machine.value("ticks") // 10 % 2 != shown, "ten ticks of 20 Hz each way"


def test_events_injected_from_python() -> None:
    with board("kbd-inb60", virtio_input="standard", tablet=True) as machine:
        assert not machine.keyboard.driver_ok
        machine.mouse.move(3, -4)
        machine.mouse.wheel(1, -1)
        machine.tablet.move(100, 200)
        machine.mouse.button(BTN_LEFT, 1)
        machine.mouse.button(BTN_LEFT, 0)
        assert machine.wait(lambda: machine.output == b"K")
        machine.keyboard.key(KEY_A, 1)
        machine.keyboard.key(KEY_A, 0)
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 0)
        assert machine.output == b"K\x1e\x9e"


@pytest.mark.parametrize(("mode", "output"), [("ps2", b"K\x30\xb0"), ("virtio", b"K")])
def test_who_gets_the_keys_where_virtio_has_no_driver(mode: str, output: bytes) -> None:
    with board("kbd-inb60", virtio_input="standard", input=mode) as machine:
        assert machine.wait(lambda: machine.output == b"K")
        machine.keyboard.key(KEY_B, 1)
        machine.keyboard.key(KEY_B, 0)
        machine.wait(lambda: machine.outcome is not None, 1 if mode == "virtio" else 30)
        assert machine.output == output


@pytest.mark.parametrize(
    ("irqchip", "raised", "entered"),
    [
        ("kernel", r"irq      KVM_IRQ_LINE: IRQ 1 up", None),
        ("user", r"i8042    IRQ 1 up", r"irq      KVM_INTERRUPT vector 0x21"),
    ],
)
def test_the_steps_of_a_key_in_the_trace(irqchip: str, raised: str, entered: str | None) -> None:
    lines: list[str] = []

    def sink(ns: int, channel: str, message: str) -> None:
        lines.append(f"{channel:<8} {message}")

    trace = frozenset({"input", "ps2-keyboard", "i8042", "irq", "exits", "kvm-run"})
    memory = guests.load("keyboard").memory
    config = MachineConfig(guest="keyboard", memory=memory, irqchip=irqchip, trace=trace)  # type: ignore[arg-type]
    with Machine(config, trace_sink=sink) as machine:
        settled(machine, "> ")
        del lines[:]
        machine.keyboard.press("a")
        settled(machine, "> a")
    steps = [
        r"input    script: KEY_A pressed",
        r"ps2-keyboard keyboard: KEY_A down -> 1c \(scan code set 2\)",
        r"i8042    translation 1c -> 1e",
        r"i8042    output buffer = 0x1e, OBF",
        raised,
        *([entered] if entered else []),
        r"kvm-run  vcpu0 KVM_RUN",
        r"exits    vcpu0 KVM_EXIT_IO in port 0x60 size 1",
        r"i8042    read of port 0x60 returns 0x1e, OBF clear",
        r"exits    vcpu0 gets 0x1e from port 0x60",
        r"i8042    port 0x60 R1 -> 0x1e rip=0x[0-9a-f]+$",
        r"kvm-run  vcpu0 KVM_RUN",
        r"exits    vcpu0 KVM_EXIT_IO out port 0x3f8 size 1 = 0x61",
    ]
    at = 0
    for step in steps:
        found = next((i for i in range(at, len(lines)) if re.match(step, lines[i])), None)
        assert found is not None, f"{step} is not in\n" + "\n".join(lines[at : at + 60])
        at = found + 1


# The keys of the console


def test_ctrl_a_s_writes_the_screen_while_the_guest_runs(tmp_path: Path) -> None:
    with Console([PYVMM, "run", "--screenshot", "shot.png", "keyboard"], on_pty=True, cwd=tmp_path) as console:
        console.expect("> ")
        for word in ("first", "second"):
            console.send(f"echo {word}\r")
            console.expect(f"{word}\r\n")  # the echo
            console.expect("> ")
            console.send("\x01s")
            console.expect(f"pyvmm: wrote {tmp_path / 'shot.png'}\r\n")
            image = Image.open(tmp_path / "shot.png").convert("RGB")
            lines = [line.rstrip() for line in read_text(image.tobytes(), 640, 3)]
            assert word in lines
        console.send("\x01x")
        assert console.wait() == 7


def test_ctrl_a_p_presses_the_power_button(tmp_path: Path) -> None:
    """Prints 'R' on COM1, polls GPE0_STS for the button's event, then ends with 9."""
    (tmp_path / "code").write_bytes(bytes.fromhex("ba f803 b0 52 ee  ba 2006 ec a8 04 74 fb  b0 09 e6 f4 f4"))
    command: list[str | Path] = [PYVMM, "run", "-m", "1M", "-k", "code", "--flat", "real@0x1000"]
    with Console(command, on_pty=True, cwd=tmp_path) as console:
        console.expect("R")
        console.send("\x01p")
        assert console.wait() == 16 + 9


def test_a_screenshot_that_cannot_be_written_at_the_end_is_one_line() -> None:
    ran = subprocess.run([PYVMM, "run", "--screenshot", "/dev/full", "pio"], capture_output=True, text=True)
    assert ran.stderr.splitlines() == [
        "pyvmm: cannot write /dev/full: No space left on device",
        "pyvmm: debug-exit 0",
    ]


@pytest.mark.parametrize("display", ["none", "text"])
def test_ctrl_a_b_sends_a_break(tmp_path: Path, display: str) -> None:
    """Prints 'R' on COM1 and the screen, polls LSR for BI, then ends with what came: a null byte."""
    code = "ba f803 b0 52 ee  b8 00b8 8e c0 26 c6 06 0000 52  ba fd03 ec a8 10 74 fb  ba f803 ec 04 09 e6 f4 f4"
    (tmp_path / "code").write_bytes(bytes.fromhex(code))
    command: list[str | Path] = [PYVMM, "run", "-m", "1M", "-k", "code", "--flat", "real@0x1000", "--display", display]
    with Console(command, on_pty=True, cwd=tmp_path) as console:
        console.expect("R")
        console.send("\x01b")
        assert console.wait() == 16 + 9


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_ctrl_a_n_presses_the_nmi_button(irqchip: str) -> None:
    with Console([PYVMM, "run", "nmi", "--set", "count=2", "--irqchip", irqchip], on_pty=True) as console:
        for _ in range(2):
            console.expect("R")
            console.send("\x01n")
        assert console.wait() == 16
