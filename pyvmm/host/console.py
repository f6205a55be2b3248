"""The serial console on stdin and stdout: no byte is lost in either direction, and nothing here blocks.

Output gathers in a buffer that the loop writes when the descriptor takes it; when more than HIGH_WATER waits, the
guest is held until it has drained. Input is read only while the serial port has room; from a terminal, up to HIGH_WATER
bytes more.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from typing import Final, Protocol

from pyvmm.host.buffered import BufferedOutput
from pyvmm.host.prompt import Prompt
from pyvmm.host.tty import EscapeParser, RawTerminal, in_foreground
from pyvmm.loop import Loop

HIGH_WATER: Final = 64 << 10
CHUNK: Final = 4096


class SerialPort(Protocol):
    """The device's side of the console."""

    on_room: Callable[[], None] | None
    """Called when there is room again, and when the guest starts listening."""

    @property
    def listening(self) -> bool:
        """A driver is there to take what receive() gives; it clears what came before it."""

    def receive(self, data: bytes) -> int: ...


class Console:
    """One serial port on a pair of descriptors.

    Escapes are taken out only where stdin is a terminal, which is raw from the first attach() to close(), but not from
    give_back() to take_again().
    """

    def __init__(self, fd_in: int, fd_out: int) -> None:
        self._in = fd_in
        self._output = BufferedOutput(fd_out, HIGH_WATER, self._failed)
        self.lost = ""
        """Why output of the guest was lost, where nobody chose that: a full disk, and not a reader that has gone."""
        self._input = bytearray()
        self._sent = bytearray()
        self._eof = False
        self._pollable = True
        self._terminal: RawTerminal | None = None
        self._escapes = EscapeParser()
        self._loop: Loop | None = None
        self._port: SerialPort | None = None
        self._reading = False
        self._keys: Callable[[bytes], None] | None = None
        self._notes: Callable[[bytes], None] | None = None
        self._prompt: Prompt | None = None

    def attach(
        self,
        loop: Loop,
        port: SerialPort,
        hold: Callable[[bool], None],
        command: Callable[[str], None],
        keys: Callable[[bytes], None] | None = None,
        notes: Callable[[bytes], None] | None = None,
    ) -> None:
        """Serve *port* from *loop*, under the machine lock.

        *hold* is told True when output has piled up and False when it has drained; *command* gets the letters
        of Ctrl-A commands. With *keys*, input goes there and not to the port, whose output is not shown, and
        what say() is given goes to *notes*.
        """
        self._keys, self._notes = keys, notes
        if self._terminal is None and os.isatty(self._in):
            self._terminal = RawTerminal(self._in)
            self._terminal.take()  # only now, for who handles SIGTSTP must know what to give back
        self._loop, self._port, self._command = loop, port, command
        self._reading = False
        port.on_room = self._feed
        self._output.attach(loop, hold)
        self._feed()

    def detach(self) -> None:
        """Leave the loop; what is buffered stays for the next attach() or close()."""
        if self._loop is not None:
            self._loop.remove(self._in)
            self._output.detach()
            self._loop = None
        if self._port is not None:
            self._port.on_room = None
            self._port = None

    # The guest's output

    def write(self, data: bytes) -> None:
        """Output of the guest, in its order."""
        if self._keys is None:
            self._output.write(data)

    def _failed(self, error: OSError) -> None:
        """The guest goes on without a console."""
        if error.errno not in (errno.EPIPE, errno.EIO):
            self.lost = os.strerror(error.errno or 0)

    def say(self, text: bytes) -> None:
        """Words of ours to the user, among the guest's output where that is shown."""
        (self._notes or self.write)(text)

    def send(self, data: bytes) -> None:
        """Give the port *data* before what the user has typed and it has not taken yet, wherever that goes. Under the
        machine lock, in the loop."""
        self._sent += data
        self._feed()

    def ask(self, question: str, answer: Callable[[str | None], None]) -> None:
        """Let the user type a line that is not for the guest; *answer* gets it, None where it is given up."""
        self._prompt = Prompt(question, answer, self.say, whole=self._notes is not None)

    # The user's input

    def _feed(self) -> None:
        """Give the port what waits; read on once that is all gone."""
        port = self._port
        if port is None:
            return
        if self._sent and port.listening:
            del self._sent[: port.receive(bytes(self._sent))]
        if self._keys is not None:
            self._keys(bytes(self._input))
            self._input.clear()
        elif self._input and not self._sent and port.listening:
            del self._input[: port.receive(bytes(self._input))]
        if self._terminal is None:
            self._read_on(not self._input)
        else:  # read on, for Ctrl-A x must be seen whether or not the guest takes what was typed before
            self._read_on(self._terminal.ours and len(self._input) < HIGH_WATER)

    def _read_on(self, wanted: bool) -> None:
        loop = self._loop
        if self._eof or wanted == self._reading or loop is None:
            return
        self._reading = wanted
        if not wanted:
            loop.remove(self._in)
            return
        if self._pollable:
            try:
                loop.add(self._in, self._readable)
                return
            except PermissionError:  # a regular file is always readable, and epoll refuses it
                self._pollable = False
        loop.post(self._readable)

    def _readable(self) -> None:
        if not self._reading:
            return
        if self._terminal is not None and not in_foreground(self._in):  # after SIGSTOP; reading would stop us again
            self._read_on(False)
            return
        if self._terminal is not None and not self.waiting:  # quit_typed() was quicker
            return
        try:
            data = os.read(self._in, CHUNK)
        except OSError:
            data = b""
        if not data:
            self._read_on(False)
            self._eof = True
            return
        parts: list[bytes | str] = [data]
        if self._terminal is not None:
            parts = self._escapes.feed(data)
        if not self._pollable:
            self._reading = False
        for part in parts:
            if isinstance(part, bytes):
                if self._prompt is not None:
                    part = self._prompt.feed(part)
                    if self._prompt.done:
                        self._prompt = None
                self._input += part
                self._feed()  # so that what a command does at the port comes after what was typed before it
            else:
                self._command(part)
        self._feed()

    @property
    def waiting(self) -> bool:
        """Whether the terminal is ours and something that was typed lies there unread. From any thread."""
        if self._terminal is None or not self._terminal.ours or not in_foreground(self._in):
            return False
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        return bool(poll.poll(0))

    def quit_typed(self) -> bool:
        """Whether Ctrl-A x is in what lies unread; the rest is kept for the guest. For another thread than the loop's,
        where that does not get the machine lock any more."""
        if not self.waiting:
            return False
        parts = self._escapes.feed(os.read(self._in, CHUNK))
        self._input += b"".join(part for part in parts if isinstance(part, bytes))
        return "x" in parts

    def close(self) -> None:
        """Write what is left, as far as the reader takes it within a second, and give the terminal back."""
        self.detach()
        try:
            self._output.close()
        finally:
            terminal, self._terminal = self._terminal, None  # a SIGCONT that comes now takes nothing again
            if terminal is not None:
                terminal.give_back()

    # While the process is stopped

    def give_back(self) -> None:
        """Let the user have the terminal as it was."""
        if self._terminal is not None:
            self._terminal.give_back()
            self._read_on(False)

    def take_again(self) -> None:
        """Make the terminal raw again and read from it, where we are in the foreground."""
        if self._terminal is not None:
            self._terminal.take()
            self._read_on(False)
            self._feed()
