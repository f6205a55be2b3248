"""Plain data as bytes and back, and dataclasses out of it: nothing else comes of any bytes than data or PlainError."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import plain
from pyvmm.config import MachineConfig, Module
from pyvmm.state import Plain

scalars = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
data = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(scalars | st.lists(scalars).map(tuple), inner, max_size=5)
    ),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types: True is 1 to ==."""
    return bool(one == other) and repr(one) == repr(other)


@given(data)
def test_there_and_back(value: Plain) -> None:
    assert same(plain.decode(plain.encode(value)), value)


@given(st.binary())
def test_any_bytes(text: bytes) -> None:
    try:
        plain.decode(text)
    except plain.PlainError:
        pass


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["bytes", "tuple", "dict", "x"]), inner),
    max_leaves=20,
)


@given(json_like)
def test_any_json(value: object) -> None:
    try:
        plain.decode(json.dumps(value).encode())
    except plain.PlainError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1.5",
        b"NaN",
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"bytes":"?"}',
        b'{"bytes":"AA==","x":1}',
        b'{"dict":[[[1],2]]}',
        b'{"dict":[1]}',
        b"\xff",
    ],
)
def test_what_is_none(text: bytes) -> None:
    with pytest.raises(plain.PlainError):
        plain.decode(text)


@dataclass
class Inner:
    number: int
    text: str | None


@dataclass(frozen=True)
class Outer:
    inner: list[Inner]
    by_number: dict[int, int]
    pair: tuple[int, bytes]
    many: tuple[bool, ...]
    kind: Literal["a", "b"]
    names: frozenset[str]
    path: Path | None


outers = st.builds(
    Outer,
    st.lists(st.builds(Inner, st.integers(), st.none() | st.text())),
    st.dictionaries(st.integers(), st.integers()),
    st.tuples(st.integers(), st.binary()),
    st.lists(st.booleans()).map(tuple),
    st.sampled_from(["a", "b"]),
    st.frozensets(st.text()),
    st.none() | st.just(Path("/a/b")),
)


@given(outers)
def test_dataclasses(outer: Outer) -> None:
    assert plain.made(Outer, plain.decode(plain.encode(plain.of(outer)))) == outer


@given(outers, st.sampled_from([field.name for field in fields(Outer)]), data)
def test_a_field_of_another_type(outer: Outer, name: str, value: Plain) -> None:
    changed = plain.of(outer)
    assert isinstance(changed, dict)
    changed[name] = value
    try:
        made = plain.made(Outer, changed)
    except plain.PlainError:
        return
    assert same(plain.of(made), changed) or name == "names"  # a set has no order


@pytest.mark.parametrize("change", [{"more": 1}, {"pair": None}, {"inner": (1,)}, {"kind": "c"}, {"many": (1,)}])
def test_other_names_and_types(change: dict[Any, Any]) -> None:
    outer = plain.of(Outer([], {}, (1, b""), (), "a", frozenset(), None))
    assert isinstance(outer, dict)
    with pytest.raises(plain.PlainError):
        plain.made(Outer, outer | change)


def test_every_field_of_a_configuration() -> None:
    config = MachineConfig(
        memory=512 << 20,
        kernel=Path("/boot/vmlinuz"),
        initrd=(Module("/a", "b"), Module(b"c")),
        guest_parameters=(("a", 1),),
        devices=("/x.py:X",),
        trace=frozenset({"irq"}),
    )
    assert plain.made(MachineConfig, plain.decode(plain.encode(plain.of(config)))) == config
