"""docs/benchmarks.md: prose by hand, and between markers what scripts/bench measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


class DocumentError(Exception):
    """The document has no place for a result; the text is one line."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns, but for the first, are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace(document: str, name: str, text: str) -> str:
    """The document with *text* between the markers of *name*; raises DocumentError unless they are there, once."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if document.count(begin) != 1 or document.count(end) != 1 or not pattern.search(document):
        raise DocumentError(f"the document wants {begin} and {end}, once each and in this order")
    return pattern.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", document)
