"""What vCPUs were doing, in words."""

from __future__ import annotations

from typing import Any

import pytest

from kvm_cffi import ExitRecord, constants
from pyvmm.report.activity import activities, activity, sample_line, silent
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


def looks(*offsets: int) -> list[Sample]:
    return [Sample(CODE + offset, 7) for offset in offsets]


@pytest.mark.parametrize(
    ("samples", "symbols", "words"),
    [
        (looks(0, 0, 0), None, "spins at 0x10000"),
        (looks(0, 4, 2), None, "spins in 0x10000-0x10004"),
        (looks(0, 4, 2), SYMBOLS, "spins in delay"),
        (looks(0, 4, 2, 0x5000, 0x5000), SYMBOLS, "spins in delay"),
        (looks(0, 0x50, 4, 0x60), SYMBOLS, "spins in 0x10000-0x10060"),
        (looks(0x50, 0x5000, 0x80), SYMBOLS, "spins in other"),
        (looks(0, 0x5000, 0x80000), SYMBOLS, "runs without an exit"),
        (looks(0, 0x5000, 0x80), None, "runs without an exit"),
        ([Sample(CODE + 0x60, 6), *looks(0, 0, 0)], SYMBOLS, "spins in delay"),
        ([Sample(CODE, 6), *looks(0)], SYMBOLS, "runs at delay"),
        ([Sample(CODE + n, n) for n in range(4)], SYMBOLS, "runs in delay"),
        ([*looks(0x50, 0x50, 0x50, 0x50), *(Sample(CODE + n, n) for n in range(6))], SYMBOLS, "runs in delay"),
        ([Sample(CODE + n, n) for n in range(4)], None, "runs at 0x10000"),
        (looks(0), None, "runs at 0x10000"),
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
    assert activity(cpu(records=(register,) * 32), looks(0, 0, 0), None) == "polls MMIO 0xd0000000 at 0x10000"
    for records in ((port,) * 7, (port, register) * 4, (port._replace(is_write=True),) * 8):
        assert activity(cpu(records=records), [], None) == "runs at 0x10000"


def test_all_of_them() -> None:
    cpus = [cpu(0), *(cpu(n, halted=True) for n in (1, 2, 3)), cpu(4, started=False), cpu(6, started=False)]
    assert activities(cpus, {0: looks(0, 0, 0)}, SYMBOLS) == (
        "vCPU 0 spins in delay; vCPUs 1-3 halted with interrupts off; vCPUs 4, 6 waits to be started"
    )


def test_where_rip_was() -> None:
    still = looks(0, 0x44, 0)
    assert list(silent([Sample(CODE, 1), *still])) == still
    assert not silent(looks(0, 0)) and not silent([]) and not silent([Sample(CODE, n) for n in range(5)])
    assert sample_line(still, SYMBOLS) == "RIP 3 times, no exit between: delay other+0x4 delay"
    assert sample_line(still, None) == "RIP 3 times, no exit between: 0x10000 0x10044 0x10000"
