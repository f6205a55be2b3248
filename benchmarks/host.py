"""The machine that was measured, in a line: processor, kernel, what runs KVM's guests, Python. No names, no paths."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

HARDWARE = re.compile(r"^flags\s*:.* (vmx|svm)( |$)", re.MULTILINE)


def cpu_model(cpuinfo: str) -> str:
    """The first processor's model name."""
    found = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else "unknown processor"


def kvm_backend(cpuinfo: str) -> str:
    """Whether the processor itself runs guests."""
    found = HARDWARE.search(cpuinfo)
    return f"KVM in hardware ({found[1]})" if found else "software-backed KVM (no vmx or svm)"


def python_build(maps: str) -> str:
    """The interpreter; one with a shared libpython, as version managers build it, is slower than a distribution's."""
    return f"Python {platform.python_version()}{' (shared libpython)' if 'libpython' in maps else ''}"


def describe() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    system = os.uname()
    count = os.cpu_count() or 1
    cpus = f"{count} CPU{'s' if count > 1 else ''}"
    python = python_build(Path("/proc/self/maps").read_text())
    return f"{cpu_model(cpuinfo)}, {cpus}, Linux {system.release}, {kvm_backend(cpuinfo)}, {python}"
