"""scripts/lab without a boot: arguments, QEMU's command line, the streams' end marker, the monitor's file protocol."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import itertools
import json
import os
import re
import shlex
import socket
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
NONCE = "0123456789abcdef"


def load(name: str) -> ModuleType:
    """A script of scripts/ as a module: its name has no .py."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


lab = load("lab")
unpack = load("unpack-kernel")


# --- processors that stop


def test_a_processor_is_silent_while_its_file_does_not_change(tmp_path: Path) -> None:
    (tmp_path / "alive.1").touch()
    heartbeats = lab.Heartbeats(tmp_path)
    assert heartbeats.silent(10) == {}, "the file of a lab before this one says nothing"
    for number in range(2):
        (tmp_path / f"alive.{number}").touch()
    assert heartbeats.silent(20) == {"0": 0, "1": 0}
    os.utime(tmp_path / "alive.0", (1, 1))
    assert heartbeats.silent(25) == {"0": 0, "1": 5}
    assert heartbeats.silent(30) == {"0": 5, "1": 10}


class Process:
    """In the place of QEMU: how long it ran, and whether it would."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = 0.0
        self._task = directory / "task" / "1"
        self._task.mkdir(parents=True)
        self._stat = directory / "stat"
        self.ran(0, "S")
        monkeypatch.setattr(lab.time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(lab, "Path", lambda path: directory)

    def ran(self, seconds: float, state: str) -> None:
        ticks = int(seconds * os.sysconf("SC_CLK_TCK"))
        stat = f"1 (qemu) of ) {state} " + "0 " * 10 + f"{ticks} 0 0 0"
        self._stat.write_text(stat)
        (self._task / "stat").write_text(stat)


def test_qemus_own_time_stands_while_it_waits_for_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(tmp_path, monkeypatch)
    own_time = lab.OwnTime(1)
    process.clock = 4
    assert own_time.now() == 4, "it sleeps"
    process.ran(0.5, "R")
    process.clock = 8
    assert own_time.now() == 4.5, "it ran for half a second, and would have run for four"
    process.clock = 9
    assert own_time.now() == 4.5
    process.ran(1.5, "S")
    process.clock = 11
    assert own_time.now() == 6.5
    process.clock = 3600
    assert own_time.now() == 6.5 + lab.LOOK_AGAIN, "a host that slept"


# --- arguments


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "CMD"),
        (["-m", "0", "--", "true"], "-m must be positive"),
        (["-smp", "-1", "--", "true"], "-smp must be positive"),
        (["--timeout", "soon", "--", "true"], "invalid float value"),
        (["--timeout", "0", "--", "true"], "--timeout must be positive"),
        (["--stalled", "0", "--", "true"], "--stalled must be positive"),
        (["--env", "1=2", "--", "true"], "NAME=VALUE"),
        (["--no-such-option", "--", "true"], "CMD|unrecognized"),
    ],
)
def test_a_mistake_is_status_2_and_says_what(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        lab.arguments(argv)
    assert caught.value.code == 2
    assert re.search(complaint, capsys.readouterr().err)


def test_options_of_the_command_are_the_commands() -> None:
    options = lab.arguments(["-m", "512", "--", "pytest", "-v", "--timeout", "3"])
    assert options.command == ["pytest", "-v", "--timeout", "3"]
    assert options.memory == 512
    assert options.timeout == 1800


def test_the_script_outside_the_lab_says_where_it_belongs() -> None:
    ran = subprocess.run([ROOT / "scripts" / "lab-monitor", "sendkey a"], env={}, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "scripts/lab -- scripts/lab-monitor sendkey a" in ran.stderr


# --- what is run


def qemu(*argv: str, on_tty: bool = False) -> list[str]:
    options = lab.arguments([*argv, "--", "true"])
    sockets = {"monitor": 3, "console": 4, "in": 5, "out": 6, "err": 7}
    command = lab.qemu_command(options, Path("/cache"), Path("/out,put"), sockets, on_tty)
    assert isinstance(command, list)
    return command


def values(command: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(command) if name == option]


def test_qemu_gets_its_size_and_its_kernel() -> None:
    command = qemu("-m", "512", "-smp", "3", "--append", "nokaslr")
    assert values(command, "-m") == ["512"]
    assert values(command, "-smp") == ["3"]
    assert values(command, "-kernel") == ["/cache/lab/vmlinux"]
    (append,) = values(command, "-append")
    assert {"softlockup_panic=1", "panic=-1", "nokaslr"} <= set(append.split())


def test_a_clock_of_instructions_has_one_thread() -> None:
    assert values(qemu(), "-accel") == ["tcg,thread=multi"] and not values(qemu(), "-icount")
    assert values(qemu("--icount"), "-accel") == ["tcg,thread=single"]
    assert values(qemu("--icount"), "-icount") == ["shift=2"]


def test_the_hosts_files_are_read_only_and_the_shared_directory_is_not() -> None:
    host, out = values(qemu(), "-virtfs")
    assert "path=/,mount_tag=host,readonly=on" in host
    assert "path=/out,,put,mount_tag=out" in out
    assert "readonly" not in out


def test_devices_and_raw_arguments_are_passed_on() -> None:
    command = qemu("--device", "edu,addr=08.0", "--device", "intel-iommu", "--qemu", "-netdev 'user,id=n 0'")
    assert values(command, "-device")[-2:] == ["edu,addr=08.0", "intel-iommu"]
    assert values(command, "-netdev") == ["user,id=n 0"]


def test_streams_are_ports_or_a_terminal() -> None:
    ports = [value for value in values(qemu(), "-device") if value.startswith("virtserialport")]
    assert ports == [f"virtserialport,chardev={name},name={name}" for name in ("in", "out", "err")]
    terminal = values(qemu(on_tty=True), "-device")
    assert "virtconsole,chardev=console" in terminal
    assert not any(value.startswith("virtserialport") for value in terminal)


words = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF, exclude_categories=["Cs"]), max_size=8)


@given(command=st.lists(words, min_size=1, max_size=4), value=words)
def test_the_command_survives_the_shell(command: list[str], value: str) -> None:
    """The script that lab-init runs hands the words on unchanged, whatever is in them."""
    options = lab.arguments(["--", "x"])
    options.command = ["printf", r"%s\0", *command, value]
    script = lab.command_script(options, {"PYTEST_X": value, "SECRET": "no"}, "/")
    assert f"export PYTEST_X={shlex.quote(value)}\n" in script
    assert "SECRET" not in script
    last = script[script.index("exec printf") :]
    assert shlex.split(last)[3:] == [*command, value]


def test_what_the_command_finds_in_its_environment(tmp_path: Path) -> None:
    options = lab.arguments(["--env", "A=b c", "--", "sh", "-c", 'echo "$A|$PYVMM_IN_LAB|$PYVMM_LAB_OUT|$PWD"; exit 3'])
    script = lab.command_script(options, {"PATH": "/usr/bin:/bin"}, str(tmp_path))
    ran = subprocess.run(["sh", "-c", script], env={}, capture_output=True, text=True)
    assert ran.stdout == f"b c|1|/run/lab/out|{tmp_path}\n"
    assert ran.returncode == 3


# --- the end of a stream

MARKER = f"\0lab:{NONCE}:".encode()


def feed(chunks: list[bytes]) -> tuple[bytes, int | None]:
    marker = lab.MarkerFilter(NONCE)
    return b"".join(marker.feed(chunk) for chunk in chunks), marker.status


noise = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.integers(0, len(MARKER)).map(lambda n: MARKER[:n]),
        st.sampled_from([b"\0", b"\0lab:", MARKER + b"x\0", MARKER + b"\0", MARKER + b"1234\0"]),
    ),
    max_size=8,
).map(b"".join)
# The nonce is random, so no command writes the whole marker; neither does the noise, not even with the next NUL.
noise = noise.filter(lambda data: not re.search(re.escape(MARKER) + rb"[0-9]{1,3}\0", data + b"\0"))


@given(before=noise, after=st.binary(max_size=30), status=st.integers(0, 255), cuts=st.lists(st.integers(0, 300)))
def test_the_marker_ends_a_stream_however_it_is_cut(before: bytes, after: bytes, status: int, cuts: list[int]) -> None:
    stream = before + MARKER + f"{status}\0".encode() + after
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(bounds)]
    assert feed(chunks) == (before, status)


@given(stream=noise)
def test_a_byte_is_held_only_while_it_may_be_the_marker(stream: bytes) -> None:
    passed, status = feed([stream, b"."])
    assert (passed, status) == (stream + b".", None)


# --- the monitor


class Monitor:
    """A Qmp whose other end is in the test's hands."""

    def __init__(self) -> None:
        ours, self.other = socket.socketpair()
        self.qmp = lab.Qmp(ours)
        self.ours = ours
        assert self.sent() == [{"execute": "qmp_capabilities"}]
        self.answer({"QMP": {}}, {"return": {}})

    def sent(self) -> list[dict[str, object]]:
        self.other.setblocking(False)
        try:
            return [json.loads(line) for line in self.other.recv(65536).splitlines()]
        except BlockingIOError:
            return []

    def answer(self, *messages: dict[str, object]) -> None:
        self.qmp.feed(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    def close(self) -> None:
        self.ours.close()
        self.other.close()


def test_line_n_answers_line_n(tmp_path: Path) -> None:
    monitor = Monitor()
    file = lab.MonitorFile(tmp_path, monitor.qmp)
    file.poll()
    assert monitor.sent() == []
    with (tmp_path / "monitor").open("a") as requests:
        requests.write("sendkey a\nsendkey zz\ninfo ve")
        requests.flush()
        file.poll()
        first = monitor.sent()
        requests.write("rsion\n")
        requests.flush()
        file.poll()
    assert [message["arguments"] for message in first + monitor.sent()] == [
        {"command-line": "sendkey a"},
        {"command-line": "sendkey zz"},
        {"command-line": "info version"},
    ]
    monitor.answer({"return": ""}, {"event": "RESUME"}, {"return": "invalid parameter: zz\r\n"})
    monitor.answer({"return": "7.2\r\nDebian \\ 1\r\n"})
    assert (tmp_path / "monitor.reply").read_text().splitlines() == [
        "ok",
        "error invalid parameter: zz",
        r"ok 7.2\nDebian \\ 1",
    ]
    monitor.close()


def test_an_answer_may_come_in_pieces() -> None:
    monitor = Monitor()
    seen: list[str] = []
    monitor.qmp.command("info x", seen.append)
    for byte in b'{"error": {"class": "GenericError", "desc": "no\\nway"}}\r\n':
        monitor.qmp.feed(bytes([byte]))
    assert seen == [r"error no\nway"]
    monitor.close()


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_an_answer_is_one_line(text: str) -> None:
    line = lab.answer({"return": text})
    assert "\n" not in line
    assert line.startswith(("ok", "error"))


# --- the processor that QEMU stays on


def test_each_lab_has_a_processor_of_its_own_while_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {900_001, 900_002}  # of no machine: real labs may run meanwhile
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: numbers)
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second, contextlib.ExitStack() as third:
        assert [lab.one_processor(first), lab.one_processor(second)] == [900_001, 900_002]
        assert lab.one_processor(third) in numbers
        first.close()
        assert lab.one_processor(third) == 900_001


# --- the kernel of the lab


def test_unpack_refuses_what_is_no_kernel(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF" * 400, b"\0" * 0x202 + b"HdrS"):
        (tmp_path / "file").write_bytes(content)
        command = [ROOT / "scripts" / "unpack-kernel", tmp_path / "file", tmp_path / "out"]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 2
        assert len(ran.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


@given(data=st.binary(max_size=0x400))
def test_payload_stays_inside_the_file(data: bytes) -> None:
    image = bytearray(data.ljust(0x300, b"\0"))
    image[0x202:0x206] = b"HdrS"
    assert len(unpack.payload(bytes(image))) <= len(image)
