"""Who called: frame pointers, the scan, and stacks that hold anything."""

from __future__ import annotations

import pytest

from pyvmm.report.elf_symbols import Symbol
from pyvmm.report.stack import FRAMES, _ends_in_call, stack_lines
from pyvmm.report.symbols import Symbols
from tests.rig.paged import CODE, STACK, Paged, protected_cpu, real_cpu

CALL = 0x100
"""Where in the page of code a call ends; every 0x10 bytes from there on another one does."""
SYMBOLS = Symbols(
    [Symbol(CODE + CALL - 0x10 * 8, "caller", 0x800, True, True), Symbol(CODE + 0x900, "d", 0, False, True)]
)


def guest() -> Paged:
    paged = Paged().code(b"\xf4")
    for n in range(40):
        paged.memory.write(CODE + CALL + 0x10 * n - 5, b"\xe8\0\0\0\0")
    return paged


def push(paged: Paged, *words: int) -> None:
    for i, word in enumerate(words):
        paged.memory.write_int(STACK + 8 * i, 8, word)


def test_frame_pointers() -> None:
    paged = guest()
    paged.regs.rbp = STACK + 8
    push(paged, CODE + CALL + 0x50, STACK + 0x40, CODE + CALL, 0, 0, 0, 0, 0, 0, CODE + CALL + 0x10)
    assert stack_lines(paged.cpu(), SYMBOLS) == [
        "stack at 0x30000, by frame pointers:",
        "  0x10100 caller+0x80",
        "  0x10110 caller+0x90",
    ]


def test_frames_that_lead_in_a_circle() -> None:
    paged = guest()
    paged.regs.rbp = STACK
    push(paged, STACK, CODE + CALL)
    assert stack_lines(paged.cpu())[1:] == ["  0x10100"]


def test_a_scan() -> None:
    """RBP is a number, as in code without frame pointers."""
    paged = guest()
    paged.regs.rbp = 0x1234
    push(paged, 1, CODE + CALL, CODE + CALL + 3, 0xFFFF_0000_0000_0000, 0x7FFF_F000_1000, CODE + CALL + 0x20)
    assert stack_lines(paged.cpu(), SYMBOLS) == [
        "stack at 0x30000, by scan:",
        "  ? 0x10100 caller+0x80",
        "  ? 0x10120 caller+0xa0",
    ]
    assert stack_lines(paged.cpu()) == ["stack at 0x30000, by scan:", "  ? 0x10100", "  ? 0x10120"]


def test_only_known_code_where_there_are_symbols() -> None:
    paged = guest()
    push(paged, CODE + CALL)
    other = Symbols([Symbol(0x123456, "other", 0, True, True)])
    assert "?" not in "".join(stack_lines(paged.cpu(), other))


def test_no_more_lines_than_fit() -> None:
    paged = guest()
    push(paged, *(CODE + CALL + 0x10 * n for n in range(FRAMES + 5)))
    assert len(stack_lines(paged.cpu())) == FRAMES + 1


def test_a_stack_that_is_not_there() -> None:
    paged = guest()
    paged.regs.rsp = 0xDEADBEEF000
    assert stack_lines(paged.cpu()) == ["stack at 0xdeadbeef000: not present"]
    paged.regs.rsp = 0x40000
    paged.map(0x40000, 1 << 40)
    assert stack_lines(paged.cpu()) == ["stack at 0x40000: no RAM there"]


def test_plain_words() -> None:
    cpu = real_cpu()
    cpu.memory.write(0x7C00, bytes(range(24)))
    assert stack_lines(cpu)[0].startswith("stack at 0x7c00: 0100 0302 0504 ")
    assert stack_lines(protected_cpu())[0].startswith("stack at 0x7c00: 000000f4 00000000 ")


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("0000 e800000000", True),
        ("00000000 00 ffd0", True),
        ("00000000 41 ffd3", True),
        ("0000 0000 ff5008", True),
        ("00 ff9000100000", True),
        ("00 ff1500100000", True),
        ("ff9424 00100000", True),
        ("000000 ff542408", True),
        ("00000000 ff1424", True),
        ("00000000 00 ffe0", False),
        ("000000 00 ff5008 "[:14], False),
        ("90909090909090", False),
        ("e800000000", False),
    ],
)
def test_calls(code: str, call: bool) -> None:
    assert _ends_in_call(bytes.fromhex(code)) == call
