"""What happens to a machine as a whole, for those who listen to machine.events."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal[
    "started", "paused", "pause-failed", "resumed", "reset", "snapshot", "restored", "plugged", "unplugged",
    "plug-refused", "unplug-refused",
    "sleep", "wake", "power-button", "sleep-button", "powered-off", "panicked", "io-error", "ended",
]  # fmt: skip
State = Literal["built", "running", "paused", "ended"]


class MachineEvent(NamedTuple):
    """*message* is the reason, for a person: of a pause or reset, why a pause did not come about, how a guest panicked,
    which file of the host fails, the outcome; the name of the device that was plugged in or is gone; that of
    the one that the guest did not take or let go of, and why; what woke it."""

    kind: Kind
    message: str = ""
