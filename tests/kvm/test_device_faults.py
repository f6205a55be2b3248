"""A device of the user's that returns what it may not, raises, or never returns: one line names it, and all ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.machine.outcome import DeviceFault, End
from pyvmm.units import MIB
from tests.rig.board import Board, board
from tests.rig.console import Console

PYVMM = Path(sys.executable).with_name("pyvmm")
EDU = """\
import sys
import time
from pyvmm.pci.device import PciDevice
from pyvmm.pci.doorbell import Doorbell
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.pci import VirtioPci

def act(what):
    match what:
        case "none": return None
        case "text": return "x"
        case "float": return 1.5
        case "huge": return 1 << 80 | 0x41
        case "negative": return 0x41 - (1 << 80)
        case "raise": raise ValueError("a\\x1b[31m\\nb")
        case "exit": sys.exit(9)
        case "interrupt": raise KeyboardInterrupt
        case "spin":
            print("here", flush=True)
            while True:
                pass
        case "sleep":
            print("here", flush=True)
            time.sleep(1e6)

class Edu(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0xFF0000

    def __init__(self, what, when="access"):
        super().__init__()
        self.what, self.when = what, when
        bar = self.add_memory_bar(0, 0x1000, self)
        bar.add_doorbell(0x10, Doorbell(self.rung))

    def read(self, offset, size):
        return act(self.what) if self.when == "access" else 0x41

    def write(self, offset, size, value):
        if self.when == "later":
            self.slot.defer(self.later)
        elif self.when == "timer":
            timer = self.slot.clock.timer(self.later)
            timer.arm(self.slot.clock.now() + 1000)
        else:
            act(self.what)

    def rung(self):
        act(self.what)

    def later(self):
        act(self.what)

    def close(self):
        if self.when == "close":
            act(self.what)

class Four(VirtioDevice):
    device_id = 4
    queue_sizes = (64,)

    def __init__(self, what):
        super().__init__()
        self.what = what

    def handle_queue(self, queue):
        act(self.what)

class Entropy(VirtioPci):
    def __init__(self, what):
        super().__init__(Four(what))
"""
READ = "a1 08 00 00 c0  ba f4000000 ee f4"  # mov eax, [0xc0000008]; mov edx, 0xf4; out dx, al; hlt
WRITE = "a3 08 00 00 c0  fa f4 eb fd"  # mov [0xc0000008], eax; cli; hlt
RING = "a3 10 00 00 c0  fa f4 eb fd"  # the doorbell
END = "b8 00000000 e6 f4 f4"  # out 0xf4, al


def line_of(text: str, after: str = "def act") -> int:
    """The number of the first line with *text* behind the one with *after*."""
    lines = EDU.splitlines()
    start = next(number for number, line in enumerate(lines, 1) if after in line)
    return next(number for number, line in enumerate(lines, 1) if number >= start and text in line)


@pytest.fixture
def edu(tmp_path: Path) -> Path:
    (tmp_path / "edu.py").write_text(EDU)
    return tmp_path / "edu.py"


def arguments(edu: Path, code: str, device: str) -> list[str]:
    (edu.parent / "code.bin").write_bytes(bytes.fromhex(code))
    return [
        "run", "-k", str(edu.parent / "code.bin"), "--flat", "32", "-m", "16M", "--virtio-input", "none",
        "--device", f"{edu}:{device}",
    ]  # fmt: skip


def run(edu: Path, code: str, device: str, *more: str) -> tuple[int, str]:
    ran = subprocess.run(
        [PYVMM, *arguments(edu, code, device), *more], capture_output=True, stdin=subprocess.DEVNULL, timeout=200
    )
    return ran.returncode, ran.stderr.decode()


@pytest.mark.parametrize(("what", "shown"), [("none", "None"), ("text", "'x'"), ("float", "1.5")])
def test_a_read_that_returns_no_int(edu: Path, what: str, shown: str) -> None:
    status, said = run(edu, READ, f"Edu,what={what}")
    where = f"edu.py:{line_of('def read', 'class Edu')}"
    access = "device edu.py:Edu at 00:01.0: read of 4 bytes at BAR 0+0x8"
    assert (status, said) == (8, f"pyvmm: {access} returned {shown} ({where}), guest RIP 0x100000\n")


@pytest.mark.parametrize("what", ["huge", "negative"])
def test_an_int_of_any_size(edu: Path, what: str) -> None:
    assert run(edu, READ, f"Edu,what={what}") == (16 + 0x41, "pyvmm: debug-exit 65\n")


@pytest.mark.parametrize(
    ("what", "error", "text", "trace"),
    [
        ("raise", "ValueError: a\\x1b[31m b", "raise ValueError", []),
        ("exit", "SystemExit: 9", "sys.exit(9)", ["--trace", "exits=/dev/null"]),
        ("interrupt", "KeyboardInterrupt", "raise KeyboardInterrupt", []),
    ],
)
def test_whatever_is_raised(edu: Path, what: str, error: str, text: str, trace: list[str]) -> None:
    status, said = run(edu, WRITE, f"Edu,what={what}", *trace)
    first, second, *rest = said.splitlines()
    assert status == 8
    assert first == (
        f"pyvmm: device edu.py:Edu at 00:01.0: write of 0x0, 4 bytes, at BAR 0+0x8 raised {error} "
        f"(edu.py:{line_of(text)}), guest RIP 0x100005"
    ), "KVM has finished a write before it is told of"
    assert second == "Traceback (most recent call last):"
    assert f'File "{edu}", line {line_of(text)}, in act' in "\n".join(rest)
    assert "pyvmm/" not in said and "\x1b" not in said, "it is for the device's author"


@pytest.mark.parametrize(
    ("code", "when", "doing", "what"),
    [
        (WRITE, "later", "callback", "raise"),
        (WRITE, "timer", "timer", "exit"),
        (RING, "access", "doorbell", "interrupt"),
    ],
)
def test_in_the_loop(edu: Path, code: str, when: str, doing: str, what: str) -> None:
    status, said = run(edu, code, f"Edu,what={what},when={when}")
    assert status == 8
    assert said.startswith(f"pyvmm: device edu.py:Edu at 00:01.0: {doing} raised "), said
    assert "Traceback" in said and "loop.py" not in said


@pytest.mark.parametrize("what", ["raise", "exit"])
def test_a_virtio_device(edu: Path, what: str) -> None:
    """Kicked by its doorbell, which the loop hears."""
    with board("pci", devices=(f"{edu}:Entropy,what={what}",)) as machine:
        outcome = machine.finish(60)
    assert outcome.end is End.DEVICE_FAULT
    assert re.match(r"device edu.py:Entropy at 00:01.0: (doorbell|write of .*) raised (Value|System)E", outcome.message)
    assert "in handle_queue" in outcome.report


def test_wait_and_run_after_a_fault(edu: Path, tmp_path: Path) -> None:
    """From Python it is an outcome as any other."""
    (tmp_path / "code").write_bytes(bytes.fromhex(READ))
    config = MachineConfig(
        memory=16 * MIB, kernel=tmp_path / "code", flat="32", devices=(f"{edu}:Edu,what=none",), virtio_input="none"
    )
    with Board(config) as machine:
        assert not machine.wait(lambda: False)
        assert machine.outcome is not None and machine.outcome.end is End.DEVICE_FAULT
        assert machine.run() == machine.outcome
        assert machine.outcome.status == 8


@pytest.mark.parametrize(
    ("how", "what", "code", "when", "doing"),
    [
        ("signal", "spin", READ, "access", "read of 4 bytes at BAR 0+0x8"),
        ("timeout", "spin", READ, "access", "read of 4 bytes at BAR 0+0x8"),
        ("Ctrl-A x", "sleep", READ, "access", "read of 4 bytes at BAR 0+0x8"),
        ("signal", "sleep", RING, "access", "doorbell"),
        ("Ctrl-A x", "spin", WRITE, "timer", "timer"),
        ("timeout", "sleep", WRITE, "timer", "timer"),
    ],
)
def test_a_device_that_never_returns(edu: Path, how: str, what: str, code: str, when: str, doing: str) -> None:
    """In a vCPU's thread, or in the loop: one signal ends the process, as does each other way."""
    more = ["--timeout", "1"] if how == "timeout" else []
    command: list[str | Path] = [PYVMM, *arguments(edu, code, f"Edu,what={what},when={when}"), *more]
    with Console(command, on_pty=True) as console:
        console.expect("here")
        if how == "signal":
            console.signal(signal.SIGTERM)
        elif how == "Ctrl-A x":
            console.send("typed \x01x")
        console.expect(f"device edu.py:Edu at 00:01.0: {doing} has not returned for 2 s (edu.py:")
        console.expect("in act")
        assert console.wait() == {"signal": 128 + signal.SIGTERM, "timeout": 124, "Ctrl-A x": 7}[how]
        assert console.terminal() == console.cooked


@pytest.mark.parametrize("code", [END, "b8 06000000 ba f90c0000 ee f4"], ids=["end", "reset"])
def test_a_device_that_is_closed(edu: Path, code: str, tmp_path: Path) -> None:
    """At the end, and where a reset makes a new machine of the same module."""
    edu.write_text(
        EDU
        + """
class Counts(PciDevice):
    vendor_id, device_id = 0x1234, 1

    def __init__(self, log):
        super().__init__()
        self.log = log

    def note(self, what):
        with open(self.log, "a") as log:
            print(what, file=log)

    def reset(self):
        if hasattr(self, "log"):
            self.note("reset")
            if open(self.log).read().count("reset") == 3:
                raise ValueError("that is enough")

    def close(self):
        self.note("close")
"""
    )
    log = tmp_path / "log"
    status, said = run(edu, code, f"Counts,log={log}")
    if code == END:
        assert (status, log.read_text()) == (16, "close\n")
    else:
        assert status == 8 and re.search(r"ValueError: that is enough \(edu.py:\d+\)", said), said
        assert log.read_text() == "reset\nreset\nreset\nclose\n", "a reset leaves the device where it is"


def test_each_is_told_of_a_machine_that_could_not_be_made(edu: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    edu.write_text(
        EDU.replace("    def close(self):\n", f"    def close(self):\n        open({str(told)!r}, 'a').write('x')\n")
    )
    status, said = run(
        edu, END, "Edu,what=raise,when=close", "--device", f"{edu}:Edu,what=none", "--device", f"{edu}:No"
    )
    assert (status, told.read_text()) == (2, "xx") and "has no class No" in said, (
        "the close() that raises is not the cause"
    )
    assert (
        subprocess.run(
            [PYVMM, "acpi", "--out", tmp_path / "acpi", "--device", f"{edu}:Edu,what=none"], stdout=subprocess.DEVNULL
        ).returncode
        == 0
    )
    assert told.read_text() == "xxx"


@pytest.mark.parametrize("what", ["raise", "exit", "interrupt"])
def test_a_close_that_raises(edu: Path, what: str) -> None:
    status, said = run(edu, END, f"Edu,what={what},when=close")
    assert status == 8
    assert said.startswith("pyvmm: device edu.py:Edu at 00:01.0: close() raised "), said
    assert "in close" in said
    with (
        pytest.raises(DeviceFault, match=r"close\(\) raised"),
        board("pio", devices=(f"{edu}:Edu,what={what},when=close",)),
    ):
        pass


def test_a_close_that_never_returns(edu: Path) -> None:
    command: list[str | Path] = [PYVMM, *arguments(edu, END, "Edu,what=spin,when=close")]
    with Console(command, on_pty=True) as console:
        console.expect("device edu.py:Edu at 00:01.0: close() has not returned for 2 s (edu.py:")
        assert console.wait() == 16, "the guest had ended"
        assert console.terminal() == console.cooked
