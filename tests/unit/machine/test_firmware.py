"""Which firmware a name means, and what a configuration makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm import firmware
from pyvmm.config import SEABIOS_FILE, ConfigError, MachineConfig
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError
from pyvmm.machine.firmware import firmware_path, read_firmware


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("bios", None),
        ("seabios", SEABIOS_FILE),
        ("seabios=x.bin", Path("x.bin")),
        ("./bios", Path("bios")),
        ("a=b.bin", Path("a=b.bin")),
    ],
)
def test_names(name: str, path: Path | None) -> None:
    assert firmware_path(name) == path


def test_ours_comes_with_pyvmm(tmp_path: Path) -> None:
    assert read_firmware("bios") == firmware.load("bios")
    (tmp_path / "rom").write_bytes(b"rom")
    assert read_firmware(str(tmp_path / "rom")) == b"rom"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.bin", r"^firmware none.bin: No such file or directory$"),
        ("seabios=", r"^firmware seabios=: name a file behind it, or leave the = away$"),
        (".", r"^firmware .: Is a directory$"),
    ],
)
def test_mistakes(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_firmware(name)


def test_more_than_a_rom_can_be(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(UserError, match=r"it has more than 16 MiB$"):
        read_firmware(str(tmp_path / "large"))


def test_a_disk_alone_starts_it() -> None:
    """With a guest or a kernel it is there for that; what Python made is of a kind that nobody knows."""
    disk = DeviceSpec("virtio-blk", (("path", "x"),))
    for device in (disk, "ata-disk,path=x", "floppy,path=x"):
        config = MachineConfig(devices=(device,)).complete()
        assert (config.firmware, config.virtio_input, config.boots_guest) == ("bios", "none", False)
    assert MachineConfig(devices=(disk,), guest="pio").complete().firmware is None
    assert MachineConfig(devices=(disk,), kernel=Path("x")).complete().firmware is None
    assert MachineConfig(devices=("virtio-rng",)).complete().firmware is None


def test_no_parameters_of_a_guest() -> None:
    with pytest.raises(ConfigError, match="they are parameters of a guest that comes with pyvmm: leave them away"):
        MachineConfig(devices=("floppy,path=x",), guest_parameters=(("count", 3),)).complete()


@pytest.mark.parametrize("other", [{"guest": "pio"}, {"kernel": Path("x")}])
def test_one_of_them_boots(other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="a firmware boots what is on a disk: leave one of them away"):
        MachineConfig(firmware="bios", **other).complete()  # type: ignore[arg-type]
