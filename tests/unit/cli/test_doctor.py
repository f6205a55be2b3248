"""pyvmm doctor on hosts that a folder of files stands for."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from kvm_cffi import CpuidEntry
from pyvmm.cli import doctor
from pyvmm.cli.backend import Backend
from pyvmm.cli.doctor import (
    NEEDED,
    OPTIONAL,
    Finding,
    display_findings,
    input_findings,
    kvm_findings,
    memory_findings,
    network_findings,
    remaps_interrupts,
    vfio_findings,
    vhost_findings,
)
from pyvmm.errors import UserError
from tests.rig.xserver import start_server

CPUID = [
    CpuidEntry(0, ebx=0x68747541, edx=0x69746E65, ecx=0x444D4163),
    CpuidEntry(1, ecx=1 << 28 | 1 << 12 | 1 << 21, edx=1 << 5 | 1 << 9),
    CpuidEntry(0x80000008, eax=0x3028),
]
"""AVX and FMA without XSAVE."""


class FakeSystem:
    """A KVM with some capabilities."""

    def __init__(self, missing: set[str]) -> None:
        self.missing = missing
        self.closed = False

    def check_extension(self, name: str) -> int:
        return 0 if name in self.missing else 4

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        return CPUID

    def __enter__(self) -> FakeSystem:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def findings(missing: set[str]) -> dict[str, Finding]:
    system = FakeSystem(missing)
    found = {finding.subject: finding for finding in kvm_findings(lambda: system)}  # type: ignore[arg-type, return-value]
    assert system.closed
    return found


def test_software_is_a_warning_and_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "backend", lambda supported: Backend(False, "software-backed"))
    finding = findings(set())["/dev/kvm"]
    assert str(finding).startswith("WARN  /dev/kvm") and "nested virtualization" in finding.hint
    monkeypatch.setattr(doctor, "backend", lambda supported: Backend(True, "hardware"))
    assert str(findings(set())["/dev/kvm"]) == "ok    /dev/kvm     hardware"


def test_everything_there() -> None:
    found = findings(set())
    assert all(finding.ok and not finding.hint for name, finding in found.items() if name != "/dev/kvm")
    assert len(found) == 3 + len(NEEDED) + len(OPTIONAL)
    assert found["vCPUs"].text == "up to 4, recommended 4"


@pytest.mark.parametrize("name", list(NEEDED))
def test_a_needed_capability_is_missing(name: str) -> None:
    finding = findings({name})[name.removeprefix("KVM_CAP_").lower()]
    assert not finding.ok
    assert finding.hint


@pytest.mark.parametrize("name", list(OPTIONAL))
def test_an_optional_one(name: str) -> None:
    finding = findings({name})[name.removeprefix("KVM_CAP_").lower()]
    assert finding.ok
    assert finding.hint.startswith("optional")


def test_the_processor_of_a_guest() -> None:
    said = str(findings(set())["CPU"])
    assert "AuthenticAMD, 40 physical address bits, 5 features; hidden, for want of what they need: avx fma" in said


def test_no_kvm() -> None:
    def refuse() -> None:
        raise UserError("no permission for /dev/kvm: add yourself to group kvm")

    (finding,) = kvm_findings(refuse)  # type: ignore[arg-type]
    assert not finding.ok
    assert "group kvm" in finding.hint


def test_input_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = input_findings(tmp_path)
    assert finding.ok and "no input devices" in finding.text and finding.hint.startswith("optional")
    for name in ("event0", "event1", "mice"):
        (tmp_path / name).touch()
    (finding,) = input_findings(tmp_path)
    assert (finding.text, finding.hint) == ("2 of 2 event devices readable", "")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (finding,) = input_findings(tmp_path)
    assert finding.text.startswith("0 of 2")
    assert "group input" in finding.hint


def test_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    user, tap = network_findings(tmp_path / "tun")
    assert (user.hint, tap.hint) == ("optional; apt-get install passt", "optional; as root, modprobe tun")
    (tmp_path / "passt").touch(0o755)
    (tmp_path / "tun").touch(0o600)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    user, tap = network_findings(tmp_path / "tun")
    assert str(user).endswith(str(tmp_path / "passt")) and "ip tuntap add tap0 mode tap user $USER" in tap.hint
    monkeypatch.setattr("os.access", lambda path, mode: False)
    _, tap = network_findings(tmp_path / "tun")
    assert tap.hint.startswith("optional; as root, chmod 666") and tap.ok


def test_vfio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = vfio_findings(tmp_path / "dev", tmp_path / "sys", tmp_path / "proc")
    assert "no IOMMU groups" in finding.text and "intel_iommu=on" in finding.hint
    for group in ("0", "1"):
        (tmp_path / "sys/kernel/iommu_groups" / group).mkdir(parents=True)
    (finding,) = vfio_findings(tmp_path / "dev", tmp_path / "sys", tmp_path / "proc")
    assert finding.text == "2 IOMMU groups, bound to VFIO: none" and "vfio-pci" in finding.hint
    (tmp_path / "dev/vfio").mkdir(parents=True)
    (tmp_path / "dev/vfio/vfio").touch()
    (tmp_path / "dev/vfio/1").touch()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, 8 << 20))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    finding, locked = vfio_findings(tmp_path / "dev", tmp_path / "sys", tmp_path / "proc")
    assert (finding.text, finding.hint) == ("2 IOMMU groups, bound to VFIO: 1", "")
    assert locked.text == "8192 KiB may be locked" and "ulimit -l" in locked.hint
    function = tmp_path / "sys/bus/pci/devices/0000:00:08.0"
    function.mkdir(parents=True)
    (tmp_path / "sys/bus/pci/drivers/vfio-pci").mkdir(parents=True)
    (function / "driver").symlink_to(tmp_path / "sys/bus/pci/drivers/vfio-pci")
    unsafe = tmp_path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    unsafe.parent.mkdir(parents=True)
    unsafe.write_text("Y\n")
    _, unsafe_finding, device, _ = vfio_findings(tmp_path / "dev", tmp_path / "sys", tmp_path / "proc")
    assert unsafe_finding.warning and "reach all of this host's memory" in unsafe_finding.text
    assert device.warning and device.text.startswith("0000:00:08.0: no: no IOMMU")


@pytest.mark.parametrize(
    ("chips", "remapped"),
    [
        (("IR-IO-APIC   2-edge timer", "DMAR-MSI 0-edge dmar0", "IR-PCI-MSI 524288-edge nvme0q0"), True),
        (("IO-APIC   2-edge timer", "IR-PCI-MSIX-0000:01:00.0 0-edge nvme0q0"), True),
        (("IO-APIC   2-edge timer", "DMAR-MSI 0-edge dmar0", "PCI-MSI 524288-edge nvme0q0"), False),
        (("XT-PIC timer",), None),
        ((), None),
    ],
)
def test_interrupts_that_are_not_remapped(tmp_path: Path, chips: tuple[str, ...], remapped: bool | None) -> None:
    (tmp_path / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    if chips:
        lines = [f"{number:>4}:         12          0   {chip}" for number, chip in enumerate(chips)]
        (tmp_path / "interrupts").write_text("\n".join(["           CPU0       CPU1", *lines, " NMI:  0  0  Non-mask"]))
    assert remaps_interrupts(tmp_path) is remapped
    found = [finding for finding in vfio_findings(tmp_path / "dev", tmp_path / "sys", tmp_path) if finding.warning]
    assert [("does not remap interrupts" in finding.text) for finding in found] == [True] * (remapped is False)
    unsafe = tmp_path / "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    unsafe.parent.mkdir(parents=True)
    unsafe.write_text("Y\n")
    (warning,) = (one for one in vfio_findings(tmp_path / "dev", tmp_path / "sys", tmp_path) if one.warning)
    assert "allow_unsafe_interrupts=Y" in warning.text


def test_vfio_by_iommufd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finding() -> Finding:
        _, finding, *_ = vfio_findings(tmp_path / "dev", tmp_path / "sys", tmp_path / "proc")
        return finding

    (tmp_path / "sys/kernel/iommu_groups/1").mkdir(parents=True)
    (tmp_path / "dev/vfio/devices").mkdir(parents=True)
    (tmp_path / "dev/vfio/1").touch()
    assert "modprobe iommufd" in finding().hint and not finding().warning
    iommu = tmp_path / "dev/iommu"
    iommu.touch()
    assert finding() == Finding("VFIO", f"devices are had by {iommu}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert finding().warning and f"chmod 666 {iommu}" in finding().hint


@pytest.mark.parametrize("display", [None, ""])
def test_no_display(display: str | None) -> None:
    (finding,) = display_findings(display)
    assert finding.ok and finding.hint.startswith("optional")


def test_a_display() -> None:
    process, name = start_server()
    try:
        assert list(display_findings(name)) == [Finding("DISPLAY", name)]
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("display", [":4711", "no display"])
def test_a_display_that_nobody_serves(display: str) -> None:
    (finding,) = display_findings(display)
    assert finding.ok and finding.text == f"{display}: nobody answers"
    assert finding.hint.startswith("optional; ") and "--display" in finding.hint and "\n" not in finding.hint


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 2)])
def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ok: bool, status: int
) -> None:
    nothing: Callable[..., list[Finding]] = lambda *_: []  # noqa: E731
    monkeypatch.setattr(doctor, "kvm_findings", lambda: [Finding("/dev/kvm", "text", ok, "" if ok else "do this")])
    names = ("memory", "network", "input", "vfio", "vhost", "display")
    for name in (f"{name}_findings" for name in names):
        monkeypatch.setattr(doctor, name, nothing)
    assert doctor.doctor() == status
    out = capsys.readouterr().out
    assert out == ("ok    /dev/kvm     text\n" if ok else "MISS  /dev/kvm     text\n                   -> do this\n")


def mm(path: Path, **settings: str) -> list[Finding]:
    """The findings where /sys/kernel/mm has these settings of transparent huge pages, and a pool."""
    for name, text in settings.items():
        (path / "transparent_hugepage").mkdir(exist_ok=True)
        (path / "transparent_hugepage" / name).write_text(text)
    pool = path / "hugepages" / "hugepages-2048kB"
    pool.mkdir(parents=True)
    for name, pages in (("nr_hugepages", 9), ("free_hugepages", 5), ("resv_hugepages", 2)):
        (pool / name).write_text(f"{pages}\n")
    return list(memory_findings(path))


def test_huge_pages(tmp_path: Path) -> None:
    found = mm(tmp_path, enabled="always [madvise] never\n", shmem_enabled="always [advise] never deny force\n")
    assert [finding.text for finding in found] == [
        "enabled: madvise",
        "shmem_enabled: advise",
        "9 pages in the pool, 3 free",
    ]
    assert found[-1].subject == "hugetlb=2M"
    assert not any(finding.hint for finding in found)


def test_no_huge_pages(tmp_path: Path) -> None:
    found = mm(tmp_path, enabled="always madvise [never]\n", shmem_enabled="always advise [never] deny force\n")
    assert all(finding.ok for finding in found)
    assert [finding.hint.rpartition(": ")[2] for finding in found[:2]] == [
        f"echo madvise > {tmp_path}/transparent_hugepage/enabled",
        f"echo advise > {tmp_path}/transparent_hugepage/shmem_enabled",
    ]


def test_a_kernel_without_transparent_huge_pages(tmp_path: Path) -> None:
    found = mm(tmp_path)
    assert len(found) == 2
    assert found[0].ok and found[0].text.startswith("none") and found[0].hint


def test_vhost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, module in zip(vhost_findings(tmp_path), ("vhost_vsock", "vhost_net"), strict=True):
        assert missing.ok and f"modprobe {module}" in missing.hint
    (tmp_path / "vhost-vsock").touch()
    there, _ = vhost_findings(tmp_path)
    assert there.ok and not there.hint and there.text == "vhost-vsock"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    closed, _ = vhost_findings(tmp_path)
    assert "chmod 666" in closed.hint
