"""Which devices a host can give away, and moving one between drivers: a /sys of files."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.cli.vfio import vfio
from pyvmm.errors import UserError
from pyvmm.vfio.sysfs import HostFunction, Pci, full_name

EDU, NIC, OTHER, BRIDGE, LONE = "0000:00:08.0", "0000:01:00.0", "0000:01:00.1", "0000:00:1c.0", "0000:00:02.0"


class Host:
    """Drivers bind as in the kernel: by driver_override at drivers_probe, else who had it before."""

    def __init__(self, root: Path) -> None:
        self.sys, self.run, self.dev = root / "sys", root / "run", root / "dev"
        self.bus = self.sys / "bus" / "pci"
        self.pci = Pci(self.sys, self.run, self.dev)
        (self.bus / "devices").mkdir(parents=True)
        for driver in ("vfio-pci", "e1000e", "nvme", "pcieport"):
            (self.bus / "drivers" / driver).mkdir(parents=True)
        (self.bus / "drivers_probe").write_text("")
        (self.dev / "vfio").mkdir(parents=True)

    def add(self, name: str, class_code: int, driver: str | None, group: int | None) -> None:
        path = self.bus / "devices" / name
        path.mkdir()
        for file, value in (("vendor", 0x8086), ("device", 0x10D3), ("class", class_code)):
            (path / file).write_text(f"{value:#x}\n")
        (path / "driver_override").write_text("(null)\n")
        if driver is not None:
            (path / "driver").symlink_to(self.bus / "drivers" / driver)
        if group is not None:
            members = self.sys / "kernel" / "iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / name).symlink_to(path)
            (path / "iommu_group").symlink_to(members.parent)

    def kernel(self, path: Path, text: str) -> None:
        """What the kernel does with a write."""
        path.write_text(text)
        if path.name == "unbind":
            (self.bus / "devices" / text / "driver").unlink()
        if path.name == "drivers_probe":
            override = (self.bus / "devices" / text / "driver_override").read_text().strip()
            driver = override if override not in ("", "(null)") else "e1000e"
            (self.bus / "devices" / text / "driver").symlink_to(self.bus / "drivers" / driver)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    host.add(EDU, 0x00FF00, None, 1)
    host.add(NIC, 0x020000, "e1000e", 2)
    host.add(OTHER, 0x010802, "nvme", 2)
    host.add(BRIDGE, 0x060400, "pcieport", 2)
    host.add(LONE, 0x030000, None, None)
    monkeypatch.setattr(host.pci, "_write", host.kernel)
    return host


def test_places_as_people_write_them() -> None:
    assert full_name("00:08.0") == full_name("0000:00:08.0") == EDU
    assert full_name("0001:AF:1f.7") == "0001:af:1f.7"
    for text in ("", "8", "00:08", "00:28.0", "00:08.8", "0000:00:08.0 ", "x:00:08.0"):
        with pytest.raises(UserError, match="is no place of a PCI device"):
            full_name(text)


def test_verdicts(host: Host) -> None:
    verdicts = {function.name: host.pci.verdict(function) for function in host.pci.all()}
    assert verdicts == {
        EDU: f"after pyvmm vfio bind {EDU}",
        NIC: f"no: bind {OTHER} (nvme) of its group to vfio-pci too",
        OTHER: f"no: bind {NIC} (e1000e) of its group to vfio-pci too",
        BRIDGE: "no: a bridge",
        LONE: "no: no IOMMU; boot this host with intel_iommu=on or amd_iommu=on",
    }
    (host.sys / "kernel/iommu_groups/1/name").write_text("vfio-noiommu\n")
    assert host.pci.verdict(host.pci.find(EDU)) == "no: no IOMMU holds it back from this host's memory"


def test_there_and_back(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert vfio("bind", NIC, host.pci) == 0
    assert host.pci.find(NIC).driver == "vfio-pci"
    host.pci.bind(OTHER)
    assert host.pci.verdict(host.pci.find(NIC)).startswith("no: no permission for ")
    (host.dev / "vfio" / "2").write_text("")
    assert host.pci.verdict(host.pci.find(NIC)) == "yes"
    assert host.pci.bind(NIC) == f"{NIC} is vfio-pci's already"
    assert vfio("unbind", OTHER, host.pci) == vfio("unbind", NIC, host.pci) == 0
    assert (host.pci.find(NIC).driver, host.pci.find(OTHER).driver) == ("e1000e", "nvme")
    assert capsys.readouterr().out.splitlines() == [
        f"{NIC}: e1000e -> vfio-pci",
        f"{OTHER}: vfio-pci -> nvme",
        f"{NIC}: vfio-pci -> e1000e",
    ]
    vfio("list", None, host.pci)
    assert f"{NIC}  8086:10d3  class 0200  group 2    e1000e" in capsys.readouterr().out


def test_in_use(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.pci.bind(NIC)

    def busy(path: Path, flags: int) -> int:
        assert path == host.dev / "vfio" / "2"
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(UserError, match="is in use: end the guest that has it"):
        host.pci.unbind(NIC)
    assert host.pci.find(NIC).driver == "vfio-pci"


def test_one_that_had_no_driver_has_none_again(host: Host) -> None:
    host.pci.bind(EDU)
    assert host.pci.unbind(EDU) == f"{EDU}: vfio-pci -> no driver"
    assert (host.bus / "devices" / EDU / "driver_override").read_text() == "\n"
    assert host.pci.unbind(EDU) == f"{EDU} is not vfio-pci's: it has no driver"


@pytest.mark.parametrize("error", [UserError("drivers_probe: Invalid argument: see dmesg"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (NIC, "driver_override"),
        (NIC, "unbind"),
        (NIC, "drivers_probe"),
        (EDU, "driver_override"),
        (EDU, "drivers_probe"),
    ],
)
def test_a_bind_that_fails_leaves_the_device_as_it_was(
    host: Host, monkeypatch: pytest.MonkeyPatch, place: str, name: str, error: BaseException
) -> None:
    before = host.pci.find(place).driver
    failed: list[str] = []

    def refuse(path: Path, text: str) -> None:
        if path.name == name and not failed:
            failed.append(text)
            raise error
        host.kernel(path, text)

    monkeypatch.setattr(host.pci, "_write", refuse)
    with pytest.raises(type(error)):
        host.pci.bind(place)
    assert failed and host.pci.find(place).driver == before
    assert (host.bus / "devices" / place / "driver_override").read_text() == "\n"
    assert not (host.run / place).exists()


def test_what_vfio_pci_refuses_goes_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        if (
            path.name != "drivers_probe"
            or (host.bus / "devices" / text / "driver_override").read_text() != "vfio-pci\n"
        ):
            host.kernel(path, text)

    monkeypatch.setattr(host.pci, "_write", refuse)
    with pytest.raises(UserError, match="is not taken by vfio-pci, but has no driver: see dmesg"):
        host.pci.bind(NIC)
    assert host.pci.find(NIC).driver == "e1000e"


def test_a_bind_that_was_killed_forgets_no_driver(host: Host) -> None:
    host.pci._note(host.pci.find(OTHER))
    (host.bus / "devices" / OTHER / "driver").unlink()
    host.pci.bind(OTHER)
    assert host.pci.unbind(OTHER) == f"{OTHER}: vfio-pci -> nvme"


def test_a_driver_that_does_not_take_it_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its override does not stay: a driver that is loaded later may have the device."""
    host.pci.bind(NIC)

    def refuse(path: Path, text: str) -> None:
        if path.name == "drivers_probe":
            raise UserError("drivers_probe: Invalid argument: see dmesg")
        host.kernel(path, text)

    monkeypatch.setattr(host.pci, "_write", refuse)
    with pytest.raises(UserError, match="drivers_probe"):
        host.pci.unbind(NIC)
    assert (host.bus / "devices" / NIC / "driver_override").read_text() == "\n"


def test_mistakes_are_one_line(host: Host) -> None:
    for place, line in (("0000:00:09.0", "this host has no PCI device 0000:00:09.0"), (BRIDGE, "is a bridge")):
        with pytest.raises(UserError, match=line):
            host.pci.bind(place)
    with pytest.raises(UserError, match="has no IOMMU group"):
        host.pci.bind(LONE)
    (host.bus / "drivers" / "vfio-pci").rmdir()
    with pytest.raises(UserError, match="modprobe vfio-pci"):
        host.pci.bind(EDU)


def test_what_reserved_regions_leave(host: Host) -> None:
    function = host.pci.find(EDU)
    assert host.pci.mappable(function) == []
    regions = host.sys / "kernel" / "iommu_groups" / "1" / "reserved_regions"
    regions.write_text(
        "0x00000000000a0000 0x00000000000bffff direct-relaxable\n"
        "0x00000000fee00000 0x00000000feefffff msi\n"
        "0x0000008000000000 0xffffffffffffffff reserved\n"
    )
    assert host.pci.mappable(function)[:2] == [(0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1)]
    assert all(first <= last for first, last in host.pci.mappable(function))


ADDRESSES = st.integers(0, (1 << 64) - 1)
LINES = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.builds("0x{:016x} 0x{:016x} reserved".format, ADDRESSES, ADDRESSES),
    )
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(LINES)
def test_whatever_reserved_regions_say(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "reserved_regions").write_text("\n".join(lines))
    free = Pci(tmp_path).mappable(HostFunction(EDU, 0, 0, 0, None, "1", False, tmp_path))
    assert all(first <= last < 1 << 64 for first, last in free)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(free))


def test_the_file_of_a_device(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    function = host.pci.find(EDU)
    assert host.pci.cdev(function) is None
    (host.bus / "devices" / EDU / "vfio-dev" / "vfio3").mkdir(parents=True)
    assert host.pci.cdev(function) is None, "the kernel has made none"
    (host.dev / "vfio" / "devices").mkdir()
    (host.dev / "vfio" / "devices" / "vfio3").touch()
    assert host.pci.cdev(function) == host.dev / "vfio" / "devices" / "vfio3"
    host.pci.bind(EDU)
    (host.dev / "vfio" / "1").touch()
    (host.dev / "iommu").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path != host.dev / "vfio" / "devices" / "vfio3")
    assert "no permission for" in host.pci.verdict(host.pci.find(EDU)), "run would open that one"
    (host.dev / "iommu").unlink()
    assert host.pci.verdict(host.pci.find(EDU)) == "yes"


def test_a_device_that_goes_while_it_is_looked_at(host: Host) -> None:
    function = host.pci.find(EDU)
    (host.bus / "devices" / EDU / "vendor").write_text("")
    shutil.rmtree(host.sys / "kernel" / "iommu_groups" / "1")
    assert host.pci.find(EDU).vendor == 0
    assert host.pci.verdict(function) == f"after pyvmm vfio bind {EDU}"
