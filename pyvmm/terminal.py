"""The user's terminal: raw while the guest has it, and as it was before however we end."""

from __future__ import annotations

import atexit
import termios
import tty


class RawTerminal:
    """Puts the terminal behind *fd* into raw mode; restore() may be called any number of times, and runs at exit."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[object] | None = list(termios.tcgetattr(fd))
        tty.setraw(fd, termios.TCSANOW)
        atexit.register(self.restore)

    def restore(self) -> None:
        if self._saved is not None:
            saved, self._saved = self._saved, None
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)  # type: ignore[arg-type]
            except termios.error:  # the terminal is gone
                pass
            atexit.unregister(self.restore)


CTRL_A = 0x01
HELP = (
    b"\r\nCtrl-A h  this help\r\nCtrl-A x  quit the machine\r\nCtrl-A r  print the vCPUs' registers\r\n"
    b"Ctrl-A p  press the power button\r\n"
    b"Ctrl-A s  write the screen to a PNG file (--screenshot FILE, or pyvmm.png)\r\n"
    b"Ctrl-A Ctrl-A  send Ctrl-A\r\n"
)


class EscapeParser:
    """Takes the user's Ctrl-A commands out of what is typed.

    feed() returns the bytes for the guest and the commands met: "x", "h", "r", "s", "p", in order of typing. An unknown
    letter is dropped, as the user's slip.
    """

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, list[str]]:
        out = bytearray()
        commands = []
        for byte in data:
            if not self._escaped:
                if byte == CTRL_A:
                    self._escaped = True
                else:
                    out.append(byte)
                continue
            self._escaped = False
            if byte == CTRL_A:
                out.append(byte)
            elif chr(byte).lower() in "xhrsp":
                commands.append(chr(byte).lower())
        return bytes(out), commands
