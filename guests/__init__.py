"""One small guest a folder: source, the bytes built from it (guest.bin), what a monitor must know of it (guest.toml).

`names()` lists them and `load(name)` reads one. scripts/build-guests rebuilds the bytes from the sources.
Importing this costs a dataclass and nothing else: the default guest is on the way from exec to the first KVM_RUN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyvmm.errors import UserError

DEFAULT = "keyboard"
"""The guest that runs when the user names none."""


class GuestError(UserError):
    """There is no guest of that name, or no parameter of that name; the text is one line for the user."""


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
            image[offset : offset + 8] = value.to_bytes(8, "little")
        return replace(self, image=bytes(image))


def names() -> list[str]:
    """The guests that there are, in alphabetical order."""
    from importlib import resources

    return sorted(folder.name for folder in resources.files(__name__).iterdir() if (folder / "guest.toml").is_file())


def load(name: str) -> Guest:
    """Read a guest; raises GuestError if there is none of that name."""
    from pkgutil import get_data  # importlib.resources alone would take as long as all the rest

    try:
        if not name.replace("-", "").isalnum():
            raise OSError
        text = get_data(__name__, f"{name}/guest.toml")
        image = get_data(__name__, f"{name}/guest.bin")
    except OSError:
        raise GuestError(f"there is no guest {name!r}; there are: {', '.join(names())}") from None
    assert text is not None and image is not None  # only a loader that cannot read data gives None
    fields, symbols = _parse(text.decode())
    return Guest(
        name=name,
        description=str(fields["description"]),
        mode=str(fields["mode"]),
        address=int(fields["address"]),
        entry=int(fields["entry"]),
        memory=int(fields["memory"]),
        end=str(fields["end"]),
        value=int(fields["value"]),
        symbols=symbols,
        image=image,
    )


def _parse(text: str) -> tuple[dict[str, str | int], dict[str, int]]:
    """The part of TOML that guest.toml uses, strings and integers; tomllib takes 8 ms to import, this nothing."""
    fields: dict[str, str | int] = {}
    symbols: dict[str, int] = {}
    in_symbols = False
    for line in text.splitlines():
        key, equals, value = line.partition(" = ")
        if line == "[symbols]":
            in_symbols = True
        elif not equals or line.startswith("#"):
            continue
        elif value.startswith('"'):
            fields[key] = value[1 : value.rindex('"')]
        elif in_symbols:
            symbols[key] = int(value.partition("#")[0], 0)
        else:
            fields[key] = int(value.partition("#")[0], 0)
    return fields, symbols
