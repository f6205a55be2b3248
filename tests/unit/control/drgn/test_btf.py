"""BTF: each kind as drgn's type, and tables that are damaged or made to mislead."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from drgn import Architecture, Object, OutOfBoundsError, Platform, Program, Type, TypeKind, TypeKindSet
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.control.drgn.btf import DEPTH, Btf, BtfError, BtfKind
from pyvmm.control.drgn.btf_types import BtfTypes
from tests.rig.btf_table import Table, kernel_like

DRGN_REFUSES = (BtfError, ValueError, TypeError, OverflowError, OutOfBoundsError, RecursionError, NotImplementedError)
"""What a program that uses a damaged table may get; nothing else, and no crash."""


def program() -> Program:
    return Program(Platform(Architecture.X86_64))


def types(table: Table) -> BtfTypes:
    return BtfTypes(program(), Btf(table.bytes()))


def named(found: BtfTypes, kind: TypeKind, name: str) -> Type:
    made = found.find(TypeKindSet([kind]), name)
    assert made is not None
    return made


def test_structures_unions_and_bit_fields() -> None:
    found = types(kernel_like())
    task = named(found, TypeKind.STRUCT, "task_struct")
    assert [(member.name, member.bit_offset, member.type.type_name()) for member in task.members or ()] == [
        ("pid", 0, "unsigned int"),
        ("comm", 32, "char [16]"),
        ("next", 192, "struct task_struct *"),
    ]
    assert task.size == 32 and named(found, TypeKind.TYPEDEF, "task_t").type is not None
    bits = named(found, TypeKind.STRUCT, "bits").members or ()
    assert [(member.name, member.bit_offset, member.bit_field_size) for member in bits] == [
        ("low", 0, 3),
        ("high", 3, 5),
    ]
    assert [member.name for member in named(found, TypeKind.UNION, "both").members or ()] == ["a", "b"]
    value = Object.from_bytes_(found._program, task, struct.pack("<I16s12x", 7, b"init"))
    assert value.pid.value_() == 7 and value.comm.string_() == b"init"


def test_what_is_no_structure() -> None:
    found = types(kernel_like())
    assert named(found, TypeKind.INT, "char").is_signed and not named(found, TypeKind.INT, "unsigned int").is_signed
    assert named(found, TypeKind.BOOL, "_Bool").size == 1 and named(found, TypeKind.FLOAT, "double").size == 8
    assert named(found, TypeKind.TYPEDEF, "fixed").type.type_name() == "const volatile unsigned int"
    assert named(found, TypeKind.TYPEDEF, "tagged").type.type_name() == "unsigned int"
    assert named(found, TypeKind.TYPEDEF, "flexible").type.type_name() == "unsigned int []"
    assert named(found, TypeKind.TYPEDEF, "kept_t").type.type_name() == "struct task_struct * restrict"
    elsewhere = named(found, TypeKind.TYPEDEF, "elsewhere_t").type
    assert elsewhere.tag == "elsewhere" and not elsewhere.is_complete()
    assert named(found, TypeKind.TYPEDEF, "ahead_t").type.is_complete(), "it is in the table"
    assert found.find(TypeKindSet([TypeKind.STRUCT]), "task_t") is None
    assert found.find(TypeKindSet([TypeKind.STRUCT, TypeKind.TYPEDEF]), "task_t") is not None


def test_enumerators_variables_and_functions() -> None:
    found = types(kernel_like())
    for name, value in (("PIDTYPE_MAX", 4), ("BELOW", -1), ("LARGE", 1 << 40)):
        constant = found.enumerator(name)
        assert constant is not None and constant.value_() == value
    assert found.enumerator("task_struct") is None
    assert found.declared("runqueues", BtfKind.VAR).tag == "task_struct"  # type: ignore[union-attr]
    function = found.declared("printk", BtfKind.FUNC)
    assert function is not None and function.type_name() == "unsigned int (struct task_struct *task, ...)"
    assert found.declared("printk", BtfKind.VAR) is None


def shorter(data: bytes) -> bytes:
    return data[:-1]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:20], "shorter than its header"),
        (lambda data: b"\0" + data[1:], "magic"),
        (lambda data: data[:2] + b"\2" + data[3:], "version 2"),
        (shorter, "ends before"),
        (lambda data: data[:24] + bytes(4) + struct.pack("<I", 20 << 24) + data[32:], "kind 20"),
        (lambda data: data[:24] + bytes(4) + bytes(4) + data[32:], "kind 0"),
        (lambda data: data[:24] + bytes(4) + struct.pack("<I", 4 << 24 | 0xFFFF) + data[32:], "ends within"),
    ],
)
def test_damaged(damage: Callable[[bytes], bytes], said: str) -> None:
    with pytest.raises(BtfError, match=said):
        Btf(damage(kernel_like().bytes()))


def test_what_contains_itself() -> None:
    table = Table()
    table.composite(BtfKind.STRUCT, "itself", 8, ("again", 1, 0))
    second = len(table.types) + 1
    table.composite(BtfKind.STRUCT, "one", 8, ("other", second + 1, 0))
    table.composite(BtfKind.STRUCT, "other", 8, ("one", second + 2, 0))
    table.array(second, 1)
    loop = table.add(BtfKind.TYPEDEF, "loop", len(table.types) + 1)
    table.add(BtfKind.CONST, size=loop + 1)
    circle = table.add(BtfKind.PTR, size=len(table.types) + 1)
    table.add(BtfKind.TYPEDEF, "circle", table.add(BtfKind.PTR, size=circle))
    found = types(table)
    for kind, name in ((TypeKind.STRUCT, "itself"), (TypeKind.STRUCT, "one"), (TypeKind.TYPEDEF, "loop")):
        with pytest.raises(BtfError, match="itself"):
            found.find(TypeKindSet([kind]), name)
    with pytest.raises(BtfError, match="itself"):
        found.find(TypeKindSet([TypeKind.TYPEDEF]), "circle")


def test_nested_too_deep() -> None:
    table = Table()
    for number in range(DEPTH + 10):
        table.composite(BtfKind.STRUCT, f"s{number}", 8, ("inner", number, 0))
    with pytest.raises(BtfError, match="too much"):
        types(table).find(TypeKindSet([TypeKind.STRUCT]), f"s{DEPTH + 9}")


def use(found: BtfTypes) -> None:
    """All that a hostile table can be asked for."""
    for number in range(len(found.btf) + 2):
        try:
            made = found.type(number)
            str(made)
            if made.kind in (TypeKind.STRUCT, TypeKind.UNION) and made.is_complete() and made.size < 4096:
                str(Object.from_bytes_(found._program, made, bytes(made.size)))
        except DRGN_REFUSES:
            pass
    found.enumerator("x")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_random_tables(data: st.DataObject) -> None:
    """Types of random kinds that refer to each other at random."""
    table = Table()
    count = data.draw(st.integers(1, 12))
    number = st.integers(0, count + 1)
    for _ in range(count):
        kind = data.draw(st.sampled_from(BtfKind))
        name = data.draw(st.sampled_from(["", "a", "b", "c"]))
        match kind:
            case BtfKind.STRUCT | BtfKind.UNION:
                members = data.draw(st.lists(st.tuples(st.just("m"), number, st.integers(0, 1 << 26)), max_size=3))
                table.composite(
                    kind, name, data.draw(st.sampled_from([0, 8, 64])), *members, flag=data.draw(st.booleans())
                )
            case BtfKind.ENUM | BtfKind.ENUM64 | BtfKind.FUNC_PROTO:
                pairs = data.draw(st.lists(st.tuples(st.just("e"), number), max_size=3))
                table.pairs(kind, name, data.draw(number), *pairs, flag=data.draw(st.booleans()))
            case BtfKind.ARRAY:
                table.array(data.draw(number), data.draw(st.sampled_from([0, 1, 3, 0xFFFFFFFF])))
            case BtfKind.INT:
                table.integer(name, data.draw(st.sampled_from([0, 1, 4, 8, 16, 1 << 16])), data.draw(st.integers(0, 7)))
            case BtfKind.VAR | BtfKind.DECL_TAG:
                table.add(kind, name, data.draw(number), bytes(4))
            case BtfKind.VOID:
                table.add(BtfKind.PTR, "", data.draw(number))
            case _:
                table.add(kind, name, data.draw(number), flag=data.draw(st.booleans()))
    use(types(table))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=20))
def test_random_damage(places: list[tuple[int, int]]) -> None:
    data = bytearray(kernel_like().bytes())
    for place, value in places:
        data[place % len(data)] = value
    try:
        found = BtfTypes(program(), Btf(bytes(data)))
    except BtfError:
        return
    use(found)
