"""What happens to a machine as a whole, for those who listen to machine.events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["started", "paused", "resumed", "reset", "powered-off", "panicked", "ended"]
State = Literal["built", "running", "paused", "ended"]


@dataclass(frozen=True)
class MachineEvent:
    """*message* is the reason, for a person: of a pause or reset, how a guest panicked, the outcome."""

    kind: Kind
    message: str = ""
