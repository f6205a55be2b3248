"""QMP's framing and its requests: what is sent arrives, whatever pieces it comes in, and garbage is told as garbage."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.control.qmp.command import Command
from pyvmm.control.qmp.messages import DEPTH_LIMIT, REQUEST_LIMIT, Garbage, QmpError, QmpRequest, RequestReader, encode

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
REQUESTS = st.builds(QmpRequest, TEXT, st.dictionaries(TEXT, JSON, max_size=3), st.just({}) | st.builds(dict, id=JSON))


def written(request: QmpRequest) -> dict[str, Any]:
    return {"execute": request.execute, "arguments": request.arguments, **request.tag}


def fed(*pieces: bytes) -> list[QmpRequest | Garbage]:
    reader = RequestReader()
    return [found for piece in pieces for found in reader.feed(piece)]


@given(st.lists(REQUESTS, max_size=4), st.sampled_from([None, 1]), st.booleans(), st.data())
def test_what_is_sent_arrives_in_any_pieces(
    requests: list[QmpRequest], indent: int | None, ascii_only: bool, data: st.DataObject
) -> None:
    """On one line or on several, with white space between them or none."""
    texts = [json.dumps(written(request), indent=indent, ensure_ascii=ascii_only) for request in requests]
    wire = data.draw(st.sampled_from(["", "\n", " \r\n\t"])).join(texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    assert fed(*(wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True))) == requests


@given(st.lists(st.binary(max_size=40) | st.text('{}[]",:\\ \ne1').map(str.encode), max_size=8))
def test_garbage_is_told_and_does_not_grow(pieces: list[bytes]) -> None:
    reader = RequestReader()
    for piece in pieces:
        for found in reader.feed(piece):
            assert isinstance(found, Garbage) or found.execute is not None
            if isinstance(found, Garbage):
                json.loads(encode({"desc": found.why, **found.tag}))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "QMP input must be a JSON object"),
        ("hello\n", "JSON parse error, "),
        ('{"execute": "stop}\n', "JSON parse error, "),
        ('{"execute": "a", "execute": "b"}', "JSON parse error, duplicate key"),
        ('{"execute": NaN}', "JSON parse error, invalid keyword 'NaN'"),
        ('{"id": 1e999}', "JSON parse error, number 1e999 is out of range"),
        ('{"execute": "\\ud800"}', "JSON parse error, "),
        ('{"id": ' + "9" * 5000 + "}", "JSON parse error, "),
        ("{}", "QMP input lacks member 'execute'"),
        ('{"execute": 3}', "QMP input member 'execute' must be a string"),
        ('{"execute": "stop", "arguments": []}', "QMP input member 'arguments' must be an object"),
        ('{"execute": "stop", "exec-oob": true}', "QMP input member 'exec-oob' is unexpected"),
        ("{}}\n", "QMP input lacks member 'execute'"),
    ],
)
def test_what_is_wrong_is_named_and_the_next_is_heard(text: str, why: str) -> None:
    first, *others = fed(text.encode() + b'{"execute": "cont"}' + b"\n")
    assert isinstance(first, Garbage) and first.why.startswith(why) and not first.last
    assert others[-1:] == [QmpRequest("cont")] or text == "{}}\n"


def test_the_id_of_a_wrong_request_is_known() -> None:
    assert fed(b'{"id": [1], "execute": 3}') == [Garbage("QMP input member 'execute' must be a string", {"id": [1]})]


@pytest.mark.parametrize("piece", [b"a" * 999, b'{"a": ' * 5, b'{"a": "' + b"b" * 999, b" [", b"\\" * 999])
def test_a_request_without_end_is_the_last(piece: bytes) -> None:
    reader, fed_bytes = RequestReader(), 0
    while not (found := list(reader.feed(piece))):
        fed_bytes += len(piece)
        assert fed_bytes <= REQUEST_LIMIT
    assert isinstance(found[-1], Garbage) and found[-1].last


def test_nesting_has_a_limit() -> None:
    deep = '{"execute": "a", "id": ' + "[" * (DEPTH_LIMIT - 1) + "]" * (DEPTH_LIMIT - 1) + "}"
    assert isinstance(fed(deep.encode())[0], QmpRequest)
    (found,) = fed(deep.replace("[]", "[[]]").encode())
    assert isinstance(found, Garbage) and found.last


@given(st.dictionaries(TEXT, JSON, max_size=3))
def test_what_is_encoded_is_one_line(message: dict[str, Any]) -> None:
    line = encode(message)
    assert line.endswith(b"\r\n") and line.count(b"\n") == 1
    assert json.loads(line) == message


def test_arguments_are_checked() -> None:
    command = Command(lambda machine, arguments: None, needs={"id": str}, takes={"count": int, "force": bool})
    assert command.checked({"id": "a", "count": 3, "force": True})
    for wrong, said in (
        ({}, "Parameter 'id' is missing"),
        ({"id": "a", "more": 1}, "Parameter 'more' is unexpected"),
        ({"id": 3}, "Invalid parameter type for 'id', expected: string"),
        ({"id": "a", "count": True}, "Invalid parameter type for 'count', expected: integer"),
        ({"id": "a", "count": math.pi}, "Invalid parameter type for 'count', expected: integer"),
        ({"id": "a", "force": 1}, "Invalid parameter type for 'force', expected: boolean"),
    ):
        with pytest.raises(QmpError, match=said):
            command.checked(wrong)
    assert Command(command.call, needs={"id": str}, free=True).checked({"id": "a", "more": 1})
