"""The host's PCI devices, as /sys/bus/pci tells of them: which can be given away, and moving one between drivers.

Source: Linux Documentation/ABI/testing/sysfs-bus-pci (driver_override, unbind, drivers_probe),
Documentation/driver-api/vfio.rst (groups).
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyvmm.errors import UserError

VFIO_DRIVER: Final = "vfio-pci"
NOIOMMU: Final = "vfio-noiommu"
"""What VFIO calls a group of a device that no IOMMU holds back."""
CLASS_BRIDGE: Final = 0x06
RESERVED: Final = re.compile(r"^0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) (?!direct-relaxable)[\w-]+$", re.MULTILINE)
"""A line of reserved_regions, but for those that a device need not have."""
PLACE: Final = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)


def full_name(place: str) -> str:
    """DDDD:BB:DD.F, of that or of BB:DD.F; UserError for what is none."""
    match = PLACE.fullmatch(place)
    if match is None:
        raise UserError(f"{place!r} is no place of a PCI device: write it as lspci -D shows it, such as 0000:00:08.0")
    domain, bus, device, function = match.groups()
    return f"{domain or '0000'}:{bus}:{device}.{function}".lower()


@dataclass(frozen=True)
class HostFunction:
    """One PCI function of the host."""

    name: str
    vendor: int
    device: int
    class_code: int
    """24 bits."""
    driver: str | None
    group: str | None
    """The number of its IOMMU group, None where no IOMMU knows it."""
    noiommu: bool
    group_path: Path | None

    @property
    def is_bridge(self) -> bool:
        return self.class_code >> 16 == CLASS_BRIDGE

    def __str__(self) -> str:
        return f"{self.name} ({self.driver or 'no driver'})"


class Pci:
    """The PCI devices below *sys*; *run* is where the drivers that devices had are noted until the next boot."""

    def __init__(self, sys: Path = Path("/sys"), run: Path = Path("/run/pyvmm/vfio"), dev: Path = Path("/dev")) -> None:
        self._bus = sys / "bus" / "pci"
        self._run = run
        self._dev = dev

    def all(self) -> list[HostFunction]:
        """By name."""
        devices = self._bus / "devices"
        return [self._read(devices / name) for name in sorted(os.listdir(devices))] if devices.is_dir() else []

    def find(self, place: str) -> HostFunction:
        """The device at *place*; UserError where there is none."""
        name = full_name(place)
        path = self._bus / "devices" / name
        if not path.exists():
            raise UserError(f"this host has no PCI device {name}: pyvmm vfio list shows those that it has")
        return self._read(path)

    def _read(self, path: Path) -> HostFunction:
        def number(name: str) -> int:
            try:
                return int((path / name).read_text(), 16)
            except (OSError, ValueError):  # it has gone meanwhile
                return 0

        group = path / "iommu_group"
        group_path = group.resolve() if group.exists() else None
        noiommu = False
        if group_path is not None:
            with suppress(OSError):  # most have no name
                noiommu = (group_path / "name").read_text().strip() == NOIOMMU
        driver = path / "driver"
        return HostFunction(
            path.name,
            number("vendor"),
            number("device"),
            number("class"),
            driver.resolve().name if driver.exists() else None,
            group_path.name if group_path is not None else None,
            noiommu,
            group_path,
        )

    def group_of(self, function: HostFunction) -> list[HostFunction]:
        """All that is in the group of *function*, by name; it alone where it has none."""
        if function.group_path is None:
            return [function]
        try:
            names = sorted(os.listdir(function.group_path / "devices"))
        except OSError:  # it has gone meanwhile
            return [function]
        return [self._read(self._bus / "devices" / name) for name in names]

    def cdev(self, function: HostFunction) -> Path | None:
        """Its file below /dev/vfio/devices, where this kernel makes such (VFIO_DEVICE_CDEV)."""
        names = self._bus / "devices" / function.name / "vfio-dev"
        name = next(iter(sorted(os.listdir(names))), None) if names.is_dir() else None
        node = self._dev / "vfio" / "devices" / (name or "")
        return node if name is not None and node.exists() else None

    def mappable(self, function: HostFunction) -> list[tuple[int, int]]:
        """The (first, last) I/O addresses that the reserved regions of its group leave; none where nobody says."""
        try:
            assert function.group_path is not None
            text = (function.group_path / "reserved_regions").read_text()
        except (OSError, UnicodeDecodeError):
            return []
        free, start = [], 0
        for first, last in sorted((int(low, 16), int(high, 16)) for low, high in RESERVED.findall(text)):
            if last < first:
                continue
            if start < first:
                free.append((start, first - 1))
            start = max(start, last + 1)
        return [*free, (start, (1 << 64) - 1)] if start < 1 << 64 else free

    def in_the_way(self, function: HostFunction) -> list[HostFunction]:
        """What else is in its group and has a driver that is neither VFIO's nor a bridge's."""
        others = [other for other in self.group_of(function) if other.name != function.name]
        return [other for other in others if other.driver not in (None, VFIO_DRIVER, "pci-stub", "pcieport")]

    def verdict(self, function: HostFunction) -> str:
        """Whether it can be given to a guest, or what must be done first."""
        if function.is_bridge:
            return "no: a bridge"
        if function.group is None:
            return "no: no IOMMU; boot this host with intel_iommu=on or amd_iommu=on"
        if function.noiommu:
            return "no: no IOMMU holds it back from this host's memory"
        if others := self.in_the_way(function):
            return f"no: bind {', '.join(map(str, others))} of its group to vfio-pci too"
        if function.driver != VFIO_DRIVER:
            return f"after pyvmm vfio bind {function.name}"
        node = self._dev / "vfio" / function.group
        cdev = self.cdev(function)
        if cdev is not None and (self._dev / "iommu").exists():
            node = cdev
        if not os.access(node, os.R_OK | os.W_OK):
            return f"no: no permission for {node}: as root, chown it to who runs pyvmm"
        return "yes"

    # Moving

    def bind(self, place: str) -> str:
        """Let vfio-pci have the device; what has been done. UserError."""
        function = self.find(place)
        if function.driver == VFIO_DRIVER:
            return f"{function.name} is vfio-pci's already"
        if function.is_bridge:
            raise UserError(f"{function.name} is a bridge: bind a device behind it")
        if function.group is None:
            raise UserError(
                f"{function.name} has no IOMMU group: switch the IOMMU on in the firmware, and boot this host with "
                "intel_iommu=on or amd_iommu=on"
            )
        if not (self._bus / "drivers" / VFIO_DRIVER).is_dir():
            raise UserError("this host's kernel has not loaded vfio-pci: modprobe vfio-pci")
        self._note(function)
        try:
            self._move(function, VFIO_DRIVER)
            now = self.find(function.name).driver
            if now != VFIO_DRIVER:
                raise UserError(f"{function.name} is not taken by vfio-pci, but has {now or 'no driver'}: see dmesg")
        except BaseException:  # Ctrl-C is one
            with suppress(UserError):
                self._give_back(self.find(function.name))
            raise
        return f"{function.name}: {function.driver or 'no driver'} -> vfio-pci"

    def unbind(self, place: str) -> str:
        """Give the device back to the driver that it had; what has been done. UserError."""
        function = self.find(place)
        if function.driver != VFIO_DRIVER:
            return f"{function.name} is not vfio-pci's: it has {function.driver or 'no driver'}"
        self._check_unused(function)
        self._give_back(function)
        return f"{function.name}: vfio-pci -> {self.find(function.name).driver or 'no driver'}"

    def _give_back(self, function: HostFunction) -> None:
        """To the driver that is noted, which may be none; to whichever asks for it where nothing is. UserError."""
        had = self._noted(function)
        try:
            if had is None or had != (function.driver or ""):
                if had == "":
                    self._release(function)
                else:
                    self._move(function, had or "")
        finally:
            self._write(self._bus / "devices" / function.name / "driver_override", "\n")
        with suppress(OSError):
            (self._run / function.name).unlink()

    def _noted(self, function: HostFunction) -> str | None:
        try:
            return (self._run / function.name).read_text().strip()
        except OSError:
            return None

    def _check_unused(self, function: HostFunction) -> None:
        """The kernel would wait for whoever has the device, for ever. Raises UserError."""
        try:
            os.close(os.open(self._dev / "vfio" / (function.group or "none"), os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise UserError(f"{function.name} is in use: end the guest that has it, then unbind it") from None

    def _note(self, function: HostFunction) -> None:
        if function.driver is None and self._noted(function):
            return  # on its way from that driver a bind was killed
        try:
            self._run.mkdir(parents=True, exist_ok=True)
            (self._run / function.name).write_text(function.driver or "")
        except OSError as error:
            raise UserError(f"{self._run}: {error.strerror}: do it as root") from None

    def _release(self, function: HostFunction) -> None:
        if function.driver is not None:
            self._write(self._bus / "drivers" / function.driver / "unbind", function.name)

    def _move(self, function: HostFunction, driver: str) -> None:
        self._write(self._bus / "devices" / function.name / "driver_override", f"{driver}\n")
        self._release(function)
        self._write(self._bus / "drivers_probe", function.name)

    def _write(self, path: Path, text: str) -> None:
        try:
            with open(path, "w") as file:
                file.write(text)
        except OSError as error:
            why = "do it as root" if error.errno in (errno.EACCES, errno.EPERM) else "see dmesg"
            raise UserError(f"{path}: {error.strerror}: {why}") from None
