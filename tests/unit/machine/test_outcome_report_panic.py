"""How a guest ended: the exit status, the panic on its console, and the report's words."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvm_cffi import ExitRecord, KvmError, Regs, Segment, Sregs, Translation, constants
from pyvmm.machine.outcome import EXIT_STATUS_HELP, STATUS, End, Outcome
from pyvmm.machine.panic import LINE_LIMIT, PanicWatch
from pyvmm.memory import GuestMemory
from pyvmm.vcpu.report import code_at, describe_exit, describe_mode, vcpu_report

# Outcome


def test_exit_statuses() -> None:
    assert {end: Outcome(end).status for end in STATUS} == STATUS
    assert [Outcome(End.DEBUG_EXIT, v).status for v in (0, 1, 94, 95, 96, 255)] == [16, 17, 110, 111, 111, 111]
    assert [Outcome(End.SIGNAL, n).status for n in (1, 2, 15)] == [129, 130, 143]
    assert [Outcome(End.COMMAND, n).status for n in (0, 1, 255)] == [0, 1, 255]


def test_every_end_has_a_status_of_its_own() -> None:
    statuses = [Outcome(end).status for end in End if end not in (End.SIGNAL, End.SAVED, End.COMMAND)]
    assert len(set(statuses)) == len(statuses)
    assert not {1, 2} & set(statuses), "a bug's and the user's"
    assert all(0 <= status < 126 for status in statuses), "the shell's begin there"


def test_help_names_each_status() -> None:
    shown = {int(n) for n in re.findall(r"^ +(\d+)", EXIT_STATUS_HELP, re.M)}
    assert {Outcome(end).status for end in End if end is not End.SIGNAL} <= shown


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (Outcome(End.DEBUG_EXIT, 7), "debug-exit 7"),
        (Outcome(End.SIGNAL, 15), "signal 15"),
        (Outcome(End.QUIT), "quit"),
        (Outcome(End.RESET, message="port 0x64"), "reset: port 0x64"),
        (Outcome(End.TRIPLE_FAULT, message="vCPU 1"), "triple fault: vCPU 1"),
    ],
)
def test_in_words(outcome: Outcome, text: str) -> None:
    assert str(outcome) == text


# Panic

REASON = "Kernel panic - not syncing: Attempted to kill init!"


@pytest.mark.parametrize(
    "line",
    [
        REASON,
        f"[    1.234567] {REASON}",
        f"[   12.3][    T1] {REASON}",
        f"<0>[    0.000000] {REASON}",
        f"<0>{REASON}",
        f"---[ end {REASON} ]---",
        f"[    1.234567][    C1] ---[ end {REASON} ]---",
        f"---[ end {REASON}",
        f"Ker\r\nernel panic - not syncing: Attempted to kill init!\n---[ end {REASON} ]---",
        f"\x1b[0;31m[    1.234567] {REASON}\x1b[m",
        f"\x1b7\x1b[K{REASON}",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_panic_is_seen(line: str, end: str) -> None:
    watch = PanicWatch()
    watch.feed(f"some line{end}{line}{end}".encode())
    assert watch.message == REASON


@pytest.mark.parametrize(
    "line",
    [
        f"dmesg says: {REASON}",
        f"$ echo {REASON}",
        "Kernel panic",
        f"# grep '{REASON}' log",
        "kernel panic - not",
        f"---[ end {REASON.lower()} ]---",
        f"--[ end {REASON} ]---",
    ],
)
def test_a_line_that_only_speaks_of_one_is_none(line: str) -> None:
    watch = PanicWatch()
    watch.feed(line.encode() + b"\n")
    assert watch.message == ""


def test_not_before_the_line_has_ended() -> None:
    watch = PanicWatch()
    watch.feed(REASON.encode())
    assert watch.message == ""
    watch.feed(b"\n")
    assert watch.message == REASON


def test_the_first_line_says_as_much_as_the_last() -> None:
    watch = PanicWatch()
    watch.feed(f"{REASON} ]\r\n".encode())
    assert watch.message == f"{REASON} ]"
    watch.feed(f"---[ end {REASON} ] ]---\r\n".encode())
    assert watch.message == f"{REASON} ]"


@given(st.text())
@example("\x1b]0;title\x07\x1b[2J\x9b31m\x7f\u202e\u2028\udcff")
def test_an_outcome_is_fit_to_be_printed(words: str) -> None:
    """Whatever it comes from: the console's panic, a device's exception, KVM."""
    for end in End:
        outcome = Outcome(end, message=words, report=words)
        assert str(outcome).isprintable() and all(line.isprintable() for line in outcome.report.split("\n"))
        if words.isprintable():
            assert outcome.message == outcome.report == words


@given(st.binary(max_size=60))
def test_a_panic_with_anything_in_it(words: bytes) -> None:
    watch = PanicWatch()
    watch.feed(b"Kernel panic - not syncing: " + words + b"\n")
    assert Outcome(End.PANIC, message=watch.message).message.isprintable()


@given(st.lists(st.binary(max_size=40)), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_how_output_is_cut_does_not_matter(lines: list[bytes], cut: int) -> None:
    text = b"\n".join([*lines, b"", REASON.encode(), b"", *lines])
    whole, pieces = PanicWatch(), PanicWatch()
    whole.feed(text)
    for i in range(0, len(text), cut):
        pieces.feed(text[i : i + cut])
    assert whole.message == pieces.message == REASON


def test_a_line_without_end_takes_no_memory() -> None:
    watch = PanicWatch()
    for _ in range(100):
        watch.feed(b"x" * 1000)
    assert len(watch._line) == LINE_LIMIT


# Report


def sregs(cr0: int = 0, efer: int = 0, cs_l: int = 0, cs_db: int = 0, dpl: int = 0) -> Sregs:
    return Sregs(cr0=cr0, efer=efer, cs=Segment(l=cs_l, db=cs_db), ss=Segment(dpl=dpl))


@pytest.mark.parametrize(
    ("state", "rflags", "mode"),
    [
        (sregs(), 2, "real mode"),
        (sregs(cr0=1), 2, "16-bit protected mode, paging off, CPL 0"),
        (sregs(cr0=1, cs_db=1), 2, "32-bit protected mode, paging off, CPL 0"),
        (sregs(cr0=1 | 1 << 31, cs_db=1, dpl=3), 2, "32-bit protected mode, paging on, CPL 3"),
        (sregs(cr0=1 | 1 << 31), 2 | 1 << 17, "virtual-8086 mode"),
        (sregs(cr0=1 | 1 << 31, efer=0x500, cs_l=1), 2, "64-bit long mode, paging on, CPL 0"),
        (sregs(cr0=1 | 1 << 31, efer=0x500, cs_db=1, dpl=3), 2, "compatibility mode, paging on, CPL 3"),
    ],
)
def test_modes(state: Sregs, rflags: int, mode: str) -> None:
    assert describe_mode(state, rflags) == mode


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (ExitRecord(0, constants.KVM_EXIT_IO, 0x3F8, 1, 1, True, 0x41), "KVM_EXIT_IO        out 0x03f8 size 1, 0x41"),
        (ExitRecord(0, constants.KVM_EXIT_IO, 0x60, 1, 1, False, 0x1E), "KVM_EXIT_IO        in  0x0060 size 1, 0x1e"),
        (
            ExitRecord(0, constants.KVM_EXIT_IO, 0x5000, 4, 256, True, 1),
            "KVM_EXIT_IO        out 0x5000 size 4 x256, 0x1",
        ),
        (
            ExitRecord(0, constants.KVM_EXIT_MMIO, 0xD0000000, 8, 1, True, 5),
            "KVM_EXIT_MMIO      write 0xd0000000 size 8, 0x5",
        ),
        (
            ExitRecord(0, constants.KVM_EXIT_MMIO, 0xD0000000, 4, 1, False, 5),
            "KVM_EXIT_MMIO      read 0xd0000000 size 4, 0x5",
        ),
        (ExitRecord(0, constants.KVM_EXIT_SHUTDOWN, 0, 0, 0, False, 0), "KVM_EXIT_SHUTDOWN"),
        (ExitRecord(0, 4711, 0, 0, 0, False, 0), "KVM_EXIT 4711"),
    ],
)
def test_exits(record: ExitRecord, text: str) -> None:
    assert describe_exit(record) == text


class FakeVcpu:
    """A vCPU whose page tables map everything below 2 MiB to itself, but 0x3000."""

    id = 1
    exits = 2

    def translate(self, linear: int) -> Translation:
        if linear >= 1 << 48:
            raise KvmError(22, "KVM_TRANSLATE")
        return Translation(linear, linear < 0x200000 and linear >> 12 != 3, True, False)

    def get_regs(self) -> Regs:
        return Regs(rax=0x1234, rip=0x10, rflags=0x246)

    def get_sregs(self) -> Sregs:
        return Sregs(cr0=0x10, cs=Segment(base=0x1000, selector=0x100))

    def last_exits(self) -> list[ExitRecord]:
        return [ExitRecord(1, constants.KVM_EXIT_HLT, 0, 0, 0, False, 0)]


def test_the_code_at_a_place() -> None:
    memory = GuestMemory([(0, memoryview(bytearray(range(256)) * 0x100))])
    vcpu = FakeVcpu()
    text = code_at(vcpu, memory, 0x2010)  # type: ignore[arg-type]
    assert text.startswith("00 01 02 ")
    assert "0f [10] 11" in text
    assert len(text.split()) == 32
    assert code_at(vcpu, memory, 0x3000).split()[15:18] == ["ff", "[??]", "??"]  # type: ignore[arg-type]
    assert code_at(vcpu, memory, 0x100000).split() == ["??"] * 16 + ["[??]"] + ["??"] * 15, "no RAM"  # type: ignore[arg-type]


def test_code_at_the_ends_of_the_address_space() -> None:
    memory = GuestMemory([(0, memoryview(bytearray(4096)))])
    for linear in (0, 5, (1 << 64) - 1, 1 << 63, (1 << 32) - 1):
        assert len(code_at(FakeVcpu(), memory, linear).split()) == 32  # type: ignore[arg-type]


def test_the_report_of_a_vcpu() -> None:
    memory = GuestMemory([(0, memoryview(bytearray(range(256)) * 0x100))])
    report = vcpu_report(FakeVcpu(), memory, b"\xd9\x03")  # type: ignore[arg-type]
    lines = report.splitlines()
    assert lines[0] == "vCPU 1: real mode"
    assert "RAX 0000000000001234" in lines[1]
    assert "RIP 0000000000000010  RFLAGS 00000246 [PF ZF IF]" in report
    assert " CS 0100 base 0000000000001000" in report
    assert "code at 0x1010: 00 01 02" in report
    assert "instruction that KVM could not emulate: d9 03" in report
    assert lines[-2:] == ["last exits of 2:", "         1 KVM_EXIT_HLT"]
    assert "could not emulate" not in vcpu_report(FakeVcpu(), memory)  # type: ignore[arg-type]
