"""What is told when a guest of a few instructions dies or spins, and of registers that KVM refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kvm_cffi import Segment, Sregs
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from pyvmm.vcpu.paging import CR0_PG, CR4_PAE, EFER_LMA
from pyvmm.vcpu.registers import set_sregs
from tests.rig.board import Board
from tests.rig.rig import SVM, Rig

BASE = 0x100000
NO_IDT = "0f011df9070000"  # lidt [rip+0x7f9]: a limit and a base of 0, for there is nothing behind the code
LOST = "triple fault; its cause is lost: an AMD processor loses its state in a shutdown"


def run(tmp_path: Path, code: str, timeout: float = 250, **options: object) -> Outcome:
    """Code in long mode at 1 MiB, its stack below."""
    (tmp_path / "code").write_bytes(bytes.fromhex(code))
    fields = {"memory": 16 * MIB, "kernel": tmp_path / "code", "flat": f"64@{BASE:#x}", **options}
    with Board(MachineConfig(**fields)) as machine:  # type: ignore[arg-type]
        return machine.run(timeout)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        # mov rax, 0xdeadbeef000; then mov [rax], rbx; mov rbx, [rax]; jmp rax; mov rsp, rax and push rax
        ("48b800f0eedbea0d0000 488918", "#PF writing 0xdeadbeef000 (not present) at RIP {rip}, no IDT: triple fault"),
        ("48b800f0eedbea0d0000 488b18", "#PF reading 0xdeadbeef000 (not present) at RIP {rip}, no IDT: triple fault"),
        ("48b800f0eedbea0d0000 ffe0", "#PF fetching 0xdeadbeef000 (not present) at RIP 0xdeadbeef000, no IDT: triple"),
        ("48b800f0eedbea0d0000 4889c4 50", "#PF writing the stack at 0xdeadbeeeff8 (not present) at RIP {rip}, no IDT"),
        # the same with 0xdeadbeef0000000, which is not canonical
        ("48b80000f0eedbea0d00 488b18", "#GP reading 0xdeadbeef00000 (not canonical) at RIP {rip}, no IDT"),
        ("31c9 48f7f1", "#DE (div by 0) at RIP {rip}, no IDT"),
        ("0f0b", "#UD (ud2) at RIP {rip}, no IDT"),
    ],
)
def test_the_cause_of_a_triple_fault(tmp_path: Path, code: str, cause: str) -> None:
    outcome = run(tmp_path, f"{NO_IDT} {code}")
    assert outcome.end is End.TRIPLE_FAULT
    lines = outcome.report.splitlines()
    if SVM:
        assert lines[0] == LOST
        return
    last = {"ffe0": 0, "4889c4 50": 1}.get(code[21:], 2 if code == "0f0b" else 3)
    rip = BASE + len(bytes.fromhex(f"{NO_IDT} {code}")) - last
    assert lines[0].startswith(cause.format(rip=f"{rip:#x}"))
    assert len(lines) < 40 and all(len(line) <= 100 for line in lines)
    if "48b800f0ee" in code:
        assert any(line.startswith("CR2 0xdeadbee") and "> not present" in line for line in lines)


def test_serial_bytes_are_joined_and_never_raw(tmp_path: Path) -> None:
    text = b"dying\x1b[2J\r\n"
    out = "".join(f"b0{byte:02x}ee" for byte in text)
    outcome = run(tmp_path, f"ba f8030000 {out} {NO_IDT} 0f0b")
    assert "KVM_EXIT_IO        out 0x03f8 'dying\\x1b[2J\\r\\n'" in outcome.report
    assert "\x1b" not in outcome.report


def test_a_guest_that_spins(tmp_path: Path) -> None:
    (tmp_path / "map").write_text(f"{BASE:016x} T _start\n{BASE + 1:016x} t forever\n")
    outcome = run(tmp_path, "90 f390 ebfc", timeout=0.5, symbols=tmp_path / "map")
    assert outcome.end is End.TIMEOUT
    lines = outcome.report.splitlines()
    assert lines[0] == "vCPU 0 spins in forever"
    assert re.fullmatch(r"RIP 5 times, no exit between:( forever(\+0x2)?){5}", lines[1])
    assert re.search(r"^code at 0x10000[13] forever(\+0x2)?:$", outcome.report, re.MULTILINE)
    assert f"symbols: {tmp_path / 'map'}, as linked" in lines


def test_a_guest_that_polls(tmp_path: Path) -> None:
    outcome = run(tmp_path, "e464 ebfc", timeout=0.5)
    assert re.match(r"vCPU 0 polls port 0x64 at 0x10000[02]$", outcome.report, re.MULTILINE)
    assert "RIP 5 times" not in outcome.report


@pytest.mark.parametrize("irqchip", ["kernel", "user"])
def test_a_guest_that_has_halted(tmp_path: Path, irqchip: str) -> None:
    outcome = run(tmp_path, "fa f4 ebfc", timeout=0.5, irqchip=irqchip)
    assert outcome.report.startswith("vCPU 0 halted with interrupts off\n")


def test_a_paused_machine_times_out(tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(bytes.fromhex("ebfe"))
    with Board(MachineConfig(memory=16 * MIB, kernel=tmp_path / "code", flat=f"64@{BASE:#x}")) as machine:
        machine.pause()
        outcome = machine.run(0.3)
    assert outcome.end is End.TIMEOUT and outcome.report


# Registers that KVM refuses

LONG = Sregs(cr0=CR0_PG | 1, cr4=CR4_PAE, efer=0x500)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cr4": CR4_PAE | 1 << 40}, "CR4.bit 40 needs what no CPUID offers"),
        ({"cr4": 0}, "long mode (EFER.LME with CR0.PG) needs CR4.PAE and EFER.LMA"),
        ({"efer": EFER_LMA, "cr0": 1}, "EFER.LMA and CS.L are of long mode"),
        ({"efer": 0, "cr0": 1, "cs": Segment(l=1)}, "EFER.LMA and CS.L are of long mode"),
        ({"cr0": CR0_PG | 1 | 1 << 29}, "CR0 0xa0000001: bit 29 does not go with the others"),
    ],
)
def test_registers_that_kvm_refuses(change: dict[str, object], says: str) -> None:
    with Rig() as rig:
        rig.code("f4", mode="long")
        wanted = replace(rig.vcpu.get_sregs(), **{"cr0": LONG.cr0, "efer": LONG.efer, **change})  # type: ignore[arg-type]
        with pytest.raises(UserError) as caught:
            set_sregs(rig.vcpu, wanted)
    assert str(caught.value).startswith("vCPU 0: KVM refuses its registers (KVM_SET_SREGS: Invalid argument): ")
    assert says in str(caught.value)
