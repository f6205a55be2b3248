"""What a test in the lab can ask of the machine around it, and where the guests are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("PYVMM_CACHE") or ROOT / ".cache")
PYVMM = ROOT / ".venv" / "bin" / "pyvmm"
GUESTS26 = Path(os.environ.get("PYVMM_GUESTS26") or ROOT.parent / "shared" / "guests26")

CLOUD_KERNEL = CACHE / "guest" / "vmlinuz-cloud"
TRIXIE_KERNEL = CACHE / "guest" / "vmlinuz-trixie"  # Debian 13's, 6.12
GENERIC_KERNEL = CACHE / "guest" / "vmlinuz-generic"
GENERIC_VMLINUX = CACHE / "lab" / "vmlinux"  # the same, unpacked: an ELF file with a PVH note
INITRAMFS = CACHE / "guest" / "initramfs.gz"  # busybox alone
DRIVER = CACHE / "guest" / "doubler.cpio"  # doubler.ko, to go behind another initial ramdisk
INITRAMFS_CLOUD = CACHE / "guest" / "initramfs-cloud.gz"  # and the modules that scripts/guest-images lists
INITRAMFS_GENERIC = CACHE / "guest" / "initramfs-generic.gz"
INITRAMFS_PCI = CACHE / "guest" / "initramfs-pci.gz"  # the cloud kernel's, with lspci and setpci
INITRAMFS_NET = CACHE / "guest" / "initramfs-net.gz"  # and virtio_net
INITRAMFS_LEGACY = CACHE / "guest" / "initramfs-legacy.gz"  # generic's, with ata_piix, sd, ext4 and ne2k-pci
INITRAMFS_PASSTHROUGH = CACHE / "guest" / "initramfs-passthrough.gz"  # generic's, for what the lab gives away

DEBIAN = CACHE / "guest" / "debian.img"  # a disk with Debian 12, its cloud kernel and GRUB; root has no password

PATIENT = "lpj=10000000"
"""For Linux 2.6 with an IO-APIC: each delay is some four times as long. It panics unless it sees four timer
ticks in 10 ms, and the lab on a busy host is slower."""


def monitor(line: str) -> str:
    """Give *line* to the monitor of the QEMU that is the lab; its answer. AssertionError where that is an error.

    `sendkey a` presses a key of the lab's PS/2 keyboard, `mouse_move 5 5` moves its mouse, `device_add …` plugs one in.
    """
    ran = subprocess.run([ROOT / "scripts" / "lab-monitor", line], capture_output=True, text=True, timeout=90)
    assert ran.returncode == 0, f"monitor: {line}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def kvm_statistics(pid: int, vm: int) -> Path:
    """The folder of KVM's counters of the VM that is descriptor *vm* of process *pid*, a file each (debugfs)."""
    debugfs = Path("/sys/kernel/debug")
    if not (debugfs / "kvm").is_dir():
        subprocess.run(["mount", "-t", "debugfs", "debugfs", debugfs], check=True)
    return debugfs / "kvm" / f"{pid}-{vm}"
