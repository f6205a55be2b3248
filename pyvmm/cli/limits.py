"""What the host or `ulimit` did not let us have: descriptors, memory, threads. One line each, whoever asked for it."""

from __future__ import annotations

import errno
import resource
from typing import Final

_NO_MAPPING: Final = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory", "Error 24")
"""How the dynamic loader puts it, in an ImportError."""


def why(error: BaseException) -> str | None:
    """The line for *error* where a limit is its cause, else None."""
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EMFILE or (isinstance(error, ImportError) and "Error 24" in str(error)):
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"pyvmm needs more than the {most} descriptors that this process may have: raise ulimit -n"
    if code == errno.ENFILE:
        return "this host has no descriptors left (sysctl fs.file-max): close what you do not need"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return f"no memory for one more thread, or too many of them (ulimit -u): {_memory()}"
    no_mapping = isinstance(error, ImportError) and any(words in str(error) for words in _NO_MAPPING)
    if isinstance(error, MemoryError) or code == errno.ENOMEM or no_mapping:
        return f"no memory for pyvmm itself: {_memory()}"
    return None


def _memory() -> str:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return "end what this host does not need"
    return f"this process may have {most >> 10} KiB of addresses: raise ulimit -v"
