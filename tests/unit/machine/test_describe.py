"""How many physical address bits a guest has, where KVM can be asked and where it cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvm_cffi import CpuidEntry
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine import describe
from pyvmm.machine.describe import described, host_phys_bits


class FakeSystem:
    def get_supported_cpuid(self) -> list[CpuidEntry]:
        return [CpuidEntry(0), CpuidEntry(0x80000008, eax=0x3028)]

    def __enter__(self) -> FakeSystem:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_kvm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "open_kvm", FakeSystem)
    assert host_phys_bits() == 40
    with described(MachineConfig(guest="hello")) as board:
        assert board.phys_bits == 40
    with described(MachineConfig(guest="hello", cpu="host,phys-bits=36")) as board:
        assert board.phys_bits == 36
    wrong = MachineConfig(guest="hello", cpu="host,phys-bits=41")
    with pytest.raises(UserError, match="at most 40 bits on this host: ask for 32 to 40"), described(wrong):
        pass


def test_without_kvm_the_processor_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> FakeSystem:
        raise UserError("/dev/kvm does not exist")

    monkeypatch.setattr(describe, "open_kvm", refuse)
    found = re.search(r"address sizes\s*: (\d+) bits physical", Path("/proc/cpuinfo").read_text())
    assert found is not None and host_phys_bits() == int(found[1])
