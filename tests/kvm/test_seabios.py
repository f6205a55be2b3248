"""Debian's SeaBIOS on this machine's /dev/kvm, from the reset vector to a boot sector."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

from pyvmm.acpi.sdt import HEADER
from pyvmm.config import FwCfgFile, MachineConfig
from pyvmm.machine.outcome import End
from pyvmm.units import GIB, MIB
from tests.kvm.test_firmware import PRINT, boot_sector
from tests.rig.board import Board
from tests.unit.boot.test_smbios import structures

E820: str = (
    "31c0 8ed8 8ec0 bf0080 6631db"  # to 0:8000, from the first entry on
    "66b820e80000 66ba50414d53 66b918000000 cd15 720a"  # eax=E820h, edx="SMAP", ecx=24; int 15h; jc end
    "83c718 6609db 75e3"  # the next one, unless that was the last
    "893e0060 b000 e6f4 f4"  # where they end, at 0:6000; debug-exit 0
)


@contextlib.contextmanager
def booted(disks: list[str], **options: object) -> Iterator[Board]:
    fields = {"memory": 64 * MIB, "firmware": "seabios", "devices": tuple(disks), "virtio_input": "none", **options}
    with Board(MachineConfig(**fields)) as machine:  # type: ignore[arg-type]
        yield machine


def disk(tmp_path: Path, name: str, sector: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(sector.ljust(MIB, b"\0"))
    return path


def tables(machine: Board) -> dict[bytes, bytes]:
    """The ACPI tables by signature, as an OS finds them: the RSDP on a 16-byte boundary, then the XSDT."""
    memory = machine.memory
    rsdp = next(at for at in range(0xE0000, MIB, 16) if memory.read(at, 8) == b"RSD PTR ")
    assert sum(memory.read(rsdp, 36)) & 0xFF == 0

    def table(gpa: int) -> bytes:
        data = memory.read(gpa, memory.read_int(gpa + 4, 4))
        assert data[:4] == b"FACS" or sum(data) & 0xFF == 0, data[:4]
        return data

    xsdt = table(memory.read_int(rsdp + 24, 8))
    found = [table(gpa) for (gpa,) in struct.iter_unpack("<Q", xsdt[HEADER.size :])]
    fadt = next(one for one in found if one[:4] == b"FACP")
    found += [table(int.from_bytes(fadt[at : at + 4], "little")) for at in (36, 40)]
    return {one[:4]: one for one in found}


def test_a_boot_sector_prints_and_the_tables_are_ours(tmp_path: Path) -> None:
    """On screen and serial port; ACPI tables of a direct boot, where SeaBIOS has linked them, and the SMBIOS table."""
    path = disk(tmp_path, "a", boot_sector(PRINT, "Hello from the disk!!!"))
    options = {"smbios": ("type=1,serial=4711",), "fw_cfg": (FwCfgFile("opt/a", b"b"),)}
    with booted([f"virtio-blk,path={path}"], memory=4 * GIB, **options) as machine:
        outcome = machine.finish(250)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        text = machine.screen.text()
        assert text[0].startswith("SeaBIOS (version ") and any(line.startswith("Hello from the disk") for line in text)
        assert b"SeaBIOS (version " in machine.output and b"Hello from the disk" in machine.output
        found = tables(machine)
        assert set(found) == {b"FACP", b"APIC", b"MCFG", b"SSDT", b"FACS", b"DSDT"}
        assert b"QEMU0002" in found[b"DSDT"]
        memory = machine.memory
        anchor = next(memory.read(at, 31) for at in range(0xF0000, MIB, 16) if memory.read(at, 4) == b"_SM_")
        length, gpa = struct.unpack_from("<HI", anchor, 0x16)
        kinds = {one.kind: one for one in structures(memory.read(gpa, length))}
        assert sum(anchor) & 0xFF == 0 and kinds[1].string(7) == "4711" and kinds[0].string(4) == "SeaBIOS"


def test_the_first_disk_that_was_given_boots_and_the_memory_map_is_told(tmp_path: Path) -> None:
    """An ATA disk before a virtio one, which SeaBIOS by itself looks at first."""
    first, second = (disk(tmp_path, name, boot_sector(code)) for name, code in (("1", E820), ("2", "f4ebfd")))
    with booted([f"ata-disk,path={first}", f"virtio-blk,path={second}"]) as machine:
        outcome = machine.finish(250)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        end = machine.memory.read_int(0x6000, 2)
        entries = [struct.unpack("<QQI", machine.memory.read(at, 20)) for at in range(0x8000, end, 24)]
        ram = [(start, size) for start, size, kind in entries if kind == 1]
        assert ram[0][0] == 0 and 0x9F000 <= ram[0][1] < 0xA0000
        assert ram[1][0] == MIB and 62 * MIB < ram[1][1] < 63 * MIB and len(ram) == 2
        assert (0xE0000000, 256 * MIB, 2) in entries, "ECAM"


def test_a_snapshot_in_the_middle_of_post(tmp_path: Path) -> None:
    """A machine out of a file goes on to the boot sector, with the files of fw_cfg that it had."""
    path, own = disk(tmp_path, "a", boot_sector(PRINT, "Hello from the disk!!!")), tmp_path / "own"
    own.write_bytes(b"mine")
    with booted([f"virtio-blk,path={path}"], fw_cfg=(FwCfgFile("opt/own", own),)) as machine:
        assert machine.wait(lambda: b"SeaBIOS" in machine.output, 250)
        machine.snapshot().save(tmp_path / "saved")
    own.unlink()
    with Board.restored(tmp_path / "saved") as machine:
        outcome = machine.finish(250)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        assert b"Hello from the disk" in machine.output
        assert machine.config.fw_cfg == (FwCfgFile("opt/own", b"mine"),)


def test_a_reset_boots_again(tmp_path: Path) -> None:
    """The boot sector counts its starts in CMOS RAM, and resets by the keyboard controller at the first."""
    again = "b070 e670 e471 fec0 88c4 b070 e670 88e0 e671 80fc02 7305 b0fe e664 f4 b000 e6f4 f4"
    with booted([f"virtio-blk,path={disk(tmp_path, 'a', boot_sector(again))}"]) as machine:
        outcome = machine.finish(250)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 0)
        assert machine.output.count(b"Booting from Hard Disk") == 2
