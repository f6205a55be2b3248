"""The symbol table of an ELF file: vmlinux, or whatever kernel a guest is.

Our own reader, and not pyelftools: that makes a tree of objects of each of a vmlinux's 150,000 symbols, where this
looks at three tables of fixed records. The file is mapped, so that gigabytes of debugging information cost nothing, and
nothing in it is believed before it is checked.

Source: System V ABI, chapter 4 (ELF header, sections, symbol table).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from pyvmm.boot.elf import ELF_MAGIC, ELFCLASS32, ELFCLASS64, ELFDATA2LSB

SHT_SYMTAB: Final = 2
SHT_DYNSYM: Final = 11
SHF_EXECINSTR: Final = 4
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_GNU_IFUNC = 0, 1, 2, 10
STB_LOCAL: Final = 0
SHN_LORESERVE: Final = 0xFF00
NAME_LIMIT: Final = 256

_EHDR32: Final = struct.Struct("<16s H H I I I I I H H H H H H")
_EHDR64: Final = struct.Struct("<16s H H I Q Q Q I H H H H H H")
_SHDR32: Final = struct.Struct("<10I")
_SHDR64: Final = struct.Struct("<IIQQQQIIQQ")
_SYM32: Final = struct.Struct("<IIIBBH")
_SYM64: Final = struct.Struct("<IBBHQQ")


class ElfError(ValueError):
    """str(error) says what is wrong with the file."""


class Symbol(NamedTuple):
    """*is_code* says that it is in a section that is executed; *size* is 0 where the file does not say."""

    address: int
    name: str
    size: int
    is_code: bool
    is_global: bool


class _Section(NamedTuple):
    type: int
    flags: int
    offset: int
    size: int
    link: int
    entsize: int


def read_symbols(data: memoryview) -> Iterator[Symbol]:
    """The functions, objects and labels of the ELF file *data*; raises ElfError before the first of them."""
    if len(data) < 20 or bytes(data[:4]) != ELF_MAGIC:
        raise ElfError("no ELF file")
    if data[4] not in (ELFCLASS32, ELFCLASS64) or data[5] != ELFDATA2LSB:
        raise ElfError("an ELF file, but not a little-endian one of 32 or 64 bits")
    wide = data[4] == ELFCLASS64
    sections = _sections(data, wide)
    table = next((s for kind in (SHT_SYMTAB, SHT_DYNSYM) for s in sections if s.type == kind), None)
    if table is None:
        raise ElfError("an ELF file without symbols: give one that is not stripped")
    record = _SYM64 if wide else _SYM32
    if table.entsize != record.size:
        raise ElfError(f"damaged ELF file: symbols of {table.entsize} bytes, not {record.size}")
    if table.link >= len(sections):
        raise ElfError(f"damaged ELF file: its symbols' names are in section {table.link} of {len(sections)}")
    names = _content(data, sections[table.link])
    return _symbols(_content(data, table), names, sections, record)


def _sections(data: memoryview, wide: bool) -> list[_Section]:
    header, record = (_EHDR64, _SHDR64) if wide else (_EHDR32, _SHDR32)
    if len(data) < header.size:
        raise ElfError("ELF file truncated in its header")
    fields = header.unpack_from(data)
    start, entsize, count = fields[6], fields[11], fields[12]
    if count == 0:
        raise ElfError("an ELF file without sections, and so without symbols: give one that is not stripped")
    if entsize != record.size:
        raise ElfError(f"damaged ELF file: section headers of {entsize} bytes, not {record.size}")
    if start + count * entsize > len(data):
        raise ElfError("ELF file truncated: its section headers are behind its end")
    return [
        _Section(kind, flags, offset, size, link, each)
        for _, kind, flags, _, offset, size, link, _, _, each in record.iter_unpack(
            data[start : start + count * entsize]
        )
    ]


def _content(data: memoryview, section: _Section) -> memoryview:
    if section.offset + section.size > len(data):
        raise ElfError("ELF file truncated: its symbols are behind its end")
    return data[section.offset : section.offset + section.size]


def _symbols(table: memoryview, names: memoryview, sections: list[_Section], record: struct.Struct) -> Iterator[Symbol]:
    strings = bytes(names)
    code = [bool(section.flags & SHF_EXECINSTR) for section in sections]
    for fields in record.iter_unpack(table[: len(table) // record.size * record.size]):
        if record is _SYM64:
            name, info, _, index, value, size = fields
        else:
            name, value, size, info, _, index = fields
        if info & 15 not in (STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_GNU_IFUNC) or not 0 < index < SHN_LORESERVE:
            continue
        end = strings.find(b"\0", name, name + NAME_LIMIT)
        if end > name:  # what has no name, or has none that ends, cannot be told
            text = strings[name:end].decode("utf-8", "backslashreplace")
            yield Symbol(value, text, size, index < len(code) and code[index], info >> 4 != STB_LOCAL)
