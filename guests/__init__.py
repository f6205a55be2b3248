"""One small guest a folder: source, the bytes built from it (guest.bin), what a monitor must know of it (guest.toml).

`names()` lists them and `load(name)` reads one. scripts/build-guests rebuilds the bytes from the sources.
Importing this costs a dataclass and nothing else: the default guest is on the way from exec to the first KVM_RUN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeVar

from pyvmm.errors import UserError, there_are

DEFAULT = "keyboard"
"""The guest that runs when the user names none."""


MODES: Final = ("real", "protected", "long")
ENDS: Final = ("power-off", "debug-exit", "reset", "shutdown", "internal-error", "system-event")
T = TypeVar("T", str, int)


class GuestError(UserError):
    """There is no guest of that name, or no parameter of that name, or its files are wrong; one line for the user."""


@dataclass(frozen=True)
class Guest:
    """A guest's image and how to start it. Addresses are guest-physical, sizes in bytes."""

    name: str
    description: str
    mode: str
    """The mode that the vCPU starts in: "real" (CS = 0), "protected" (flat 32-bit) or "long" (flat 64-bit)."""
    address: int
    """Where the image goes."""
    entry: int
    """The first instruction."""
    memory: int
    """The RAM that the guest is meant for."""
    end: str
    """What ends it: "power-off", "debug-exit", "reset", "shutdown", "internal-error" or "system-event"."""
    value: int
    """What it writes to the debug-exit port when all is well; 0 too where it cannot power off."""
    symbols: dict[str, int]
    """Addresses of its parameters, results and marks; a parameter or result is 8 bytes, little-endian."""
    image: bytes
    tables: str = ""
    """acpi: it finds ACPI tables in RAM; empty for none."""
    needs: str = ""
    """What it comes to nothing without: options of `pyvmm run`, or words that say what; empty for most."""

    def with_parameters(self, **parameters: int) -> Guest:
        """The same guest with other values in its image; GuestError for a name it lacks or a value that won't fit."""
        image = bytearray(self.image)
        for name, value in parameters.items():
            if name not in self.symbols:
                raise GuestError(
                    f"guest {self.name} has no {name}; it has: {', '.join(self.symbols) or 'nothing to set'}"
                )
            if not 0 <= value < 1 << 64:
                raise GuestError(f"guest {self.name}: {value} does not fit into the 8 bytes of {name}")
            offset = self.symbols[name] - self.address
            if not 0 <= offset <= len(image) - 8:
                raise GuestError(f"guest {self.name}: {name} is not in the image: the guest sets it")
            image[offset : offset + 8] = value.to_bytes(8, "little")
        return replace(self, image=bytes(image))


def names() -> list[str]:
    """The guests that there are, in alphabetical order; load() says which of them can be read."""
    from importlib import resources

    folders = resources.files(__name__).iterdir()
    return sorted(folder.name for folder in folders if _is_name(folder.name) and (folder / "guest.toml").is_file())


def _is_name(name: str) -> bool:
    return name.replace("-", "").isalnum()


def load(name: str) -> Guest:
    """Read a guest by its name, or by the path of its folder, which has a "/"; raises GuestError if there is none, or
    something in its folder is wrong."""
    text = _data(name, "guest.toml") if _is_name(name) or "/" in name else None
    if text is None and "/" in name:
        raise GuestError(f"there is no guest {name!r}: that folder has no guest.toml")
    if text is None:
        raise GuestError(f"there is no guest {name!r}; {there_are(name, names())}")
    image = _data(name, "guest.bin")
    if image is None:
        raise GuestError(f"guest {name} has no guest.bin: scripts/build-guests makes it")
    try:
        return parse(name, text, image)
    except ValueError as error:
        raise GuestError(f"guest {name}: guest.toml: {error}") from None


def _data(name: str, file: str) -> bytes | None:
    """A file in a guest's folder; None where there is none that can be read."""
    from pkgutil import get_data  # importlib.resources alone would take as long as all the rest

    try:
        if "/" in name:
            with open(f"{name}/{file}", "rb") as opened:
                return opened.read()
        return get_data(__name__, f"{name}/{file}")
    except (OSError, ValueError):
        return None


def parse(name: str, text: bytes, image: bytes) -> Guest:
    """The guest whose guest.toml and guest.bin these are; ValueError says in one line what is wrong in the former."""
    fields, symbols = _parse(text.decode())
    guest = Guest(
        name=name,
        description=_field(fields, "description", str),
        mode=_field(fields, "mode", str),
        address=_field(fields, "address", int),
        entry=_field(fields, "entry", int),
        memory=_field(fields, "memory", int),
        end=_field(fields, "end", str),
        value=_field(fields, "value", int),
        tables=_field({"tables": "", **fields}, "tables", str),
        needs=_field({"needs": "", **fields}, "needs", str),
        symbols=symbols,
        image=image,
    )
    if guest.mode not in MODES:
        raise ValueError(f"mode {guest.mode!r} is none of {', '.join(MODES)}")
    if guest.end not in ENDS:
        raise ValueError(f"end {guest.end!r} is none of {', '.join(ENDS)}")
    if guest.memory % 4096 or not 0 <= guest.address <= guest.memory - len(image):
        raise ValueError(
            f"{len(image)} bytes at {guest.address:#x} are not in {guest.memory:#x} bytes of memory, whole pages"
        )
    if not guest.address <= guest.entry < guest.address + len(image):
        raise ValueError(f"entry {guest.entry:#x} is not in the image")
    return guest


def _field(fields: dict[str, str | int], key: str, kind: type[T]) -> T:
    if key not in fields:
        raise ValueError(f"there is no {key}")
    value = fields[key]
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {value!r}, no {kind.__name__}")
    return value


def _parse(text: str) -> tuple[dict[str, str | int], dict[str, int]]:
    """The part of TOML that guest.toml uses, strings and integers; tomllib takes 8 ms to import, this nothing."""
    fields: dict[str, str | int] = {}
    symbols: dict[str, int] = {}
    in_symbols = False
    for number, line in enumerate(text.splitlines(), 1):
        key, equals, value = line.partition(" = ")
        if line == "[symbols]":
            in_symbols = True
        elif not equals or line.startswith("#"):
            continue
        elif value.startswith('"') and not in_symbols:
            fields[key] = value[1 : value.rindex('"')]
        else:
            try:
                parsed = int(value.partition("#")[0], 0)
            except ValueError:
                raise ValueError(f"line {number}: {value!r} is no number") from None
            (symbols if in_symbols else fields)[key] = parsed
    return fields, symbols
