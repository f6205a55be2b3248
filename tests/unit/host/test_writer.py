"""Snapshots into the file of --save: what is said of them, whoever is first, the writer's thread or the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import UserError
from pyvmm.host.writer import SnapshotWriter


class Loop:
    """Calls that were posted wait for turn()."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], object]] = []

    def post(self, call: Callable[[], object]) -> None:
        self.posted.append(call)

    def turn(self) -> None:
        while self.posted:
            self.posted.pop(0)()


class Snapshot:
    """Its save() goes on when it may, and asks progress() before and after."""

    def __init__(self, error: UserError | None = None) -> None:
        self.may_go_on, self.error = threading.Event(), error

    def save(self, path: Path, progress: Callable[[int, int], None]) -> None:
        progress(0, 1)
        assert self.may_go_on.wait(60)
        progress(1, 1)
        if self.error is not None:
            raise self.error


def writer(snapshot: Any) -> tuple[SnapshotWriter, Loop, list[str], list[UserError | None]]:
    loop, said, written = Loop(), list[str](), list[UserError | None]()
    made = SnapshotWriter(Path("file"), loop, said.append, written.append)  # type: ignore[arg-type]
    made.write(snapshot)
    return made, loop, said, written


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("give_up", [False, True])
@pytest.mark.parametrize("error", [None, UserError("no room")])
def test_one_that_is_whole_is_told_once(error: UserError | None, give_up: bool, turn: bool) -> None:
    """By the loop, or at the end where the loop did not come to it; giving up comes too late."""
    snapshot = Snapshot(error)
    made, loop, said, written = writer(snapshot)
    snapshot.may_go_on.set()
    assert made._thread is not None
    made._thread.join()
    if turn:
        loop.turn()
    made.close(give_up)
    loop.turn()
    assert said == ["wrote file" if error is None else "no room"]
    assert written == [error]


def test_one_that_is_given_up() -> None:
    snapshot = Snapshot()
    made, loop, said, written = writer(snapshot)
    threading.Timer(0.1, snapshot.may_go_on.set).start()
    made.close(give_up=True)
    loop.turn()
    assert said == ["file was not written: the machine ended first"]
    assert written == []


def test_one_at_a_time() -> None:
    snapshot = Snapshot()
    made, loop, said, _ = writer(snapshot)
    made.write(Snapshot())  # type: ignore[arg-type]
    assert said == ["file is being written: this snapshot is in memory alone"]
    snapshot.may_go_on.set()
    made.close(give_up=False)
    loop.turn()
    assert said[1:] == ["wrote file"]
