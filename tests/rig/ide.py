"""gdb driven as an IDE does it, by pygdbmi: what it answers are records of gdb's machine interface."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from pygdbmi.gdbcontroller import GdbController

PATIENCE = 120
"""Seconds until gdb answers; the machine may be busy."""


class Ide:
    """gdb at *address*; a context manager."""

    def __init__(self, address: str) -> None:
        command = ["gdb", "-nx", "--quiet", "--interpreter=mi3"]
        self.gdb = GdbController(command, time_to_check_for_additional_output_sec=0.01)
        self._seen: list[dict[str, Any]] = []
        self.do(f"-target-select remote {address}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gdb.exit()

    def until(self, kind: str, *messages: str) -> dict[str, Any]:
        """The next record of this *kind* whose message is one of *messages*."""
        while True:
            for place, record in enumerate(self._seen):
                if record["type"] == kind and record["message"] in messages:
                    del self._seen[place]
                    return record
            self._seen += self.gdb.get_gdb_response(timeout_sec=PATIENCE)

    def do(self, command: str) -> dict[str, Any]:
        """What *command* results in; AssertionError where that is an error."""
        self.gdb.write(command, read_response=False)
        record = self.until("result", "done", "running", "connected", "error")
        assert record["message"] != "error", record["payload"]
        payload: dict[str, Any] = record["payload"] or {}
        return payload

    def go(self, command: str) -> dict[str, Any]:
        """Where the guest stops after *command*."""
        self.do(command)
        return self.stopped()

    def stopped(self) -> dict[str, Any]:
        """Where it stops."""
        payload: dict[str, Any] = self.until("notify", "stopped")["payload"]
        return payload

    def said(self, command: str) -> str:
        """What a command of the console prints."""
        self.do(f'-interpreter-exec console "{command}"')
        text = "".join(record["payload"] for record in self._seen if record["type"] in ("console", "target"))
        self._seen = [record for record in self._seen if record["type"] not in ("console", "target")]
        return text.encode().decode("unicode_escape")
