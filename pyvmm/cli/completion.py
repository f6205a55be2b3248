"""`pyvmm completion SHELL`: a few lines for bash, zsh or fish, which ask us again at each TAB.

What there is comes from the parser itself, from guests/, the registry of devices and a board: nothing is listed twice,
and installed devices are known. Where there is nothing to say, the shell completes files. No file of the user's is
loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Final

from pyvmm.errors import UserError

SCRIPTS: Final = {
    "bash": """\
# eval "$(pyvmm completion bash)", in ~/.bashrc
_pyvmm() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion candidates "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ ${COMPREPLY[0]} != *[=,] ]] || compopt -o nospace
}
complete -o bashdefault -o default -F _pyvmm pyvmm
""",
    "zsh": """\
# eval "$(pyvmm completion zsh)", in ~/.zshrc behind compinit
_pyvmm() {
    local -a found
    found=("${(@f)$("${words[1]}" completion candidates "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n $found ]]; then compadd -Q -- $found; else _files; fi
}
compdef _pyvmm pyvmm
""",
    "fish": """\
# pyvmm completion fish | source, in ~/.config/fish/config.fish
function __pyvmm
    set -l words (commandline -opc)
    set -l found ($words[1] completion candidates $words[2..] (commandline -ct) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c pyvmm -f -a '(__pyvmm)'
""",
}


def candidates(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """What the last of *words*, which is begun or empty, may become. bash gives "--trace=x" as three words."""
    *before, current = words or [""]
    if current == "=":
        current = ""
    elif before and before[-1] == "=":
        before.pop()
    commands = _commands(parser)
    command = next((word for word in before if word in commands), None)
    if command is None:
        return _fitting([*commands, *_options(parser)], current)
    parser, before = commands[command], before[before.index(command) + 1 :]
    flag, equals, begun = current.partition("=")
    if equals and flag in _options(parser):
        return [f"{flag}={found}" for found in _values(_option(parser, flag), begun, before)]
    if before and (option := _option(parser, before[-1])) is not None and option.nargs != 0:
        return _values(option, current, before)
    if current.startswith("-"):
        return _fitting(_options(parser), current)
    found = []
    for action in parser._actions:
        if not action.option_strings:
            found += _values(action, current, before)
    return found


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(dict(a.choices) for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [text for action in parser._actions for text in action.option_strings]


def _option(parser: argparse.ArgumentParser, text: str) -> argparse.Action | None:
    return next((action for action in parser._actions if text in action.option_strings), None)


def _fitting(words: Iterable[str], begun: str) -> list[str]:
    return sorted({word for word in words if word.startswith(begun)})


def _values(action: argparse.Action | None, begun: str, before: list[str]) -> list[str]:
    """What an option or argument may be."""
    if action is None:
        return []
    if action.choices is not None:
        return _fitting(map(str, action.choices), begun)
    known: dict[str, Callable[[str, list[str]], list[str]]] = {
        "guest": _guests,
        "device": _devices,
        "trace": _channels,
        "set": _parameters,
    }
    return known[action.dest](begun, before) if action.dest in known else []


def _guests(begun: str, before: list[str]) -> list[str]:
    from pyvmm import guests

    return _fitting(guests.names(), begun)


def _parameters(begun: str, before: list[str]) -> list[str]:
    """Of the guest that is named before it."""
    from pyvmm import guests

    named = next((word for word in before if word in guests.names()), guests.DEFAULT)
    return _fitting((f"{symbol}=" for symbol in guests.load(named).symbols), begun)


def _devices(begun: str, before: list[str]) -> list[str]:
    """A name, or behind a comma a key of it."""
    from pyvmm.device_spec import RESERVED, DeviceSpec
    from pyvmm.machine.registry import find, keys, names

    first, comma, last = begun.rpartition(",")
    if not comma:
        return _fitting(["list", *names()], begun)
    spec = DeviceSpec.parse(first)
    told = [] if spec.file is not None else [key.name for key in keys(find(spec))[0]]
    return [f"{first},{word}" for word in _fitting([*(f"{key}=" for key in (*told, *RESERVED)), "help"], last)]


def _channels(begun: str, before: list[str]) -> list[str]:
    """Of a machine without devices, and one for each device that is named before."""
    from pyvmm.config import MachineConfig
    from pyvmm.device_spec import DeviceSpec
    from pyvmm.machine.describe import described

    if "=" in begun:
        return []
    first, comma, last = begun.rpartition(",")
    found = {"all"}
    with described(MachineConfig(guest="hello", virtio_input="standard")) as board:
        found.update(board.trace.names)
    specs = [text for option, text in pairwise(before) if option == "--device"]
    found.update(spec.id or spec.kind for spec in map(DeviceSpec.parse, specs))
    return [f"{first}{comma}{word}" for word in _fitting(found - set(first.split(",")), last)]


def tell(parser: argparse.ArgumentParser, shell: str, words: list[str]) -> int:
    """The command `completion`; returns the exit status."""
    if shell in SCRIPTS:
        print(SCRIPTS[shell], end="")
        return 0
    try:
        for word in candidates(parser, words):
            print(word)
    except UserError:  # what stands before is wrong, which is told when the line is run
        pass
    return 0
