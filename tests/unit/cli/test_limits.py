"""What a limit of this process or host made impossible, in one line."""

from __future__ import annotations

import resource

import pytest

from pyvmm.cli.limits import why


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(24, "Too many open files"),
            "more than the 100 descriptors that this process may have: raise ulimit -n",
        ),
        (OSError(23, "Too many open files in system"), "this host has no descriptors left"),
        (
            OSError(12, "Cannot allocate memory"),
            "no memory for pyvmm itself: this process may have 2048 KiB of addresses",
        ),
        (MemoryError(), "no memory for pyvmm itself: this process may have 2048 KiB of addresses: raise ulimit -v"),
        (RuntimeError("can't start new thread"), "no memory for one more thread, or too many of them (ulimit -u): "),
        (ImportError("x.so: failed to map segment from shared object"), "no memory for pyvmm itself: "),
        (ImportError("x.so: cannot open shared object file: Error 24"), "more than the 100 descriptors"),
    ],
)
def test_a_limit(error: BaseException, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: 100, resource.RLIMIT_AS: 2 << 20}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], limits[which]))
    line = why(error)
    assert line is not None and says in line and "\n" not in line


def test_no_memory_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert why(MemoryError()) == "no memory for pyvmm itself: end what this host does not need"


@pytest.mark.parametrize(
    "error", [OSError(2, "x"), OSError("x"), RuntimeError("x"), ImportError("no module"), ValueError()]
)
def test_anything_else_is_a_bug(error: BaseException) -> None:
    assert why(error) is None
