"""Networks under a current Linux: passt, a TAP interface, one whose frames vhost carries in two pairs of queues, and a
socket; data both ways, and what becomes of them when the cable, the machine or the back end goes. The lab has a dummy
interface with a default route, and all stays in there.

PYVMM_SOAK_TRANSFERS sets how often 5 MB go each way (default 1), PYVMM_SOAK_BACK_ENDS how often all back ends end at
random moments (default 1; scripts/soak), PYVMM_FUZZ_SEED which ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import pytest

from pyvmm.boot.cpio import Archive
from pyvmm.boot.kernel_modules import KernelModules
from pyvmm.config import MachineConfig, Module
from pyvmm.machine.saved import Saved
from pyvmm.testing.patience import PATIENCE
from tests.rig.bare import compiled
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS_NET

MIB = 1 << 20
DATA = hashlib.shake_128(b"five megabytes").digest(5 * MIB)
LITTLE = DATA[: MIB // 4]
"""For the second time and on: the lab's processor is a slow one."""
NAME = "a-host.pyvmm.test"
ADDRESS = "203.0.113.77"
"""What DNS says of NAME."""
HOST, GATEWAY, HOST6, GATEWAY6 = "192.0.2.2", "192.0.2.1", "2001:db8::2", "2001:db8::1"
TAP, TAP_HOST, TAP_GUEST, TAP_HOST6, TAP_GUEST6 = "pvt0", "198.51.100.1", "198.51.100.2", "fd00::1", "fd00::2"
GIVE, GIVE_LITTLE, TAKE, MANY, DNS, TFTP, FORWARDED, ECHO = 5000, 5001, 5002, 5003, 53, 69, 2222, 7
CID: Final = 9
VHOST, VHOST_HOST, VHOST_GUEST = "pvt1", "203.0.113.1", "203.0.113.2"
WIRE_GUEST, WIRE_PEER = "192.168.7.1", "192.168.7.2"
TRANSFERS: Final = int(os.environ.get("PYVMM_SOAK_TRANSFERS", "1"))
BACK_ENDS: Final = int(os.environ.get("PYVMM_SOAK_BACK_ENDS", "1"))
SEED: Final = int(os.environ.get("PYVMM_FUZZ_SEED", "13"))

OPEN: Final = "0<>/tmp/open"
"""An input without an end: nc would close its half of the connection, at which passt of 2023 stops."""
TRIES: Final = 20
DHCP: Final = r"""mkdir -p /etc; echo '#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
[ -z "$mtu" ] || ip link set $interface mtu $mtu
ip route add default via $router
for server in $dns; do echo nameserver $server; done >/etc/resolv.conf' >/tmp/dhcp.sh
chmod +x /tmp/dhcp.sh; [ -e /tmp/open ] || mkfifo /tmp/open; ip link set lo up; ip link set eth0 up
udhcpc -q -n -t 10 -O mtu -i eth0 -s /tmp/dhcp.sh 2>&1"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Servers:
    """What this host answers, on every address that it has."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, str]] = []
        """Lengths and checksums of what was sent to TAKE."""
        self.size = 0
        """How many bytes are to come there: nobody closes a half of a connection before the whole."""
        self.came = threading.Condition()
        self.busiest = 0
        """The most connections to MANY at once."""
        self._now = 0
        give, give_little = partial(self._give, DATA), partial(self._give, LITTLE)
        for port, serve in ((GIVE, give), (GIVE_LITTLE, give_little), (TAKE, self._take), (MANY, self._many)):
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
            threading.Thread(target=self._accept, args=(listener, serve), daemon=True).start()
        for answer in (self._dns, self._tftp):
            threading.Thread(target=answer, daemon=True).start()

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._with, args=(connection, serve), daemon=True).start()

    def _with(self, connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection)

    def _give(self, data: bytes, connection: socket.socket) -> None:
        connection.sendall(data)

    def _take(self, connection: socket.socket) -> None:
        digest = hashlib.md5()
        rest = self.size
        while rest and (data := connection.recv(1 << 16)):
            digest.update(data)
            rest -= len(data)
        with self.came:
            self.taken.append((self.size - rest, digest.hexdigest()))
            self.came.notify_all()

    def _many(self, connection: socket.socket) -> None:
        """Answers when fifty are there: all of them are open at once."""
        with self.came:
            self._now += 1
            self.busiest = max(self.busiest, self._now)
            self.came.notify_all()
            self.came.wait_for(lambda: self.busiest >= 50, PATIENCE)
        connection.sendall(b"x" * 1000)
        with self.came:
            self._now -= 1

    def _dns(self) -> None:
        """A for NAME, no other."""
        question = b"".join(bytes((len(part),)) + part.encode() for part in [*NAME.split("."), ""])
        with datagrams(DNS) as server:
            while True:
                query, peer = server.recvfrom(512)
                wanted = query[12:].startswith(question + b"\0\1")
                answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(ADDRESS) if wanted else b""
                end = query.index(b"\0", 12) + 5
                counts = struct.pack(">HHHHH", 0x8180, 1, int(wanted), 0, 0)
                server.sendto(query[:2] + counts + query[12:end] + answer, peer)

    def _tftp(self) -> None:
        """Read requests for anything: 20 KB of DATA, 512 bytes a datagram, the next when the one before has come (RFC
        1350); one that is asked for again is sent again."""
        data = DATA[:20_000]
        with datagrams(TFTP) as server:
            while True:
                packet, peer = server.recvfrom(600)
                operation, number = struct.unpack_from(">HH", packet)
                block = 1 if operation == 1 else number + 1
                piece = data[512 * (block - 1) : 512 * block]
                if operation == 1 or (operation == 4 and block <= len(data) // 512 + 1):
                    server.sendto(struct.pack(">HH", 3, block) + piece, peer)


def datagrams(port: int) -> socket.socket:
    """A socket that has *port* of every address."""
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    return server


class Peer:
    """The other end of the wire at *path*, which says something all the time and listens to nothing."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        for run in (self._talk, self._hear):
            threading.Thread(target=run, daemon=True).start()

    def _talk(self) -> None:
        frame = b"\xff" * 6 + b"\x52\x54\0\0\0\x08" + b"\x88\xb5" + bytes(500)  # of an experiment (IEEE 802)
        with contextlib.suppress(OSError):
            while True:
                self._socket.sendall(len(frame).to_bytes(4, "big") + frame)
                time.sleep(0.01)

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(1 << 16):
                pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def more(directory: Path) -> bytes:
    """An archive with what sends back: datagrams (busybox has nothing that does), and over a vsock."""
    archive = Archive()
    for name in ("udp_echo", "vsock_echo"):
        archive.file(f"/bin/{name}", compiled(name, directory).read_bytes(), 0o755)
    release = CLOUD_KERNEL.resolve().name.removeprefix("vmlinuz-")
    modules = KernelModules(CLOUD_KERNEL.resolve().parents[1] / "lib/modules" / release)
    for number, name in enumerate(modules.closure(["vmw_vsock_virtio_transport"]), 800):
        archive.file(f"/lib/modules/{number}-{name}.ko", modules.path(name).read_bytes())
    return bytes(archive)


class Linux(Guest):
    """With eth0, which passt has, eth1, a TAP interface with frames of up to 9000 bytes, eth2, another that vhost-net
    serves, eth3, a socket, and vhost-vsock, which is here for the guest without MSI. Linux uses a pair of queues for
    each processor."""

    def __init__(self, config: MachineConfig, saved: Saved | None = None) -> None:
        self.lines: list[str] = []
        super().__init__(config, saved)
        self.machine.events.add(lambda event: self.lines.append(event.message) if event.kind == "io-error" else None)

    @classmethod
    def booted(cls, directory: Path, cmdline: str = "", cpus: int = 1) -> Self:
        """Its files are in *directory*: tap.pcap, and wire, the socket."""
        guest = cls(
            MachineConfig(
                memory=256 * MIB,
                cpus=cpus,
                kernel=CLOUD_KERNEL,
                initrd=(INITRAMFS_NET, Module(more(directory))),
                cmdline=f"console=ttyS0 quiet {cmdline}",
                devices=(
                    f"virtio-net,to=user,id=user,forward=tcp:{FORWARDED}:22+udp:{FORWARDED}:{ECHO}",
                    f"virtio-net,to=tap,name={TAP},mtu=9000,id=tap,mac=52:54:00:00:00:07,dump={directory}/tap.pcap",
                    f"virtio-net,to=tap,name={VHOST},vhost,queues=2,mtu=9000,id=vhost",
                    f"virtio-net,to=socket:{directory}/wire,id=wire",
                    f"vhost-vsock,cid={CID}",
                ),
            )
        )
        guest.expect(USERSPACE)
        guest.expect("# ")
        return guest

    def set_up(self) -> None:
        assert "lease of" in self.shell(DHCP)
        self.shell(f"ip addr add {TAP_GUEST}/24 dev eth1; ip -6 addr add {TAP_GUEST6}/64 dev eth1")
        self.shell(f"ip link set eth1 up; ip addr add {VHOST_GUEST}/24 dev eth2; ip link set eth2 up")
        self.shell(f"ip addr add {WIRE_GUEST}/24 dev eth3; ip link set eth3 up")

    def exchange(self, host: str, servers: Servers, port: int = GIVE_LITTLE) -> None:
        """The same data there and back over TCP."""
        data = DATA if port == GIVE else LITTLE
        expected = hashlib.md5(data).hexdigest()
        resets = Resets(self, host)
        while self.shell(f"nc {host} {port} {OPEN} >/tmp/data; md5sum /tmp/data").split()[0] != expected:
            resets.another(0)
        sent = 0
        while sent < len(data):
            servers.taken.clear()
            servers.size = len(data) - sent
            self.shell(f"tail -c +{sent + 1} /tmp/data >/tmp/open & nc {host} {TAKE} {OPEN}; wait")
            with servers.came:
                assert servers.came.wait_for(lambda: bool(servers.taken), PATIENCE)
                length, digest = servers.taken[0]
            assert digest == hashlib.md5(data[sent : sent + length]).hexdigest(), "what comes is what was sent"
            sent += length
            if sent < len(data):
                resets.another(length)

    def over_vsock(self) -> None:
        """A little there and back, which the host's kernel carries."""
        self.shell(f"(vsock_echo {ECHO} >/tmp/vsock &); until grep -q listening /tmp/vsock; do :; done")
        with socket.socket(socket.AF_VSOCK) as wire:
            wire.settimeout(PATIENCE)
            wire.connect((CID, ECHO))
            sender = threading.Thread(target=wire.sendall, args=(LITTLE,))
            sender.start()
            assert wire.makefile("rb").read(len(LITTLE)) == LITTLE
            sender.join()

    def carrier(self, card: str) -> str:
        return self.shell(f"cat /sys/class/net/{card}/carrier").strip()

    def until_carrier(self, card: str, carrier: str) -> None:
        self.until(lambda: self.carrier(card) == carrier, f"carrier {carrier} of {card}")


class Resets:
    """The connections of *guest* to *host* that passt has reset, which no other end may do. passt of 2023 does when the
    guest has not answered for some seconds, which happens on a busy machine; no frame is dropped then."""

    def __init__(self, guest: Linux, host: str) -> None:
        self._guest, self._host = guest, host
        self._counted, self._in_vain = self._count(), 0

    def _count(self) -> int:
        """As the guest counts them (EstabResets)."""
        names, counts = (line.split() for line in self._guest.shell("grep ^Tcp: /proc/net/snmp").strip().splitlines())
        return int(counts[names.index("EstabResets")])

    def another(self, length: int) -> None:
        """A connection has ended after *length* bytes, too early; AssertionError where that was no reset, or many have
        come to nothing."""
        before, self._counted = self._counted, self._count()
        assert self._host in (GATEWAY, GATEWAY6) and self._counted > before, f"{length} bytes, and no reset"
        self._in_vain = 0 if length else self._in_vain + 1
        assert self._in_vain < TRIES, f"passt has reset {TRIES} connections, one after the other"


@pytest.fixture(scope="module")
def servers() -> Servers:
    """And the lab's network."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "pvd0", "type", "dummy")
    ip("addr", "add", f"{HOST}/24", "dev", "pvd0")
    ip("-6", "addr", "add", f"{HOST6}/64", "dev", "pvd0", "nodad")
    ip("link", "set", "pvd0", "up")
    ip("route", "add", "default", "via", GATEWAY)
    ip("-6", "route", "add", "default", "via", GATEWAY6, "dev", "pvd0")
    Path("/etc/resolv.conf").unlink(missing_ok=True)
    Path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    make_taps()
    return Servers()


def make_taps() -> None:
    ip("tuntap", "add", TAP, "mode", "tap", "vnet_hdr")
    ip("addr", "add", f"{TAP_HOST}/24", "dev", TAP)
    ip("-6", "addr", "add", f"{TAP_HOST6}/64", "dev", TAP, "nodad")
    ip("tuntap", "add", VHOST, "mode", "tap", "vnet_hdr", "multi_queue")
    ip("addr", "add", f"{VHOST_HOST}/24", "dev", VHOST)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("net")


@pytest.fixture(scope="module")
def guest(servers: Servers, directory: Path) -> Iterator[Linux]:
    with Linux.booted(directory, cpus=2) as guest:
        guest.set_up()
        yield guest


def test_linux_finds_them(guest: Linux) -> None:
    assert guest.shell("cat /sys/class/net/eth1/address").strip() == "52:54:00:00:00:07"
    assert guest.shell("cat /sys/class/net/eth0/address").startswith("52:54:00:")
    assert [guest.carrier(card) for card in ("eth0", "eth1")] == ["1", "1"]
    assert guest.shell("cat /sys/class/net/eth1/mtu").strip() == "9000"
    features = [guest.shell(f"cat /sys/class/net/{card}/device/features").strip() for card in ("eth0", "eth1")]
    assert [text[0] + text[11] for text in features] == ["00", "11"], "passt offloads nothing, the kernel does"
    assert HOST in guest.shell("ip addr show dev eth0")


def test_names_over_udp(guest: Linux) -> None:
    assert ADDRESS in guest.shell(f"nslookup {NAME}", status=None)
    assert ADDRESS in guest.shell(f"nslookup {NAME} {TAP_HOST}", status=None)


@pytest.mark.parametrize("host", [GATEWAY, TAP_HOST, GATEWAY6])
def test_a_file_over_udp(guest: Linux, host: str) -> None:
    guest.until(lambda: "2001:db8:" in guest.shell("ip -6 addr show dev eth0"), "an address by NDP")
    text = guest.shell(f"tftp -g -l /tmp/udp -r file {host} && md5sum /tmp/udp")
    assert text.split()[0] == hashlib.md5(DATA[:20_000]).hexdigest()


def test_vhost_carries_frames_in_two_pairs_of_queues(guest: Linux, servers: Servers) -> None:
    device: Any = guest.machine.board.devices["vhost"]
    assert device.pairs == 2
    assert guest.shell("ls /sys/class/net/eth2/queues").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
    workers = [name for name in map(Path.read_text, Path("/proc").glob("[0-9]*/comm")) if name.startswith("vhost-")]
    assert len(workers) == 3, f"and that of vhost-vsock: {workers}"
    guest.exchange(VHOST_HOST, servers, GIVE)
    assert " 0% packet loss" in guest.shell(f"ping -c 2 -s 8900 {VHOST_HOST}")
    assert (device.wire.sent, device.wire.received) == (0, 0), "none of them came by here"


@pytest.mark.parametrize("host", [GATEWAY, TAP_HOST])
def test_five_megabytes_each_way(guest: Linux, servers: Servers, host: str) -> None:
    for number in range(1, TRANSFERS + 1):
        guest.exchange(host, servers, GIVE)
        print(f"{host}: {number} of {TRANSFERS}", flush=True)


def test_ipv6(guest: Linux, servers: Servers) -> None:
    guest.exchange(TAP_HOST6, servers)
    guest.exchange(GATEWAY6, servers)


def test_fifty_connections_at_once(guest: Linux, servers: Servers) -> None:
    guest.shell(f"for n in $(seq 50); do nc {GATEWAY} {MANY} {OPEN} >/tmp/n$n & done 2>/dev/null; wait")
    assert servers.busiest >= 50
    assert guest.shell("cat /tmp/n* | wc -c").strip() == "50000"


def test_who_connects_to_a_port_of_the_host_reaches_the_guest(guest: Linux) -> None:
    guest.shell("(nc -l -p 22 -e tr a-z A-Z >/dev/null 2>&1 &); until netstat -tln | grep -q :22; do :; done")
    with socket.create_connection(("127.0.0.1", FORWARDED)) as connection:
        connection.sendall(b"the guest\n")  # passt of 2023 opens its side with the first data
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile().read() == "THE GUEST\n"


def test_who_sends_to_a_port_of_the_host_reaches_the_guest(guest: Linux) -> None:
    guest.shell(f"(udp_echo {ECHO} >/tmp/echo &); until grep -q listening /tmp/echo; do :; done")
    patience = guest.patience()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", FORWARDED))
        client.settimeout(1)
        for size in (1, 1400):
            data = DATA[-size:]
            while True:  # a datagram may be lost
                client.send(data)
                try:
                    if client.recv(2000) == data:
                        break
                except TimeoutError:
                    assert not patience.is_over, f"no answer of {size} bytes"


def test_jumbo_frames_and_the_file_that_shows_them(guest: Linux, directory: Path) -> None:
    assert " 0% packet loss" in guest.shell(f"ping -c 2 -s 8900 {TAP_HOST}")
    guest.machine.call(lambda: None)  # whoever has just given the guest an answer notes that after it
    data = (directory / "tap.pcap").read_bytes()
    assert data[:4] == struct.pack("<I", 0xA1B23C4D)
    at, echoes = 24, 0
    while at < len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        frame = data[at + 16 : at + 16 + length]
        assert len(frame) == length
        echoes += length == 14 + 20 + 8 + 8900 and frame[12:14] == b"\x08\x00" and frame[23] == 1
        at += 16 + length
    assert echoes == 4, "two out, two back, each in one frame"


def test_link_down_and_up(guest: Linux, servers: Servers) -> None:
    for name, card in (("user", "eth0"), ("tap", "eth1"), ("vhost", "eth2")):
        device: Any = guest.machine.board.devices[name]
        for up in (False, True):
            guest.machine.call(partial(device.set_link, up))
            guest.until_carrier(card, str(int(up)))
    guest.exchange(TAP_HOST, servers)
    guest.exchange(VHOST_HOST, servers)


def test_back_to_a_snapshot_and_on(guest: Linux, servers: Servers) -> None:
    snapshot = guest.machine.snapshot()
    for _ in range(2):
        guest.exchange(GATEWAY, servers)
        guest.exchange(TAP_HOST, servers)
        guest.exchange(VHOST_HOST, servers)
        guest.machine.restore(snapshot)


def test_nothing_of_it_was_worth_a_warning(guest: Linux) -> None:
    found = warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None))
    assert not found, "\n".join(found)
    assert guest.lines == []


def test_restored_elsewhere_it_tells_the_network_where_it_is(guest: Linux, directory: Path) -> None:
    """And the back ends of a machine that has ended are free again. In each such machine they end at random moments
    while it sends and receives: the user hears of each in a line, the guest of a link that is down."""
    file = directory / "snapshot"
    guest.machine.snapshot().save(file)
    guest.close()
    dice = random.Random(SEED)
    for number in range(1, BACK_ENDS + 1):
        with Linux.restored(file) as other:
            other.send("\n")
            other.expect("# ")
            for host in (TAP_HOST, VHOST_HOST):
                text = other.shell(f"nc {host} {GIVE_LITTLE} {OPEN} | md5sum")
                assert text.split()[0] == hashlib.md5(LITTLE).hexdigest()
            end_back_ends(other, directory / "wire", dice)
        print(f"ends: {number} of {BACK_ENDS}", flush=True)
        assert passts() == []
        make_taps()
    arp = bytes.fromhex("52540000000708060001080006040001525400000007") + socket.inet_aton(TAP_GUEST)
    told = arp + bytes(6) + socket.inet_aton(TAP_GUEST), arp + b"\xff" * 6 + socket.inet_aton(TAP_GUEST)
    dump = (directory / "tap.pcap").read_bytes()
    assert any(one in dump for one in told), "it asks for its own address, and the file is made anew"


def end_back_ends(guest: Linux, wire: Path, dice: random.Random) -> None:
    peer = Peer(wire)
    guest.until_carrier("eth3", "1")
    for host in (GATEWAY, TAP_HOST, VHOST_HOST):
        guest.shell(f"(while :; do nc {host} {GIVE_LITTLE} {OPEN}; usleep 100000; done >/dev/null 2>&1 &)")
    guest.shell(f"arp -s {WIRE_PEER} 52:54:00:00:00:08; (ping {WIRE_PEER} >/dev/null 2>&1 &)")
    (passt,) = passts()
    ends: dict[str, tuple[str, Callable[[], None]]] = {
        "eth0": ("net user: passt has ended", lambda: os.kill(passt, signal.SIGKILL)),
        "eth1": (f"net tap,name={TAP}: the interface has gone", lambda: ip("link", "del", TAP)),
        "eth2": (f"net tap,name={VHOST}: the interface has gone", lambda: ip("link", "del", VHOST)),
        "eth3": (f"net socket:{wire}: the other end has gone", peer.close),
    }
    for number, card in enumerate(dice.sample(sorted(ends), len(ends))):
        time.sleep(dice.random())
        line, end = ends[card]
        end()
        guest.until_carrier(card, "0")
        (told,) = guest.lines[number:]
        assert told.startswith(line) and told.endswith(": the guest's link is down")
    peer = Peer(wire)  # on a socket another may come
    guest.until_carrier("eth3", "1")
    assert guest.shell("echo $((6 * 7))").strip() == "42"
    assert len(guest.lines) == len(ends)
    peer.close()


def passts() -> list[int]:
    """The processes of passt that have not ended."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if "(passt" in text and text.rpartition(")")[2].split()[0] != "Z":
                found.append(int(text.partition(" ")[0]))
    return found


def test_without_msi_after_reboot_and_after_reset(servers: Servers, tmp_path: Path) -> None:
    with Linux.booted(tmp_path, "pci=nomsi") as guest:
        guest.set_up()
        guest.exchange(GATEWAY, servers)
        guest.exchange(TAP_HOST, servers)
        guest.over_vsock()
        for by_itself in (True, False):
            if by_itself:
                guest.send("reboot -f\n")
            else:
                guest.machine.reset()
            guest.expect(USERSPACE)
            guest.expect("# ")
            guest.set_up()
            guest.exchange(GATEWAY, servers)
            guest.exchange(TAP_HOST, servers)
            guest.exchange(VHOST_HOST, servers)
            guest.over_vsock()
        assert guest.lines == []
