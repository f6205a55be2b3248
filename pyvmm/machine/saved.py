"""A snapshot in a file, and a machine out of it in another process, as far as this host can go on with it.

What is written: the configuration, its files by their absolute paths; the vCPUs' CPUID and TSC frequency; the state of
all parts and vCPUs; RAM. What the host gives (display, serial port, trace) is not in it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvm_cffi import CpuidEntry, KvmError, Vcpu
from pyvmm import plain
from pyvmm.board.dimm import MEMORY, Dimm
from pyvmm.board.pages import Level, Progress
from pyvmm.board.sockets import PART as sockets_part
from pyvmm.config import MachineConfig
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError, one_line, printable
from pyvmm.machine.firmware import firmware_path
from pyvmm.machine.identity import Identity, MachineState
from pyvmm.machine.snapshot_file import SnapshotFile, write
from pyvmm.memory import Region
from pyvmm.units import size_of
from pyvmm.vcpu.features import present
from pyvmm.vcpu.kernel_time import Stood
from pyvmm.vcpu.state import VcpuState

TSC_TOLERANCE_PPM = 250
"""What Linux takes for the same frequency (Documentation/virt/kvm/api.rst, KVM_SET_TSC_KHZ, tsc_tolerance_ppm)."""


def save(
    identity: Identity,
    state: MachineState,
    ram_size: int,
    runs: list[tuple[int, memoryview]],
    path: str,
    progress: Progress | None,
) -> None:
    """A new file in place of *path*; *runs* are RAM, of *ram_size* bytes with what was plugged in. Raises UserError
    where it cannot be written, or could not be restored."""
    portable = replace(identity, config=_portable(identity.config))
    write(path, plain.of(portable), plain.of(state), ram_size, runs, progress)


def _portable(config: MachineConfig) -> MachineConfig:
    """With absolute paths, and without what is the host's."""
    modules = tuple(
        module
        if isinstance(module.file, bytes)
        else replace(module, file=str(_absolute(os.fspath(module.file), "initrd")))
        for module in config.modules
    )
    return replace(
        config,
        kernel=None if config.kernel is None else _absolute(str(config.kernel), "kernel"),
        initrd=modules or None,
        firmware=None if config.firmware is None else _absolute_firmware(config.firmware),
        guest=os.path.abspath(config.guest) if config.guest is not None and "/" in config.guest else config.guest,
        devices=tuple(map(_absolute_device, config.devices)),
        trace=frozenset(),
        symbols=None,
    )


def _absolute(path: str, what: str) -> Path:
    if not os.path.isfile(path):
        raise UserError(f"{what} {printable(path)} cannot be saved: it is no file that a reset could read again")
    return Path(os.path.abspath(path))


def _absolute_firmware(name: str) -> str:
    path = firmware_path(name)
    return name if path is None else str(_absolute(str(path), "firmware"))


def _absolute_device(device: object) -> str:
    """As text, to be made again; of one that was made in Python its class, which another must take the place of."""
    if isinstance(device, Dimm):
        return str(device.spec())
    if not isinstance(device, (str, DeviceSpec)):
        return f"{type(device).__module__}.{type(device).__name__}"
    spec = DeviceSpec.parse(device) if isinstance(device, str) else device
    spec = spec if spec.file is None else replace(spec, name=f"{os.path.abspath(spec.file)}:{spec.kind}")
    return str(replace(spec, arguments=tuple(_absolute_argument(spec, *argument) for argument in spec.arguments)))


def _absolute_argument(spec: DeviceSpec, key: str, value: str | bool) -> tuple[str, str | bool]:
    """A path is one from wherever the machine is restored."""
    from pyvmm.machine.registry import find, keys

    is_path = any(told.name == key and told.type is Path for told in keys(find(spec))[0])
    return key, os.path.abspath(value) if is_path and isinstance(value, str) else value


class Saved:
    """A machine in a file, ready to be built; a context manager. Raises UserError for a file that is none."""

    def __init__(self, path: str, devices: Sequence[str | DeviceSpec | object] | None = None) -> None:
        """*devices* replaces those of its configuration, whose files may be elsewhere now; but for memory, which is in
        this one."""
        self.file = SnapshotFile(path)
        try:
            self.identity = self._identity()
            config = self.identity.config
            memory = self._memory()
            if devices is not None:
                config = replace(config, devices=(*memory, *devices))
            try:
                self.config = config.complete()
            except UserError as error:
                raise error if devices is not None else self.file.error(printable(str(error))) from None
            self.state = self._state()
            self._check_files()
            if self.config.ram_size + sum(map(_size, memory)) != self.file.ram.length:
                raise self.file.error("it is damaged: its RAM is not the configuration's")
        except BaseException:
            self.file.close()
            raise

    def _identity(self) -> Identity:
        identity: Identity = self._made(Identity, self.file.config, "configuration")
        return identity

    def _memory(self) -> list[DeviceSpec]:
        """What was plugged in, or was to be from the start."""
        try:
            specs = [DeviceSpec.parse(device) for device in self.identity.config.devices if isinstance(device, str)]
        except UserError as error:
            raise self.file.error(printable(str(error))) from None
        return [spec for spec in specs if spec.name == MEMORY]

    def _state(self) -> MachineState:
        data = self.file.state
        parts: Any = data.get("parts") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(parts, dict) or not all(isinstance(n, str) for n in parts):
            raise self.file.error("its state is not that of a machine")
        made = self._made(_Rest, {name: value for name, value in data.items() if name != "parts"}, "state")
        return MachineState(parts, made.vcpus, made.now, made.time)

    def _made(self, kind: type[Any], data: Any, what: str) -> Any:
        try:
            return plain.made(kind, data)
        except plain.PlainError as error:
            raise self.file.error(f"its {what} is not that of this version: {error}") from None

    def _check_files(self) -> None:
        """A reset reads them."""
        files = [("kernel", self.config.kernel)] if self.config.kernel is not None else []
        firmware = None if self.config.firmware is None else firmware_path(self.config.firmware)
        files += [("firmware", firmware)] if firmware is not None else []
        files += [("initrd", Path(os.fspath(m.file))) for m in self.config.modules if not isinstance(m.file, bytes)]
        for what, path in files:
            if not os.path.isfile(path):
                raise self.file.error(f"its {what} {printable(str(path))} is gone: put it back")

    # What the machine takes of it

    @property
    def cpus(self) -> int:
        """How many there were."""
        sockets: Any = self.state.parts.get(sockets_part)
        present = sockets.get("present") if isinstance(sockets, dict) else None
        return present.bit_count() if isinstance(present, int) else self.config.cpus

    @property
    def image(self) -> tuple[int, int] | None:
        """What RAM is mapped from; None where it is shared, or in the host's huge pages, and is read instead."""
        if self.config.memory_shared or self.config.memory_hugetlb is not None:
            return None
        return self.file.fd, self.file.ram.offset

    def fill(self, regions: Sequence[Region]) -> None:
        """Read RAM, where it cannot be mapped."""
        if self.image is None:
            for region in regions:
                self.file.read_into(region.buffer, region.fd_offset)

    def fill_plugged(self, regions: Sequence[Region], offsets: Mapping[tuple[int, int], int]) -> None:
        """Read those of *regions* that were plugged in, which begin at *offsets* by (address, bytes): they come and go
        by themselves, so that none is mapped from here."""
        for region in regions:
            offset = offsets.get((region.gpa, len(region.buffer)))
            if offset is not None:
                self.file.read_into(region.buffer, offset)

    def level(self, regions: Sequence[Region]) -> Level:
        """RAM as it is in the file, for snapshots to stand on."""
        owns, stores = [], []
        bits = int.from_bytes(self.file.own, "little")
        for region in regions:
            first, size = region.fd_offset // mmap.PAGESIZE, len(region.buffer)
            pages = size // mmap.PAGESIZE
            own = bits >> first & (1 << pages) - 1
            owns.append(bytearray(own.to_bytes((pages + 63) // 64 * 8, "little")))
            where = self.file.ram.offset + region.fd_offset
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            stores.append(mmap.mmap(self.file.fd, size, flags=mmap.MAP_PRIVATE, prot=protection, offset=where))
        return Level(None, owns, stores)

    def check_cpuid(self, here: list[CpuidEntry]) -> list[CpuidEntry]:
        """The guest's CPUID; *here* is what such a machine made now would have. Raises UserError."""
        theirs, ours = _vendor(self.identity.cpuid), _vendor(here)
        if theirs != ours:
            raise self.file.error(f"its processor is of {theirs}, this host's of {ours}: restore it on such a host")
        missing = sorted(present(self.identity.cpuid) - present(here))
        if missing:
            raise self.file.error(
                f"its processor has {' '.join(missing)}, which this host's has not: restore it on a host that has them"
            )
        return self.identity.cpuid

    def set_tsc(self, vcpus: Sequence[Vcpu], can_scale: bool) -> None:
        """Let the guest's TSC run as fast as before. Raises UserError."""
        here, wanted = vcpus[0].get_tsc_khz(), self.identity.tsc_khz
        if abs(here - wanted) * 1_000_000 <= wanted * TSC_TOLERANCE_PPM:
            return
        if not can_scale:
            raise self.file.error(
                f"its TSC runs at {wanted} kHz, this host's at {here}, and its KVM cannot scale: restore it elsewhere"
            )
        for vcpu in vcpus:
            vcpu.set_tsc_khz(wanted)

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """What the machine cannot take of it is the file's fault, or this host's."""
        try:
            yield
        except UserError as error:
            raise self.file.error(str(error)) from None
        except KvmError as error:
            raise self.file.error(f"this host's KVM does not take its state: {error}") from None
        except Exception as error:  # a part's load() met what no part has saved
            raise self.file.error(f"its state is not that of such a machine: {one_line(error)}") from None

    def close(self) -> None:
        self.file.close()


def _size(memory: DeviceSpec) -> int:
    """In bytes; 0 where it says none, which the machine refuses."""
    size = dict(memory.arguments).get("size")
    try:
        return size_of(size) if isinstance(size, str) else 0
    except ValueError:
        return 0


@dataclass(frozen=True)
class _Rest:
    vcpus: list[VcpuState]
    now: int
    time: Stood


def _vendor(cpuid: list[CpuidEntry]) -> str:
    for entry in cpuid:
        if entry.function == 0:
            name = b"".join(part.to_bytes(4, "little") for part in (entry.ebx, entry.edx, entry.ecx))
            return printable(name.decode("latin-1"))
    return "no vendor"
