"""Boot sectors: assembled from source, run by our BIOS on this machine's KVM and by SeaBIOS under QEMU.

Both have a debug console at port 0xE9 and an end at port 0xF4, so what a program says there can be compared. QEMU
emulates its processor (TCG), which needs nothing of the host.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pyvmm.config import MachineConfig
from pyvmm.screen.screen import CP437
from pyvmm.units import KIB, MIB
from tests.rig.board import Board

FLOPPY: Final = 1440 * KIB
DISK: Final = 20 * MIB
MEMORY: Final = 32
"""MiB of RAM that both have."""
Kind = Literal["virtio", "ata", "floppy"]
DEVICES: Final[dict[Kind, str]] = {"virtio": "virtio-blk", "ata": "ata-disk", "floppy": "floppy"}
END: Final = 16 + 0
"""pyvmm's exit status of a program that ends well."""
PATIENCE: Final = 60.0
"""Seconds that a program may take on a busy machine."""

PRELUDE: Final = """
        .code16
        .macro  end                     /* all of the text screen to the debug console, and the end */
        movw    $0xB800, %ax
        movw    %ax, %ds
        xorw    %si, %si
        movw    $4000, %cx
        cld
        movw    $0xE9, %dx
        rep outsb
        movb    $0, %al
        outb    %al, $0xF4
0:      hlt
        jmp     0b
        .endm
        .globl  _start
_start: ljmpw   $0, $1f
1:      xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7C00, %sp
"""
"""What a boot sector begins with: CS, DS, ES and SS are 0; DL is the drive."""


CLEAR: Final = """
        movw    $0x0003, %ax            /* SeaBIOS leaves its name on the screen */
        int     $0x10
"""


def assemble(source: str, folder: Path) -> bytes:
    """The bytes of *source*, GNU assembler behind the C preprocessor, linked at 7C00."""
    (folder / "sector.S").write_text(source)
    run = [
        "gcc",
        "-m16",
        "-nostdlib",
        "-static",
        "-Wl,-Ttext=0x7C00,--oformat=binary,--build-id=none",
        "-Wl,-melf_i386",
    ]
    subprocess.run([*run, "-Wa,--fatal-warnings", "-o", "sector", "sector.S"], cwd=folder, check=True)
    return (folder / "sector").read_bytes()


def sector(code: str, folder: Path) -> bytes:
    """512 bytes that run *code* behind PRELUDE; more if it puts something behind them."""
    return assemble(f"{PRELUDE}\n{CLEAR}\n{code}\n .text 0\n .org 510\n .word 0xAA55\n", folder)


@dataclass(frozen=True)
class Ran:
    """What a program said on the debug console, and its screen at the end."""

    console: bytes
    cells: bytes

    @property
    def lines(self) -> list[str]:
        """The screen's characters, without the blanks at the ends, to the last line that has any."""
        text = "".join(map(CP437.__getitem__, self.cells[::2]))
        rows = [text[i : i + 80].rstrip() for i in range(0, len(text), 80)]
        while rows and not rows[-1]:
            rows.pop()
        return rows


def _parted(said: bytes, end: bool) -> Ran:
    return Ran(said[:-4000], said[-4000:]) if end else Ran(said, b"")


OTHER_NAMES: Final = {"ret": "enter"}
Keys = Sequence[str]
"""Names as QEMU's sendkey has them, pressed when the program has said K on the debug console."""


def pyvmm(
    image: bytes, folder: Path, *, kind: Kind = "virtio", keys: Keys = (), end: bool = True, memory: int = MEMORY * MIB
) -> Ran:
    """Run *image* from a disk or a floppy by our BIOS."""
    path = folder / "pyvmm.img"
    path.write_bytes(image.ljust(FLOPPY if kind == "floppy" else DISK, b"\0"))
    config = MachineConfig(memory=memory, devices=(f"{DEVICES[kind]},path={path}",))
    with Board(config) as machine:
        said = bytearray()
        _hear_debug_console(machine, said.extend)
        if keys:
            assert machine.wait(lambda: b"K" in said, PATIENCE)
            for key in keys:
                machine.keyboard.press(*(OTHER_NAMES.get(name, name) for name in key.split("-")))
        outcome = machine.run(PATIENCE)
        assert outcome.status == END, f"{outcome}\n{outcome.report}"
        ran = _parted(bytes(said), end)
        if end:
            rows = [row.rstrip() for row in machine.screen.text()]
            assert rows[: len(ran.lines)] == ran.lines, "the screen shows what the memory has"
        return ran


def _hear_debug_console(machine: Board, heard: Callable[[bytes], None]) -> None:
    """What comes on COM1 too is the BIOS's."""
    machine.parts["debugcon"]._transmit = heard


def seabios(image: bytes, folder: Path, *, kind: Kind = "virtio", keys: Keys = (), end: bool = True) -> Ran:
    """The same by SeaBIOS under QEMU."""
    path, console = folder / "qemu.img", folder / "console"
    path.write_bytes(image.ljust(FLOPPY if kind == "floppy" else DISK, b"\0"))
    interface = {"floppy": "floppy", "ata": "ide", "virtio": "virtio"}[kind]
    command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc" if kind == "ata" else "q35", "-m", str(MEMORY)]
    command += ["-nodefaults", "-no-reboot", "-display", "none", "-device", "VGA"]
    command += ["-monitor", "stdio", "-serial", "null"]
    command += ["-drive", f"format=raw,if={interface},file={path}", "-debugcon", f"file:{console}"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        try:
            if keys:
                _wait_for(console, b"K", process)
                for key in keys:
                    process.stdin.write(f"sendkey {key}\n")
                    process.stdin.flush()
            assert process.wait(PATIENCE) == 1, "debug-exit 0, as QEMU tells it"
        finally:
            process.kill()
    return _parted(console.read_bytes(), end)


def _wait_for(file: Path, text: bytes, process: subprocess.Popen[str]) -> None:
    while not (file.exists() and text in file.read_bytes()):
        try:
            process.wait(0.02)
            raise AssertionError(f"QEMU ended with status {process.returncode}")
        except subprocess.TimeoutExpired:
            pass
