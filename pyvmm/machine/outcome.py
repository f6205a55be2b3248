"""How a guest ended, and the exit status that says so."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pyvmm.errors import printable


class End(Enum):
    POWER_OFF = "power-off"
    RESET = "reset"
    DEBUG_EXIT = "debug-exit"
    PANIC = "panic"
    TRIPLE_FAULT = "triple fault"
    INTERNAL_ERROR = "internal error"
    DEVICE_FAULT = "device fault"
    NO_BIOS = "no BIOS"
    NO_BOOT_DISK = "no boot disk"
    UNHANDLED_EXCEPTION = "exception"
    TIMEOUT = "timeout"
    QUIT = "quit"
    SIGNAL = "signal"
    SAVED = "saved"
    COMMAND = "command"


DEBUG_EXIT_STATUS = 16
DEBUG_EXIT_LIMIT = 95
STATUS = {
    End.POWER_OFF: 0,
    End.SAVED: 0,
    End.RESET: 3,
    End.PANIC: 4,
    End.TRIPLE_FAULT: 5,
    End.INTERNAL_ERROR: 6,
    End.QUIT: 7,
    End.DEVICE_FAULT: 8,
    End.NO_BIOS: 9,
    End.NO_BOOT_DISK: 10,
    End.UNHANDLED_EXCEPTION: 11,
    End.TIMEOUT: 124,
}
"""Exit statuses of the ends that carry no value; 2 is a user's mistake, 1 a bug of ours."""

EXIT_STATUS_HELP = f"""\
exit status:
  0        the guest powered off, or was saved (--save-after with --quit)
  1        a bug in pyvmm (a traceback says where)
  2        a mistake in the command line or on this host; one line says what to do
  3        the guest reset and --no-reboot was given; of a command's, it reset or powered off before that ended
  4        the guest's kernel panicked
  5        triple fault
  6        KVM could not go on (internal error, failed entry, unknown exit)
  7        quit with Ctrl-A x or by closing the window, or the X server went
  8        a --device of yours returned what it may not, or raised; one line says which one and where
  9        the guest called a BIOS, which there is none of, or left an exception in real mode to it
  10       the BIOS found no disk to boot from; one line says what it found instead
  11       a program in real mode left an exception to the BIOS; one line says which one and where
  {DEBUG_EXIT_STATUS}+v     debug-exit: the guest wrote v to port 0xf4 ({DEBUG_EXIT_LIMIT} stands for all above)
  124      --timeout ran out
  128+n    signal n (129 SIGHUP, 130 SIGINT, 143 SIGTERM)
"""


@dataclass(frozen=True)
class Outcome:
    """How a machine ended: value is the debug-exit value, the signal's number, or the exit status of the command that
    the guest was there for (pyvmm linux); report is for a person to read.

    The message is one line; like the report it may hold words of the guest's, and is made fit to be printed.
    """

    end: End
    value: int = 0
    message: str = ""
    report: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))
        object.__setattr__(self, "report", "\n".join(map(printable, self.report.split("\n"))))

    @property
    def status(self) -> int:
        """The exit status of the process, 0 to 255."""
        if self.end is End.DEBUG_EXIT:
            return DEBUG_EXIT_STATUS + min(self.value, DEBUG_EXIT_LIMIT)
        if self.end is End.SIGNAL:
            return 128 + self.value
        if self.end is End.COMMAND:
            return self.value
        return STATUS[self.end]

    @property
    def qemu_status(self) -> int:
        """The exit status as QEMU's isa-debug-exit makes it of the value; of any other end it is *status*."""
        return (self.value << 1 | 1) & 0xFF if self.end is End.DEBUG_EXIT else self.status

    def __str__(self) -> str:
        if self.end is End.DEBUG_EXIT:
            return f"debug-exit {self.value}"
        if self.end is End.SIGNAL:
            return f"signal {self.value}"
        if self.end is End.DEVICE_FAULT and self.message:
            return self.message
        return f"{self.end.value}: {self.message}" if self.message else self.end.value


class DeviceFault(Exception):
    """A device of the user's raised when it was closed, too late for the machine's outcome: *outcome* is that."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome
