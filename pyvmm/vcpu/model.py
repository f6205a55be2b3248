"""What the user asks of the guest's processor: host[,+FLAG][,-FLAG][,phys-bits=N][,vendor=TEXT]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyvmm.config import ConfigError
from pyvmm.vcpu.features import FEATURES, SYNONYMS

MIN_PHYS_BITS: Final = 32
VENDOR_SIZE: Final = 12
"""Bytes of the vendor's name in EBX, EDX and ECX of leaf 0."""

FOLLOWS: Final = {
    "apic": "the kind of irqchip",
    "osxsave": "the guest's CR4",
    "ht": "the number of CPUs",
    "cmp_legacy": "the number of CPUs",
    "ospke": "the guest's CR4",
}
"""What is not for the user to choose."""

OTHER_NAMES: Final = {
    "sse3": "pni",
    "sha": "sha_ni",
    "lzcnt": "abm",
    "mwait": "monitor",
    "invtsc": "nonstop_tsc",
    "ds": "dts",
    "svme": "svm",
}
"""What other tools and manuals call a feature."""


@dataclass(frozen=True)
class CpuModel:
    """The host's processor with some features more or less; features by their bits' names (features.FEATURES)."""

    text: str = "host"
    add: tuple[str, ...] = ()
    """As the user wrote them, synonyms too."""
    remove: tuple[str, ...] = ()
    phys_bits: int | None = None
    vendor: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> CpuModel:
        """Raises ConfigError for what there is not."""
        try:
            return cls._parse(text)
        except ValueError as error:
            raise ConfigError(str(error), {"cpu": text}) from None

    def address_bits(self, most: int) -> int:
        """How many bits physical addresses have, on a host where a guest can have *most*. Raises ConfigError."""
        if self.phys_bits is None:
            return most
        if not MIN_PHYS_BITS <= self.phys_bits <= most:
            raise ConfigError(
                f"physical addresses have at most {most} bits on this host: ask for {MIN_PHYS_BITS} to {most}",
                {"cpu": self.text},
            )
        return self.phys_bits

    @classmethod
    def _parse(cls, text: str) -> CpuModel:
        base, *items = text.split(",")
        if base != "host":
            raise ValueError(f"there is no processor {base!r}: write host, and what to change as host,-avx")
        add: dict[str, None] = {}
        remove: dict[str, None] = {}
        values: dict[str, str] = {}
        for item in items:
            key, equals, value = item.partition("=")
            if equals:
                if key not in ("phys-bits", "vendor"):
                    raise ValueError(f"there is no {key!r}: there are phys-bits=N and vendor=TEXT")
                if key in values:
                    raise ValueError(f"{key} is there twice")
                values[key] = value
            elif item[:1] in ("+", "-"):
                (add if item[0] == "+" else remove)[_feature(item[1:])] = None
            else:
                raise ValueError(f"{item!r} is no change: write +FLAG, -FLAG, phys-bits=N or vendor=TEXT")
        if both := sorted(add.keys() & remove.keys()):
            raise ValueError(f"both +{both[0]} and -{both[0]}")
        return cls(text, tuple(add), tuple(remove), _phys_bits(values), _vendor(values))


HOST: Final = CpuModel()


def names(name: str) -> tuple[str, ...]:
    """The features that the user means by a name: more than one where Intel and AMD say it by different bits."""
    return SYNONYMS.get(name, (name,))


def _feature(name: str) -> str:
    known = [n for n in (*FEATURES, *SYNONYMS) if ":" not in n and n not in FOLLOWS]
    if name in known:
        return name
    if name in FOLLOWS:
        raise ValueError(f"{name} follows from {FOLLOWS[name]}")
    plain = name.lower().replace("-", "_").replace(".", "_")
    close = [OTHER_NAMES[plain]] if plain in OTHER_NAMES else _close(plain, known)
    hint = f"did you mean {' or '.join(close)}?" if close else "names are those of /proc/cpuinfo"
    raise ValueError(f"CPUID has no feature {name!r}; {hint}")


def _close(name: str, known: list[str]) -> list[str]:
    from difflib import get_close_matches  # for a mistake only

    return [name] if name in known else get_close_matches(name, known)


def _phys_bits(values: dict[str, str]) -> int | None:
    text = values.get("phys-bits")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 3:
        raise ValueError(f"phys-bits is a number, not {text!r}")
    return int(text)


def _vendor(values: dict[str, str]) -> bytes | None:
    text = values.get("vendor")
    if text is None:
        return None
    if len(text) != VENDOR_SIZE or not (text.isascii() and text.isprintable()):
        raise ValueError(f"a vendor has {VENDOR_SIZE} ASCII characters, such as GenuineIntel; {text!r} has not")
    return text.encode()
