"""How a guest ended: the exit status, and the panic on its console."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyvmm.machine.autopsy import PANIC_LINES, shortened
from pyvmm.machine.outcome import EXIT_STATUS_HELP, STATUS, End, Outcome
from pyvmm.machine.panic import LINE_LIMIT, LINES_KEPT, PanicWatch

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


OOPS = """\
[    9.0] some driver: hello
[   10.0] BUG: kernel NULL pointer dereference, address: 0000000000000000
[   10.1] Oops: 0002 [#1] PREEMPT SMP
[   10.2] RIP: 0010:edu_write+0x10/0x20 [edu]
[   10.3] Kernel panic - not syncing: Fatal exception
[   10.4] ---[ end Kernel panic - not syncing: Fatal exception ]---
"""


def test_the_kernels_own_text() -> None:
    watch = PanicWatch()
    assert watch.text() == []
    watch.feed(OOPS.replace("\n", "\r\n").encode())
    assert watch.text() == OOPS.splitlines()[1:]


def test_the_text_of_a_panic_alone() -> None:
    watch = PanicWatch()
    watch.feed(f"before\n\x1b[31m{REASON}\x1b[m\nCPU: 0 PID: 1 \x1b]0;x\x07\nend\n".encode())
    assert watch.text() == [REASON, "CPU: 0 PID: 1 \x1b]0;x\x07", "end"]


def test_there_is_none_without_a_panic() -> None:
    watch = PanicWatch()
    watch.feed(b"BUG: something\nmore\n")
    assert watch.text() == []


def test_a_long_text_fits_the_screen() -> None:
    lines = [f"line {n}" for n in range(100)]
    shown = shortened(lines)
    assert len(shown) == PANIC_LINES
    assert (shown[0], shown[-1]) == ("line 0", "line 99") and "… 77 lines …" in shown
    assert shortened(lines[:PANIC_LINES]) == lines[:PANIC_LINES]


def test_text_without_end_takes_no_memory() -> None:
    watch = PanicWatch()
    watch.feed(f"{REASON}\n".encode() + b"more\n" * 1000)
    assert len(watch._lines) == LINES_KEPT
