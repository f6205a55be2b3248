"""What happens to a machine, as QMP tells it (QEMU, qapi/run-state.json, qdev.json)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyvmm.control.qmp.life import QUIT_BY
from pyvmm.control.qmp.messages import event
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.outcome import End, Outcome

PERIPHERAL: Final = "/machine/peripheral"
"""Where QEMU's object tree has devices."""
_PRESSED: Final = "reset()"
"""The reason of a reset that no guest has asked for."""
_CAUSES: Final = {
    End.POWER_OFF: "guest-shutdown",
    End.COMMAND: "guest-shutdown",
    End.DEBUG_EXIT: "guest-shutdown",
    End.RESET: "guest-reset",
    End.TRIPLE_FAULT: "guest-reset",
    End.NO_BIOS: "guest-reset",
    End.PANIC: "guest-panic",
    End.SIGNAL: "host-signal",
    End.QUIT: "host-ui",
    End.INTERNAL_ERROR: "host-error",
    End.DEVICE_FAULT: "host-error",
    End.TIMEOUT: "host-error",
    End.SAVED: "host-ui",
}
"""ShutdownCause, by how the machine ended."""


def of(told: MachineEvent, outcome: Outcome | None) -> Iterator[bytes]:
    """The events that *told* is, if any; *outcome* is the machine's, which has one when it has ended."""
    match told.kind:
        case "paused":
            yield event("STOP")
        case "resumed":
            yield event("RESUME")
        case "power-button":
            yield event("POWERDOWN")
        case "sleep":
            yield event("SUSPEND")
        case "wake":
            yield event("WAKEUP")
        case "reset":
            pressed = told.message == _PRESSED
            yield event(
                "RESET", {"guest": not pressed, "reason": "host-qmp-system-reset" if pressed else "guest-reset"}
            )
        case "unplugged":
            yield event("DEVICE_DELETED", {"device": told.message, "path": f"{PERIPHERAL}/{told.message}"})
        case "unplug-refused":
            name, _, reason = told.message.partition(": ")
            path = f"{PERIPHERAL}/{name}"
            yield event("DEVICE_UNPLUG_GUEST_ERROR", {"device": name, "path": path, "reason": reason})
        case "ended":
            assert outcome is not None
            if outcome.end is End.PANIC:
                yield event("GUEST_PANICKED", {"action": "poweroff"})
            cause = "host-qmp-quit" if outcome == Outcome(End.QUIT, message=QUIT_BY) else _CAUSES[outcome.end]
            yield event("SHUTDOWN", {"guest": cause.startswith("guest-"), "reason": cause})
