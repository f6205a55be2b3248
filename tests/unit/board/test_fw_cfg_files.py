"""What a guest finds in fw_cfg of whole boards, as `pyvmm run` makes them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvmm.config import ConfigError, FwCfgFile, MachineConfig
from pyvmm.machine.describe import described
from pyvmm.units import GIB, MIB
from tests.unit.devices.test_fw_cfg import Guest


def files(config: MachineConfig) -> dict[str, bytes]:
    """Read as a guest reads them, a byte at a time."""
    guest = Guest()
    with described(config) as board:
        guest.device = board.fw_cfg
        return {name: guest.item(key, size) for name, (key, size) in guest.directory().items()}


def test_the_memory_map() -> None:
    found = files(MachineConfig(memory=5 * GIB, kernel=None, guest="hello"))
    entries = [struct.unpack_from("<QQI", found["etc/e820"], at) for at in range(0, len(found["etc/e820"]), 20)]
    assert entries == [(0, 3 * GIB, 1), (4 * GIB, 2 * GIB, 1), (0xE0000000, 256 * MIB, 2)]


def test_tables_and_the_serial_console() -> None:
    found = files(MachineConfig(smbios=("type=1,product=Box",)))
    assert found["etc/acpi/rsdp"][:8] == b"RSD PTR " and b"QEMU0002" in found["etc/acpi/tables"]
    assert found["etc/smbios/smbios-anchor"][:4] == b"_SM_" and b"Box\0" in found["etc/smbios/smbios-tables"]
    assert int.from_bytes(found["etc/sercon-port"], "little") == 0x3F8
    assert "bootorder" not in found


def test_disks_boot_in_the_order_in_which_they_were_given(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_bytes(bytes(MIB))
    found = files(
        MachineConfig(
            root_ports=1,
            devices=(
                f"virtio-blk,path={tmp_path}/a,port=0",
                f"ata-disk,path={tmp_path}/b",
                f"virtio-blk,path={tmp_path}/c,slot=5",
                f"ata-disk,path={tmp_path}/d",
                "virtio-rng",
            ),
        )
    )
    assert found["bootorder"].decode() == (
        "/pci@i0cf8/pci-bridge@1c/scsi@0/disk@0,0\n"
        "/pci@i0cf8/ide@1/drive@0/disk@0\n"
        "/pci@i0cf8/scsi@5/disk@0,0\n"
        "/pci@i0cf8/ide@1/drive@0/disk@1\0"
    )


@pytest.mark.parametrize("what", ["kernel", "bios"])
def test_the_smbios_table_is_in_memory_too(what: str, tmp_path: Path) -> None:
    """After a direct boot, and beside our BIOS, which lies above it."""
    (tmp_path / "file").write_bytes(bytes(MIB))
    config = {"kernel": tmp_path / "file", "flat": "linux32"} if what == "kernel" else {"firmware": "bios"}
    with described(MachineConfig(smbios=("type=2,serial=123",), **config)) as board:
        memory = board.memory
        found = [at for at in range(0xF0000, MIB, 16) if memory.read(at, 4) == b"_SM_"]
        length, gpa = struct.unpack_from("<HI", memory.read(found[0], 31), 0x16)
        assert len(found) == 1 and b"123\0" in memory.read(gpa, length)
        assert memory.read(0xFFFF0, 1) == b"\xea", "the jump at the reset vector"


def test_files_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\0\1\2")
    found = files(MachineConfig(fw_cfg=(FwCfgFile("opt/a", file), FwCfgFile("opt/b", b"text"))))
    assert (found["opt/a"], found["opt/b"]) == (b"\0\1\2", b"text")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("etc/e820", b"", "the names of your files begin with opt/"),
        ("opt/" + "x" * 52, b"", "no name of a file in fw_cfg"),
        ("opt/a", Path("/nowhere"), "cannot read /nowhere: No such file"),
        ("opt/a", Path("/\0"), "cannot read"),
        ("opt/a", Path("/"), "cannot read /: Is a directory"),
        ("opt/a", Path("/dev/zero"), "more than 16 MiB"),
        ("opt/twice", b"", "two of that name"),
    ],
)
def test_mistakes(name: str, content: bytes | Path, why: str) -> None:
    config = MachineConfig(fw_cfg=(FwCfgFile("opt/twice", b""), FwCfgFile(name, content)))
    with pytest.raises(ConfigError, match=why) as error, described(config):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "why"), [("x", "begins with type=N"), ("type=11" + 70 * f",value={'x' * 1000}", "more than 64 KiB")]
)
def test_a_mistake_in_the_smbios_table(text: str, why: str) -> None:
    """Said when the machine is made, not when a guest looks."""
    with pytest.raises(ConfigError, match=rf"smbios.*{why}"), described(MachineConfig(smbios=(text,))):
        pass
