"""What a guest says of hot-plug that it does not go along with: _OST (ACPI 6.5, section 6.3.5)."""

from __future__ import annotations

from typing import Final

from pyvmm.machine.event import MachineEvent

_INSERTION: Final = {0x81: "its driver does not load", 0x82: "it does not support that"}
_EJECTION: Final = {
    0x80: "it does not support that",
    0x81: "an application uses it",
    0x82: "it is busy",
    0x83: "something that depends on it is busy, or cannot go",
}
"""By status code."""


def refused(name: str, inserted: bool, status: int) -> MachineEvent:
    """The event that the guest does not take *name*, which was *inserted*, or does not let go of it, and why."""
    why = (_INSERTION if inserted else _EJECTION).get(status, "it gives no reason")
    does = "does not take it" if inserted else "does not let go of it"
    kind: Final = "plug-refused" if inserted else "unplug-refused"
    return MachineEvent(kind, f"{name}: the guest {does}: {why} (_OST status {status:#x})")
