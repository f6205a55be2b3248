"""What is behind /dev/kvm, on hosts that a folder of files stands for; and which files are Linux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_cffi import CpuidEntry
from pyvmm.cli.backend import backend, is_linux

VMX = [CpuidEntry(1, ecx=1 << 5)]
SVM = [CpuidEntry(0x8000_0001, ecx=1 << 2)]


@pytest.mark.parametrize(
    ("cpuinfo", "modules", "supported", "says"),
    [
        ("flags : fpu vmx sse", ["kvm", "kvm_intel"], [], "hardware (vmx, kvm_intel)"),
        ("flags : fpu svm sse", ["kvm", "kvm_amd"], [], "hardware (svm, kvm_amd)"),
        ("flags : fpu svm", [], [], "hardware (svm, vendor module built in)"),
        ("flags : fpu sse", ["kvm", "kvm_intel"], [], "hardware (vmx, kvm_intel)"),
        ("flags : fpu sse", ["kvm"], VMX, "hardware (vmx, vendor module built in)"),
        (None, [], SVM, "hardware (svm, vendor module built in)"),
        ("flags : fpu sse", ["kvm"], [], "software-backed (neither vmx nor svm)"),
        ("flags : fpu sse", ["kvm", "kvm_pvm"], [], "software-backed (kvm_pvm, neither vmx nor svm)"),
        ("flags : fpu vmxx\nvmx flags : vnmi vmx\nmodel name : a vmx svm", [], [], "software-backed"),
        ("", [], [], "software-backed"),
        (None, [], [], "software-backed"),
    ],
)
def test_backend(
    tmp_path: Path, cpuinfo: str | None, modules: list[str], supported: list[CpuidEntry], says: str
) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{cpuinfo}\n")
    for module in modules:
        (tmp_path / "module" / module).mkdir(parents=True)
    found = backend(lambda: supported, tmp_path, tmp_path)
    assert found.text.startswith(says) and found.hardware == says.startswith("hardware")


BZIMAGE = bytes(0x202) + b"HdrS" + bytes(100)


@pytest.mark.parametrize(
    ("content", "linux"),
    [
        (BZIMAGE, True),
        (BZIMAGE[:0x205], False),
        (b"\x7fELF" + bytes(100_000) + b"Linux version 6.1", True),
        (b"\x7fELF" + bytes(100_000), False),
        (b"MZ" + bytes(5000) + b"Linux version 6.1", False),
        (b"", False),
    ],
)
def test_is_linux(tmp_path: Path, content: bytes, linux: bool) -> None:
    (tmp_path / "kernel").write_bytes(content)
    assert is_linux(tmp_path / "kernel") == linux


@given(st.binary(max_size=600))
def test_any_bytes_are_linux_or_not(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "kernel"
    for start in (b"", b"\x7fELF"):
        file.write_bytes(start + content)
        assert is_linux(file) in (True, False)


@pytest.mark.usefixtures("no_wait")
def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not any(is_linux(tmp_path / name) for name in ("pipe", "nothing", "."))
