"""BTF, the types of a Linux kernel as the kernel itself holds them: a table of records that name each other by number.

What is read is the guest's, and may be anything: BtfError says what is wrong with it, no number leads out of the table,
and no type contains itself.

Source: Linux Documentation/bpf/btf.rst; include/uapi/linux/btf.h.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

BTF_MAGIC: Final = 0xEB9F
BTF_VERSION: Final = 1
DEPTH: Final = 64
"""So deep may types be nested; a kernel's are some 15."""
NAME_LIMIT: Final = 512
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_PARAMETER: Final = struct.Struct("<II")
_ENUMERATOR: Final = struct.Struct("<Ii")


class BtfError(ValueError):
    """str(error) says what is wrong with a kernel's types."""

    def __init__(self, what: str) -> None:
        super().__init__(f"damaged BTF: {what}")


class BtfKind(IntEnum):
    """BTF_KIND_*; number 0 of the table is void."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_FIXED: Final = {BtfKind.INT: 4, BtfKind.ARRAY: 12, BtfKind.VAR: 4, BtfKind.DECL_TAG: 4}
"""Bytes that follow a record of these kinds; those of the next ones times its count."""
_EACH: Final = {
    BtfKind.STRUCT: 12, BtfKind.UNION: 12, BtfKind.ENUM: 8, BtfKind.FUNC_PROTO: 8, BtfKind.DATASEC: 12,
    BtfKind.ENUM64: 12,
}  # fmt: skip
_MODIFIERS: Final = (BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG)


class BtfType(NamedTuple):
    """One record. *size_or_type* is its size in bytes, or the number of the type that it refers to, by its kind."""

    kind: BtfKind
    name: str
    vlen: int
    """Members, enumerators or parameters."""
    flag: bool
    """kind_flag: members have bit fields; enumerators are signed; a forward declaration is of a union."""
    size_or_type: int
    rest: int
    """Where in the table what follows it begins."""


class BtfInt(NamedTuple):
    """The rest of an INT."""

    bits: int
    signed: bool
    boolean: bool


class BtfMember(NamedTuple):
    """Of a struct or union; *bits* is 0 where it is no bit field."""

    name: str
    type: int
    bit_offset: int
    bits: int


class Btf:
    """The table in *data*; raises BtfError."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise BtfError("it is shorter than its header")
        magic, version, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data)
        if (magic, version) != (BTF_MAGIC, BTF_VERSION):
            raise BtfError(f"magic {magic:#x}, version {version}")
        self._table = data[header + type_off : header + type_off + type_len]
        self._strings = data[header + str_off : header + str_off + str_len]
        if len(self._table) != type_len or len(self._strings) != str_len:
            raise BtfError("it ends before its types or their names do")
        self._starts = array("I", self._walk())
        self._sound: set[int] = {0}
        """Structures and unions that are known not to contain themselves."""
        self._by_name: dict[str, list[int]] = {}
        for number in range(1, len(self)):
            name = self.name(self._u32(self._starts[number - 1]))
            if name:
                self._by_name.setdefault(name, []).append(number)

    def _walk(self) -> Iterator[int]:
        at, end = 0, len(self._table)
        while at < end:
            yield at
            if at + _TYPE.size > end:
                raise BtfError("it ends within a type")
            info = self._u32(at + 4)
            kind = info >> 24 & 0x1F
            at += _TYPE.size + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)  # type: ignore[call-overload]
            if kind > BtfKind.ENUM64 or not kind:
                raise BtfError(f"a type of kind {kind}, which is none that is known")
        if at > end:
            raise BtfError("it ends within a type")

    def _u32(self, at: int) -> int:
        return int.from_bytes(self._table[at : at + 4], "little")

    def __len__(self) -> int:
        """How many types there are, void, which is number 0, with them."""
        return len(self._starts) + 1

    def name(self, offset: int) -> str:
        """The name at *offset* of the strings; empty where there is none."""
        end = self._strings.find(b"\0", offset, offset + NAME_LIMIT)
        return self._strings[offset:end].decode("utf-8", "backslashreplace") if end > offset else ""

    def __getitem__(self, number: int) -> BtfType:
        """Type *number*; raises BtfError where there is none."""
        if not 0 <= number < len(self):
            raise BtfError(f"type {number} of {len(self)}")
        if not number:
            return BtfType(BtfKind.VOID, "void", 0, False, 0, 0)
        at = self._starts[number - 1]
        name, info, size_or_type = _TYPE.unpack_from(self._table, at)
        kind = BtfKind(info >> 24 & 0x1F)
        return BtfType(kind, self.name(name), info & 0xFFFF, bool(info >> 31), size_or_type, at + _TYPE.size)

    def named(self, name: str, *kinds: BtfKind) -> Iterator[int]:
        """The numbers of the types of *kinds* that have this *name*, in the order of the table."""
        return (number for number in self._by_name.get(name, ()) if self[number].kind in kinds)

    def of_kind(self, *kinds: BtfKind) -> Iterator[BtfType]:
        """All types of *kinds*."""
        return (found for found in map(self.__getitem__, range(1, len(self))) if found.kind in kinds)

    # What follows a record, by its kind

    def integer(self, of: BtfType) -> BtfInt:
        """Of an INT."""
        data = self._u32(of.rest)
        return BtfInt(data & 0xFF, bool(data >> 24 & 1), bool(data >> 24 & 4))

    def array(self, of: BtfType) -> tuple[int, int]:
        """Of an ARRAY the type of its elements, and how many there are: 0 where it is a flexible one."""
        element, _, count = _MEMBER.unpack_from(self._table, of.rest)
        return element, count

    def members(self, of: BtfType) -> Iterator[BtfMember]:
        """Of a STRUCT or UNION."""
        for name, number, offset in self._each(_MEMBER, of):
            bits, offset = (offset >> 24, offset & 0xFF_FFFF) if of.flag else (0, offset)
            yield BtfMember(self.name(name), number, offset, bits)

    def parameters(self, of: BtfType) -> Iterator[tuple[str, int]]:
        """Of a FUNC_PROTO, name and type; the last, of type 0 and without a name, stands for any number."""
        return ((self.name(name), number) for name, number in self._each(_PARAMETER, of))

    def enumerators(self, of: BtfType) -> Iterator[tuple[str, int]]:
        """Of an ENUM or ENUM64, name and value."""
        if of.kind == BtfKind.ENUM:
            for name, value in self._each(_ENUMERATOR, of):
                yield self.name(name), value if of.flag else value & 0xFFFF_FFFF
        else:
            for name, low, high in self._each(_MEMBER, of):
                value = high << 32 | low
                yield self.name(name), value - (1 << 64) if of.flag and value >> 63 else value

    def _each(self, record: struct.Struct, of: BtfType) -> Iterator[tuple[int, ...]]:
        return record.iter_unpack(self._table[of.rest : of.rest + record.size * of.vlen])

    # Of what a type is made

    def check_nesting(self, number: int) -> None:
        """BtfError where type *number* contains itself, or is nested deeper than DEPTH."""
        self._check(number, ())

    def _check(self, number: int, around: tuple[int, ...]) -> None:
        number = self._held(number)
        if number in self._sound:
            return
        if number in around or len(around) > DEPTH:
            raise BtfError(f"type {number} contains itself, or too much")
        found = self[number]
        if found.kind in (BtfKind.STRUCT, BtfKind.UNION):
            for member in self.members(found):
                self._check(member.type, (*around, number))
        self._sound.add(number)

    def _held(self, number: int) -> int:
        """What is in memory where a value of type *number* is: the type behind names, qualifiers and arrays."""
        for _ in range(DEPTH):
            found = self[number]
            if found.kind == BtfKind.ARRAY:
                number = self.array(found)[0]
            elif found.kind in _MODIFIERS:
                number = found.size_or_type
            else:
                return number
        raise BtfError(f"type {number} contains itself, or too much")
