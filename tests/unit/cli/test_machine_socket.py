"""Who asks a machine that another client is at hears that he waits: `pyvmm plug`, `unplug` and `dump`."""

from __future__ import annotations

import io
import socket
import threading
from pathlib import Path

import pytest

from pyvmm.cli.arguments import main

PATIENCE = 30.0
"""Seconds until something is said."""


class Screen(io.StringIO):
    """Standard error, which says when something is on it."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()

    def write(self, text: str) -> int:
        length = super().write(text)
        self.told.set()
        return length


@pytest.mark.parametrize("command", ["plug {} virtio-rng", "unplug {} r1", "dump {} core"])
def test_another_client_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Nobody takes it from the listener until it has said so; then the machine ends."""
    path = str(tmp_path / "qmp")
    screen = Screen()

    def end() -> None:
        screen.told.wait(PATIENCE)
        listener.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        ender = threading.Thread(target=end)
        ender.start()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stderr", screen)
            status = main(command.format(path).split())
        ender.join()
    said = screen.getvalue().splitlines()
    assert status == 2 and len(said) == 2
    assert said[0] == f"pyvmm: another client is at socket {path}: waiting for its end"
    assert said[1].startswith(f"pyvmm: socket {path}: ")
