"""The names that the command line has for what a MachineConfig holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyvmm.config import ConfigError
from pyvmm.errors import UserError, printable
from pyvmm.units import size_text

FLAGS: Final = {
    "memory": "-m",
    "memory_hugetlb": "-m",
    "memory_shared": "-m",
    "memory_slots": "-m",
    "max_memory": "-m",
    "cpus": "-c",
    "max_cpus": "-c",
    "kernel": "-k",
    "initrd": "-i",
    "cmdline": "-p",
    "guest": "GUEST",
    "guest_parameters": "--set",
    "devices": "--device",
}
"""Where it is not -- and the name of the field."""


PHRASES: Final = {
    "give the guest more RAM": "give the guest more RAM with -m",
    "for a flat binary say so": "a flat binary needs --flat",
    "say how many root_ports": "say how many with --root-ports",
    "leave a device away": "leave a --device away",
}
"""What deeper code advises, and the flag for it."""

DEVICE_FLAGS: Final = {
    "virtio-blk,path": "disk",
    "ata-disk,path": "disk",
    "floppy,path": "floppy",
    "virtio-net,to": "net",
    "ne2k,to": "net",
}
"""Devices that have a flag of their own, and the key that it begins with."""


def in_flags(error: UserError) -> str:
    """The error's line, with flags in place of the names that Python has, and what was typed made printable."""
    return printable(_in_flags(error))


def _in_flags(error: UserError) -> str:
    if not isinstance(error, ConfigError):
        text = str(error)
        for said, with_flag in PHRASES.items():
            text = text.replace(said, with_flag)
        for device, flag in DEVICE_FLAGS.items():
            text = text.replace(f"device {device}=", f"{flag} ", 1)
        return (
            f"--{text}" if text.startswith(("device ", "disk ", "firmware ", "floppy ", "net ", "symbols ")) else text
        )
    missing = f": add {_flags(error.add)}" if error.add else ""
    return f"{_flags(error.fields)}: {error.why}{missing}"


def _flags(fields: Mapping[str, object]) -> str:
    words = []
    for field, value in fields.items():
        flag = FLAGS.get(field) or f"--{field.replace('_', '-')}"
        match field, value:
            case _, True:
                words.append(flag)
            case "max_cpus", int() if "cpus" in fields:
                words[-1] += f",max={value}"
            case "memory", int() if "memory_hugetlb" in fields:
                words.append(f"{flag} {size_text(value)},")
            case "memory_hugetlb", int() if "memory" in fields:
                words[-1] += f"hugetlb={size_text(value)}"
            case "memory_hugetlb", int():
                words.append(f"{flag} hugetlb={size_text(value)}")
            case "memory_slots" | "max_memory", _:
                text = f"slots={value}" if field == "memory_slots" else f"max={_size(value)}"
                if words and words[-1].startswith(flag):
                    words[-1] += f",{text}"
                else:
                    words.append(f"{flag} {'' if 'memory' in fields else 'SIZE,'}{text}")
            case "memory", int():
                words.append(f"{flag} {size_text(value)}")
            case "guest_parameters", tuple() if all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
                words += [f"{flag} {name}={number}" for name, number in value]
            case _, tuple() | frozenset():
                words.append(f"{flag} {','.join(sorted(map(str, value)))}")
            case _:
                words.append(f"{flag} {value}")
    return " ".join(words)


def _size(value: object) -> str:
    return size_text(value) if isinstance(value, int) else str(value)
