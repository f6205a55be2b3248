"""MSI vectors: each message gets to the guest once, whatever is being set up meanwhile."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_cffi import MsiRoute
from pyvmm.board.eventfd import FD_SETSIZE, RESERVE
from pyvmm.board.layout import FIRST_MSI_GSI
from pyvmm.board.msi import BATCH, MASKED_AT_ONCE, ROUTES, EventfdMsi
from tests.rig.eventfd_board import MESSAGE, EventfdBoard

VECTORS = 2048
"""The most that a function has."""


def test_a_vector_is_an_eventfd_with_a_route_a_turn_of_the_loop_later(board: EventfdBoard) -> None:
    files = board.open_files()
    one, two = board.vector(0x41), board.vector(0x42)
    assert board.vm.irqfds == {} and board.vm.routes == [] and board.open_files() == files
    board.settle()
    assert sorted(board.vm.irqfds.values()) == [24, 25]
    assert board.vm.routes == [MsiRoute(24, MESSAGE, 0x41), MsiRoute(25, MESSAGE, 0x42)]
    one.pulse()
    two.pulse()
    assert board.vm.sent == [], "written to the descriptors"
    board.vm.deliver()
    assert sorted(board.vm.sent) == [(MESSAGE, 0x41), (MESSAGE, 0x42)] and not board.vm.signalled


def test_a_pulse_before_that_is_a_message_at_once(board: EventfdBoard) -> None:
    vector = board.vector()
    vector.pulse()
    assert board.vm.sent == [(MESSAGE, 0x41)]
    board.loop.run_once(0)
    assert board.vm.routes and not board.vm.irqfds, "the route is there, the descriptor not yet"
    vector.pulse()
    assert board.vm.signalled == 2
    board.settle()
    vector.pulse()
    board.vm.deliver()
    assert board.vm.sent == 3 * [(MESSAGE, 0x41)] and board.vm.signalled == 2


def test_a_pulse_after_a_new_message_goes_by_no_old_route(board: EventfdBoard) -> None:
    vector = board.vector()
    board.settle()
    vector.update(MESSAGE, 0x51)
    vector.pulse()
    assert board.vm.sent == [(MESSAGE, 0x51)]
    board.settle()
    vector.pulse()
    board.vm.deliver()
    assert board.vm.sent == 2 * [(MESSAGE, 0x51)] and board.vm.signalled == 1


def test_thousands_at_once_are_one_table_and_a_few_turns(board: EventfdBoard) -> None:
    vectors = [board.vector(n) for n in range(VECTORS)]
    assert board.vm.tables == 0 and len(board.loop._posted) == 1
    assert board.settle() == VECTORS // ROUTES + VECTORS // BATCH
    assert board.vm.tables == VECTORS // ROUTES and len(board.vm.irqfds) == VECTORS
    files = board.open_files()
    for vector in vectors:
        vector.mask()
        vector.unmask()
        vector.pulse()
    assert board.settle() == 0, "a mask costs nothing where nobody else signals"
    board.vm.deliver()
    assert sorted(data for _, data in board.vm.sent) == list(range(VECTORS)) and not board.vm.signalled
    for vector in vectors:
        vector.close()
    board.vm.deliver()
    assert board.vm.irqfds == {} and board.open_files() == files - VECTORS and board.vm.tables == VECTORS // ROUTES


def test_what_others_signal_while_masked_is_kept(board: EventfdBoard) -> None:
    irq = board.vector()
    board.settle()
    fd = irq.fd
    assert fd is not None and board.vm.irqfds == {fd: 24}
    irq.mask()
    irq.mask()
    assert board.vm.irqfds == {}
    os.eventfd_write(fd, 1)
    irq.update(MESSAGE, 0x51)
    irq.unmask()
    board.settle()
    assert board.vm.sent == [(MESSAGE, 0x51)] and board.vm.irqfds == {fd: 24}


def test_what_others_signal_before_the_guest_has_unmasked(board: EventfdBoard) -> None:
    irq = board.router.allocate()
    fd = irq.fd
    assert fd is not None and fd == irq.fd and board.settle() == 0
    os.eventfd_write(fd, 1)
    irq.update(MESSAGE, 0x41)
    irq.unmask()
    board.settle()
    assert board.vm.sent == [(MESSAGE, 0x41)] and not board.vm.signalled


def test_a_descriptor_asked_for_while_masked(board: EventfdBoard) -> None:
    irq = board.vector()
    board.settle()
    irq.mask()
    assert len(board.vm.irqfds) == 1
    fd = irq.fd
    assert fd is not None and board.vm.irqfds == {}, "from now on others may signal it"
    os.eventfd_write(fd, 1)
    board.vm.deliver()
    assert board.vm.sent == []
    irq.unmask()
    board.settle()
    assert board.vm.sent == [(MESSAGE, 0x41)]


def test_thousands_asked_for_while_masked_wait_a_few_at_a_time(board: EventfdBoard) -> None:
    """VFIO asks for all of a function's at once, while a vCPU waits."""
    vectors = [board.vector(n) for n in range(256)]
    board.settle()
    for vector in vectors:
        vector.mask()
    for vector in vectors[:128]:
        vector.update(MESSAGE, 0xFF)
    fds = [vector.fd for vector in vectors]
    assert len(board.vm.irqfds) == 256 - MASKED_AT_ONCE
    board.settle()
    assert board.vm.irqfds == {}
    for vector, fd in zip(vectors, fds, strict=True):
        assert fd is not None and fd == vector.fd
        os.eventfd_write(fd, 1)
        vector.unmask()
    board.settle()
    assert sorted(data for _, data in board.vm.sent) == [*range(128, 256), *([0xFF] * 128)]


def test_a_vector_that_goes_gives_its_gsi_back(board: EventfdBoard) -> None:
    files = board.open_files()
    irq = board.vector()
    board.settle()
    irq.close()
    irq.close()
    board.vm.deliver()
    assert board.vm.irqfds == {} and board.open_files() == files
    board.vector(0x61)
    board.settle()
    assert board.vm.routes == [MsiRoute(24, MESSAGE, 0x61)]


def test_a_vector_that_goes_while_it_waits(board: EventfdBoard) -> None:
    files = board.open_files()
    one, two, three = board.vector(0x41), board.vector(0x42), board.vector(0x43)
    one.close()
    board.loop.run_once(0)
    two.close()
    board.settle()
    assert list(board.vm.irqfds.values()) == [three._gsi]
    three.close()
    assert board.settle() == 0 and board.open_files() == files


def test_more_vectors_than_kvm_routes() -> None:
    with closing(EventfdBoard(FIRST_MSI_GSI + 8)) as board:
        vectors = [board.vector(n) for n in range(20)]
        board.settle()
        assert len(board.vm.irqfds) == 8 and len(board.vm.routes) == 8
        for vector in vectors:
            vector.pulse()
        board.vm.deliver()
        assert sorted(data for _, data in board.vm.sent) == list(range(20)) and board.vm.signalled == 12
        assert vectors[-1].fd is None, "none that nobody would listen to"
        vectors[0].close()
        board.vm.deliver()
        assert vectors[-1].fd is not None
        board.settle()
        board.vm.signalled = 0
        vectors[-1].pulse()
        assert not board.vm.signalled


@contextmanager
def descriptors(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_vectors_than_descriptors(board: EventfdBoard) -> None:
    with descriptors(FD_SETSIZE):
        vectors = [board.vector(n) for n in range(VECTORS)]
        board.settle()
        bound = len(board.vm.irqfds)
        assert 0 < bound < FD_SETSIZE - RESERVE, "some descriptors are left for everything else"
        os.close(os.dup(0))
        for vector in vectors:
            vector.pulse()
        board.vm.deliver()
        assert sorted(data for _, data in board.vm.sent) == list(range(VECTORS))
        assert board.vm.signalled == VECTORS - bound
        assert vectors[-1].fd is None and vectors[0].fd is not None
    vectors[-1].mask()
    vectors[-1].unmask()
    board.settle()
    assert len(board.vm.irqfds) == bound + 1, "and it looks again when there are more"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["update", "mask", "unmask", "pulse", "pulse", "lend", "signal", "signal", "turn"]),
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_message_is_lost_doubled_or_sent_as_it_was_before(steps: list[tuple[str, int, int]]) -> None:
    """Against a model: a pulse is the message of that moment, at once; what others signal is one message at least,
    after it was signalled, while the vector is unmasked, as it is then."""
    with closing(EventfdBoard()) as board:
        vectors: list[EventfdMsi] = [board.router.allocate() for _ in range(3)]
        messages = [(MESSAGE | n << 12, 0) for n in range(3)]
        for vector, message in zip(vectors, messages, strict=True):
            vector.update(*message)
        unmasked: set[int] = set()
        lent: dict[int, int] = {}
        owed: set[int] = set()

        def look(pulsed: int | None = None) -> None:
            """What has got to the guest, and whether it may have."""
            board.vm.deliver()
            for message in board.vm.sent:
                n = messages.index(message)
                assert n in unmasked
                if n == pulsed:
                    pulsed = None
                else:
                    owed.remove(n)
            assert pulsed is None
            board.vm.sent.clear()

        for step, n, value in [*steps, *[("unmask", n, 0) for n in range(3)]]:
            pulsed = None
            if step == "update":
                messages[n] = (MESSAGE | n << 12, value)
                vectors[n].update(*messages[n])
            elif step == "mask":
                vectors[n].mask()
                look()
                unmasked.discard(n)
            elif step == "unmask":
                unmasked.add(n)
                vectors[n].unmask()
            elif step == "pulse" and n in unmasked:
                if n in owed:
                    board.settle()
                    look()
                vectors[n].pulse()
                pulsed = n
            elif step == "lend" and n not in lent:
                fd = vectors[n].fd
                assert fd is not None
                lent[n] = fd
            elif step == "signal" and n in lent:
                os.eventfd_write(lent[n], 1)
                owed.add(n)
            elif step == "turn":
                board.loop.run_once(0)
            look(pulsed)
        board.settle()
        look()
        assert not owed


def test_a_kvm_that_binds_no_eventfd(board: EventfdBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(board.vm, "irqfd", refuse)
    vector = board.vector()
    board.settle()
    vector.pulse()
    assert board.vm.sent == [(MESSAGE, 0x41)]
    monkeypatch.undo()


def test_all_of_a_function_that_are_lent_are_masked_little_by_little(board: EventfdBoard) -> None:
    vectors = [board.vector(0x41) for _ in range(200)]
    fds = [vector.fd for vector in vectors]
    assert None not in fds
    board.settle()
    assert len(board.vm.irqfds) == 200
    for vector in vectors:
        vector.mask()
    assert len(board.vm.irqfds) == 200 - MASKED_AT_ONCE
    board.loop.run_once(0)
    assert len(board.vm.irqfds) == 200 - 2 * MASKED_AT_ONCE
    vectors[199].unmask()
    board.settle()
    assert set(board.vm.irqfds) == {fds[199]}, "it stays"
    os.eventfd_write(fds[0] or 0, 1)
    board.vm.deliver()
    assert board.vm.sent == []
    vectors[0].unmask()
    board.settle()
    board.vm.deliver()
    assert board.vm.sent == [(MESSAGE, 0x41)]
    for vector in vectors[:100]:
        vector.mask()
        vector.close()
    board.settle()
