"""The kernel's trace events: what KVM did while a command ran. Linux Documentation/trace/events.rst."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TRACING: Final = Path("/sys/kernel/tracing")
BUFFER_KB: Final = 32768
FIRST_ENTRY: Final = re.compile(r" (\d+\.\d+): kvm_entry: ")


def _put(file: str, text: str) -> None:
    # By the first write() alone: some of these files take each write as a command.
    with (TRACING / file).open("w") as stream:
        stream.write(text)


@contextmanager
def recorded(events: Mapping[str, str]) -> Iterator[None]:
    """Record these events of KVM, each with its filter or trigger ("" for none); their clock is time.monotonic()'s."""
    if not (TRACING / "trace").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=True)
    _put("tracing_on", "0")
    _put("trace", "")
    _put("trace_clock", "mono")
    _put("buffer_size_kb", str(BUFFER_KB))
    for event, condition in events.items():
        if condition:
            _put(f"events/kvm/{event}/{'trigger' if ':' in condition else 'filter'}", condition)
        _put(f"events/kvm/{event}/enable", "1")
    _put("tracing_on", "1")
    try:
        yield
    finally:
        _put("tracing_on", "0")
        for event, condition in events.items():
            _put(f"events/kvm/{event}/enable", "0")
            if condition:
                trigger = ":" in condition
                _put(f"events/kvm/{event}/{'trigger' if trigger else 'filter'}", f"!{condition}" if trigger else "0")


def trace() -> str:
    """What was recorded, a line an event."""
    return (TRACING / "trace").read_text(errors="replace")


def first_entry(text: str) -> float | None:
    """When a vCPU was first entered, in seconds of time.monotonic(); None if none was."""
    found = FIRST_ENTRY.search(text)
    return float(found[1]) if found else None
