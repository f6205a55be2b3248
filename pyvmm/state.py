"""What a snapshot keeps of a part: plain data out of its attributes, and back into them, in place.

A class names the attributes that are its state, each class those that it adds; () says aloud that it has none:

    class Blinker(PciDevice):
        STATE = ("on", "timer")

save() gives {"on": True, "timer": 1500, …}, load() puts it back. What an attribute may be:

    int, bool, str, bytes, None                    itself
    tuple, list, dict, deque of all these          the same; a deque is a list
    bytearray, memoryview                          bytes; a memoryview keeps its length
    a timer (clock.Timer)                          its deadline, on the guest's clock, or None
    something that has STATE of its own            {name: value}; a list, tuple or dict of them: one by one
    a property                                     what it gives, which its setter is given

What else a part holds (a clock, a line, a callback) is a wire, and stays. A part whose state lies elsewhere, in the
kernel, has save() and load(saved) instead. Two hooks may be there: drain() is called before a save, to end what is
under way; restored() when everything has been loaded, to derive what follows from the state. It drives no line: levels
come back as part of the state of whoever has the line, and an edge would be an interrupt too many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, TypeGuard

from pyvmm.clock import Timer
from pyvmm.errors import UserError

Plain: TypeAlias = "bool | int | str | bytes | tuple[Plain, ...] | list[Plain] | dict[Plain, Plain] | None"
"""What save() makes; what a file must be able to hold. Keys of a dict are scalars, or tuples of them."""

_SCALARS: Final = frozenset((int, bool, str, bytes, type(None)))
_CONTAINERS: Final = (tuple, list, dict, deque, bytearray, memoryview)
_DATA: Final = frozenset((*_SCALARS, *_CONTAINERS))

Hooks = list[Callable[[], None]]

_NOTHING: Final[Any] = {}
_names: dict[type, tuple[str, ...]] = {}


class StateError(UserError):
    """A part cannot be saved, or what was saved is not of this part."""


def save(part: object) -> Plain:
    """The state of *part*; StateError says what cannot be saved, and what to do."""
    _drain(part)
    return _state_of(part)


def load(part: object, saved: Plain) -> None:
    """Put back what save() gave of a part that was made alike; *saved* stays as it is. Raises StateError."""
    hooks: Hooks = []
    _put_part(part, saved, hooks)
    for restored in hooks:
        restored()


def adopt(part: object, saved: Plain, but: Collection[str] = ()) -> list[str]:
    """As load(), but *part* may be of newer code: what both have goes over. The rest of *part* and its attributes *but*
    stay as made. What did not go over, of either, is returned by name. Raises StateError."""
    hooks: Hooks = []
    left: list[str] = []
    _adopt_part(part, saved, hooks, left, "", but)
    for restored in hooks:
        restored()
    return left


def save_all(parts: Mapping[str, object]) -> dict[str, Plain]:
    """As save(), of all *parts*: each is drained before the first is saved."""
    for name, part in parts.items():
        with_name(name, _drain, part)
    return {name: with_name(name, _state_of, part) for name, part in parts.items()}


def load_all(parts: Mapping[str, object], saved: Mapping[str, Plain], newer: Collection[object] = ()) -> None:
    """As load(), of all *parts*: all have their state before restored() of the first is called, in their order. Those
    among *newer* may be of other code than what was saved: of them it is as adopt()."""
    if parts.keys() != saved.keys():
        only = sorted(parts.keys() - saved.keys()), sorted(saved.keys() - parts.keys())
        raise StateError(
            f"this is the state of another machine: it has no {', '.join(only[0])}"
            if only[0]
            else f"this is the state of another machine: it has {', '.join(only[1])} too"
        )
    hooks: Hooks = []
    for name, part in parts.items():
        if part in newer:
            with_name(name, _adopt_part, part, saved[name], hooks, [], "")
        else:
            with_name(name, _put_part, part, saved[name], hooks)
    for restored in hooks:
        restored()


def with_name(name: str, call: Callable[..., Any], *arguments: object) -> Any:
    """Let a StateError of *call* begin with *name*."""
    try:
        return call(*arguments)
    except StateError as error:
        raise StateError(f"{name}: {error}") from None


def names(kind: type) -> tuple[str, ...]:
    """The attributes that are the state of a *kind*, its base classes' first; StateError where a class says nothing."""
    if kind in _names:
        return _names[kind]
    found: dict[str, None] = {}
    for cls in list(_own_classes(kind)) or [kind]:
        if "STATE" not in vars(cls):
            raise StateError(f"{cls.__name__} does not say what its state is: add  {_line_to_add(cls)}")
        found |= dict.fromkeys(vars(cls)["STATE"])
    _names[kind] = tuple(found)
    return _names[kind]


def _own_classes(kind: type) -> Iterator[type]:
    """The classes of *kind*'s MRO that may give it attributes, from the base up."""
    for cls in reversed(kind.__mro__):
        if cls is not object and cls.__module__ not in ("typing", "abc") and not vars(cls).get("_is_protocol"):
            yield cls


def _line_to_add(cls: type) -> str:
    """STATE with the attributes that the methods of *cls* assign, as far as they are no wires by their name."""
    assigned: dict[str, None] = {}
    for function in vars(cls).values():
        code = getattr(function, "__code__", None)
        if code is not None:
            assigned |= dict.fromkeys(_assigned(code))
    listed = ", ".join(f'"{name}"' for name in assigned)
    return f"STATE = ({listed}{',' if len(assigned) == 1 else ''}), less what a snapshot need not keep"


def _assigned(code: Any) -> Iterator[str]:
    import dis  # only to say what is wrong

    before: object = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_ATTR" and before == "self":
            yield str(instruction.argval)
        loaded = instruction.argval  # two names where Python 3.13 loads both at once
        before = loaded[-1] if isinstance(loaded, tuple) and loaded else loaded


def _is_part(value: object) -> bool:
    return type(value) not in _DATA and not _is_timer(value)


def _is_timer(value: object) -> TypeGuard[Timer]:
    return hasattr(value, "deadline") and hasattr(value, "arm") and hasattr(value, "cancel")


def _attributes(part: object) -> Iterator[tuple[str, Any]]:
    kind = type(part)
    for name in names(kind):
        try:
            yield name, getattr(part, name)
        except AttributeError:
            raise StateError(f"STATE of {kind.__name__} names {name}, which it does not have") from None


# Out


def _parts_in(value: object) -> Iterable[object]:
    match value:
        case tuple() | list() | deque():
            return (item for item in value if _is_part(item))
        case dict():
            return (item for item in value.values() if _is_part(item))
    return (value,) if _is_part(value) else ()


def _drain(part: object) -> None:
    kind = type(part)
    if hasattr(kind, "drain"):
        part.drain()  # type: ignore[attr-defined]
    if not hasattr(kind, "save"):
        for name, value in _attributes(part):
            for inner in _parts_in(value):
                with_name(f"{kind.__name__}.{name}", _drain, inner)


def _state_of(part: object) -> Plain:
    kind = type(part)
    if hasattr(kind, "save"):
        saved: Plain = part.save()  # type: ignore[attr-defined]
        return saved
    return {name: with_name(f"{kind.__name__}.{name}", _plain, value) for name, value in _attributes(part)}


def _plain(value: Any) -> Plain:
    kind = type(value)
    if kind in _SCALARS:
        scalar: Plain = value
        return scalar
    if kind is bytearray or kind is memoryview:
        return bytes(value)
    if kind is tuple:
        return tuple(map(_plain, value))
    if kind is list or kind is deque:
        return list(map(_plain, value))
    if kind is dict:
        return {_plain_key(key): _plain(item) for key, item in value.items()}
    if _is_timer(value):
        return value.deadline
    return _state_of(value)


def _plain_key(key: Any) -> Plain:
    if type(key) in _SCALARS or (type(key) is tuple and all(type(item) in _SCALARS for item in key)):
        plain: Plain = key
        return plain
    raise StateError(f"a dict that is state has a key of class {type(key).__name__}")


# In


def _put_part(part: Any, saved: Plain, hooks: Hooks) -> None:
    kind = type(part)
    if hasattr(kind, "save"):
        part.load(saved)
    else:
        wanted = names(kind)
        if not isinstance(saved, dict) or len(saved) != len(wanted) or not all(name in saved for name in wanted):
            raise StateError(f"what was saved is not the state of this version's {kind.__name__}")
        held = getattr(part, "__dict__", _NOTHING)
        for name in wanted:
            value = saved[name]
            current = held.get(name, _NOTHING)
            same = type(current)
            if current is value or (same is type(value) and same is not dict and current == value):
                continue  # most are as they were; of a dict the order counts too
            try:
                _put_attribute(part, kind, name, value, hooks)
            except StateError as error:
                raise StateError(f"{kind.__name__}.{name}: {error}") from None
    if hasattr(kind, "restored"):
        hooks.append(part.restored)


def _adopt_part(part: Any, saved: Plain, hooks: Hooks, left: list[str], where: str, but: Collection[str] = ()) -> None:
    if hasattr(type(part), "save"):
        part.load(saved)
    elif not isinstance(saved, dict):
        left.append(where.rstrip("."))
        return
    else:
        current = dict(_attributes(part))
        left.extend(where + str(name) for name in saved if name not in current)
        left.extend(where + name for name in current if name not in saved)
        for name, value in current.items():
            if name not in saved or name in but:
                continue
            if _is_part(value):
                _adopt_part(value, saved[name], hooks, left, f"{where}{name}.")
            elif not _adopt_attribute(part, name, value, saved[name], hooks):
                left.append(f"{where}{name}")
    if hasattr(type(part), "restored"):
        hooks.append(part.restored)


def _adopt_attribute(part: Any, name: str, current: Any, saved: Plain, hooks: Hooks) -> bool:
    """Whether *saved* fits."""
    simple = type(current) in _SCALARS and current is not None and saved is not None
    if simple and type(current) is not type(saved):
        return False
    try:
        _put_attribute(part, type(part), name, saved, hooks)
    except StateError:
        return False
    return True


def _put_attribute(part: Any, kind: type, name: str, saved: Plain, hooks: Hooks) -> None:
    if isinstance(attribute := getattr(kind, name, None), property):
        if attribute.fset is not None:
            setattr(part, name, _plain(saved))
        return
    current = getattr(part, name)
    value = _put(current, saved, hooks)
    if value is not current:
        setattr(part, name, value)


def _put(current: Any, saved: Any, hooks: Hooks) -> Any:
    """What the attribute that holds *current* must hold now: *current* itself wherever that can be changed."""
    kind = type(current)
    if kind in _SCALARS:
        return saved if type(saved) in _SCALARS else _plain(saved)
    if saved is None and kind in _CONTAINERS:  # an attribute that may be None, and was
        return None
    if kind is bytearray or kind is memoryview:
        _check(isinstance(saved, bytes) and (kind is bytearray or len(saved) == current.nbytes))
        current[:] = saved
    elif kind is tuple or kind is list or kind is deque:
        _check(isinstance(saved, tuple if kind is tuple else list))
        return _put_sequence(current, saved, hooks)
    elif kind is dict:
        _check(isinstance(saved, dict))
        _put_dict(current, saved, hooks)
    elif _is_timer(current):
        _check(saved is None or isinstance(saved, int))
        if saved is None:
            current.cancel()
        else:
            current.arm(saved)
    else:
        _put_part(current, saved, hooks)
    return current


def _put_sequence(current: Any, saved: Any, hooks: Hooks) -> Any:
    if current == saved:
        return current  # what is as it was costs one comparison
    if any(map(_is_part, current)):
        _check(len(current) == len(saved))
        for item, value in zip(current, saved, strict=True):
            _put(item, value, hooks)
    elif type(current) is tuple:
        return _plain(saved)
    else:
        copy = list(map(_plain, saved))
        current.clear()
        current.extend(copy)
    return current


def _put_dict(current: dict[Any, Any], saved: dict[Any, Any], hooks: Hooks) -> None:
    if current == saved and list(current) == list(saved):
        return
    if any(map(_is_part, current.values())):
        _check(current.keys() == saved.keys())
        for key, item in current.items():
            _put(item, saved[key], hooks)
    else:
        copy = {key: _plain(value) for key, value in saved.items()}
        current.clear()
        current.update(copy)


def _check(fits: bool) -> None:
    if not fits:
        raise StateError("what was saved does not fit")
