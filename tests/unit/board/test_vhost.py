"""vhost on the board: what stands in the way, one line each; guest memory in the server's table; resting."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest

from kvm_cffi import KvmError, address_of
from kvm_cffi.vhost import Vhost
from pyvmm.board import vhost
from pyvmm.board.vhost import BoardVhost
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.memory import GuestMemory, Region


class FakeVsock(Vhost):
    """*opening* is what the open raises, *owning* what VHOST_SET_OWNER does."""

    path = Path("/dev/vhost-vsock")
    module = "vhost_vsock"
    opening: ClassVar[OSError | None] = None
    owning: ClassVar[OSError | None] = None

    def __init__(self) -> None:
        self.fd = -1
        self.table: list[tuple[int, int]] = []
        self.closed = False
        if self.opening is not None:
            raise self.opening

    def set_owner(self) -> None:
        if self.owning is not None:
            raise self.owning

    def set_mem_table(self, regions: object) -> None:
        self.table = [(gpa, len(buffer)) for gpa, buffer in regions]  # type: ignore[attr-defined]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> BoardVhost:
    monkeypatch.setattr(vhost, "VhostVsock", FakeVsock)
    loop = Loop(nullcontext())
    board = BoardVhost(GuestMemory.of_size(1 << 20), loop)
    board.loop = loop  # type: ignore[attr-defined]
    return board


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(), "/dev/vhost-vsock does not exist: as root, modprobe vhost_vsock"),
        (PermissionError(), "no permission for /dev/vhost-vsock: as root, chmod 666 it"),
        (OSError(errno.ENODEV, "No such device"), "/dev/vhost-vsock: No such device: as root, modprobe vhost_vsock"),
    ],
)
def test_what_stands_in_the_way(board: BoardVhost, monkeypatch: pytest.MonkeyPatch, error: OSError, line: str) -> None:
    monkeypatch.setattr(FakeVsock, "opening", error)
    with pytest.raises(UserError) as raised:
        board.vsock()
    assert str(raised.value).startswith(line)


def test_a_kernel_that_refuses(board: BoardVhost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVsock, "owning", KvmError(errno.ENOMEM, "VHOST_SET_OWNER"))
    with pytest.raises(UserError, match="VHOST_SET_OWNER: Cannot allocate memory: see dmesg"):
        board.vsock()


def test_the_table_follows_guest_memory(board: BoardVhost) -> None:
    memory = board._memory
    server = board.vsock()
    assert isinstance(server, FakeVsock)
    assert server.table == [(0, 1 << 20)]
    memory.add(Region(8 << 20, memoryview(bytearray(0x2000))))
    memory.add(Region(0xA0000000, memoryview(bytearray(0x2000)), kind="video"))
    assert server.table == [(0, 1 << 20), (8 << 20, 0x2000)]
    memory.remove(8 << 20)
    memory.remove(0xA0000000)
    assert server.table == [(0, 1 << 20)]
    board.release(server)
    memory.add(Region(8 << 20, memoryview(bytearray(0x2000))))
    assert server.closed and server.table == [(0, 1 << 20)]
    other = board.vsock()
    board.close()
    assert isinstance(other, FakeVsock) and other.closed
    assert board.address(memory.view(0x100, 4)) == address_of(memory.view(0, 4)) + 0x100


def test_what_a_server_writes_is_written_anywhere(board: BoardVhost) -> None:
    board.written()
    assert not board._memory.all_written  # nobody asks
    board._memory.written = set()
    board.written()
    assert board._memory.all_written


def test_eventfds(board: BoardVhost) -> None:
    loop: Loop = board.loop  # type: ignore[attr-defined]
    heard: list[int] = []
    call: Callable[[], None] = lambda: heard.append(1)  # noqa: E731
    watched, plain = board.watch(call), board.eventfd()
    os.eventfd_write(watched, 5)
    os.eventfd_write(plain, 5)
    loop.run_once(0)
    loop.run_once(0)
    assert heard == [1] and os.eventfd_read(plain) == 5
    board.close_eventfd(watched)
    board.close_eventfd(plain)
    loop.close()


class Sleeper:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def rest(self) -> None:
        self.heard.append("rest")

    def go_on(self) -> None:
        self.heard.append("go on")


def test_who_comes_while_the_machine_stands_rests(board: BoardVhost) -> None:
    first, second = Sleeper(), Sleeper()
    board.enlist(first)
    board.rest()
    board.enlist(second)
    board.go_on()
    assert first.heard == second.heard == ["rest", "go on"]
