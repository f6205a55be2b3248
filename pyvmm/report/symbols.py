"""Names for addresses: of vmlinux or another ELF file, of System.map, or of a copy of the guest's /proc/kallsyms.

Source: nm(1), whose lines System.map and /proc/kallsyms have: address, type (t and T: code), name, and in kallsyms the
module in brackets.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from pyvmm.boot.elf import ELF_MAGIC
from pyvmm.errors import UserError, printable
from pyvmm.report.elf_symbols import ElfError, Symbol, read_symbols

REACH: Final = 1 << 20
"""How far a symbol without a size reaches, in bytes, where no other follows."""
LIMIT: Final = 4_000_000
"""Symbols that are kept at the most; a kernel with everything built in has a few hundred thousand."""
MAP_LIMIT: Final = 256 << 20
"""Bytes of a map that are read."""
_CODE: Final = b"tTwWi"
_NOT_LOADED: Final = b"aAUN"
"""Constants, such as offsets inside the per-CPU area, and what is not in the file."""


class Symbols:
    """A table of symbols; *shift* is how far the guest runs from where it was linked (KASLR), modulo 2**64."""

    def __init__(self, symbols: Iterable[Symbol], name: str = "") -> None:
        self.name = name
        """Of the file, for a person."""
        self.shift = 0
        self.shift_source = ""
        """What told of it; empty where nothing did."""
        kept: dict[int, Symbol] = {}
        self._by_name: dict[str, int] = {}
        for symbol in symbols:
            if len(self._by_name) >= LIMIT:
                break
            self._by_name.setdefault(symbol.name, symbol.address)
            other = kept.get(symbol.address)
            if other is None or _rank(symbol) > _rank(other):
                kept[symbol.address] = symbol
        self._symbols = [kept[address] for address in sorted(kept)]
        self._addresses = [symbol.address for symbol in self._symbols]

    def __len__(self) -> int:
        return len(self._symbols)

    @property
    def has_code(self) -> bool:
        return any(symbol.is_code for symbol in self._symbols)

    def linked(self, name: str) -> int | None:
        """The address of *name* as in the file."""
        return self._by_name.get(name)

    def start(self, address: int) -> int | None:
        """Where the code begins that *address*, of the running guest, is in; None where that is no known code."""
        found = self._find(address)
        return None if found is None else found.address + self.shift & 0xFFFF_FFFF_FFFF_FFFF

    def describe(self, address: int) -> str:
        """name+0x12, or an empty string where *address* is in no known code."""
        found = self._find(address)
        if found is None:
            return ""
        offset = (address - self.shift & 0xFFFF_FFFF_FFFF_FFFF) - found.address
        return printable(f"{found.name}+{offset:#x}" if offset else found.name)

    def _find(self, address: int) -> Symbol | None:
        address = address - self.shift & 0xFFFF_FFFF_FFFF_FFFF
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        symbol = self._symbols[index]
        last = index + 1 == len(self._symbols)
        inside = address - symbol.address < (symbol.size or REACH) if last else True
        return symbol if symbol.is_code and inside else None


def _rank(symbol: Symbol) -> tuple[bool, bool, bool]:
    """Of several at one address the one to tell: code first, then what is global, and nothing that the compiler or
    modpost has made."""
    return symbol.is_code, symbol.is_global, not symbol.name.startswith(("__pfx_", "__cfi_", ".", "$"))


def load_symbols(path: str | os.PathLike[str]) -> Symbols:
    """Read *path*, of whichever kind; raises UserError that says what is wrong with it."""
    name = printable(os.fspath(path))
    try:
        with open(path, "rb") as file:
            head = file.read(4)
            if head == ELF_MAGIC:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
                    symbols = Symbols(list(read_symbols(data)), name)
            else:
                text = head + file.read(MAP_LIMIT)
                symbols = Symbols(parse_map(text), name)
                if not symbols.has_code:
                    raise UserError(f"symbols {name}: {_why_none(text)}")
    except OSError as error:
        raise UserError(f"symbols {name}: {error.strerror or error}") from None
    except ElfError as error:
        raise UserError(f"symbols {name}: {error}") from None
    if not symbols.has_code:
        raise UserError(f"symbols {name}: there is no function in it: give a file that is not stripped")
    return symbols


def parse_map(text: bytes) -> Iterator[Symbol]:
    """The lines of System.map, `nm` or /proc/kallsyms; what is no such line is passed over."""
    for line in text.split(b"\n"):
        words = line.split()
        if len(words) < 3 or len(words[1]) != 1 or words[1] in _NOT_LOADED:
            continue
        try:
            address = int(words[0], 16)
        except ValueError:
            continue
        if 0 < address < 1 << 64 and address != (1 << 64) - 1:
            name = words[2].decode("utf-8", "backslashreplace")
            if len(words) > 3:
                name += " " + words[3].decode("utf-8", "backslashreplace")
            yield Symbol(address, name, 0, words[1] in _CODE, words[1].isupper())


def _why_none(text: bytes) -> str:
    if b"real System.map" in text[:200]:  # Debian's, since 4.19
        return "it has no symbols: Debian has the real System.map in the package linux-image-VERSION-dbg"
    if text.startswith((b"0000000000000000 ", b"00000000 ")):
        return "all addresses are 0: read /proc/kallsyms as root, with kernel.kptr_restrict=0"
    return "neither an ELF file, nor System.map or a copy of /proc/kallsyms"
