"""`pyvmm linux` with Debian's kernels: a command's streams and exit status, modules, files, a panic, and a shell."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from tests.rig.console import Start
from tests.rig.lab import CLOUD_KERNEL, GENERIC_KERNEL, PYVMM, TRIXIE_KERNEL

COMMAND = """
cat
cat /sys/class/misc/hw_random/rng_current /srv/data
grep -cE '^(virtio_rng|evdev) ' /proc/modules
/host/cpio --version | head -n 1
printf 'a\\r\\nb\\000c'
echo to stderr >&2
sleep 1000 &
exit 42
"""
"""It ends while something that it has started runs on, with the pipes of its output."""


def test_a_command(start: Start, tmp_path: Path) -> None:
    """Its input, more than any buffer between here and there holds, comes back as it was, and its output alone."""
    text = bytes(range(256)) * 2000
    (tmp_path / "in").write_bytes(text)
    (tmp_path / "data").write_bytes(b"data\n")
    (module,) = (CLOUD_KERNEL.resolve().parents[1] / "lib/modules").glob(
        "*/kernel/drivers/char/hw_random/virtio-rng.ko"
    )
    shutil.copy(module, tmp_path / "own.ko")
    words = ["linux", "-k", CLOUD_KERNEL, "--rng", "--modules", f"evdev,{tmp_path}/own.ko"]
    words += ["--add", f"{tmp_path}/data:/srv/"]
    words += ["--add", f"{shutil.which('cpio')}:/host/", "--", "sh", "-c", COMMAND]  # a program with libraries
    line = " ".join(shlex.quote(str(word)) for word in (PYVMM, *words))
    console = start("sh", "-c", f"cd {tmp_path}; {line} <in >out 2>err")
    assert console.wait() == 42
    written = (tmp_path / "out").read_bytes()
    assert written[: len(text)] == text
    lines = written[len(text) :].split(b"\n")
    assert lines[:3] == [b"virtio_rng.0", b"data", b"2"]
    assert lines[3].startswith(b"cpio (GNU cpio)")
    assert lines[4:] == [b"a\r", b"b\0c"]
    assert (tmp_path / "err").read_bytes() == b"to stderr\n"


def test_a_panic(start: Start, tmp_path: Path) -> None:
    """What the kernel says is not the command's output."""
    words = f"{PYVMM} linux -k {GENERIC_KERNEL} -- sh -c 'echo first; sleep 1; echo c >/proc/sysrq-trigger'"
    console = start("sh", "-c", f"{words} </dev/null >{tmp_path}/out 2>{tmp_path}/err")
    assert console.wait() == 4
    assert (tmp_path / "out").read_bytes() == b"first\n"
    told = (tmp_path / "err").read_text()
    assert "pyvmm: panic: Kernel panic - not syncing: sysrq triggered crash" in told
    assert "\r" not in told


def test_a_shell(pyvmm: Start, tmp_path: Path) -> None:
    """On the terminal, of its size, and commands by the agent beside it; Debian 13's kernel, whose modules are
    compressed."""
    agent = tmp_path / "agent"
    words = ("linux", "-k", TRIXIE_KERNEL, "--modules", "virtio_input,evdev")
    port = ("--device", f"virtio-console,port.pyvmm.agent=socket:{agent}")
    console = pyvmm(*words, *port, on_pty=True, size=(31, 97))
    console.expect("# ")
    console.send("stty size; lsmod | cut -d ' ' -f 1 | sort | tail -n 1; modprobe -r virtio_input; echo $?; tty\n")
    console.expect("31 97\r\nvirtio_input\r\n0\r\n/dev/ttyS0\r\n")
    command = "tr a-z A-Z; cat /proc/version >&2; echo by the agent >/dev/ttyS0; exit 5"
    ran = subprocess.run([PYVMM, "exec", agent, "--", "sh", "-c", command], input=b"a b\n", capture_output=True)
    assert (ran.returncode, ran.stdout) == (5, b"A B\n") and ran.stderr.startswith(b"Linux version 6.12.")
    console.expect("by the agent")
    console.send("exit\n")
    assert console.wait() == 0
    assert not agent.exists()
