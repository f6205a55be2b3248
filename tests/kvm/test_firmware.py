"""A machine that starts a firmware at the reset vector: ours, with what is on its disks."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyvmm import firmware
from pyvmm.config import MachineConfig
from pyvmm.machine.outcome import End
from pyvmm.machine.saved import Saved
from pyvmm.units import MIB
from tests.rig.board import Board
from tests.rig.boot_sector import sector
from tests.rig.boot_sectors import COMMON

ROOT = Path(__file__).resolve().parents[2]
PRINT = "31c0 8ed8 be1a7c ac 84c0 7409 b40e bb0700 cd10 ebf2 b000 e6f4 f4"
"""Prints what is at 7C1A by INT 10h, AH=0Eh, and ends with debug-exit 0."""
KINDS = {
    "virtio": "virtio-blk,path={}",
    "ata": "ata-disk,path={}",
    "floppy": "floppy,path={}",
}


def boot_sector(code: str, text: str = "") -> bytes:
    """512 bytes with *code*, in hexadecimal, at the beginning and *text* behind it."""
    return (bytes.fromhex(code).ljust(0x1A, b"\x90") + text.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@contextlib.contextmanager
def booted(tmp_path: Path, image: bytes, kind: str = "virtio", **options: object) -> Iterator[Board]:
    """A machine with our BIOS and *image* on a disk of *kind*."""
    path = tmp_path / "disk.img"
    path.write_bytes(image)
    fields = {"memory": 2 * MIB, "devices": (KINDS[kind].format(path),), **options}
    with Board(MachineConfig(**fields)) as machine:  # type: ignore[arg-type]
        yield machine


@pytest.mark.parametrize("kind", KINDS)
def test_a_boot_sector_prints(tmp_path: Path, kind: str) -> None:
    """From the reset vector to 0000:7C00, whatever is behind INT 13h; the serial port has the text too."""
    with booted(tmp_path, boot_sector(PRINT, "Hello from the disk"), kind) as machine:
        outcome = machine.finish(60)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        assert machine.screen.text()[0].startswith("Hello from the disk ")
        assert machine.output == b"Hello from the disk"


def test_no_boot_disk(tmp_path: Path) -> None:
    """The BIOS says so on the screen, and pyvmm in one line, with a status of its own."""
    with booted(tmp_path, bytes(1024)) as machine:
        outcome = machine.finish(60)
        assert (outcome.end, outcome.status) == (End.NO_BOOT_DISK, 10)
        found = "drive 00h: none, drive 80h: no boot sector (55 AA)"
        assert outcome.message == f"{found}: give a disk or floppy whose first 512 bytes end with 55 AA"
        assert machine.screen.text()[0].rstrip() == f"No boot disk: {found}"


GIVES_UP = "31c0 8ed8 ff060090 cd18"
"""Counts its starts at 0000:9000, and calls INT 18h."""


def test_a_boot_sector_that_gives_up_is_not_begun_again(tmp_path: Path) -> None:
    with booted(tmp_path, boot_sector(GIVES_UP)) as machine:
        outcome = machine.finish(60)
        assert (outcome.end, outcome.status) == (End.NO_BOOT_DISK, 10)
        assert outcome.message.startswith("drive 00h: none, drive 80h: gave up (INT 18h): ")
        assert machine.memory.read_int(0x9000, 2) == 1


def test_behind_a_floppy_that_gives_up_comes_the_disk(tmp_path: Path) -> None:
    (tmp_path / "floppy").write_bytes(boot_sector(GIVES_UP))
    devices = (KINDS["floppy"].format(tmp_path / "floppy"), KINDS["virtio"].format(tmp_path / "disk.img"))
    with booted(tmp_path, boot_sector(PRINT, "from the disk"), devices=devices) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.screen.text()[0].rstrip() == "from the disk"
        assert machine.memory.read_int(0x9000, 2) == 1


@pytest.mark.parametrize("kind", ["virtio", "floppy"])
def test_a_disk_that_cannot_be_written_says_so(tmp_path: Path, kind: str) -> None:
    """INT 13h, AH=03h: AH=03h, no sector written, CF; AX and CF are at 0000:9000."""
    write = "31c0 8ed8 8ec0 b80103 bb007c b90200 b600 cd13 a30090 0f92060290 b000 e6f4 f4"
    devices = (f"{KINDS[kind].format(tmp_path / 'disk.img')},readonly",)
    with booted(tmp_path, boot_sector(write).ljust(1024, b"\0"), devices=devices) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.memory.read(0x9000, 3) == b"\x00\x03\x01"


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_ram_is_nothing_is_read_to(tmp_path: Path, kind: str) -> None:
    """INT 13h, AH=02h, to FFFF:0010, in a machine of 1 MiB: AX and CF are at 0000:9000."""
    read = "31c0 8ed8 b8ffff 8ec0 b80102 bb1000 b90100 b600 cd13 a30090 0f92060290 b000 e6f4 f4"
    with booted(tmp_path, boot_sector(read), kind, memory=MIB) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.memory.read(0x9000, 3) == b"\x00\x09\x01"


@pytest.mark.parametrize(("kib", "sectors"), [(1440, 18), (720, 9), (2880, 36)])
def test_the_floppy_parameter_table(tmp_path: Path, kib: int, sectors: int) -> None:
    """Vector 1Eh, which boot sectors copy from, and ES:DI of INT 13h, AH=08h, which is at 0000:9000."""
    code = "31c0 8ed8 b408 b200 cd13 893e0090 8c060290 b000 e6f4 f4"
    with booted(tmp_path, boot_sector(code).ljust(kib << 10, b"\0"), "floppy") as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        pointer = machine.memory.read(0x1E * 4, 4)
        assert machine.memory.read(0x9000, 4) == pointer
        offset, segment = int.from_bytes(pointer[:2], "little"), int.from_bytes(pointer[2:], "little")
        table = machine.memory.read((segment << 4) + offset, 11)
        assert table == bytes([0xAF, 2, 0x25, 2, sectors, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 8])


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("0f0b", "06h (#UD, invalid opcode) at 0000:7C00"),
        ("31c9 f7f1", "00h (#DE, divide error) at 0000:7C02"),
        ("66b800000080 0f22c0 f4", "0Dh (#GP, general protection) at 0000:7C06"),
        ("b81300 cd10 0f0b", "06h (#UD, invalid opcode) at 0000:7C05"),
    ],
    ids=["ud", "de", "gp", "in mode 13h"],
)
def test_an_exception_that_nobody_handles(tmp_path: Path, code: str, what: str) -> None:
    with booted(tmp_path, bytes.fromhex(code).ljust(510, b"\0") + b"\x55\xaa") as machine:
        outcome = machine.finish(60)
        assert (outcome.end, outcome.status) == (End.UNHANDLED_EXCEPTION, 11)
        assert outcome.message == f"{what}: the program has no handler for it"
        assert machine.screen.text()[1].rstrip() == f"Exception {what}"


def test_interrupts_that_a_program_makes_itself_are_none(tmp_path: Path) -> None:
    """int 0; int 6; int 0x0d; int3; int 0x60 with a handler of its own."""
    with booted(tmp_path, boot_sector("cd00 cd06 cd0d cc b000 e6f4 f4")) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT


def test_a_reset_begins_at_the_reset_vector_and_ram_stays(tmp_path: Path) -> None:
    """The boot sector counts its starts at 0000:9000, and resets by the keyboard controller until there were three."""
    again = "31c0 8ed8 ff060090 833e009003 7304 b0fe e664 f4 b000 e6f4 f4"
    with booted(tmp_path, boot_sector(again)) as machine:
        outcome = machine.finish(60)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        assert machine.memory.read_int(0x9000, 2) == 3


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_wherever_the_interrupt_controllers_are(tmp_path: Path, irqchip: str) -> None:
    """sti; hlt, three times: the timer's interrupts come, and are counted at 0040:006C."""
    with booted(
        tmp_path, boot_sector("31c0 8ed8 668b0e6c04 fb f4 f4 f4 66a16c04 6629c8 a20090 b000 e6f4"), irqchip=irqchip
    ) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.memory.read_int(0x9000, 1) >= 3


WRITE_ROM = """
        enter_unreal_mode
        movl    $0xFFFFFFF0, %edi
        movl    $0x12345678, %fs:(%edi)
        movl    %fs:(%edi), %eax
        movl    %eax, 0x9000
        movw    $0xF000, %ax            /* the shadow, which is RAM */
        movw    %ax, %fs
        movw    $0xBEEF, %fs:0xFFF6
        movw    %fs:0xFFF6, %ax
        movw    %ax, 0x9004
        movb    $0, %al
        outb    %al, $0xF4
3:      hlt
        jmp     3b
        .balign 8
        gdt_of  0x00CF9A000000FFFF
"""


def test_a_rom_cannot_be_written(tmp_path: Path) -> None:
    """Nor does a write end the machine; a reset makes its copy below 1 MiB anew."""
    rom = firmware.load("bios")
    with booted(tmp_path, sector(COMMON + WRITE_ROM, tmp_path)) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.memory.read(0x9000, 4) == rom[-16:-12]
        assert machine.memory.read(0x9004, 2) == b"\xef\xbe"
        payload = machine.memory.region_at((1 << 32) - len(rom))
        assert bytes(payload.buffer) == rom
    with booted(tmp_path, sector(COMMON + WRITE_ROM, tmp_path)) as machine:
        machine.memory.write(0xFFFF6, b"\xef\xbe")
        machine.reset()
        assert machine.memory.read(0xFFFF0, 16) == rom[-16:]


def test_tables_are_handed_over(tmp_path: Path) -> None:
    """An OS finds ACPI's by the RSDP, and the MP table, at the multiples of 16 where the specifications say."""
    with booted(tmp_path, boot_sector(PRINT)) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        area = machine.memory.read(0xE0000, 0x20000)
        (rsdp,) = [at for at in range(0, len(area), 16) if area.startswith(b"RSD PTR ", at)]
        assert sum(area[rsdp : rsdp + 20]) % 256 == 0
        (pointer,) = [at for at in range(0x10000, len(area), 16) if area.startswith(b"_MP_", at)]
        table = int.from_bytes(area[pointer + 4 : pointer + 8], "little")
        assert machine.memory.read(table, 4) == b"PCMP"


def test_ctrl_alt_del(tmp_path: Path) -> None:
    """It counts its starts at 0000:9000, and waits in the first; a warm one says so at 0040:0072."""
    code = "31c0 8ed8 ff060090 833e009001 7504 fb f4 ebfc a17204 a30290 b000 e6f4 f4"
    with booted(tmp_path, boot_sector(code).ljust(1024, b"\0")) as machine:
        assert machine.wait(lambda: machine.memory.read_int(0x9000, 2) == 1, 60)
        machine.keyboard.press("ctrl", "alt", "delete")
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.memory.read_int(0x9000, 2) == 2


def test_from_the_command_line(tmp_path: Path) -> None:
    """The file of a boot sector in place of a guest's name; its text comes on standard output, by COM1."""
    (tmp_path / "hi.bin").write_bytes(boot_sector(PRINT, "Hi"))
    (tmp_path / "no.bin").write_bytes(bytes(512))
    command = [sys.executable, "-m", "pyvmm", "run"]
    done = subprocess.run([*command, tmp_path / "hi.bin"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (16, "Hi", "pyvmm: debug-exit 0\n")
    done = subprocess.run([*command, tmp_path / "no.bin"], capture_output=True, text=True, cwd=ROOT)
    found = "drive 00h: no boot sector (55 AA), drive 80h: none"
    assert done.stdout == f"No boot disk: {found}\n" and done.returncode == 10
    assert done.stderr == (
        f"pyvmm: no boot disk: {found}: give a disk or floppy whose first 512 bytes end with 55 AA\n"
    )


def stopped_after(exits: int, config: MachineConfig) -> Board:
    """A machine that stands after so many exits."""
    count = 0

    def sink(ns: int, channel: str, line: str) -> None:
        nonlocal count
        count += channel == "exits"
        if count == exits:
            machine.life.cpus.hold()  # it executes nothing more before the loop has come to the pause
            machine.life.pause(wait=False)

    machine = Board(replace(config, trace=frozenset({"exits"})), sink)
    assert machine.wait(lambda: machine.state == "paused", 60)
    machine.trace.off("exits")
    return machine


@pytest.mark.parametrize("exits", [3, 30, 100, 200, 250])
def test_in_the_middle_of_post(tmp_path: Path, exits: int) -> None:
    """A snapshot there goes on in another machine, and a reset there begins anew; both boot."""
    path, file = tmp_path / "disk.img", tmp_path / "saved"
    path.write_bytes(boot_sector(PRINT, "after all"))
    config = MachineConfig(memory=2 * MIB, devices=(f"virtio-blk,path={path}",))
    with contextlib.closing(stopped_after(exits, config)) as machine:
        assert 0 < machine.parts["post"].code <= 9
        assert machine.output == b"", "the boot sector has not begun"
        machine.snapshot().save(file)
        machine.reset()
        assert machine.parts["post"].code == 0
        machine.resume()
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.screen.text()[0].startswith("after all ")
    saved = Saved(str(file))
    with Board(saved.config, saved=saved) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.screen.text()[0].startswith("after all ")
        assert machine.output == b"after all"


def test_a_snapshot_before_the_first_instruction(tmp_path: Path) -> None:
    """The processor stands in the ROM, which is not in the file."""
    path, file = tmp_path / "disk.img", tmp_path / "saved"
    path.write_bytes(boot_sector(PRINT, "from the start"))
    config = MachineConfig(memory=2 * MIB, devices=(f"virtio-blk,path={path}",))
    with Board(config) as machine:
        machine.snapshot().save(file)
    saved = Saved(str(file))
    with Board(saved.config, saved=saved) as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        assert machine.output == b"from the start"


def trace_of(tmp_path: Path, image: bytes, *channels: str) -> list[str]:
    """The lines of a machine that boots *image* from a floppy, as `pyvmm run --trace` shows them without the times."""
    lines: list[str] = []
    path = tmp_path / "traced.img"
    path.write_bytes(image)
    config = MachineConfig(memory=2 * MIB, devices=(f"floppy,path={path}",), trace=frozenset(channels))
    with Board(config, lambda ns, channel, line: lines.append(f"{channel:<8} {line}")) as machine:
        machine.finish(60)
    return lines


def test_the_trace_of_the_readme(tmp_path: Path) -> None:
    """Its boot sector, built as it says, gives the trace that it shows."""
    text = (ROOT / "firmware/bios/README.md").read_text()
    (source,), (trace,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.S) for kind in ("asm", "trace"))
    (tmp_path / "hi.S").write_text(source)
    for command in re.search(r"\$ (as .*)\n", text)[1].split(" && "):  # type: ignore[index]
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    lines = trace_of(tmp_path, (tmp_path / "hi.bin").read_bytes(), "post", "bios")
    shown = [line for line in lines if not re.match(r"post +port 0x80 ", line)]
    assert "\n".join(shown) + "\n" == trace


def test_the_readme_has_each_post_code_and_each_file() -> None:
    folder = ROOT / "firmware/bios"
    text = (folder / "README.md").read_text()
    steps = re.search(r"enum \{ (POST_.*?)\}", (folder / "post.c").read_text(), re.S)
    assert steps is not None
    assert len(steps[1].split(",")) == len(re.findall(r"^\| 0\d \|", text, re.M))
    sources = {path.name for path in folder.iterdir() if path.suffix in (".c", ".h", ".S", ".ld")}
    assert sources == set(re.findall(r"`(\w+\.(?:c|h|S|ld))`", text)) & sources


def test_a_trace_that_begins_while_the_guest_runs(tmp_path: Path) -> None:
    """The BIOS looks at each tick whether anybody listens: mov ah,1; int 0x16, for ever."""
    lines: list[str] = []
    path = tmp_path / "disk.img"
    path.write_bytes(boot_sector("b401 cd16 ebfa"))
    config = MachineConfig(memory=2 * MIB, devices=(f"virtio-blk,path={path}",))
    with Board(config, lambda ns, channel, line: lines.append(line)) as machine:
        assert machine.wait(lambda: machine.parts["post"].code == 9, 60)
        machine.trace.on("bios")
        assert machine.wait(lambda: len(lines) > 1, 60)
        machine.trace.off("bios")
    assert {"INT 16h AH=01h: is there a key (from 0000:7c04)", "INT 16h AH=01h returns CF=0 ZF=1"} >= set(lines)


def test_a_frame_of_mode_13h_is_shown(tmp_path: Path) -> None:
    """mov ax,0x13; int 0x10; each byte of the frame is its offset: 320x200 pixels of the palette the BIOS loads."""
    draw = "b81300 cd10 b800a0 8ec0 31ff b900fa 89f8 aa e2fb b000 e6f4 f4"
    with booted(tmp_path, bytes.fromhex(draw).ljust(510, b"\0") + b"\x55\xaa") as machine:
        assert machine.finish(60).end is End.DEBUG_EXIT
        screen = machine.screen
        assert screen.frame is not None
        assert screen.frame.pixels == bytes(i % 256 for i in range(64000))
        assert screen.frame.palette[4] == (170, 0, 0) and screen.frame.palette[0x28] == (255, 0, 0)
        screen.png(str(tmp_path / "frame.png"))
        assert machine.vcpus[0].get_regs().rdi == 64000
