"""scripts/lab as its user sees it: each test boots the lab, which takes some seconds."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.console import Console

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "scripts" / "lab"


def lab(*words: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LAB, *words], input=stdin, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


@pytest.fixture(autouse=True)
def nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test's labs have their directories where no other lab has."""
    monkeypatch.setenv("PYVMM_LAB_RUNS", str(tmp_path / "runs"))
    yield
    assert not list((tmp_path / "runs").glob("*"))


def test_output_input_errors_and_status_pass_through() -> None:
    code = 'test -t 1 && echo terminal; pwd; cat; echo "$TERM" >&2; id -u; seq 20000 | tail -n 1; exit 7'
    ran = lab("-q", "--env", "TERM=dumb", "--", "sh", "-c", code, stdin="one\ntwo\n")
    assert ran.stdout.splitlines() == [str(ROOT), "one", "two", "0", "20000"]
    assert ran.stderr == "dumb\n"
    assert ran.returncode == 7


def test_a_lot_of_binary_output_arrives_whole() -> None:
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 20000)"
    ran = subprocess.run([LAB, "-q", "--", "python3", "-c", code], capture_output=True, timeout=180, cwd=ROOT)
    assert ran.stdout == bytes(range(256)) * 20000


def test_output_comes_while_the_command_runs() -> None:
    with Console([LAB, "--", "sh", "-c", "echo first; read x; echo then $x; exit 3"]) as console:
        console.expect("first", 60)
        console.send("second\n")
        console.expect("then second", 60)
        assert console.wait() == 3


def test_a_terminal_is_a_terminal_inside() -> None:
    code = "test -t 0 && test -t 1 && echo ready && stty size && read x </dev/tty && echo got=$x; exit 5"
    with Console([LAB, "-q", "--", "sh", "-c", code], on_pty=True, size=(31, 97)) as console:
        before = console.terminal()
        console.expect("31 97", 60)
        console.send("word\r")
        console.expect("got=word", 60)
        assert console.wait() == 5
        assert console.terminal() == before


def test_the_terminals_ctrl_c_reaches_the_command() -> None:
    with Console(
        [LAB, "-q", "--", "bash", "-c", "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"],
        on_pty=True,
    ) as console:
        console.expect("ready", 60)
        console.send(b"\x03")
        console.expect("caught", 60)
        assert console.wait() == 9


def test_three_escapes_end_the_lab() -> None:
    with Console([LAB, "-q", "--", "sh", "-c", "echo ready; sleep 1000"], on_pty=True) as console:
        console.expect("ready", 60)
        console.send(b"\x1d\x1d\x1d")
        assert console.wait(90) == 128 + signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_lab(number: signal.Signals) -> None:
    with Console([LAB, "--", "sh", "-c", "echo ready; sleep 1000"]) as console:
        console.expect("ready", 60)
        children = Path(f"/proc/{console.pid}/task/{console.pid}/children").read_text().split()
        assert len(children) == 1
        console.signal(number)
        assert console.wait(90) == 128 + number
        assert not Path(f"/proc/{children[0]}").exists()


def test_killed_outright_it_leaves_no_qemu(tmp_path: Path) -> None:
    with Console([LAB, "--", "sh", "-c", "echo ready; sleep 1000"]) as console:
        console.expect("ready", 60)
        (child,) = Path(f"/proc/{console.pid}/task/{console.pid}/children").read_text().split()
        console.signal(signal.SIGKILL)
        console.wait(90)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child}/exe").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}/exe").exists()
    shutil.rmtree(tmp_path / "runs")  # of all it made, nobody is left to remove this


def test_the_time_is_limited() -> None:
    ran = lab("--timeout", "8", "--", "sleep", "1000")
    assert ran.returncode == 124
    assert "--timeout" in ran.stderr


def test_a_lab_that_panics_is_status_125_and_shows_its_console() -> None:
    ran = lab("--", "sh", "-c", "echo before; sleep 1; echo c >/proc/sysrq-trigger; sleep 100")
    assert ran.returncode == 125
    assert ran.stdout == "before\n"
    assert "sysrq triggered crash" in ran.stderr


def test_a_processor_that_stops_is_status_125() -> None:
    """Here what shows that it is alive is stopped."""
    code = (
        "for file in /proc/[0-9]*/cmdline; do grep -q 'alive[.]0' $file && kill -STOP $(echo $file | cut -d/ -f3); done"
    )
    started = time.monotonic()
    ran = lab("--stalled", "8", "--", "sh", "-c", f"{code}; sleep 100")
    assert ran.returncode == 125
    assert "the lab's processor 0 has stopped; the end of its console:" in ran.stderr
    assert time.monotonic() - started < 60


def test_what_qemu_refuses_is_status_125_and_shown() -> None:
    ran = lab("--device", "no-such-device", "--", "true")
    assert ran.returncode == 125
    assert "no-such-device" in ran.stderr


def test_a_module_that_is_not_there() -> None:
    ran = lab("--modules", "tun no_such_module", "--", "echo", "started")
    assert ran.returncode == 125
    assert "no_such_module" in ran.stderr
    assert ran.stdout == ""


def test_files_for_the_host_and_nothing_else(tmp_path: Path) -> None:
    code = "lsmod | grep -w tun; echo kept >$PYVMM_LAB_OUT/result; echo lost >lost-in-the-lab; ls lost-in-the-lab; "
    code += "cat /sys/bus/pci/devices/*/device"
    ran = lab("--out", str(tmp_path), "--modules", "tun", "--device", "edu", "--", "sh", "-c", code)
    assert "tun" in ran.stdout
    assert "lost-in-the-lab" in ran.stdout
    assert "0x11e8" in ran.stdout.split()  # QEMU's edu device, docs/specs/edu
    assert (tmp_path / "result").read_text() == "kept\n"
    assert not (ROOT / "lost-in-the-lab").exists()
    assert f"kept {tmp_path}" in ran.stderr


def test_the_outer_monitor_as_a_socket(tmp_path: Path) -> None:
    sock = tmp_path / "monitor"
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect(sys.argv[1])\n"
        "s.sendall(b'info name\\ninfo version\\n')\n"
        "data = b''\n"
        "while b'Debian' not in data and (more := s.recv(4096)): data += more\n"
        "print(data)\n"
    )
    with Console([LAB, "--monitor", str(sock), "--", "sh", "-c", "echo ready; cat"]) as console:
        console.expect("ready", 60)
        said = subprocess.run([sys.executable, "-c", code, sock], capture_output=True, text=True, timeout=90)
        assert "Debian" in said.stdout
        console.close_input()
        assert console.wait() == 0
