"""The socket of a machine that runs elsewhere, as plug, unplug and dump are given it."""

from __future__ import annotations

from pyvmm.cli.stdio import complain
from pyvmm.control.qmp.client import QmpClient
from pyvmm.errors import printable


def connected(path: str) -> QmpClient:
    """To the machine behind socket *path*; the user hears whom it waits for. Raises UserError."""
    return QmpClient(
        path, lambda: complain(f"pyvmm: another client is at socket {printable(path)}: waiting for its end")
    )
