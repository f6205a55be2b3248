"""What the user asked for, as plain data: the command line and Python code fill it in, the machine reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import Repr
from types import NoneType
from typing import Final, Literal, get_args

from pyvmm import guests
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError, printable
from pyvmm.units import GIB, MIB, size_text

HUGE_PAGE_SIZES: Final = (2 * MIB, GIB)
"""The sizes of the pages that an x86-64 host can keep in a pool."""

MIN_MEMORY: Final = MIB
MAX_MEMORY: Final = 64 << 40
"""What 46 bits of physical address reach, the fewest that a processor with KVM has had for long."""
MEMORY_BLOCK: Final = 128 * MIB
"""What memory that is plugged in is a multiple of: Linux on x86-64 has it in sections of that size."""
MAX_MEMORY_SLOTS: Final = 32
DEFAULT_KERNEL_MEMORY: Final = 512 * MIB
DEFAULT_FIRMWARE: Final = "bios"
SEABIOS: Final = "seabios"
SEABIOS_FILE: Final = Path("/usr/share/seabios/bios-256k.bin")
"""Where Debian's package seabios has it, beside its VGA BIOSes."""
BOOTABLE: Final = ("virtio-blk", "ata-disk", "floppy")
"""Devices that a firmware looks on."""
MAX_CPUS: Final = 255
MAX_FW_CFG_FILE: Final = 16 * MIB
"""Bytes; a snapshot's file has it."""
MAX_ROOT_PORTS: Final = 4
MAX_SCALE: Final = 4

Irqchip = Literal["kernel", "split", "user"]
VirtioInputIdentity = Literal["none", "aero", "standard"]
TripleFault = Literal["report", "reset"]
InputMode = Literal["auto", "ps2", "virtio"]
DebugExit = Literal["pyvmm", "qemu"]
Display = Literal["none", "x11", "text"]


class ConfigError(UserError):
    """Fields of a MachineConfig that are wrong, each with its value, *why*, and what to *add*, spelled as in Python.

    The command line has other names for them, so what it was made of is kept.
    """

    def __init__(self, why: str, fields: Mapping[str, object], add: Mapping[str, object] | None = None) -> None:
        self.why, self.fields, self.add = why, fields, add or {}
        missing = f": add {_spelled(self.add)}" if self.add else ""
        super().__init__(f"MachineConfig({_spelled(fields)}): {why}{missing}")


def _spelled(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_shortened.repr(value)}" for name, value in fields.items())


_shortened: Final = Repr()
_shortened.maxstring = _shortened.maxother = 100


@dataclass(frozen=True)
class Module:
    """A file that the kernel finds in RAM beside itself, with the *arguments* that a Multiboot module may have."""

    file: bytes | str | os.PathLike[str]
    """A path, or the file's bytes."""
    arguments: str = ""


@dataclass(frozen=True)
class FwCfgFile:
    """A file of the user's in fw_cfg, the device by which firmware and the guest's kernel are told of things."""

    name: str
    """opt/..., at most 55 characters of ASCII."""
    content: bytes | Path
    """At most MAX_FW_CFG_FILE; a file of this host is read when the machine is made, and not again."""

    def read(self) -> FwCfgFile:
        """The same with its bytes. Raises ConfigError."""
        data = self.content
        if isinstance(data, Path):
            try:
                with data.open("rb") as file:
                    data = file.read(MAX_FW_CFG_FILE + 1)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise ConfigError(f"cannot read {printable(str(data))}: {why}", {"fw_cfg": self.name}) from None
        if len(data) > MAX_FW_CFG_FILE:
            raise ConfigError(f"it has more than {MAX_FW_CFG_FILE // MIB} MiB", {"fw_cfg": self.name})
        return replace(self, content=data)


@dataclass(frozen=True)
class MachineConfig:
    """A machine. Sizes are bytes.

    What it boots: *kernel* (any file that boot/ knows, with *flat* to say how a flat binary is entered); or *guest*,
    one of those that come with pyvmm; or what *firmware* finds on a disk, which is the default where there is one.
    """

    memory: int | None = None
    """None is what the guest needs, or DEFAULT_KERNEL_MEMORY for a kernel."""
    memory_shared: bool = False
    """Guest RAM in a memfd, which other processes can map; else it is anonymous memory in transparent huge pages."""
    memory_hugetlb: int | None = None
    """Guest RAM in pages of this size from the host's pool (hugetlbfs): 2 MiB or 1 GiB. Shared too."""
    memory_slots: int = 0
    """How many pieces of memory can be plugged in while it runs, up to MAX_MEMORY_SLOTS ..."""
    max_memory: int | None = None
    """... and how much memory it has then at most, *memory* included."""
    cpus: int = 1
    """vCPUs from the start; vCPU n has APIC ID n."""
    max_cpus: int | None = None
    """How many there may be with those that are plugged in later: docs/hotplug.md. None is no more than *cpus*."""
    cpu: str = "host"
    """The processor: host[,+FLAG][,-FLAG][,phys-bits=N][,vendor=TEXT], flags as in /proc/cpuinfo."""
    kernel: Path | None = None
    initrd: Path | Module | tuple[Path | Module, ...] | None = None
    """Linux's initial RAM disk, several as one; or the modules of a Multiboot kernel, in their order."""
    cmdline: str = ""
    flat: str | None = None
    guest: str | None = None
    guest_parameters: tuple[tuple[str, int], ...] = ()
    firmware: str | None = None
    """bios is the one that comes with pyvmm, seabios Debian's, seabios=FILE another one; else the file of an image."""
    irqchip: Irqchip = "kernel"
    virtio_input: VirtioInputIdentity | None = None
    """None is standard for a kernel, and none for a firmware or a guest that comes with pyvmm."""
    tablet: bool = False
    rng: bool = False
    root_ports: int = 0
    """PCI Express root ports, from slot 0x1c up."""
    devices: tuple[str | DeviceSpec | object, ...] = ()
    """NAME,KEY=VALUE,... or FILE.py:CLASS,KEY=VALUE,... as a str or a DeviceSpec; or a PciDevice or VirtioDevice that
    somebody has made, which is of one machine."""
    fw_cfg: tuple[FwCfgFile, ...] = ()
    smbios: tuple[str, ...] = ()
    """What the SMBIOS table says: type=N,FIELD=VALUE,..., see docs/fw_cfg.md."""
    input: InputMode = "auto"
    triple_fault: TripleFault = "report"
    no_reboot: bool = False
    """A reset by the guest ends the machine."""
    trace: frozenset[str] = frozenset()
    symbols: Path | None = None
    """Names for a report when the guest dies: vmlinux or another ELF file, System.map, a copy of /proc/kallsyms."""

    @property
    def ram_size(self) -> int:
        """*memory*, once complete() has chosen it."""
        assert self.memory is not None
        return self.memory

    @property
    def runs_seabios(self) -> bool:
        """Whether *firmware* is a SeaBIOS, which wants a board that it knows."""
        return self.firmware is not None and self.firmware.partition("=")[0] == SEABIOS

    @property
    def possible_cpus(self) -> int:
        """How many vCPUs there may be."""
        return self.cpus if self.max_cpus is None else self.max_cpus

    @property
    def modules(self) -> tuple[Module, ...]:
        """*initrd*, whichever way it was written."""
        if self.initrd is None:
            return ()
        several = self.initrd if isinstance(self.initrd, tuple) else (self.initrd,)
        return tuple(one if isinstance(one, Module) else Module(one) for one in several)

    def complete(self) -> MachineConfig:
        """The same machine with every default chosen and its files for fw_cfg read, and checked. Raises ConfigError."""
        self._check_kinds()
        memory, virtio_input, firmware = self.memory, self.virtio_input, self.firmware
        if firmware is None and self.kernel is None and self.guest is None and self._has_disk:
            firmware = DEFAULT_FIRMWARE
        boots_guest = self.kernel is None and firmware is None
        if memory is None:
            memory = DEFAULT_KERNEL_MEMORY
            if boots_guest:
                memory = max(MIN_MEMORY, guests.load(guests.DEFAULT if self.guest is None else self.guest).memory)
        if virtio_input is None:
            virtio_input = "none" if self.kernel is None else "standard"
        fw_cfg = tuple(file.read() for file in self.fw_cfg)
        config = replace(self, memory=memory, virtio_input=virtio_input, firmware=firmware, fw_cfg=fw_cfg)
        config.check()
        return config

    @property
    def boots_guest(self) -> bool:
        """Whether it boots a guest that comes with pyvmm, once complete() has chosen."""
        return self.kernel is None and self.firmware is None

    @property
    def _has_disk(self) -> bool:
        devices = [str(device) for device in self.devices if isinstance(device, (str, DeviceSpec))]
        return any(device.partition(",")[0] in BOOTABLE for device in devices)

    def check(self) -> None:
        """Raises ConfigError for values of another type, that there are not, or that do not go together."""
        self._check_kinds()
        self._check_values()
        self._check_together()

    def _check_kinds(self) -> None:
        for field, (kinds, what) in _KINDS.items():
            if not _is_a(getattr(self, field), kinds):
                raise self._error(f"{field} is {what}", field)
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices and not (field == "virtio_input" and self.virtio_input is None):
                raise self._error(f"there are {', '.join(choices)}", field)

    def _check_values(self) -> None:
        if self.memory is not None and (not MIN_MEMORY <= self.memory <= MAX_MEMORY or self.memory % 4096):
            raise self._error("RAM is 1M to 64T, in bytes a multiple of 4096 such as 512 << 20", "memory")
        if self.memory_hugetlb not in (None, *HUGE_PAGE_SIZES):
            raise self._error("the host's huge pages are of 2M or 1G", "memory_hugetlb")
        if not 0 <= self.memory_slots <= MAX_MEMORY_SLOTS:
            raise self._error(f"there are at most {MAX_MEMORY_SLOTS} of them", "memory_slots")
        if self.max_memory is not None and (self.max_memory > MAX_MEMORY or self.max_memory % 4096):
            raise self._error("it is up to 64T, in bytes a multiple of 4096 such as 4 << 30", "max_memory")
        if not 1 <= self.cpus <= MAX_CPUS:
            raise self._error(f"a machine has 1 to {MAX_CPUS} vCPUs", "cpus")
        if self.max_cpus is not None and not self.cpus <= self.max_cpus <= MAX_CPUS:
            raise self._error(f"there may be as many as there are from the start, to {MAX_CPUS}", "cpus", "max_cpus")
        if not 0 <= self.root_ports <= MAX_ROOT_PORTS:
            raise self._error(f"there are at most {MAX_ROOT_PORTS} of them", "root_ports")
        if not all(
            _is_a(module.file, (bytes, str, os.PathLike)) and _is_a(module.arguments, (str,)) for module in self.modules
        ):
            raise self._error("each is a pathlib.Path, or a Module of a path or bytes and a str", "initrd")
        for device in self.devices:
            if not isinstance(device, (str, DeviceSpec)) and (
                isinstance(device, type) or not callable(getattr(device, "reset", None))
            ):
                raise self._error("each is a str, FILE.py:CLASS,KEY=VALUE,..., a DeviceSpec or a device", "devices")
        if not all(
            isinstance(one, FwCfgFile) and isinstance(one.name, str) and isinstance(one.content, (bytes, Path))
            for one in self.fw_cfg
        ):
            raise self._error("each is an FwCfgFile of a name and a pathlib.Path or bytes", "fw_cfg")
        if not all(isinstance(text, str) for text in self.smbios):
            raise self._error("each is a str, such as 'type=1,product=PC'", "smbios")
        pairs = self.guest_parameters
        if not all(_is_a(pair, (tuple,)) and [type(part) for part in pair] == [str, int] for pair in pairs):
            raise self._error("each is a tuple of a name and an int", "guest_parameters")
        if not all(isinstance(name, str) for name in self.trace):
            raise self._error("each is the name of a channel", "trace")
        for field in ("kernel", "flat", "guest", "firmware", "devices", "symbols"):  # boot/ looks at the others
            if "\0" in str(getattr(self, field)) + "".join(map(str, self.devices)):
                raise self._error("there is a zero byte in it", field)

    def _check_together(self) -> None:
        if self.memory_hugetlb is not None and self.memory is not None and self.memory % self.memory_hugetlb:
            pages = size_text(self.memory_hugetlb)
            raise self._error(f"the size is no multiple of {pages}", "memory", "memory_hugetlb")
        if self.memory_slots and self.max_memory is None:
            raise self._error(
                "they need to know how much memory there will be", "memory_slots", add={"max_memory": "SIZE"}
            )
        if self.max_memory is not None:
            if not self.memory_slots:
                raise self._error("memory is plugged into slots", "max_memory", add={"memory_slots": "N"})
            if self.memory is not None and self.max_memory < self.memory + MEMORY_BLOCK:
                block = size_text(MEMORY_BLOCK)
                raise self._error(f"there is no room for {block} more: ask for a larger max", "memory", "max_memory")
        if self.kernel is not None and self.guest is not None:
            raise self._error("a machine boots one of them: leave the other away", "kernel", "guest")
        for field in ("kernel", "guest"):
            if self.firmware is not None and getattr(self, field) is not None:
                raise self._error("a firmware boots what is on a disk: leave one of them away", field, "firmware")
        if not self.boots_guest and self.guest_parameters:
            raise self._error(
                "they are parameters of a guest that comes with pyvmm: leave them away", "guest_parameters"
            )
        for field in ("initrd", "cmdline", "flat"):
            if self.kernel is None and getattr(self, field):
                raise self._error("it goes with a kernel", field, add={"kernel": "FILE"})
        if self.irqchip == "user" and self.possible_cpus > 1:
            cpus = ("cpus",) if self.max_cpus is None else ("cpus", "max_cpus")
            raise self._error("a PIC serves one CPU: ask for one", *cpus, "irqchip")
        for field, value in (("input", "virtio"), ("tablet", True)):
            none = self.virtio_input == "none" or (self.virtio_input is None and self.kernel is None)
            if getattr(self, field) == value and none:
                raise self._error("there are no virtio input devices", field, add={"virtio_input": "standard"})

    def _error(self, why: str, *fields: str, add: Mapping[str, object] | None = None) -> ConfigError:
        return ConfigError(why, {field: getattr(self, field) for field in fields}, add or {})


def _is_a(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


_KINDS: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "memory": ((int, NoneType), "an int, in bytes, such as 512 << 20"),
    "memory_shared": ((bool,), "a bool"),
    "memory_hugetlb": ((int, NoneType), "an int, in bytes, or None"),
    "memory_slots": ((int,), "an int"),
    "max_memory": ((int, NoneType), "an int, in bytes, or None"),
    "cpus": ((int,), "an int"),
    "max_cpus": ((int, NoneType), "an int or None"),
    "cpu": ((str,), "a str, such as 'host,-avx'"),
    "kernel": ((Path, NoneType), "a pathlib.Path or None"),
    "initrd": ((Path, Module, tuple, NoneType), "a pathlib.Path, a Module, a tuple of them or None"),
    "cmdline": ((str,), "a str"),
    "flat": ((str, NoneType), "a str or None"),
    "guest": ((str, NoneType), "a str or None"),
    "firmware": ((str, NoneType), "a str, such as 'bios', or None"),
    "guest_parameters": ((tuple,), "a tuple of pairs, such as (('count', 3),)"),
    "tablet": ((bool,), "a bool"),
    "rng": ((bool,), "a bool"),
    "root_ports": ((int,), "an int"),
    "no_reboot": ((bool,), "a bool"),
    "fw_cfg": ((tuple,), "a tuple of FwCfgFile"),
    "smbios": ((tuple,), "a tuple of str, such as ('type=1,product=PC',)"),
    "devices": ((tuple,), "a tuple of str, such as ('edu.py:Edu',), or of devices"),
    "symbols": ((Path, NoneType), "a pathlib.Path or None"),
    "trace": ((frozenset,), "a frozenset of str, such as frozenset({'irq'})"),
}
"""What a field may be, as its annotation says; kept here for who asks before anything of typing is needed."""
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "irqchip": get_args(Irqchip),
    "virtio_input": get_args(VirtioInputIdentity),
    "input": get_args(InputMode),
    "triple_fault": get_args(TripleFault),
}


@dataclass(frozen=True)
class HostConfig:
    """What of this host the machine is connected to while `pyvmm run` runs it."""

    display: Display = "none"
    scale: int = 1
    """Pixels of the window, across and down, for one of the guest's screen: 1 to MAX_SCALE."""
    keyboard: str = "auto"
    mouse: str = "auto"
    type_after: tuple[str, ...] = ()
    """TEXT:KEYS: wait for TEXT on the screen or the serial port, then type KEYS."""
    send_after: tuple[str, ...] = ()
    """TEXT:DATA: wait for TEXT there, then send DATA to the guest's COM1."""
    screenshot: Path | None = None
    """Where the screen goes as a PNG when the machine ends, and at Ctrl-A s."""
    timeout: float | None = None
    debug_exit: DebugExit = "pyvmm"
    """How the exit status tells what the guest wrote to the debug-exit port."""
    trace_file: Path | None = None
    timeline: Path | None = None
    """Where a Perfetto trace of the whole run goes."""
    save: Path | None = None
    """Where snapshots of Ctrl-A w go."""
    save_after: str | None = None
    """One is taken when the guest has shown this text."""
    quit: bool = False
    """The machine ends when that one is written."""
    prompt: str | None = None
    """The path of a socket where `pyvmm attach` may connect."""
    gdb: str | None = None
    """[HOST]:PORT or a path, where gdb may connect."""
    gdb_wait: bool = False
    """The guest executes nothing before gdb lets it go on."""
    qmp: str | None = None
    """The path of a socket, where QMP's clients may connect."""
