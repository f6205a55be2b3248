"""AML as we write it is AML as iasl writes it, at every size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.acpi import resources
from pyvmm.acpi.aml import (
    EISAID,
    Add,
    Aml,
    And,
    Arg0,
    Arg1,
    Break,
    Buffer,
    ByteAcc,
    Call,
    Concatenate,
    Continue,
    CreateByteField,
    CreateDWordField,
    CreateQWordField,
    CreateWordField,
    Decrement,
    DefinitionBlock,
    DerefOf,
    Device,
    DWordAcc,
    Else,
    Field,
    FieldUnit,
    If,
    Increment,
    Index,
    LAnd,
    LEqual,
    LGreater,
    LGreaterEqual,
    LLess,
    LLessEqual,
    LNot,
    LNotEqual,
    Local0,
    Local1,
    Lock,
    LOr,
    Method,
    Multiply,
    Name,
    NoLock,
    Not,
    Notify,
    NotSerialized,
    Offset,
    Ones,
    OperationRegion,
    Or,
    Package,
    PCI_Config,
    Preserve,
    Ref,
    Return,
    Scope,
    Serialized,
    ShiftLeft,
    ShiftRight,
    SizeOf,
    Sleep,
    Store,
    Subtract,
    SystemIO,
    ToUUID,
    While,
    WriteAsZeros,
    Xor,
    integer,
    name_string,
    pkg_length,
    pkg_length_field,
    term,
)

PKG_LENGTH_EDGES = [n + d for n in (0x3F, 0x40, 0xFFF, 0x1000, 0xFFFFF, 0x100000) for d in range(-5, 3)]


def read_pkg_length(code: bytes) -> tuple[int, int]:
    """(the length said, the bytes that say it), written from ACPI 6.5, 20.2.4."""
    follow = code[0] >> 6
    if follow == 0:
        return code[0] & 0x3F, 1
    assert code[0] & 0x30 == 0
    length = code[0] & 0xF
    for i in range(follow):
        length |= code[1 + i] << (4 + 8 * i)
    return length, 1 + follow


def read_integer(code: bytes) -> int:
    """Written from ACPI 6.5, 20.2.3."""
    if code[0] in (0x00, 0x01, 0xFF):
        assert len(code) == 1
        return {0x00: 0, 0x01: 1, 0xFF: 0xFFFFFFFFFFFFFFFF}[code[0]]
    size = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[code[0]]
    assert len(code) == 1 + size
    return int.from_bytes(code[1:], "little")


def read_name(code: bytes) -> str:
    """Written from ACPI 6.5, 20.2.2."""
    prefix = ""
    while code[:1] in (b"\\", b"^"):
        prefix += code[:1].decode()
        code = code[1:]
    if code == b"\x00":
        return prefix
    count = 1
    if code[0] == 0x2E:
        count, code = 2, code[1:]
    elif code[0] == 0x2F:
        count, code = code[1], code[2:]
    assert len(code) == 4 * count
    return prefix + ".".join(code[i : i + 4].decode().rstrip("_") or "_" for i in range(0, len(code), 4))


@given(st.one_of(st.integers(0, (1 << 28) - 5), st.sampled_from(PKG_LENGTH_EDGES)))
def test_pkg_length_counts_itself(content: int) -> None:
    code = pkg_length(content)
    length, own = read_pkg_length(code)
    assert own == len(code)
    assert length == content + own
    assert own == 1 or content + own - 1 >= (0, 0x40, 0x1000, 0x100000)[own - 1]  # no shorter form would do


@given(st.one_of(st.integers(0, (1 << 28) - 1), st.sampled_from(PKG_LENGTH_EDGES)))
def test_pkg_length_of_a_field_unit(bits: int) -> None:
    code = pkg_length_field(bits)
    assert read_pkg_length(code) == (bits, len(code))


@pytest.mark.parametrize("content", [(1 << 28) - 4, 1 << 40, -5])
def test_pkg_length_too_long(content: int) -> None:
    with pytest.raises(ValueError):
        pkg_length(content)


@given(st.integers(0, 64).flatmap(lambda bits: st.integers(0, max((1 << bits) - 1, 0))))
def test_integer(value: int) -> None:
    code = integer(value)
    assert read_integer(code) == value
    if value in (0, 1, (1 << 64) - 1):
        assert len(code) == 1
    else:  # no shorter form would do
        assert len(code) == 2 or value >> {3: 8, 5: 16, 9: 32}[len(code)]


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_of_more_than_64_bits(value: int) -> None:
    with pytest.raises(ValueError):
        integer(value)


SEGMENTS = st.from_regex(r"[A-Z_][A-Z0-9_]{0,2}[A-Z0-9]|[A-Z]", fullmatch=True)


@given(st.sampled_from(["", "\\", "^", "^^^"]), st.lists(SEGMENTS, min_size=1, max_size=255))
def test_name_string(prefix: str, segments: list[str]) -> None:
    path = prefix + ".".join(segments)
    assert read_name(name_string(path)) == path


@pytest.mark.parametrize(
    "path", ["", "pci0", "PCI00", "1ABC", "A..B", "\\^A", "A.", ".A", "A B", "Ä", ".".join(["A"] * 256), "A\n"]
)
def test_not_a_name(path: str) -> None:
    with pytest.raises(ValueError):
        name_string(path)


@pytest.mark.parametrize("text", ["tab\x00", "Grüße"])
def test_not_a_string(text: str) -> None:
    with pytest.raises(ValueError):
        term(text)


@pytest.mark.parametrize("text", ["PNP030", "pnp0303", "PNP03030", "PNPG303", "P1P0303"])
def test_not_an_eisa_id(text: str) -> None:
    with pytest.raises(ValueError):
        EISAID(text)


def test_field_offset_behind_the_last_unit() -> None:
    with pytest.raises(ValueError):
        Field("REG", ByteAcc, NoLock, Preserve, FieldUnit("A", 32), Offset(2))


def test_a_field_unit_has_no_path() -> None:
    with pytest.raises(ValueError):
        Field("REG", ByteAcc, NoLock, Preserve, FieldUnit("A.B", 32))


def same(compiled: bytes, *body: Aml) -> None:
    ours = DefinitionBlock("DSDT", 2, "PYVMM", "TEST", 1, *body)
    assert ours[36:] == compiled[36:]
    assert ours[:9] == compiled[:9]  # signature, length, revision
    assert ours[10:28] == compiled[10:28]  # OEM ID, OEM table ID, OEM revision
    assert sum(ours) & 0xFF == 0


def block(asl: str) -> str:
    return 'DefinitionBlock ("", "DSDT", 2, "PYVMM ", "TEST    ", 1) {' + asl + "}"


def test_objects_as_iasl_has_them(compile_asl: Callable[[str], bytes]) -> None:
    compiled = compile_asl(
        block(
            r"""
            Name (NUM0, Package () {Zero, One, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, Ones})
            Name (TEXT, "forty two")
            Name (BUFF, Buffer (4) {1, 2})
            Scope (\_SB) {
                Device (DEV0) {
                    Name (_HID, EisaId ("PNP0A08"))
                    Name (_CID, "ACPI0007")
                    Name (UUID, ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766"))
                    Name (PATH, Package () {\_SB, ^DEV0, \_SB.DEV0, \_SB.DEV0._HID, "text", Package () {}})
                    OperationRegion (CFG, PCI_Config, 0x40, 0x100)
                    Field (CFG, DWordAcc, Lock, WriteAsZeros) { AAA, 4, , 12, BBBB, 16, Offset (0x20), CCCC, 1000 }
                    OperationRegion (PRT, SystemIO, 0xB2, 2)
                    Field (PRT, ByteAcc, NoLock, Preserve) { APMC, 8 }
                }
            }
            """
        )
    )
    same(
        compiled,
        Name("NUM0", Package(0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000, Ones)),
        Name("TEXT", "forty two"),
        Name("BUFF", Buffer(b"\x01\x02", 4)),
        Scope(
            "\\_SB",
            Device(
                "DEV0",
                Name("_HID", EISAID("PNP0A08")),
                Name("_CID", "ACPI0007"),
                Name("UUID", ToUUID("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
                Name(
                    "PATH",
                    Package(Ref("\\_SB"), Ref("^DEV0"), Ref("\\_SB.DEV0"), Ref("\\_SB.DEV0._HID"), "text", Package()),
                ),
                OperationRegion("CFG", PCI_Config, 0x40, 0x100),
                Field(
                    "CFG",
                    DWordAcc,
                    Lock,
                    WriteAsZeros,
                    FieldUnit("AAA", 4),
                    FieldUnit("", 12),
                    FieldUnit("BBBB", 16),
                    Offset(0x20),
                    FieldUnit("CCCC", 1000),
                ),
                OperationRegion("PRT", SystemIO, 0xB2, 2),
                Field("PRT", ByteAcc, NoLock, Preserve, FieldUnit("APMC", 8)),
            ),
        ),
    )


def test_methods_as_iasl_has_them(compile_asl: Callable[[str], bytes]) -> None:
    compiled = compile_asl(
        block(
            r"""
            Device (DEV0) { Name (_HID, EisaId ("PNP0C0C")) }
            Name (FLAG, Zero)
            Method (TWO, 2, Serialized, 3) {
                CreateByteField (Arg0, Zero, FBYT)
                CreateWordField (Arg0, 2, FWRD)
                CreateDWordField (Arg0, 4, FDWD)
                CreateQWordField (Arg0, 8, FQWD)
                Return (Add (FBYT, FWRD))
            }
            Method (MAIN, 1, NotSerialized) {
                Store (Zero, Local0)
                Store (One, Local1)
                If (LAnd (LEqual (Arg0, One), LOr (LGreater (Arg0, 2), LLess (Arg0, 3)))) { Store (Arg0, FLAG) }
                Else { Notify (DEV0, 0x80) Sleep (10) }
                While (LNotEqual (Local0, 10)) {
                    Increment (Local0)
                    If (LGreaterEqual (Local0, 5)) { Break }
                    If (LLessEqual (Local0, 2)) { Continue }
                    Decrement (Local1)
                }
                And (Local0, 0x0F, Local1)
                Or (Local0, 0x0F, FLAG)
                Xor (Local0, 0x0F, Local1)
                Not (Local0, Local1)
                Subtract (Local0, One, Local1)
                Multiply (Local0, 3, Local1)
                ShiftLeft (Local0, 4, Local1)
                ShiftRight (Local0, 4, Local1)
                Concatenate ("a", "b", Local1)
                Store (SizeOf (Local1), Local0)
                Store (DerefOf (Index (Local1, Zero)), Local0)
                Store (TWO (Local1, 3), Index (Local1, One))
                If (LNot (FLAG)) { Return (0x1234) }
                Return (Local0)
            }
            """
        )
    )
    same(
        compiled,
        Device("DEV0", Name("_HID", EISAID("PNP0C0C"))),
        Name("FLAG", 0),
        Method(
            "TWO",
            2,
            Serialized,
            CreateByteField(Arg0, 0, "FBYT"),
            CreateWordField(Arg0, 2, "FWRD"),
            CreateDWordField(Arg0, 4, "FDWD"),
            CreateQWordField(Arg0, 8, "FQWD"),
            Return(Add(Ref("FBYT"), Ref("FWRD"))),
            sync_level=3,
        ),
        Method(
            "MAIN",
            1,
            NotSerialized,
            Store(0, Local0),
            Store(1, Local1),
            If(LAnd(LEqual(Arg0, 1), LOr(LGreater(Arg0, 2), LLess(Arg0, 3))), Store(Arg0, "FLAG")),
            Else(Notify("DEV0", 0x80), Sleep(10)),
            While(
                LNotEqual(Local0, 10),
                Increment(Local0),
                If(LGreaterEqual(Local0, 5), Break),
                If(LLessEqual(Local0, 2), Continue),
                Decrement(Local1),
            ),
            And(Local0, 0x0F, Local1),
            Or(Local0, 0x0F, "FLAG"),
            Xor(Local0, 0x0F, Local1),
            Not(Local0, Local1),
            Subtract(Local0, 1, Local1),
            Multiply(Local0, 3, Local1),
            ShiftLeft(Local0, 4, Local1),
            ShiftRight(Local0, 4, Local1),
            Concatenate("a", "b", Local1),
            Store(SizeOf(Local1), Local0),
            Store(DerefOf(Index(Local1, 0)), Local0),
            Store(Call("TWO", Local1, 3), Index(Local1, 1)),
            If(LNot(Ref("FLAG")), Return(0x1234)),
            Return(Local0),
        ),
    )
    assert Arg1 == b"\x69"


@pytest.mark.parametrize("size", [1, 48, 49, 50, 51, 52, 53, 3813, 3814, 3815, 3816, 3817, 70000])
def test_a_scope_of_every_length_class(compile_asl: Callable[[str], bytes], size: int) -> None:
    text = "x" * size
    chunks = [text[i : i + 100] for i in range(0, size, 100)]
    names = [f"N{i:03X}" for i in range(len(chunks))]
    asl = "".join(f'Name ({name}, "{chunk}")\n' for name, chunk in zip(names, chunks, strict=True))
    compiled = compile_asl(block("Scope (\\_SB) {" + asl + "}"))
    same(compiled, Scope("\\_SB", *(Name(name, chunk) for name, chunk in zip(names, chunks, strict=True))))


def test_resource_descriptors_as_iasl_has_them(compile_asl: Callable[[str], bytes]) -> None:
    r = resources
    compiled = compile_asl(
        block(
            r"""
            Name (CRS0, ResourceTemplate () {
                IO (Decode16, 0x3F8, 0x400, 8, 8)
                IO (Decode10, 0x60, 0x60, 1, 1)
                IRQNoFlags () {0, 15}
                IRQ (Level, ActiveLow, Shared) {9}
                IRQ (Edge, ActiveHigh, Exclusive) {5, 10}
                Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) {16}
                Interrupt (ResourceProducer, Edge, ActiveLow, Exclusive) {17, 0x12345678}
                Memory32Fixed (ReadOnly, 0xFED00000, 0x400)
                Memory32Fixed (ReadWrite, 0xE0000000, 0x10000000)
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 255, 0, 256)
                WordBusNumber (ResourceConsumer, MinNotFixed, MaxNotFixed, SubDecode, 0, 1, 255, 0, 16)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0xD00, 0xFFFF, 0, 0xF300)
                WordIO (ResourceConsumer, MinFixed, MaxFixed, SubDecode, ISAOnlyRanges, 0, 0x100, 0x1FF, 0x1000, 0x100)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                             0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000)
                DWordMemory (ResourceConsumer, SubDecode, MinFixed, MaxNotFixed, Prefetchable, ReadOnly,
                             0xFFF, 0x1000, 0x1FFFFFF, 0, 0)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                             0, 0x1000000000, 0x1FFFFFFFFF, 0, 0x1000000000)
                QWordMemory (ResourceProducer, PosDecode, MinNotFixed, MaxFixed, WriteCombining, ReadWrite,
                             0xFFFFF, 0x1000000000, 0x1FFFFFFFFF, 0x100000, 0)
            })
            """
        )
    )
    same(
        compiled,
        Name(
            "CRS0",
            r.ResourceTemplate(
                r.IO(r.Decode16, 0x3F8, 0x400, 8, 8),
                r.IO(r.Decode10, 0x60, 0x60, 1, 1),
                r.IRQNoFlags(0, 15),
                r.IRQ(r.Level, r.ActiveLow, r.Shared.Shared, 9),
                r.IRQ(r.Edge, r.ActiveHigh, r.Exclusive, 5, 10),
                r.Interrupt(r.ResourceConsumer, r.Level, r.ActiveHigh, r.Shared.Shared, 16),
                r.Interrupt(r.ResourceProducer, r.Edge, r.ActiveLow, r.Exclusive, 17, 0x12345678),
                r.Memory32Fixed(r.ReadOnly, 0xFED00000, 0x400),
                r.Memory32Fixed(r.ReadWrite, 0xE0000000, 0x10000000),
                r.WordBusNumber(r.ResourceProducer, r.MinFixed, r.MaxFixed, r.PosDecode, 0, 0, 255, 0, 256),
                r.WordBusNumber(r.ResourceConsumer, r.MinNotFixed, r.MaxNotFixed, r.SubDecode, 0, 1, 255, 0, 16),
                r.WordIO(
                    r.ResourceProducer, r.MinFixed, r.MaxFixed, r.PosDecode, r.EntireRange, 0, 0xD00, 0xFFFF, 0, 0xF300
                ),
                r.WordIO(
                    r.ResourceConsumer,
                    r.MinFixed,
                    r.MaxFixed,
                    r.SubDecode,
                    r.ISAOnlyRanges,
                    0,
                    0x100,
                    0x1FF,
                    0x1000,
                    0x100,
                ),
                r.DWordMemory(
                    r.ResourceProducer,
                    r.PosDecode,
                    r.MinFixed,
                    r.MaxFixed,
                    r.NonCacheable,
                    r.ReadWrite,
                    0,
                    0xC0000000,
                    0xDFFFFFFF,
                    0,
                    0x20000000,
                ),
                r.DWordMemory(
                    r.ResourceConsumer,
                    r.SubDecode,
                    r.MinFixed,
                    r.MaxNotFixed,
                    r.Prefetchable,
                    r.ReadOnly,
                    0xFFF,
                    0x1000,
                    0x1FFFFFF,
                    0,
                    0,
                ),
                r.QWordMemory(
                    r.ResourceProducer,
                    r.PosDecode,
                    r.MinFixed,
                    r.MaxFixed,
                    r.Cacheable,
                    r.ReadWrite,
                    0,
                    0x1000000000,
                    0x1FFFFFFFFF,
                    0,
                    0x1000000000,
                ),
                r.QWordMemory(
                    r.ResourceProducer,
                    r.PosDecode,
                    r.MinNotFixed,
                    r.MaxFixed,
                    r.WriteCombining,
                    r.ReadWrite,
                    0xFFFFF,
                    0x1000000000,
                    0x1FFFFFFFFF,
                    0x100000,
                    0,
                ),
            ),
        ),
    )


@pytest.mark.parametrize("interrupts", [(), (16,), (-1,)])
def test_irq_numbers_are_isa(interrupts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        resources.IRQNoFlags(*interrupts)
