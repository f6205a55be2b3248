"""What a command is: a function of the machine and of arguments that have been looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pyvmm.control.qmp.descriptors import Descriptors
from pyvmm.control.qmp.messages import QmpError
from pyvmm.machine.machine import Machine

_TYPES: Final[Mapping[type, str]] = {bool: "boolean", dict: "object", int: "integer", list: "array", str: "string"}


@dataclass(frozen=True)
class Command:
    """*call* is given the machine and the arguments, of the types that *needs* and *takes* name, and returns what goes
    back; it raises QmpError, or UserError. It runs in the server's thread, and may wait for the machine."""

    call: Callable[..., object]
    needs: Mapping[str, type] = field(default_factory=dict)
    """Arguments that must be there."""
    takes: Mapping[str, type] = field(default_factory=dict)
    """Those that may be."""
    free: bool = False
    """Whether there may be others, of any name and type."""
    descriptors: bool = False
    """Whether *call* is given the client's Descriptors too."""

    def run(self, machine: Machine, arguments: Mapping[str, Any], descriptors: Descriptors) -> object:
        """What it returns; raises QmpError, for wrong arguments too, and UserError."""
        checked = self.checked(arguments)
        return self.call(machine, checked, descriptors) if self.descriptors else self.call(machine, checked)

    def checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """*arguments*; raises QmpError for what they lack or have too much, in QEMU's words."""
        known = {**self.needs, **self.takes}
        for name in self.needs:
            if name not in arguments:
                raise QmpError(f"Parameter '{name}' is missing")
        for name, value in arguments.items():
            wanted = known.get(name)
            if wanted is None:
                if not self.free:
                    raise QmpError(f"Parameter '{name}' is unexpected")
            elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
                raise QmpError(f"Invalid parameter type for '{name}', expected: {_TYPES[wanted]}")
        return arguments
