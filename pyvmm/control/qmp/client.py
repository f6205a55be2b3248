"""A small client of QMP: `pyvmm plug` and `pyvmm unplug` are it."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from pyvmm.errors import UserError, printable

GREETING_S: Final = 1.0
"""Seconds after which a server that has not greeted has somebody else to serve."""
LINE_LIMIT: Final = 1 << 20
"""Bytes of one answer."""
_OBJECTS: Final = ("data", "error")
"""Members of a message that are objects where they are there."""
Message = dict[str, Any]


class QmpRefused(UserError):
    """The machine does not do it: *kind* is the error class."""

    def __init__(self, description: str, kind: str) -> None:
        super().__init__(description)
        self.kind = kind


class QmpClient:
    """Connected to the socket at *path*, and done with negotiation; a context manager. Raises UserError where nobody
    is there who speaks QMP."""

    def __init__(self, path: str, busy: Callable[[], None] = lambda: None) -> None:
        """*busy* is called where another client is connected, for whose end it waits."""
        self._shown = printable(path)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
            self._lines = self._socket.makefile("rb")
            if not select.select([self._socket], [], [], GREETING_S)[0]:
                busy()
            if "QMP" not in self._read():
                raise self._error("whoever is there does not speak QMP")
            self._events: list[Message] = []
            self.execute("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise self._error(f"{error.strerror}: is there a machine with --qmp?") from None
        except BaseException:
            self._socket.close()
            raise

    def _error(self, why: str) -> UserError:
        return UserError(f"socket {self._shown}: {why}")

    def _read(self) -> Message:
        try:
            line = self._lines.readline(LINE_LIMIT)
            message = json.loads(line) if line.endswith(b"\n") else None
        except OSError:  # it ended before it had read what was sent
            line, message = b"", None
        except (ValueError, RecursionError):
            message = None
        if not line:
            raise self._error("the machine has ended")
        if not isinstance(message, dict) or not all(isinstance(message.get(key, {}), dict) for key in _OBJECTS):
            raise self._error("whoever is there does not speak QMP")
        return message

    def execute(self, command: str, **arguments: object) -> Any:
        """What *command* returns. Raises QmpRefused, and UserError where the machine ends meanwhile."""
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except OSError:  # it may have said why, and then that it ends
            pass
        while True:
            message = self._read()
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                error = message["error"]
                raise QmpRefused(printable(str(error.get("desc"))), str(error.get("class")))
            else:
                return message.get("return")

    def wait_for(self, *names: str, **data: object) -> Message:
        """Until an event comes that is called one of *names* and has *data* in it: that event. Raises UserError where
        the machine ends before."""
        while True:
            event = self._events.pop(0) if self._events else self._read()
            if event.get("event") in names and data.items() <= event.get("data", {}).items():
                return event

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
