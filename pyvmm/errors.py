"""What a user did wrong, or what this host lacks: one line, no traceback, exit status 2."""

from __future__ import annotations

import signal
from collections.abc import Sequence


class UserError(Exception):
    """str(error) is one line: what is wrong and what to do about it."""


def printable(text: str) -> str:
    """*text* with what a terminal would obey or not show (controls, escapes, bidirectional marks) spelled as \\xNN."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def there_are(word: str, known: Sequence[str]) -> str:
    """What to say to who wrote *word* where *known* are the words that there are: the one that was meant, or all."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, 1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"


def one_line(error: BaseException, limit: int = 200) -> str:
    """The type and text of an exception that code of the user's raised; a long text is cut."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of its own __str__
        text = ""
    if len(text) > limit:
        text = f"{text[:limit]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_ctrl_c(error: BaseException) -> bool:
    """Whether *error* is a Ctrl-C of the user's: where others hear SIGINT, a KeyboardInterrupt is somebody's own."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
