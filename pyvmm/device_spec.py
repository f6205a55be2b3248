"""NAME,KEY=VALUE,...: a device that somebody asks for, before anybody knows whether there is such a thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pyvmm.errors import UserError

RESERVED: Final = ("id", "port", "slot")
"""Keys that say where a device goes and what it is called; it does not hear of them."""


@dataclass(frozen=True)
class DeviceSpec:
    """One device: *name* is one that comes with pyvmm or is installed (an entry point), or FILE.py:CLASS.

    Where it goes: behind root port *port*, else into *slot* of PCI bus 0, else into one that is free. *id* is what the
    machine calls it.
    """

    name: str
    arguments: tuple[tuple[str, str | bool], ...] = ()
    """Keys and values as they were written; a key alone is True."""
    id: str | None = None
    port: int | None = None
    slot: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises UserError."""
        name, *written = text.split(",")
        settings: dict[str, str | bool] = {}
        for setting in written:
            key, equals, value = setting.partition("=")
            if key in settings:
                raise UserError(f"device {text}: {key} is there twice")
            settings[key] = value if equals else True
        return cls._of(text, name, settings)

    @classmethod
    def of(cls, name: str, settings: Mapping[str, str | bool]) -> Self:
        """By keys and values that need not be made out of a text. Raises UserError."""
        words = [key if value is True else f"{key}={value}" for key, value in settings.items()]
        return cls._of(",".join([name, *words]), name, settings)

    @classmethod
    def _of(cls, text: str, name: str, settings: Mapping[str, str | bool]) -> Self:
        file, colon, kind = name.rpartition(":")
        if not name or (colon and (not file or not kind.isidentifier())):
            raise UserError(f"device {text}: write it as NAME or FILE.py:CLASS, and ,KEY=VALUE")
        arguments = dict(settings)
        for key, value in settings.items():
            if not key.partition(".")[0].isidentifier() or key.endswith("."):
                setting = key if value is True else f"{key}={value}"
                raise UserError(f"device {text}: {setting!r} is no KEY=VALUE")
        places = {key: arguments.pop(key, None) for key in RESERVED}
        if places["id"] in (True, ""):
            raise UserError(f"device {text}: id= is a name of your own")
        return cls(
            name,
            tuple(arguments.items()),
            None if places["id"] is None else str(places["id"]),
            _number(text, "port", places["port"], "of a root port"),
            _number(text, "slot", places["slot"], "of a slot of PCI bus 0, 0 to 0x1f"),
        )

    @property
    def file(self) -> Path | None:
        """Where its class is; None for one that has a name."""
        file, colon, _ = self.name.rpartition(":")
        return Path(file) if colon else None

    @property
    def kind(self) -> str:
        """The name of its class, or its own."""
        return self.name.rpartition(":")[2]

    def __str__(self) -> str:
        words = [self.name]
        words += [key if value is True else f"{key}={value}" for key, value in self.arguments]
        for key in RESERVED:
            if (value := getattr(self, key)) is not None:
                words.append(f"{key}={value}")
        return ",".join(words)


def _number(text: str, key: str, value: str | bool | None, what: str) -> int | None:
    if value is None:
        return None
    try:
        return int(str(value), 0)
    except ValueError:
        raise UserError(f"device {text}: {key}={value} is no number {what}") from None
