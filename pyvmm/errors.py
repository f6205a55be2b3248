"""What a user did wrong, or what this host lacks: one line, no traceback, exit status 2."""

from __future__ import annotations


class UserError(Exception):
    """str(error) is one line: what is wrong and what to do about it."""


def printable(text: str) -> str:
    """*text* with what a terminal would obey or not show (controls, escapes, bidirectional marks) spelled as \\xNN."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
