"""The one error of the boot loaders."""

from __future__ import annotations

from pyvmm.errors import UserError


class BootError(UserError):
    """The guest cannot be started from what the user gave: one line that says what is wrong and what to do."""
