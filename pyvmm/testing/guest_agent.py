"""The agent of a guest whose machine is in this process: commands and files, by a port in Python's hands."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.agent import PORT, AgentError, CommandEnded, Conversation
from pyvmm.machine.machine import Machine
from pyvmm.testing.patience import LOOK_S, PATIENCE, Patience

if TYPE_CHECKING:
    from pyvmm.virtio.console_ports import PortTap

_PUT = 'cat >"$0" && chmod "$1" "$0"'
_GET = 'cat <"$0"'


def find_tap(devices: Mapping[str, object]) -> PortTap | None:
    """The agent's port, where a console among *devices* has it in Python's hands."""
    from pyvmm.virtio.console_ports import ConsolePorts

    taps = (device.get(PORT) for device in devices.values() if isinstance(device, ConsolePorts))
    return next((tap for tap in taps if tap is not None), None)


class GuestAgent:
    """One command at a time. Raises AgentError where the guest ends, or nothing more comes of it."""

    def __init__(self, machine: Machine, tap: PortTap) -> None:
        self._machine = machine
        self._tap = tap

    def patience(self, seconds: float, conversation: list[int]) -> Patience:
        """What comes, and exits, are progress."""
        vcpus = self._machine.vcpus
        return Patience(seconds, os.getpid(), lambda: (conversation[0], sum(vcpu.exits for vcpu in vcpus) >> 8))

    def run(self, words: Sequence[str | bytes], stdin: bytes = b"", timeout: float = PATIENCE) -> CommandEnded:
        """Run a program with its arguments, and wait for its end."""
        written = self.run_in_order(words, stdin, timeout)
        status, pieces = written
        return CommandEnded(status, *(b"".join(data for number, data in pieces if number == n) for n in (1, 2)))

    def run_in_order(
        self, words: Sequence[str | bytes], stdin: bytes, timeout: float
    ) -> tuple[int, list[tuple[int, bytes]]]:
        """As run(); the exit status, and what came of standard output (1) and error (2) as it came."""
        conversation = Conversation(words, stdin)
        came: list[bytes] = []
        news = threading.Event()
        seen = [0]

        def heard(data: bytes) -> None:
            came.append(data)
            news.set()

        pieces: list[tuple[int, bytes]] = []
        handle = self._tap.add(heard)
        try:
            patience = self.patience(timeout, seen)
            while conversation.status is None:
                if data := conversation.take():
                    self._tap.write(data)
                news.wait(LOOK_S)
                news.clear()
                while came:
                    seen[0] += len(came[0])
                    pieces += conversation.feed(came.pop(0))
                if self._machine.outcome is not None and conversation.status is None:
                    raise AgentError(f"the guest ended before its command did: {self._machine.outcome}")
                if patience.is_over:
                    what = "its command did not end" if conversation.answered else "its agent did not answer"
                    raise AgentError(f"{what} within {timeout:g} s of the guest's own time")
        finally:
            handle.remove()
        return conversation.status, pieces

    def put(self, data: bytes | Path, path: str, mode: int = 0o644) -> None:
        """Make file *path* of *data*, or of what is in a file of this host."""
        content = data.read_bytes() if isinstance(data, Path) else data
        self._checked(path, self.run(["sh", "-c", _PUT, path, f"{mode:o}"], content))

    def get(self, path: str) -> bytes:
        """What is in file *path*."""
        ended = self.run(["sh", "-c", _GET, path])
        self._checked(path, ended)
        return ended.stdout

    def _checked(self, path: str, ended: CommandEnded) -> None:
        if ended.status:
            raise AgentError(f"{path}: {ended.stderr.decode(errors='replace').strip() or ended.status}")
