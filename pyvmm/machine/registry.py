"""Which devices there are, and making one: those that come with pyvmm, installed ones and the user's own alike.

A class's constructor says what it wants. A parameter whose type is a service (clock.Clock, loop.Loop, trace.Channel and
what a board has) is given; each other one is a KEY=VALUE, which its annotation says how to read: int, float, bool (on,
off, or the key alone), str, Path, a Literal's choices, or None besides. Without an annotation it is an int where it
reads as one, else a str. What is a Mapping[str, str] is written KEY.NAME=TEXT, or KEY.NAME for an empty text, as often
as one likes.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard

from pyvmm.backends.disks import Disks
from pyvmm.backends.sockets import Sockets
from pyvmm.backends.wire import Networks
from pyvmm.bus import Device
from pyvmm.clock import Clock
from pyvmm.device_spec import DeviceSpec
from pyvmm.devices.pc_testdev import FlushPage, IsaLines
from pyvmm.errors import UserError, there_are
from pyvmm.loop import Loop
from pyvmm.machine.loading import NOT_INITIALIZED, blaming, is_initialized, load_module
from pyvmm.pci.device import PciDevice
from pyvmm.trace import Channel
from pyvmm.vfio.host import Passthrough
from pyvmm.virtio.vhost import RingServers

if TYPE_CHECKING:
    from pyvmm.board.dimm import Dimm
    from pyvmm.pci.ata_disk import AtaDisk

BUILTIN: Final = {
    "ata-disk": "pyvmm.pci.ata_disk:AtaDisk",
    "floppy": "pyvmm.virtio.floppy:Floppy",
    "memory": "pyvmm.board.dimm:Dimm",
    "ne2k": "pyvmm.pci.ne2000:Ne2000",
    "pci-testdev": "pyvmm.pci.testdev:PciTestdev",
    "root-port": "pyvmm.pci.root_port:RootPort",
    "testdev": "pyvmm.devices.pc_testdev:PcTestdev",
    "vfio": "pyvmm.vfio.function:VfioPci",
    "vhost-vsock": "pyvmm.virtio.vsock:VirtioVsock",
    "virtio-blk": "pyvmm.virtio.blk:VirtioBlk",
    "virtio-console": "pyvmm.virtio.console_ports:ConsolePorts",
    "virtio-keyboard": "pyvmm.virtio.input:VirtioKeyboard",
    "virtio-mouse": "pyvmm.virtio.input:VirtioMouse",
    "virtio-net": "pyvmm.virtio.net:VirtioNet",
    "virtio-rng": "pyvmm.virtio.rng:VirtioRng",
    "virtio-tablet": "pyvmm.virtio.input:VirtioTablet",
}
"""What a name stands for: nothing is imported that is not asked for."""
ENTRY_POINTS: Final = "pyvmm.devices"
"""The group in which an installed package names its devices (packaging.python.org, entry points)."""

SERVICES: Final[Mapping[str, Any]] = {
    "Channel": Channel,
    "Clock": Clock,
    "Disks": Disks,
    "FlushPage": FlushPage,
    "IsaLines": IsaLines,
    "Loop": Loop,
    "Networks": Networks,
    "Passthrough": Passthrough,
    "Sockets": Sockets,
    "RingServers": RingServers,
}
"""The types that are given, by the names that an annotation may use without importing them."""

Services = Mapping[Any, Callable[[], object]]
"""What gives a service of a type."""


class BoardDevice(Protocol):
    """A device that is no PCI function and has addresses of its own: (first, length, who answers there)."""

    ports: Sequence[tuple[int, int, Device]]
    memory: Sequence[tuple[int, int, Device]]

    def reset(self) -> None: ...


@dataclass(frozen=True)
class Key:
    """What a device can be told."""

    name: str
    type: Any
    """None where nothing says; else a type as annotations have it."""
    default: object
    """inspect.Parameter.empty where there is none."""

    @property
    def is_mapping(self) -> bool:
        """Whether it is written KEY.NAME=TEXT."""
        return typing.get_origin(self.type) is Mapping

    def __str__(self) -> str:
        """As help shows it."""
        if self.is_mapping:
            return f"{self.name}.NAME[=TEXT]"
        default = "" if self.default is inspect.Parameter.empty else f"   default {_shown(self.default)}"
        return f"{self.name}={_type_text(self.type)}{default}"


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def names() -> list[str]:
    """Of the devices that come with pyvmm, and of installed ones."""
    return sorted({*BUILTIN, *_entry_points()})


def _entry_points() -> dict[str, str]:
    from importlib.metadata import entry_points  # slow, and asked for only where a name is none of ours

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


def find(spec: DeviceSpec) -> type:
    """The class that *spec* names. Raises UserError."""
    if spec.file is not None:
        with blaming(f"device {spec}", spec.file):
            return _class_in(spec.file, spec.kind)
    where = BUILTIN.get(spec.name) or _entry_points().get(spec.name)
    if where is None:
        what = there_are(spec.name, names())
        raise UserError(f"device {spec}: write it as FILE.py:CLASS, or name one that there is: {what}")
    module, _, name = where.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"device {spec}: its package names {where}, which there is not: {error}") from None
    if not _is_device(kind):
        raise UserError(f"device {spec}: {where} is neither a PciDevice nor a VirtioDevice")
    return kind


def _class_in(path: Path, name: str) -> type:
    module = load_module(path)
    kind = getattr(module, name, None)
    if kind is None:
        raise UserError(f"{path.name} has no class {name}; {_classes(module)}")
    if not _is_device(kind):
        raise UserError(f"{name} is no PciDevice and no VirtioDevice; {_classes(module)}")
    return kind


def _is_device(kind: object) -> TypeGuard[type]:
    from pyvmm.devices.pc_testdev import PcTestdev
    from pyvmm.virtio.device import VirtioDevice

    if not isinstance(kind, type):
        return False
    if issubclass(kind, (PciDevice, VirtioDevice, PcTestdev)):
        return True
    from pyvmm.board.dimm import Dimm  # few want one of these
    from pyvmm.pci.ata_disk import AtaDisk

    return issubclass(kind, (AtaDisk, Dimm))


def _classes(module: types.ModuleType) -> str:
    found = [name for name, kind in vars(module).items() if _is_device(kind) and kind.__module__ == module.__name__]
    return f"there are: {', '.join(found)}" if found else "no class in it is derived from PciDevice or VirtioDevice"


def keys(kind: type) -> tuple[list[Key], dict[str, Any]]:
    """What a device of class *kind* can be told, and its parameters that are services, by name."""
    told: list[Key] = []
    given: dict[str, Any] = {}
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        annotation = _resolved(kind, parameter.annotation)
        service = next((inner for inner in _without_none(annotation) if inner in SERVICES.values()), None)
        if service is not None:
            given[parameter.name] = service
        elif _readable(annotation) or parameter.default is parameter.empty:  # else a wire that only code has
            told.append(Key(parameter.name, annotation, parameter.default))
    return told, given


def _resolved(kind: type, annotation: Any) -> Any:
    """An annotation, which may be text, as a type; None where there is none, or nobody knows its names."""
    if annotation is inspect.Parameter.empty:
        return None
    if not isinstance(annotation, str):
        return annotation
    init = inspect.unwrap(kind.__init__)  # type: ignore[misc]  # the class that is derived from may have it
    module = vars(sys.modules[getattr(init, "__module__", kind.__module__)])
    try:
        return eval(annotation, {**SERVICES, **module})
    except Exception:  # imported under TYPE_CHECKING alone
        return None


def _without_none(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(inner for inner in typing.get_args(annotation) if inner is not types.NoneType)
    return (annotation,)


def _type_text(annotation: Any) -> str:
    (inner, *others) = _without_none(annotation)
    if others:
        return "|".join(_type_text(one) for one in (inner, *others))
    if typing.get_origin(inner) is typing.Literal:
        return "|".join(map(str, typing.get_args(inner)))
    return {None: "VALUE", bool: "on|off", Path: "PATH"}.get(inner) or str(getattr(inner, "__name__", inner)).upper()


def _readable(annotation: Any) -> bool:
    """Whether a text can be one."""
    return any(
        typing.get_origin(one) in (typing.Literal, Mapping) or one in (bool, int, float, str, Path, None)
        for one in _without_none(annotation)
    )


class _NoSuchValue(Exception):
    """What was written is none of these."""


def _value(text: str | bool, annotation: Any) -> Any:
    """Raises _NoSuchValue with what it must be."""
    choices = _without_none(annotation)
    if len(choices) > 1:
        for one in choices:
            try:
                return _value(text, one)
            except _NoSuchValue:
                pass
        raise _NoSuchValue(f"one of {_type_text(annotation)}")
    (wanted,) = choices
    if wanted is bool:
        if text in (True, "on", "off"):
            return text is True or text == "on"
        raise _NoSuchValue("on or off")
    if text is True:
        raise _NoSuchValue(f"KEY=VALUE: write {_type_text(wanted)} behind it")
    assert isinstance(text, str)
    if typing.get_origin(wanted) is typing.Literal:
        for choice in typing.get_args(wanted):
            if str(choice) == text:
                return choice
        raise _NoSuchValue(f"one of {', '.join(map(str, typing.get_args(wanted)))}")
    if wanted is str:
        return text
    if wanted is Path:
        return Path(text)
    if wanted in (int, float, None):
        try:
            return float(text) if wanted is float else int(text, 0)
        except ValueError:
            if wanted is None:
                return text
            raise _NoSuchValue("a number" if wanted is float else "an int") from None
    raise _NoSuchValue(f"a {_type_text(wanted)}")


def arguments(kind: type, spec: DeviceSpec, services: Services) -> dict[str, Any]:
    """What the constructor of *kind* is called with. Raises UserError."""
    told, given = keys(kind)
    for key in told:
        if not _readable(key.type):
            raise UserError(
                f"device {spec}: no text is a {_type_text(key.type)}, which {key.name} is: make it in Python"
            )
    by_name = {key.name: key for key in told}
    values: dict[str, Any] = {}
    for name, text in spec.arguments:
        word, dot, item = name.partition(".")
        if dot and word in by_name and by_name[word].is_mapping:
            values.setdefault(word, {})[item] = "" if text is True else text
            continue
        if name not in by_name or by_name[name].is_mapping:
            shown = [f"{key.name}.NAME" if key.is_mapping else key.name for key in told]
            there_are = f"it has {', '.join(shown)}" if shown else "it has none"
            raise UserError(f"device {spec}: {spec.kind} has no key {name}: {there_are}")
        key = by_name[name]
        try:
            values[name] = _value(text, key.type)
        except _NoSuchValue as error:
            written = name if text is True else f"{name}={text}"
            raise UserError(f"device {spec}: {written!r} is no {key.name}: it must be {error}") from None
    missing = [key.name for key in told if key.default is inspect.Parameter.empty and key.name not in values]
    if missing:
        raise UserError(f"device {spec}: {spec.kind} needs {missing[0]}=: say {by_name[missing[0]]}")
    return values | {name: services[service]() for name, service in given.items() if service in services}


def make(spec: DeviceSpec, services: Services) -> PciDevice | BoardDevice | AtaDisk | Dimm:
    """The device; a VirtioDevice is in its PCI function. UserError says what is wrong with it, and in which line."""
    kind = find(spec)
    called_with = arguments(kind, spec, services)
    if spec.file is not None:
        with blaming(f"device {spec}", spec.file):
            made = kind(**called_with)
            if not is_initialized(made):
                raise UserError(f"{spec.file.name}: {spec.kind}: {NOT_INITIALIZED}")
            return as_function(made)
    try:
        return as_function(kind(**called_with))
    except (TypeError, ValueError) as error:
        raise UserError(f"device {spec}: {error}") from None


def as_function(device: Any) -> PciDevice | BoardDevice | AtaDisk | Dimm:
    """A VirtioDevice as a PCI function; another device itself."""
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.pci import VirtioPci

    made: PciDevice | BoardDevice | AtaDisk | Dimm = VirtioPci(device) if isinstance(device, VirtioDevice) else device
    return made


def inner(function: object) -> object:
    """The device that as_function() was given."""
    from pyvmm.virtio.pci import VirtioPci

    return function.device if isinstance(function, VirtioPci) else function


def _doc(kind: type) -> str:
    """Of the class itself or else of its module, not of what it is derived from."""
    own = vars(kind).get("__doc__") or sys.modules[kind.__module__].__doc__
    return inspect.cleandoc(own or "")


def _places(kind: type) -> dict[str, str]:
    """Where a device of class *kind* may be asked to go: the keys, and what they are."""
    from pyvmm.board.dimm import Dimm
    from pyvmm.pci.bridge import PciBridge
    from pyvmm.virtio.device import VirtioDevice

    if issubclass(kind, Dimm):
        return {"slot": "N, of the slots for memory"}
    if not issubclass(kind, (PciDevice, VirtioDevice)):
        return {}
    port = {} if issubclass(kind, PciBridge) else {"port": "N, behind root port N"}
    return port | {"slot": "N, of PCI bus 0"}


def list_text() -> Iterator[str]:
    """The lines of --device list. Raises UserError."""
    for name in names():
        yield f"{name:<16} {(_doc(find(DeviceSpec(name))).splitlines() or [''])[0]}".rstrip()
    yield f"{'FILE.py:CLASS':<16} a device of your own"


def help_text(spec: DeviceSpec) -> Iterator[str]:
    """The lines of --device NAME,help. Raises UserError."""
    kind = find(spec)
    told, given = keys(kind)
    yield f"{spec.name}: {_doc(kind)}".rstrip(": ")
    yield ""
    for key in told:
        yield f"  {key}"
    for name, what in ({"id": "NAME"} | _places(kind)).items():
        yield f"  {name}={what}"
    if given:
        yield f"  ({', '.join(given)} {'is' if len(given) == 1 else 'are'} given)"
