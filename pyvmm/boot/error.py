"""The one error of the boot loaders."""

from __future__ import annotations


class BootError(Exception):
    """The guest cannot be started from what the user gave: one line that says what is wrong and what to do."""
