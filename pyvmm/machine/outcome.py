"""How a guest ended, and the exit status that says so."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class End(Enum):
    POWER_OFF = "power-off"
    RESET = "reset"
    DEBUG_EXIT = "debug-exit"
    PANIC = "panic"
    TRIPLE_FAULT = "triple fault"
    INTERNAL_ERROR = "internal error"
    TIMEOUT = "timeout"
    QUIT = "quit"
    SIGNAL = "signal"


DEBUG_EXIT_STATUS = 16
DEBUG_EXIT_LIMIT = 95
STATUS = {
    End.POWER_OFF: 0,
    End.RESET: 3,
    End.PANIC: 4,
    End.TRIPLE_FAULT: 5,
    End.INTERNAL_ERROR: 6,
    End.QUIT: 7,
    End.TIMEOUT: 124,
}
"""Exit statuses of the ends that carry no value; 2 is a user's mistake, 1 a bug of ours."""

EXIT_STATUS_HELP = f"""\
exit status:
  0        the guest powered off
  1        a bug in pyvmm (a traceback says where)
  2        a mistake in the command line or on this host; one line says what to do
  3        the guest reset and --no-reboot was given
  4        the guest's kernel panicked
  5        triple fault
  6        KVM could not go on (internal error, failed entry, unknown exit)
  7        quit with Ctrl-A x or by closing the window
  {DEBUG_EXIT_STATUS}+v     debug-exit: the guest wrote v to port 0xf4 ({DEBUG_EXIT_LIMIT} stands for all above)
  124      --timeout ran out
  128+n    signal n (129 SIGHUP, 130 SIGINT, 143 SIGTERM)
"""


@dataclass(frozen=True)
class Outcome:
    """How a machine ended: value is the debug-exit value or the signal's number; report is for a person to read."""

    end: End
    value: int = 0
    message: str = ""
    report: str = ""

    @property
    def status(self) -> int:
        """The exit status of the process, 0 to 255."""
        if self.end is End.DEBUG_EXIT:
            return DEBUG_EXIT_STATUS + min(self.value, DEBUG_EXIT_LIMIT)
        if self.end is End.SIGNAL:
            return 128 + self.value
        return STATUS[self.end]

    def __str__(self) -> str:
        if self.end is End.DEBUG_EXIT:
            return f"debug-exit {self.value}"
        if self.end is End.SIGNAL:
            return f"signal {self.value}"
        return f"{self.end.value}: {self.message}" if self.message else self.end.value
