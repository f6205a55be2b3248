"""What a user did wrong, or what this host lacks: one line, no traceback, exit status 2."""

from __future__ import annotations


class UserError(Exception):
    """str(error) is one line: what is wrong and what to do about it."""
