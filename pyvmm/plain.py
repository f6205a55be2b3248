"""Plain data as bytes of a file and back: no code is run, no class is named, and what does not fit raises PlainError.

It is JSON. What JSON has not is an object of one member, whose name says what: {"bytes": base64}, {"tuple": [...]},
{"dict": [[key, value], ...]}. made() turns plain data into dataclasses again by their annotations, and of() dataclasses
into plain data.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from pyvmm.errors import UserError
from pyvmm.state import Plain

T = TypeVar("T")

_SCALARS: Final = (bool, int, str, types.NoneType)


class PlainError(UserError):
    """These bytes, or this data, are not what was written."""


def encode(data: Plain) -> bytes:
    """The bytes of *data*."""
    return json.dumps(_json(data), separators=(",", ":")).encode()


def decode(text: bytes) -> Plain:
    """What encode() was given. Raises PlainError."""
    try:
        data: Plain = _plain(json.loads(text, parse_float=_no_float, parse_constant=_no_float))
        return data
    except PlainError:
        raise
    except (ValueError, RecursionError) as error:
        raise PlainError(f"no plain data: {type(error).__name__}") from None


def _no_float(text: str) -> Any:
    raise PlainError(f"no plain data: {text[:20]}")


def _json(data: Any) -> Any:
    match data:
        case bytes():
            return {"bytes": base64.b64encode(data).decode()}
        case tuple():
            return {"tuple": [_json(item) for item in data]}
        case list():
            return [_json(item) for item in data]
        case dict():
            return {"dict": [[_json(key), _json(value)] for key, value in data.items()]}
    assert isinstance(data, _SCALARS), type(data)
    return data


def _plain(data: Any) -> Any:
    match data:
        case list():
            return [_plain(item) for item in data]
        case {"bytes": str(text), **rest} if not rest:
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise PlainError("no plain data: base64") from None
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_plain(item) for item in items)
        case {"dict": list(items), **rest} if not rest:
            return dict(_item(item) for item in items)
        case dict():
            raise PlainError("no plain data: an object")
    return data


def _item(item: Any) -> tuple[Any, Any]:
    match item:
        case [key, value]:
            key = _plain(key)
            parts = key if isinstance(key, tuple) else (key,)
            if all(isinstance(part, (*_SCALARS, bytes)) for part in parts):
                return key, _plain(value)
    raise PlainError("no plain data: a member of a dict")


def of(value: Any) -> Plain:
    """Dataclasses, and what they hold, as plain data: each a dict of its fields, a path its str."""
    if dataclasses.is_dataclass(value):
        return {field.name: of(getattr(value, field.name)) for field in dataclasses.fields(value)}
    match value:
        case tuple():
            return tuple(map(of, value))
        case list():
            return list(map(of, value))
        case frozenset():
            return sorted(map(of, value), key=repr)
        case dict():
            return {of(key): of(item) for key, item in value.items()}
        case Path():
            return str(value)
    scalar: Plain = value
    return scalar


def made(kind: type[T], data: Plain) -> T:
    """A *kind* out of what of() gave; raises PlainError where *data* has other names or types."""
    return typing.cast(T, _made(kind, data))


def _made(kind: Any, data: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(arguments, data)
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast(type, kind))
        names = [field.name for field in dataclasses.fields(kind)]
        _check(isinstance(data, dict) and data.keys() == set(names), kind)
        return typing.cast(Any, kind)(**{name: _made(hints[name], data[name]) for name in names})
    if origin is list or origin is frozenset:
        _check(isinstance(data, list), kind)
        return origin(_made(arguments[0], item) for item in data)
    if origin is dict:
        _check(isinstance(data, dict), kind)
        return {_made(arguments[0], key): _made(arguments[1], value) for key, value in data.items()}
    if origin is tuple:
        variadic = len(arguments) == 2 and arguments[1] is ...
        _check(isinstance(data, tuple) and (variadic or len(data) == len(arguments)), kind)
        kinds = arguments[:1] * len(data) if variadic else arguments
        return tuple(_made(item_kind, item) for item_kind, item in zip(kinds, data, strict=True))
    if origin is typing.Literal:
        _check(data in arguments, kind)
        return data
    if kind is Path:
        _check(type(data) is str and str(Path(data)) == data, kind)  # as of() writes it
        return Path(data)
    _check(type(data) is kind, kind)
    return data


@cache
def _hints(kind: type) -> dict[str, Any]:
    """It compiles each annotation; a snapshot has hundreds of a few classes."""
    return typing.get_type_hints(kind)


def _first_that_fits(kinds: tuple[Any, ...], data: Any) -> Any:
    for kind in kinds:
        try:
            return _made(kind, data)
        except PlainError:
            pass
    raise PlainError(f"{type(data).__name__} is none of {', '.join(getattr(kind, '__name__', '?') for kind in kinds)}")


def _check(fits: bool, kind: Any) -> None:
    if not fits:
        raise PlainError(f"it is no {getattr(kind, '__name__', kind)}")
