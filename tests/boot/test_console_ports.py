"""Ports, hvc0, the agent and vhost-vsock under a current Linux: one boot, a restore, a snapshot's file and a reset."""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvmm.boot.initramfs import Added, Initramfs
from pyvmm.boot.kernel_modules import KernelModules
from pyvmm.config import MachineConfig, Module
from pyvmm.machine.saved import Saved
from pyvmm.testing.guest_agent import GuestAgent
from pyvmm.virtio.console_ports import ConsolePorts
from tests.rig.bare import compiled
from tests.rig.guest import Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, PYVMM

MIB = 1 << 20
DATA = random.Random(13).randbytes(MIB)
CID, VSOCK_PORT = 7, 1234
SECONDS = 300.0
"""What no byte takes: a test that waits so long has failed."""


class Linux(Guest):
    """With hvc0 and the port `echo` on sockets, the port `tap` and the agent's in Python's hands, and vsock."""

    def __init__(self, folder: Path, saved: Saved | None = None) -> None:
        """The sockets are in *folder*. One that was *saved* goes on."""
        self.hvc, self.echo = folder / "hvc", folder / "echo"
        super().__init__(saved.config if saved is not None else self.made_of(folder), saved)
        ports = self.machine.board.devices["virtio-console"]
        assert isinstance(ports, ConsolePorts)
        self.ports = ports
        self.agent = GuestAgent(self.machine, self.ports["pyvmm.agent"])
        if saved is None:
            self.ready()
        else:
            self.send("\n")
            self.expect("# ")

    def made_of(self, folder: Path) -> MachineConfig:
        release = CLOUD_KERNEL.resolve().name.removeprefix("vmlinuz-")
        archive = Initramfs(
            modules=KernelModules(CLOUD_KERNEL.resolve().parents[1] / "lib/modules" / release),
            load=["virtio_pci", "virtio_console", "vmw_vsock_virtio_transport"],
            added=[Added(compiled("vsock_echo", folder), "/vsock_echo")],
            agent=True,
        ).build()
        ports = f"console=socket:{self.hvc},port.echo=socket:{self.echo},port.tap,port.pyvmm.agent"
        return MachineConfig(
            memory=256 * MIB,
            kernel=CLOUD_KERNEL,
            initrd=Module(archive),
            cmdline="console=ttyS0 quiet",
            devices=(f"virtio-console,{ports}", f"vhost-vsock,cid={CID}"),
        )

    def ready(self) -> None:
        """The shell is there, the agent, and the servers that send back what comes."""
        self.expect("# ")
        self.until(lambda: self.ports["pyvmm.agent"].guest_open, "the agent")
        names = self.shell("cd /sys/class/virtio-ports; for p in *; do echo $(cat $p/name) /dev/$p; done; cd /")
        self.devices = dict(line.split() for line in names.splitlines())
        for name in ("echo", "tap"):
            self.send_back(name)
        self.shell(f"(/vsock_echo {VSOCK_PORT} >/tmp/vsock &)")
        self.until(lambda: "listening" in self.shell("cat /tmp/vsock"), "the vsock server")

    def send_back(self, name: str) -> None:
        """Let the guest send back what comes to a port, whose reader finds the end when the host's end is closed. It
        stays open: Linux throws away what has come as a port is closed, of the next at the host's end too."""
        device = self.devices[name]
        loop = "while :; do cat <&3 >&3 2>/dev/null; usleep 50000; done"
        self.shell(f"(exec 3<>{device}; {loop}) & echo $! >/tmp/{name}.pid")

    def over(self, wire: socket.socket, data: bytes) -> bytes:
        """What comes back of *data*."""
        wire.settimeout(SECONDS)
        feeder = threading.Thread(target=wire.sendall, args=(data,))
        feeder.start()
        came = bytearray()
        while len(came) < len(data) and (piece := wire.recv(1 << 16)):
            came += piece
        feeder.join()
        return bytes(came)

    def by_socket(self, data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(self.echo))
            return self.over(wire, data)

    def by_vsock(self, data: bytes) -> bytes:
        with socket.socket(socket.AF_VSOCK) as wire:
            wire.settimeout(SECONDS)
            wire.connect((CID, VSOCK_PORT))
            return self.over(wire, data)

    def by_tap(self, data: bytes) -> bytes:
        came = bytearray()
        tap = self.ports["tap"]
        handle = tap.add(came.extend)
        tap.write(data)
        self.until(lambda: len(came) >= len(data), "what was written to the tap")
        handle.remove()
        return bytes(came)

    def by_agent(self, data: bytes) -> bytes:
        ended = self.agent.run(["cat"], data)
        assert ended.status == 0 and ended.stderr == b""
        return ended.stdout


WAYS: list[Callable[[Linux, bytes], bytes]] = [Linux.by_socket, Linux.by_tap, Linux.by_vsock, Linux.by_agent]
ALL_WAYS = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ports")


@pytest.fixture(scope="module")
def guest(folder: Path) -> Iterator[Linux]:
    with Linux(folder) as guest:
        yield guest


@pytest.fixture(scope="module")
def other(guest: Linux, folder: Path) -> Iterator[Linux]:
    """The guest, out of a file, when the first has ended."""
    assert warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None)) == []
    guest.machine.snapshot().save(folder / "saved")
    guest.close()
    with Linux(folder, Saved(str(folder / "saved"))) as other:
        yield other


def test_linux_finds_them(guest: Linux) -> None:
    assert guest.devices.keys() == {"console", "echo", "tap", "pyvmm.agent"}
    assert guest.shell("cat /sys/class/tty/hvc0/dev").startswith("229:")
    guest.shell("grep -q 'virtio.*-input' /proc/interrupts")  # MSI-X


def test_hvc0(guest: Linux) -> None:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(SECONDS)
        wire.connect(str(guest.hvc))
        guest.shell("((read line; echo $line | tr a-z A-Z; stty size) </dev/hvc0 >/dev/hvc0 &)")
        wire.sendall(b"typed there\n")
        came = b""
        while b"25 80" not in came and b"80 25" not in came:  # Linux before 6.16 takes columns for rows
            came += wire.recv(1000)
        assert b"TYPED THERE" in came


@ALL_WAYS
def test_a_megabyte_there_and_back(guest: Linux, way: Callable[[Linux, bytes], bytes]) -> None:
    assert way(guest, DATA) == DATA


def test_the_agent(guest: Linux) -> None:
    ended = guest.agent.run(["sh", "-c", "echo out; echo err >&2; exit 42"])
    assert ended == (42, b"out\n", b"err\n")
    guest.agent.put(DATA[:200_000], "/tmp/put", 0o700)
    assert guest.shell("stat -c '%a %s' /tmp/put") == "700 200000\n"
    assert guest.agent.get("/tmp/put") == DATA[:200_000]
    with pytest.raises(AssertionError, match=r"/no/such: .*can't open"):
        guest.agent.get("/no/such")


def test_pyvmm_exec(guest: Linux, tmp_path: Path) -> None:
    """By an agent of its own, on the socket."""
    guest.shell("kill $(cat /tmp/echo.pid) && killall cat")
    guest.shell(f"/pyvmm/agent {guest.devices['echo']} & echo $! >/tmp/agent.pid")
    command: list[str | Path] = [PYVMM, "exec", guest.echo, "--", "sh", "-c", "md5sum; echo err >&2; exit 7"]
    ran = subprocess.run(command, input=DATA, capture_output=True)
    assert ran.returncode == 7 and ran.stderr == b"err\n", ran
    assert ran.stdout.split()[0].decode() == hashlib.md5(DATA).hexdigest()
    guest.shell("kill $(cat /tmp/agent.pid)")
    guest.send_back("echo")


def test_after_a_restore(guest: Linux) -> None:
    """Whoever was connected is not any more, and comes anew."""
    guest.shell("echo before >/tmp/file")
    snapshot = guest.machine.snapshot()
    guest.agent.put(b"after", "/tmp/file")
    with socket.socket(socket.AF_VSOCK) as vsock, socket.socket(socket.AF_UNIX) as unix:
        vsock.connect((CID, VSOCK_PORT))
        unix.connect(str(guest.echo))
        assert guest.over(vsock, b"there") == b"there" and guest.over(unix, b"there") == b"there"
        guest.machine.restore(snapshot)
        assert unix.recv(1) == b""
        with pytest.raises(ConnectionResetError):
            vsock.recv(1)
    assert guest.agent.get("/tmp/file") == b"before\n"
    for way in WAYS:
        assert way(guest, DATA[:100_000]) == DATA[:100_000], way


def test_after_a_pause_everything_goes_on(guest: Linux) -> None:
    with socket.socket(socket.AF_VSOCK) as vsock, socket.socket(socket.AF_UNIX) as unix:
        vsock.connect((CID, VSOCK_PORT))
        unix.connect(str(guest.echo))
        with guest.machine.paused():
            vsock.sendall(b"while it stood")
            unix.sendall(b"while it stood")
        for wire in (vsock, unix):
            wire.settimeout(SECONDS)
            assert wire.recv(100) == b"while it stood"


def test_out_of_a_file(other: Linux) -> None:
    """The sockets are made anew, at the same places, and the guest's address is as it was."""
    for way in WAYS:
        assert way(other, DATA[:100_000]) == DATA[:100_000], way
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(SECONDS)
        wire.connect(str(other.hvc))
        other.shell("echo from hvc0 >/dev/hvc0")
        assert wire.recv(100) == b"from hvc0\r\n"


def test_after_a_reset(other: Linux) -> None:
    other.machine.reset()
    other.ready()
    for way in WAYS:
        assert way(other, DATA[:100_000]) == DATA[:100_000], way
