"""What is behind /dev/kvm: a processor with VMX or SVM, or software; and what does not boot where it is software.

A KVM without the two (kvm_pvm, in a virtual machine whose host gives no nested virtualization) runs much of a guest in
its instruction emulator, which ends or loses a kernel that it does not know. Each of three witnesses is enough to take
it for hardware, for each may be hidden: the flags in /proc/cpuinfo by a container, the module by a kernel that has it
built in, the bits in the CPUID that KVM offers by nested=0.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from kvm_cffi import CpuidEntry
from pyvmm.units import MIB
from pyvmm.vcpu.features import present

MODULES: Final = {"kvm_intel": "vmx", "kvm_amd": "svm"}
INSTEAD: Final = (
    "what it takes is a processor with VMX or SVM switched on, nested virtualization in a virtual machine, or a Linux "
    "under `qemu-system-x86_64 -accel tcg -cpu max`"
)
NO_LINUX: Final = f"KVM is software-backed here: small guests run (`pyvmm guests`), Linux does not boot; {INSTEAD}"
_BANNER: Final = b"Linux version "
_BANNER_WITHIN: Final = 64 * MIB


class Backend(NamedTuple):
    hardware: bool
    text: str


def backend(supported: Callable[[], list[CpuidEntry]], sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Backend:
    """What runs KVM's guests; *supported* gives what KVM_GET_SUPPORTED_CPUID does."""
    modules = [name for name in MODULES if (sys / "module" / name).is_dir()]
    flags = _flags(proc / "cpuinfo") & set(MODULES.values())
    if not flags:
        flags = {MODULES[name] for name in modules} or present(supported()) & set(MODULES.values())
    if flags:
        return Backend(True, f"hardware ({', '.join(sorted(flags))}, {', '.join(modules) or 'vendor module built in'})")
    software = "kvm_pvm, " if (sys / "module/kvm_pvm").is_dir() else ""
    return Backend(False, f"software-backed ({software}neither vmx nor svm): small guests run, Linux does not boot")


def _flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def is_linux(kernel: Path) -> bool:
    """Whether a file is a Linux kernel: a bzImage, or an ELF file with Linux' banner. What is no file is not read."""
    from pyvmm.boot.bzimage import HEADER_MAGIC  # who boots no kernel does not wait for its loaders
    from pyvmm.boot.elf import ELF_MAGIC

    try:
        if not kernel.is_file():
            return False
        with open(kernel, "rb") as file:
            head = file.read(0x206)
            if head[0x202:] == HEADER_MAGIC:
                return True
            if head[:4] != ELF_MAGIC:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return data.find(_BANNER, 0, _BANNER_WITHIN) >= 0
    except OSError:
        return False
