"""What a guest finds of a BIOS on a board that has none: vectors, data area, PIC and PIT as a BIOS leaves them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvmm.config import MachineConfig
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from tests.rig.board import Board
from tests.rig.images import make_elf, multiboot_header

IRQCHIPS = ("kernel", "split", "user")
END = "b0 00 e6 f4 f4"  # mov al,0; out 0xf4,al; hlt
START = "31c0 8ed8 8ed0 bc0070"  # DS and SS 0, SP 7000


@contextmanager
def boot_sector(tmp_path: Path, code: str, **options: object) -> Iterator[Board]:
    """A machine with *code*, as an assembler's listing has it, at 0000:7C00."""
    path = tmp_path / "sector"
    path.write_bytes(bytes.fromhex(code))
    fields = {"memory": MIB, "flat": "real", **options}
    with Board(MachineConfig(kernel=path, **fields)) as board:  # type: ignore[arg-type]
        yield board


def ends(tmp_path: Path, code: str, **options: object) -> Outcome:
    with boot_sector(tmp_path, code, **options) as board:
        return board.finish()


def test_a_call_of_the_bios_ends_with_what_was_called(tmp_path: Path) -> None:
    """A boot sector's print: mov ah,0x0e; mov bx,7; int 0x10."""
    outcome = ends(tmp_path, f"{START} be0000 acb40e bb0700 cd10")
    assert (outcome.end, outcome.status) == (End.NO_BIOS, 9)
    assert outcome.message == "INT 10h (AH=0e) from 0000:7c14: there is no BIOS here"
    assert outcome.report == ""


@pytest.mark.parametrize("vector", [0x11, 0x13, 0x15, 0x16, 0x19, 0x1A, 0x40, 0x20, 0x21])
def test_every_service(tmp_path: Path, vector: int) -> None:
    outcome = ends(tmp_path, f"b442 cd{vector:02x}")
    system = "DOS" if vector in (0x20, 0x21) else "BIOS"
    assert outcome.message == f"INT {vector:02x}h (AH=42) from 0000:7c04: there is no {system} here"


@pytest.mark.parametrize(
    ("code", "message", "rip"),
    [
        ("b442 0f0b", "exception 06h (#UD, invalid opcode) at 0000:7c02", "7c02"),
        ("31c9 f7f1", "exception 00h (#DE, divide error) at 0000:7c02", "7c02"),
    ],
    ids=["ud", "de"],
)
def test_an_exception_that_nobody_handles(tmp_path: Path, code: str, message: str, rip: str) -> None:
    """The registers told of are those where it happened."""
    outcome = ends(tmp_path, code)
    assert outcome.end is End.NO_BIOS
    assert outcome.message == f"{message}: the guest has no handler, and there is no BIOS here"
    assert f"RIP {rip:0>16}" in outcome.report and " CS 0000" in outcome.report
    assert "RSP 0000000000007c00" in outcome.report


def test_an_exception_at_the_vector_of_an_interrupt(tmp_path: Path) -> None:
    """mov cr0,eax with paging but without protection is #GP, vector 0D, and IRQ 5 is not in service."""
    outcome = ends(tmp_path, "66b800000080 0f22c0 f4")
    assert outcome.message.startswith("exception 0dh (#GP, general protection) at 0000:7c06")


def test_a_guest_with_handlers_of_its_own_is_left_alone(tmp_path: Path) -> None:
    handler = 0x7C00 + len(bytes.fromhex(f"{START} c70640000000 c70642000000 cd10 {END}"))
    low = handler.to_bytes(2, "little").hex()
    outcome = ends(tmp_path, f"{START} c7064000{low} c70642000000 cd10 {END} cf")
    assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)


def test_the_command_alone_does_nothing(tmp_path: Path) -> None:
    """mov al,0xb1; out 0xb2,al, by somebody else."""
    assert ends(tmp_path, f"b0b1 e6b2 {END}").end is End.DEBUG_EXIT


def test_a_jump_to_the_reset_vector_resets(tmp_path: Path) -> None:
    assert ends(tmp_path, "ea0000ffff", no_reboot=True).end is End.RESET


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_after_a_reset_all_is_as_it_was(tmp_path: Path, irqchip: str) -> None:
    """The first time it masks all interrupts, stops the PIT, destroys data area and vectors and jumps to the reset
    vector; the second time it prints what it finds, and waits for a tick."""
    spoil = "c606000601 b0ff e621 e6a1 b030 e643 31c0 a30004 a34000 a34200 a32000 ea0000ffff"
    find = f"e421 e6e9 e4a1 e6e9 a00004 e6e9 a04100 e6e9 bc0070 fb f4 fa a06c04 e6e9 {END}"
    length = len(bytes.fromhex(spoil))
    code = f"31c0 8ed8 8ed0 803e000601 74{length:02x} {spoil} {find}"  # cmp byte [0x600],1; je over
    with boot_sector(tmp_path, code, irqchip=irqchip) as board:
        outcome = board.finish()
        assert outcome.end is End.DEBUG_EXIT, outcome
        assert board.output[:4] == b"\xf8\xce\xf8\xe0"
        assert 1 <= board.output[4] < 0x80, "ticks since the reset: one, or more where the guest is slow"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_timer_runs_and_its_interrupt_is_ended(tmp_path: Path, irqchip: str) -> None:
    """Prints both masks of the PICs, halts until the data area counts three ticks, and calls handlers that return."""
    code = (
        f"e421 e6e9 e4a1 e6e9 {START} fb"  # in al,0x21; out 0xe9,al; in al,0xa1; out 0xe9,al; sti
        "f4 833e6c0403 72f8 fa"  # hlt; cmp word [0x46c],3; jb to the hlt; cli
        f"cd70 cd75 cd77 cd0f cd1c cd1b cd4a cd33 {END}"
    )
    with boot_sector(tmp_path, code, irqchip=irqchip) as board:
        outcome = board.finish()
        assert outcome.end is End.DEBUG_EXIT, outcome
        assert board.output == b"\xf8\xce"
        assert 3 <= board.memory.read_int(0x46C, 4) < 0x80, "three, or more where the guest is slow"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_second_pic_has_its_vectors(tmp_path: Path, irqchip: str) -> None:
    """A handler at vector 70 and the RTC's periodic interrupt: IRQ 8."""
    start = f"{START} c706c001{{}} c706c2010000 b00b e670 b042 e671 fb f4 ebfd"
    low = (0x7C00 + len(bytes.fromhex(start.format("0000")))).to_bytes(2, "little").hex()
    outcome = ends(tmp_path, f"{start.format(low)} {END}", irqchip=irqchip)
    assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)


def test_a_day_ends_after_1573040_ticks(tmp_path: Path) -> None:
    code = f"{START} 66c7066c04af001800 cd08"
    handler = f"{START} 66c7066c04af001800 fb f4 fa {END}"  # the last tick of the day; sti; hlt; cli
    with boot_sector(tmp_path, handler) as board:
        assert board.finish().end is End.DEBUG_EXIT
        assert board.memory.read_int(0x46C, 4) < 1000, "a new day, a tick or a few old"
        assert board.memory.read_int(0x470, 1) == 1
    message = ends(tmp_path, code).message
    assert message.startswith("INT 08h"), "called by the program, with no interrupt in service"


def test_the_first_serial_port_is_found_by_the_data_area(tmp_path: Path) -> None:
    """mov dx,[0x400]; mov al,'B'; out dx,al"""
    with boot_sector(tmp_path, f"{START} 8b160004 b042 ee {END}") as board:
        assert board.finish().end is End.DEBUG_EXIT
        assert board.output == b"B"


@pytest.mark.parametrize("mode", ["32", "64", "linux32", "multiboot", "guest"])
def test_every_payload_finds_them(tmp_path: Path, mode: str) -> None:
    code = bytes.fromhex(END)
    if mode == "multiboot":
        code = bytes(make_elf([(0x200000, multiboot_header(3) + code, 4096)], bits=32, entry=0x20000C))
    (tmp_path / "kernel").write_bytes(code)
    kernel: dict[str, object] = {"kernel": tmp_path / "kernel", "flat": None if mode == "multiboot" else mode}
    if mode == "guest":
        kernel = {"guest": "pio"}
    with Board(MachineConfig(memory=16 * MIB, **kernel)) as board:  # type: ignore[arg-type]
        read = board.memory.read_int
        assert (read(0x400, 2), read(0x410, 2), read(0x449, 1), read(0x484, 1)) == (0x3F8, 0x226, 3, 24)
        assert (read(0x40, 4), read(0x20, 4) >> 16, read(0xFFFF0, 1)) == (0xF000E080, 0xF000, 0xEA)


def test_an_image_in_low_memory_takes_their_place(tmp_path: Path) -> None:
    image = bytes(itertools.islice(itertools.cycle(range(1, 256)), 0x500))
    (tmp_path / "kernel").write_bytes(image)
    with Board(MachineConfig(memory=MIB, kernel=tmp_path / "kernel", flat="real@0")) as board:
        assert board.memory.read(0, 0x500) == image
