"""TCP between Linux and this host, in the lab: Debian's cloud kernel under pyvmm and QEMU, on the same three ways out.

A TAP interface each, read by the monitor or by vhost-net; and passt. The server, benchmarks/net_io.c, is a program of
the lab's, its client one of the guest's, who has the clock. QEMU's card is a q35's virtio-net-pci.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.document import table
from benchmarks.programs import CACHE, PYTHON, BenchError, compiled, output_of, say
from benchmarks.stats import in_turn, paired_ratio, spread
from benchmarks.virtio import KERNEL, MEMORY_MB, OURS, QEMU, with_file

INITRAMFS: Final = CACHE / "guest" / "initramfs-net.gz"
LAB: Final = ("--modules", "tun dummy vhost_net")
TIMEOUT: Final = 600.0
PORT: Final = 5001
HOST, GATEWAY = "192.0.2.2", "192.0.2.1"
"""Of the lab's dummy interface, which passt copies."""
TAP, VHOST, USER = "tap", "vhost-net", "passt"
HOSTS: Final = {TAP: "198.51.100.1", VHOST: "203.0.113.1", USER: GATEWAY}
GUESTS: Final = {TAP: "198.51.100.2", VHOST: "203.0.113.2", USER: HOST}
INTERFACES: Final = {TAP: "pvb0", VHOST: "pvb1"}
GOALS: Final = {TAP: 0.5, VHOST: 0.95, USER: 0.5}
WHAT: Final = {"take": "MB/s to the guest", "give": "MB/s from it", "there-and-back": "a byte there and back, µs"}
MORE_IS_BETTER: Final = ("take", "give")
LINE: Final = re.compile(r"^net (\S+) (\S+) ([0-9.]+)\r?$", re.MULTILINE)
SCRIPT: Final = "#!/bin/sh\n" + "".join(
    f"ip addr add {GUESTS[way]}/24 dev eth{number}; ip link set eth{number} up\n"
    f"until net-io run {way} {host} {PORT}; do sleep 1; done\n"
    for number, (way, host) in enumerate(HOSTS.items())
)
"""No ping tells that a way is there: passt answers none where it has no rights."""
Measured = dict[tuple[str, str], float]


def measured(output: str) -> Measured:
    """What the guest measured, by way and what; BenchError where something is missing."""
    found = {(way, what): float(number) for way, what, number in LINE.findall(output)}
    if found.keys() != {(way, what) for way in HOSTS for what in WHAT}:
        raise BenchError(f"net-io did not end: {output[-1000:]!r}")
    return found


def command(name: str, initrd: Path, passt: Path) -> list[str | Path]:
    cmdline = "console=ttyS0 quiet panic=-1 pyvmm.run=/bin/bench"
    if name == OURS:
        words: list[str | Path] = [PYTHON, "-m", "pyvmm", "run", "-m", f"{MEMORY_MB}M", "-k", KERNEL, "-i", initrd]
        words += ["-p", cmdline, "--net", f"tap,name={INTERFACES[TAP]}"]
        return [*words, "--net", f"tap,name={INTERFACES[VHOST]},vhost", "--net", "user"]
    words = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", str(MEMORY_MB)]
    words += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    words += ["-global", "kvm-apic.vapic=off"]  # see virtio.py
    words += ["-kernel", KERNEL, "-initrd", initrd, "-append", cmdline]
    tap = "script=no,downscript=no"
    backends = {
        TAP: f"tap,ifname={INTERFACES[TAP]},{tap}",
        VHOST: f"tap,ifname={INTERFACES[VHOST]},{tap},vhost=on",
        USER: f"stream,server=off,addr.type=unix,addr.path={passt}",
    }
    for number, backend in enumerate(backends.values()):
        words += ["-netdev", f"{backend},id=n{number}", "-device", f"virtio-net-pci,netdev=n{number},disable-legacy=on"]
    return words


@contextlib.contextmanager
def passt_at(path: Path) -> Iterator[None]:
    """A passt for QEMU, which listens at *path*."""
    with subprocess.Popen(["passt", "-f", "-q", "-s", path], stdin=subprocess.DEVNULL) as passt:
        try:
            while not path.exists():
                if passt.poll() is not None:
                    raise BenchError(f"passt has ended with status {passt.returncode}")
                time.sleep(0.01)
            yield
        finally:
            passt.kill()
    path.unlink(missing_ok=True)


def report(seen: dict[str, list[Measured]]) -> str:
    rows = []
    for way in HOSTS:
        for what, says in WHAT.items():
            mine, theirs = ([one[way, what] for one in seen[name]] for name in (OURS, QEMU))
            more = what in MORE_IS_BETTER
            ratio = paired_ratio(mine, theirs) if more else paired_ratio(theirs, mine)
            verdict = f"{ratio:.2f} (goal: at least {GOALS[way]:g}; {'met' if ratio >= GOALS[way] else 'missed'})"
            digits = 1 if more else 0
            rows.append([f"{way}, {says}", spread(mine, digits), spread(theirs, digits), verdict])
    return table(["median (least–most)", OURS, QEMU, "pyvmm's speed, times QEMU's"], rows)


def prepare() -> None:
    compiled("net_io", "-static")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def make_networks() -> None:
    """The lab's: passt wants an interface with a default route."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "pvd0", "type", "dummy")
    ip("addr", "add", f"{HOST}/24", "dev", "pvd0")
    ip("link", "set", "pvd0", "up")
    ip("route", "add", "default", "via", GATEWAY)
    for way, name in INTERFACES.items():
        ip("tuntap", "add", name, "mode", "tap", "vnet_hdr")
        ip("addr", "add", f"{HOSTS[way]}/24", "dev", name)
        ip("link", "set", name, "up")


def measure(rounds: int) -> str:
    make_networks()
    program = compiled("net_io", "-static")
    seen: dict[str, list[Measured]] = {OURS: [], QEMU: []}
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen([program, "serve", str(PORT)]) as server,
    ):
        initrd, passt = Path(directory) / "initrd", Path(directory) / "passt"
        Path(directory).chmod(0o777)  # passt binds its socket as nobody, and says nothing where it may not
        image = with_file(INITRAMFS.read_bytes(), SCRIPT.encode(), "bin/bench")
        initrd.write_bytes(with_file(image, program.read_bytes(), "bin/net-io"))

        def run(name: str) -> float:
            with passt_at(passt) if name == QEMU else contextlib.nullcontext():
                seen[name].append(measured(output_of(command(name, initrd, passt), 0, TIMEOUT)))
            return seen[name][-1][VHOST, "take"]

        try:
            in_turn({OURS: lambda: run(OURS), QEMU: lambda: run(QEMU)}, rounds, say)
        finally:
            server.kill()
    return report(seen)
