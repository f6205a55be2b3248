"""What vCPUs were doing, in words."""

from __future__ import annotations

from typing import Any

import pytest

from kvm_cffi import ExitRecord, constants
from pyvmm.report.activity import activities, activity, is_silent, sample_line
from pyvmm.report.cpu import Cpu
from pyvmm.report.elf_symbols import Symbol
from pyvmm.report.symbols import Symbols
from pyvmm.vcpu.sample import Sample
from tests.rig.paged import CODE, Paged

SYMBOLS = Symbols([Symbol(CODE, "delay", 0, True, True), Symbol(CODE + 0x40, "other", 0x10000, True, True)])


def cpu(number: int = 0, *, records: tuple[ExitRecord, ...] = (), rflags: int = 2, **changes: Any) -> Cpu:
    paged = Paged().code(b"\xf4")
    paged.regs.rflags = rflags
    return Cpu(number, paged.regs, paged.sregs, paged.memory, records=records, exits=len(records), **changes)


def silent(*offsets: int) -> list[Sample]:
    return [Sample(CODE + offset, 7) for offset in offsets]


@pytest.mark.parametrize(
    ("samples", "symbols", "words"),
    [
        (silent(0, 0, 0), None, "spins at 0x10000"),
        (silent(0, 4, 2), None, "spins in 0x10000-0x10004"),
        (silent(0, 4, 2), SYMBOLS, "spins in delay"),
        (silent(0, 0x50), SYMBOLS, "spins in 0x10000-0x10050"),
        (silent(0x50, 0x5000), SYMBOLS, "spins in other"),
        (silent(0, 0x5000), SYMBOLS, "runs without an exit"),
        ([Sample(CODE, 7), Sample(CODE, 8)], SYMBOLS, "runs at delay"),
        ([Sample(CODE, 7)], None, "runs at 0x10000"),
        ([], None, "runs at 0x10000"),
    ],
)
def test_a_vcpu_that_runs(samples: list[Sample], symbols: Symbols | None, words: str) -> None:
    assert activity(cpu(), samples, symbols) == words


def test_a_vcpu_that_does_not() -> None:
    assert activity(cpu(halted=True), [], None) == "halted with interrupts off"
    assert activity(cpu(halted=True, rflags=0x202), [], None) == "halted with interrupts on"
    assert activity(cpu(started=False), [], None) == "waits to be started"


def test_polling() -> None:
    port = ExitRecord(0, constants.KVM_EXIT_IO, 0x64, 1, 1, False, 0)
    register = ExitRecord(0, constants.KVM_EXIT_MMIO, 0xD0000000, 4, 1, False, 0)
    assert activity(cpu(records=(port,) * 8), [], SYMBOLS) == "polls port 0x64 at delay"
    assert activity(cpu(records=(register,) * 32), silent(0, 0), None) == "polls MMIO 0xd0000000 at 0x10000"
    for records in ((port,) * 7, (port, register) * 4, (port._replace(is_write=True),) * 8):
        assert activity(cpu(records=records), [], None) == "runs at 0x10000"


def test_all_of_them() -> None:
    cpus = [cpu(0), *(cpu(n, halted=True) for n in (1, 2, 3)), cpu(4, started=False), cpu(6, started=False)]
    assert activities(cpus, {0: silent(0, 0)}, SYMBOLS) == (
        "vCPU 0 spins in delay; vCPUs 1-3 halted with interrupts off; vCPUs 4, 6 waits to be started"
    )


def test_where_rip_was() -> None:
    assert is_silent(silent(1, 2)) and not is_silent(silent(1)) and not is_silent([Sample(1, 1), Sample(1, 2)])
    assert sample_line(silent(0, 0x44), SYMBOLS) == "RIP 2 times, no exit between: delay other+0x4"
    assert sample_line(silent(0, 0x44), None) == "RIP 2 times, no exit between: 0x10000 0x10044"
