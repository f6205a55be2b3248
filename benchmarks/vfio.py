"""Devices that are given to a guest, by pyvmm beside QEMU's vfio-pci: the same guest, the same devices, in one lab.

Debian's kernel runs benchmarks/reads.c on nvme (random reads of 4 KiB, one and 32 at a time) and benchmarks/msix.c (a
command that moves no data, MSI-X), busybox's ping through e1000e to QEMU's own network, by MSI-X and by INTx, and
benchmarks/intx.c on edu (INTx; its driver, uio_pci_generic, masks and unmasks by the command register, and each access
to that is an exit). The irqchip is the kernel's. While nvme reads, KVM's counters say which exits the guest has
(debugfs).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.document import table
from benchmarks.programs import CACHE, PYTHON, ROOT, BenchError, compiled, say
from benchmarks.stats import in_turn, paired_ratio, spread
from benchmarks.virtio import with_file
from pyvmm.vfio.sysfs import Pci

KERNEL = CACHE / "lab" / "vmlinux"
INITRAMFS = CACHE / "guest" / "initramfs-passthrough.gz"
DISK = CACHE / "bench" / "nvme.img"
BYTES: Final = 32 << 20
READS: Final = {1: 1000, 32: 4000}
PINGS, COMMANDS, INTERRUPTS = 200, 1000, 200
EDU, NIC, NVME = "0000:00:08.0", "0000:00:09.0", "0000:00:0a.0"
LAB: Final = shlex.split(
    "--modules 'vfio_iommu_type1 vfio_pci' --append intel_iommu=on --device intel-iommu,intremap=on,caching-mode=on "
    "--device edu,addr=08.0 --device e1000e,netdev=net,addr=09.0,romfile= "
    "--device nvme,drive=nvme,serial=pyvmm,addr=0a.0 "
    f"--qemu '-netdev user,id=net -drive if=none,id=nvme,file={DISK},format=raw'"
)
"""The lab that has the devices, in words for scripts/lab."""
OURS, QEMU = "pyvmm", "QEMU"
COUNTERS: Final = ("exits", "mmio_exits", "io_exits", "halt_exits", "irq_exits", "irq_window_exits")
SCRIPT: Final = f"""#!/bin/sh
until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
[ -e /tmp/filled ] || reads fill /dev/nvme0n1 {BYTES}
reads /dev/nvme0n1 {BYTES} 100 1 >/dev/null
echo mark begin
echo depth-1 $(reads /dev/nvme0n1 {BYTES} {READS[1]} 1)
echo mark end
echo depth-32 $(reads /dev/nvme0n1 {BYTES} {READS[32]} 32)
echo msix $(msix /dev/nvme0 {COMMANDS})
network() {{
    ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
    until ping -c 1 -W 1 10.0.2.2 >/dev/null; do :; done
    echo "$1" $(ping -A -c {PINGS} 10.0.2.2 | tail -n 1)
    ip link set eth0 down
}}
network ping
rmmod e1000e; insmod /lib/modules/*e1000e.ko IntMode=0
network ping-intx
echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id
for device in /sys/bus/pci/drivers/uio_pci_generic/0000:*; do echo intx $(intx $device {INTERRUPTS}); done
"""
MEASURED: Final = {
    "depth-1": ("nvme, 4 KiB random reads a second, one at a time", True),
    "depth-32": ("the same, 32 at a time", True),
    "msix": ("nvme, a command without data and its MSI-X, µs", False),
    "ping": ("e1000e, a ping there and back, µs", False),
    "ping-intx": ("the same by INTx, µs", False),
    "intx": ("edu, INTx raised to served by uio_pci_generic, µs", False),
}
"""What it is called, and whether more is better."""


def counters(pid: int) -> dict[str, int]:
    """KVM's, of the one VM of process *pid*."""
    debugfs = Path("/sys/kernel/debug/kvm")
    if not debugfs.is_dir():
        subprocess.run(["mount", "-t", "debugfs", "debugfs", debugfs.parent], check=True)
    found = list(debugfs.glob(f"{pid}-*"))
    if len(found) != 1:
        raise BenchError(f"KVM has {len(found)} VMs of process {pid}")
    return {name: int((found[0] / name).read_text()) for name in COUNTERS if (found[0] / name).exists()}


def parsed(line: str) -> tuple[str, float] | None:
    """What a line of the guest's has measured."""
    name, _, rest = line.partition(" ")
    if name not in MEASURED:
        return None
    if name.startswith("ping"):
        match = re.search(r"min/avg/max = [\d.]+/([\d.]+)/", rest)
        return None if match is None else (name, 1000 * float(match[1]))
    return (name, float(rest)) if re.fullmatch(r"\d+", rest) else None


class Contender:
    """A monitor: its command, and what its guests have measured, a value a round."""

    def __init__(self, name: str, command: list[str | Path]) -> None:
        self.name = name
        self.command = command
        self.values: dict[str, list[float]] = {name: [] for name in MEASURED}
        self.exits: list[dict[str, float]] = []
        """A second, while nvme reads one at a time."""

    def run(self) -> float:
        begun: tuple[float, dict[str, int]] = (0.0, {})
        found: dict[str, float] = {}
        output: list[str] = []
        words = [str(word) for word in self.command]
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            for text in process.stdout:
                line = text.strip()
                output.append(line)
                if line == "mark begin":
                    begun = time.monotonic(), counters(process.pid)
                elif line == "mark end":
                    seconds, now = time.monotonic() - begun[0], counters(process.pid)
                    self.exits.append({name: (now[name] - begun[1][name]) / seconds for name in now})
                elif (one := parsed(line)) is not None:
                    found[one[0]] = one[1]
                elif line.startswith("pyvmm guest: exit"):
                    break
            process.terminate()
        if found.keys() != MEASURED.keys():
            raise BenchError(f"{self.name}: the guest measured {', '.join(found) or 'nothing'}: {output[-8:]}")
        for name, value in found.items():
            self.values[name].append(value)
        return found["depth-1"]


def contenders(initrd: Path) -> list[Contender]:
    guest = "console=ttyS0 quiet panic=-1 pyvmm.run=/bin/bench"
    ours: list[str | Path] = [PYTHON, "-m", "pyvmm", "run", "-k", KERNEL, "-i", initrd, "-p", guest, "-m", "256M"]
    ours += ["--virtio-input", "none"]
    qemu: list[str | Path] = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "256"]
    qemu += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    qemu += ["-kernel", KERNEL, "-initrd", initrd, "-append", guest]
    for place in (EDU, NIC, NVME):
        ours += ["--device", f"vfio,host={place}"]
        qemu += ["-device", f"vfio-pci,host={place}"]
    return [Contender(OURS, ours), Contender(QEMU, qemu)]


def report(ours: Contender, other: Contender) -> str:
    rows = []
    for name, (what, more) in MEASURED.items():
        mine, theirs = ours.values[name], other.values[name]
        ratio = paired_ratio(mine, theirs) if more else paired_ratio(theirs, mine)
        rows.append([what, spread(mine, 0), spread(theirs, 0), f"{ratio:.2f}"])
    text = table(["median (least–most)", OURS, QEMU, "pyvmm's speed, times QEMU's (goal: 0.95)"], rows)
    exits = [
        [name, *(spread([one[name] for one in contender.exits], 0) for contender in (ours, other))]
        for name in COUNTERS
        if all(name in one for contender in (ours, other) for one in contender.exits)
    ]
    return f"{text}\n\nExits a second while nvme reads one at a time:\n\n" + table(["", OURS, QEMU], exits)


def prepare() -> None:
    """What must be there before the lab is."""
    for name in ("reads", "intx", "msix"):
        compiled(name, "-static")
    subprocess.run(["truncate", "-s", "64M", DISK], check=True)


def measure(rounds: int) -> str:
    pci = Pci()
    for place in (EDU, NIC, NVME):
        pci.bind(place)
    with tempfile.TemporaryDirectory() as directory:
        initrd = Path(directory) / "initrd"
        image = with_file(INITRAMFS.read_bytes(), SCRIPT.encode(), "bin/bench")
        for name in ("intx", "msix"):
            image = with_file(image, compiled(name, "-static").read_bytes(), f"bin/{name}")
        initrd.write_bytes(image)
        ours, other = contenders(initrd)
        runs: dict[str, Callable[[], float]] = {one.name: one.run for one in (ours, other)}
        in_turn(runs, rounds, say)
    return report(ours, other)
