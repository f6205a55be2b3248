"""The lab itself: what the tests beside this one take for granted."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import time
from pathlib import Path

import pytest

from pyvmm.testing.transcript import TranscriptError
from tests.rig.console import Start
from tests.rig.lab import CLOUD_KERNEL, GENERIC_KERNEL, INITRAMFS, INITRAMFS_CLOUD, INITRAMFS_GENERIC, ROOT, monitor

KVM_GET_API_VERSION = 0xAE00
EV_KEY, KEY_A = 1, 30
INPUT_EVENT = struct.Struct("llHHi")


def test_kvm_has_the_processor_behind_it() -> None:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    assert "svm" in flags.split()
    assert "kvm_amd" in Path("/proc/modules").read_text()
    fd = os.open("/dev/kvm", os.O_RDWR)
    try:
        assert fcntl.ioctl(fd, KVM_GET_API_VERSION) == 12
    finally:
        os.close(fd)


def test_files_can_be_written_and_stay_inside() -> None:
    file = ROOT / "written-in-the-lab"
    file.write_text("x")
    assert file.read_text() == "x"
    file.unlink()


@pytest.mark.parametrize(
    "image", [CLOUD_KERNEL, GENERIC_KERNEL, INITRAMFS, INITRAMFS_CLOUD, INITRAMFS_GENERIC], ids=lambda image: image.name
)
def test_the_guests_are_there(image: Path) -> None:
    assert image.stat().st_size > 500_000


def test_the_monitor_answers() -> None:
    assert "7." in monitor("info version") or "QEMU" in monitor("info version")
    with pytest.raises(AssertionError, match="no_such_key"):
        monitor("sendkey no_such_key")


def test_a_key_of_the_labs_keyboard_arrives() -> None:
    keyboard = next(Path("/dev/input/by-path").glob("*i8042*kbd"), None) or _keyboard()
    fd = os.open(keyboard, os.O_RDONLY | os.O_NONBLOCK)
    try:
        monitor("sendkey a")
        seen: list[tuple[int, int]] = []
        deadline = time.monotonic() + 10
        while len(seen) < 2 and time.monotonic() < deadline:
            if select.select([fd], [], [], 0.5)[0]:
                for _, _, kind, code, value in INPUT_EVENT.iter_unpack(os.read(fd, 24 * 64)):
                    if kind == EV_KEY:
                        seen.append((code, value))
        assert seen == [(KEY_A, 1), (KEY_A, 0)]
    finally:
        os.close(fd)


def _keyboard() -> Path:
    """The event node of the PS/2 keyboard; there is no udevd here to name it."""
    for name in Path("/sys/class/input").glob("event*/device/name"):
        if "AT Translated Set 2 keyboard" in name.read_text():
            return Path("/dev/input") / name.parts[4]
    raise AssertionError("the lab has no PS/2 keyboard")


def test_a_module_can_be_loaded() -> None:
    subprocess.run(["modprobe", "tun"], check=True)
    assert Path("/dev/net/tun").exists()


def test_console_on_a_terminal(start: Start) -> None:
    console = start("sh", "-c", "test -t 0 && test -t 1 && read x </dev/tty && echo got $x && exit 3", on_pty=True)
    console.send("word\n")
    assert "got word" in console.expect("got word", 90)
    assert console.wait(90) == 3


def test_console_on_pipes(start: Start) -> None:
    console = start("sh", "-c", "test -t 0 || echo pipe; cat; exit 4")
    console.expect("pipe", 90)
    console.send("line\n")
    console.expect("line\n", 90)
    with pytest.raises(TranscriptError, match="within"):
        console.expect("line\n", 0.2)
    console.close_input()
    assert console.wait(90) == 4
    with pytest.raises(TranscriptError, match="before the end"):
        console.expect("more")
