"""ACPI Machine Language, built by nested constructors that read like ASL.

    DefinitionBlock("DSDT", 2, "PYVMM", "BOARD", 1,
        Scope("\\\\_SB",
            Device("PS2K",
                Name("_HID", EISAID("PNP0303")),
                Name("_CRS", ResourceTemplate(IO(Decode16, 0x60, 0x60, 1, 1), IRQNoFlags(1))))))

Each constructor is named as the ASL operator, takes its arguments in ASL's order and returns the finished byte code.
As in ASL a name is not a string: where ASL wants a name or a target, a Python str is that name ("PICF", "\\\\_SB.PCI0",
"^FOO"); where it wants a value, a str is a string constant, an int an integer, and Ref("PICF") is the named object.

Source: ACPI 6.5, chapter 19 (ASL) and chapter 20 (AML). Mistakes in the arguments raise ValueError.
Resource descriptors are in resources.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pyvmm.acpi import sdt


class Aml(bytes):
    """Finished byte code: one term, or several in a row."""


Term = Aml | int | str
"""What ASL calls a TermArg: byte code, an integer, or a string constant."""

Target = Aml | str | None
"""Where a result goes: byte code (Local0, Index(...)), the name of an object, or None to drop it."""

NotSerialized: Final = 0
Serialized: Final = 1

# OperationRegion spaces (5.5.2.4), and Field access, lock and update rules (20.2.5.2).
SystemMemory: Final = 0
SystemIO: Final = 1
PCI_Config: Final = 2
AnyAcc: Final = 0
ByteAcc: Final = 1
WordAcc: Final = 2
DWordAcc: Final = 3
QWordAcc: Final = 4
NoLock: Final = 0
Lock: Final = 1
Preserve: Final = 0
WriteAsOnes: Final = 1
WriteAsZeros: Final = 2

Zero: Final = Aml(b"\x00")
One: Final = Aml(b"\x01")
Ones: Final = Aml(b"\xff")
Local0, Local1, Local2, Local3, Local4, Local5, Local6, Local7 = (Aml([0x60 + n]) for n in range(8))
Arg0, Arg1, Arg2, Arg3, Arg4, Arg5, Arg6 = (Aml([0x68 + n]) for n in range(7))
Break: Final = Aml(b"\xa5")
Continue: Final = Aml(b"\x9f")

PKG_LENGTH_LIMIT: Final = 1 << 28


# Encodings.


def pkg_length_field(value: int) -> bytes:
    """A PkgLength that says *value* and does not count itself, as in the units of a Field (20.2.4)."""
    if 0 <= value <= 0x3F:
        return bytes([value])
    for follow in (1, 2, 3):
        if 0 <= value < 1 << (4 + 8 * follow):
            return bytes([follow << 6 | value & 0xF]) + (value >> 4).to_bytes(follow, "little")
    raise ValueError(f"a PkgLength cannot say {value:#x}")


def pkg_length(content: int) -> bytes:
    """The PkgLength before *content* bytes; the length that it says includes its own 1 to 4 bytes (20.2.4)."""
    for own in (1, 2, 3, 4):
        field = pkg_length_field(content + own)
        if len(field) == own:
            return field
    raise ValueError(f"a package of {content:#x} bytes is too long")


def integer(value: int) -> Aml:
    """The shortest constant for *value*, 0 to 2**64 - 1 (20.2.3)."""
    if value in (0, 1):
        return Aml([value])
    if value == 0xFFFFFFFFFFFFFFFF:
        return Ones
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if 0 <= value < 1 << (8 * size):
            return Aml(bytes([prefix]) + value.to_bytes(size, "little"))
    raise ValueError(f"an AML integer has 64 bits: {value:#x}")


_PATH = re.compile(r"(\\|\^*)((?:[A-Z_][A-Z0-9_]{0,3})(?:\.[A-Z_][A-Z0-9_]{0,3})*|)")


def name_string(path: str) -> Aml:
    r"""A NameString: an optional root \ or parents ^, then name segments of up to four characters (20.2.2)."""
    match = _PATH.fullmatch(path)
    if match is None or not path:
        raise ValueError(f"not an ACPI name: {path!r}")
    prefix, rest = match.groups()
    segments = [segment.ljust(4, "_").encode() for segment in rest.split(".")] if rest else []
    if len(segments) > 255:
        raise ValueError(f"an ACPI name of {len(segments)} segments is too long")
    if not segments:
        lead = b"\x00"  # NullName
    elif len(segments) == 1:
        lead = b""
    elif len(segments) == 2:
        lead = b"\x2e"
    else:
        lead = bytes([0x2F, len(segments)])
    return Aml(prefix.encode() + lead + b"".join(segments))


def _name_seg(name: str) -> Aml:
    code = name_string(name)
    if len(code) != 4:
        raise ValueError(f"not a single ACPI name of up to four characters: {name!r}")
    return code


def term(value: Term) -> Aml:
    """The byte code of a value."""
    if isinstance(value, Aml):
        return value
    if isinstance(value, int):
        return integer(value)
    data = value.encode("ascii", "replace")
    if not value.isascii() or 0 in data:
        raise ValueError(f"an AML string is ASCII without NUL: {value!r}")
    return Aml(b"\x0d" + data + b"\x00")


def _target(value: Target) -> Aml:
    if value is None:
        return Aml(b"\x00")
    return name_string(value) if isinstance(value, str) else value


def _code(*parts: bytes) -> Aml:
    return Aml(b"".join(parts))


def _package(opcode: bytes, *parts: bytes) -> Aml:
    body = b"".join(parts)
    return Aml(opcode + pkg_length(len(body)) + body)


# Names, scopes and objects.


def DefinitionBlock(
    signature: str, compliance: int, oem_id: str, table_id: str, oem_revision: int, *body: Aml
) -> bytes:
    """A whole table, DSDT or SSDT. *compliance* 2 or more makes integers 64 bits wide (19.6.29)."""
    return sdt.table(signature.encode(), compliance, b"".join(body), oem_id.encode(), table_id.encode(), oem_revision)


def Ref(path: str) -> Aml:
    """The object named *path*, where a value is wanted."""
    return name_string(path)


def Call(path: str, *args: Term) -> Aml:
    """Invocation of the method *path*; the caller counts the arguments, as AML does not."""
    return _code(name_string(path), *map(term, args))


def Scope(path: str, *body: Aml) -> Aml:
    return _package(b"\x10", name_string(path), *body)


def Device(name: str, *body: Aml) -> Aml:
    return _package(b"\x5b\x82", name_string(name), *body)


def Name(name: str, value: Term) -> Aml:
    return _code(b"\x08", name_string(name), term(value))


def Method(name: str, arguments: int, serialize: int, *body: Aml, sync_level: int = 0) -> Aml:
    """A control method of 0 to 7 *arguments*."""
    if not 0 <= arguments <= 7 or not 0 <= sync_level <= 15:
        raise ValueError(f"method {name}: {arguments} arguments, sync level {sync_level}")
    return _package(b"\x14", name_string(name), bytes([arguments | serialize << 3 | sync_level << 4]), *body)


def EISAID(text: str) -> Aml:
    """An EISA identifier, three letters and four hex digits, packed into 32 bits (19.3.4)."""
    if re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", text) is None:
        raise ValueError(f"not an EISA ID: {text!r}")
    a, b, c = (ord(letter) - 0x40 for letter in text[:3])
    packed = (a << 10 | b << 5 | c).to_bytes(2, "big") + bytes.fromhex(text[3:])
    return integer(int.from_bytes(packed, "little"))


def Buffer(data: bytes, size: Term | None = None) -> Aml:
    """A buffer that starts with *data*; *size* in bytes defaults to its length."""
    return _package(b"\x11", term(len(data) if size is None else size), data)


def ToUUID(text: str) -> Aml:
    """A UUID as its 16-byte buffer, the first three groups little-endian (19.6.142)."""
    data = bytes.fromhex(text.replace("-", ""))  # as uuid.UUID(text).bytes_le, without all that `uuid` imports
    return Buffer(data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:])


def Package(*elements: Term) -> Aml:
    """A package; beyond 255 elements it becomes a VarPackage (20.2.5.4)."""
    if len(elements) <= 255:
        return _package(b"\x12", bytes([len(elements)]), *map(term, elements))
    return _package(b"\x13", integer(len(elements)), *map(term, elements))


def OperationRegion(name: str, space: int, offset: Term, length: Term) -> Aml:
    """*offset* and *length* in bytes of the address space."""
    return _code(b"\x5b\x80", name_string(name), bytes([space]), term(offset), term(length))


@dataclass(frozen=True)
class FieldUnit:
    """A named unit of a Field, *bits* wide; without a name it is a gap."""

    name: str
    bits: int


@dataclass(frozen=True)
class Offset:
    """The next unit of a Field starts at this byte of the region."""

    byte: int


def Field(region: str, access: int, lock: int, update: int, *units: FieldUnit | Offset) -> Aml:
    code = []
    position = 0
    for unit in units:
        if isinstance(unit, Offset):
            if unit.byte * 8 < position:
                raise ValueError(f"field of {region}: offset {unit.byte:#x} lies behind bit {position}")
            code.append(b"\x00" + pkg_length_field(unit.byte * 8 - position))
            position = unit.byte * 8
        else:
            code.append((_name_seg(unit.name) if unit.name else b"\x00") + pkg_length_field(unit.bits))
            position += unit.bits
    return _package(b"\x5b\x81", name_string(region), bytes([access | lock << 4 | update << 5]), *code)


def CreateByteField(source: Term, index: Term, name: str) -> Aml:
    return _code(b"\x8c", term(source), term(index), name_string(name))


def CreateWordField(source: Term, index: Term, name: str) -> Aml:
    return _code(b"\x8b", term(source), term(index), name_string(name))


def CreateDWordField(source: Term, index: Term, name: str) -> Aml:
    """A name for the 32 bits at byte *index* of the buffer *source*."""
    return _code(b"\x8a", term(source), term(index), name_string(name))


def CreateQWordField(source: Term, index: Term, name: str) -> Aml:
    return _code(b"\x8f", term(source), term(index), name_string(name))


def Mutex(name: str, sync_level: int = 0) -> Aml:
    """What one holds at a time; *sync_level*, 0 to 15, orders those that are held together (19.6.87)."""
    return _code(b"\x5b\x01", name_string(name), bytes([sync_level & 0xF]))


# Control flow.


def If(predicate: Term, *body: Aml) -> Aml:
    return _package(b"\xa0", term(predicate), *body)


def Else(*body: Aml) -> Aml:
    """The other branch; stands directly after its If."""
    return _package(b"\xa1", *body)


def While(predicate: Term, *body: Aml) -> Aml:
    return _package(b"\xa2", term(predicate), *body)


def Return(value: Term) -> Aml:
    return _code(b"\xa4", term(value))


def Notify(device: Aml | str, value: Term) -> Aml:
    return _code(b"\x86", _target(device), term(value))


WAIT_FOREVER: Final = 0xFFFF


def Acquire(mutex: Aml | str, milliseconds: int = WAIT_FOREVER) -> Aml:
    """Wait so long until the mutex is to be had; true where it was not (19.6.2)."""
    return _code(b"\x5b\x23", _target(mutex), milliseconds.to_bytes(2, "little"))


def Release(mutex: Aml | str) -> Aml:
    return _code(b"\x5b\x27", _target(mutex))


def Sleep(milliseconds: Term) -> Aml:
    return _code(b"\x5b\x22", term(milliseconds))


# Operators.


def Store(source: Term, destination: Aml | str) -> Aml:
    return _code(b"\x70", term(source), _target(destination))


def _binary(opcode: int, a: Term, b: Term, result: Target) -> Aml:
    return _code(bytes([opcode]), term(a), term(b), _target(result))


def Add(a: Term, b: Term, result: Target = None) -> Aml:
    return _binary(0x72, a, b, result)


def Concatenate(a: Term, b: Term, result: Target = None) -> Aml:
    return _binary(0x73, a, b, result)


def Subtract(a: Term, b: Term, result: Target = None) -> Aml:
    return _binary(0x74, a, b, result)


def Multiply(a: Term, b: Term, result: Target = None) -> Aml:
    return _binary(0x77, a, b, result)


def ShiftLeft(source: Term, count: Term, result: Target = None) -> Aml:
    return _binary(0x79, source, count, result)


def ShiftRight(source: Term, count: Term, result: Target = None) -> Aml:
    return _binary(0x7A, source, count, result)


def And(a: Term, b: Term, result: Target = None) -> Aml:
    return _binary(0x7B, a, b, result)


def Or(a: Term, b: Term, result: Target = None) -> Aml:
    return _binary(0x7D, a, b, result)


def Xor(a: Term, b: Term, result: Target = None) -> Aml:
    return _binary(0x7F, a, b, result)


def Not(a: Term, result: Target = None) -> Aml:
    return _code(b"\x80", term(a), _target(result))


def Increment(target: Aml | str) -> Aml:
    return _code(b"\x75", _target(target))


def Decrement(target: Aml | str) -> Aml:
    return _code(b"\x76", _target(target))


def SizeOf(target: Aml | str) -> Aml:
    return _code(b"\x87", _target(target))


def DerefOf(reference: Term) -> Aml:
    return _code(b"\x83", term(reference))


def Index(source: Term, index: Term, result: Target = None) -> Aml:
    return _binary(0x88, source, index, result)


def LAnd(a: Term, b: Term) -> Aml:
    return _code(b"\x90", term(a), term(b))


def LOr(a: Term, b: Term) -> Aml:
    return _code(b"\x91", term(a), term(b))


def LNot(a: Term) -> Aml:
    return _code(b"\x92", term(a))


def LEqual(a: Term, b: Term) -> Aml:
    return _code(b"\x93", term(a), term(b))


def LGreater(a: Term, b: Term) -> Aml:
    return _code(b"\x94", term(a), term(b))


def LLess(a: Term, b: Term) -> Aml:
    return _code(b"\x95", term(a), term(b))


def LNotEqual(a: Term, b: Term) -> Aml:
    return LNot(LEqual(a, b))


def LLessEqual(a: Term, b: Term) -> Aml:
    return LNot(LGreater(a, b))


def LGreaterEqual(a: Term, b: Term) -> Aml:
    return LNot(LLess(a, b))
