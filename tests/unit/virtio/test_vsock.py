"""vhost-vsock and what is behind it, Offload: rings handed over and taken back, whatever a guest does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.errors import UserError
from pyvmm.pci.msi import FakeMsiRouter
from pyvmm.state import StateError
from pyvmm.testing.pci import Board
from pyvmm.virtio.vsock import VirtioVsock
from tests.rig.vhost import FakeVhost
from tests.rig.virtio_driver import SplitDriver, Virtio

PLAIN = 1 << 32
EVENT_IDX = PLAIN | 1 << 29
DATA = 0x400000


class Guest:
    """A driver of vhost-vsock with *rooms* buffers in its receive queue."""

    def __init__(self, features: int = EVENT_IDX, rooms: int = 8) -> None:
        self.board = Board()
        self.vhost = FakeVhost(self.board.ram)
        self.device = VirtioVsock(5, self.vhost)
        self.virtio = Virtio.of(self.device, self.board)
        self.features = features
        self.begin(rooms)

    def begin(self, rooms: int) -> None:
        queues = [queue for queue in self.virtio.setup(self.features) if isinstance(queue, SplitDriver)]
        self.receive, self.transmit, self.events = queues
        self.place: dict[int, int] = {}
        self.next = DATA
        self.got: list[bytes] = []
        self.sent = 0
        for _ in range(rooms):
            self.room()
        self.events.add([(DATA - 0x1000, 8, True)])

    def room(self) -> None:
        head = self.receive.add([(self.next, 64, True)])
        assert head is not None
        self.place[head] = self.next
        self.next = DATA + (self.next + 0x100 - DATA) % 0x80000
        self.virtio.kick(0)

    def send(self) -> None:
        text = b"%d" % self.sent
        at = DATA + 0x100000 + 0x10 * (self.sent % 1024)
        self.board.ram.write(at, text)
        assert self.transmit.add([(at, len(text), False)]) is not None
        self.sent += 1
        self.virtio.kick(1)

    def look(self) -> list[bytes]:
        """All that has come up to now."""
        come = [self.board.ram.read(self.place[head], length) for head, length in self.receive.used()]
        self.got += come
        for _ in come:
            self.room()
        self.transmit.used()
        return self.got

    @property
    def expected(self) -> list[bytes]:
        return [b"%d" % number for number in range(self.sent)]


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.board.host.close()
    assert not guest.vhost.plain
    assert guest.vhost.server.closed


def test_what_the_driver_finds(guest: Guest) -> None:
    assert guest.virtio.config.read(2, 2) == 0x1053
    assert guest.virtio.offered() == 1 << 32 | 1 << 29 | 1 << 28 | 1 << 1  # no packed ring, nothing of vhost's own
    assert guest.virtio.read(0x3000, 8) == 5
    assert guest.device.cid == 5


@pytest.mark.parametrize("features", [PLAIN, EVENT_IDX, EVENT_IDX | 1 << 28])
def test_the_server_serves_what_is_kicked(features: int) -> None:
    guest = Guest(features)
    assert guest.vhost.server.running and guest.vhost.server.features == features
    for _ in range(300):
        guest.send()
        guest.vhost.run()
        assert guest.look() == guest.expected
    assert guest.virtio.line  # there is no MSI-X: by way of the loop


def test_kicks_reach_the_eventfd_and_not_us(guest: Guest) -> None:
    for queue in guest.device.queues[:2]:
        assert queue.kick_fd is not None
        os.eventfd_read(queue.kick_fd)
    guest.virtio.kick(1)
    assert os.eventfd_read(guest.device.queues[1].kick_fd or 0) == 1


def test_a_kick_by_an_exit_reaches_it_too() -> None:
    board = Board(doorbells=False)
    device = VirtioVsock(7, FakeVhost(board.ram))
    virtio = Virtio.of(device, board)
    virtio.setup(EVENT_IDX)
    fd = device.queues[1].kick_fd or 0
    os.eventfd_read(fd)
    virtio.kick(1)
    assert os.eventfd_read(fd) == 1


def test_a_vector_is_signalled_without_us(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    router = guest.board.msi
    assert isinstance(router, FakeMsiRouter)
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in router.irqs]
    for irq, fd in zip(router.irqs, fds, strict=True):
        irq.fd = fd
    server = guest.vhost.server
    guest.virtio.msix()  # while it is served: the interrupts change their way
    assert [server.call[index] for index in range(2)] == fds[1:3]
    guest.send()
    guest.vhost.run()
    assert os.eventfd_read(fds[1]) == 1 and not guest.virtio.line
    guest.virtio.write(22, 2, 0)
    guest.virtio.write(26, 2, 0xFFFF)
    assert server.call[0] == guest.device.queues[0].call_fd  # type: ignore[attr-defined]
    guest.virtio.config.write(guest.virtio.config.find(0x11) + 2, 2, 0)
    assert server.call[1] == guest.device.queues[1].call_fd  # type: ignore[attr-defined]
    for fd in fds:
        os.close(fd)


def test_a_reset_takes_the_rings_back_and_a_driver_begins_again(guest: Guest) -> None:
    for _ in range(3):
        guest.send()
        guest.vhost.run()
    guest.virtio.status = 0
    server = guest.vhost.server
    assert not server.running and server.kick == server.call == {0: -1, 1: -1}
    assert guest.vhost.writes == 1
    guest.begin(4)
    assert server.running and ("base", 1, 0) in server.log[-7:]
    guest.send()
    guest.vhost.run()
    assert guest.look() == [b"0"]


def test_while_the_machine_stands_nothing_is_served(guest: Guest) -> None:
    (offload,) = guest.vhost.resting
    guest.send()
    offload.rest()
    assert not guest.vhost.server.running
    guest.vhost.run()
    assert guest.look() == []
    offload.go_on()
    guest.vhost.run()
    assert guest.look() == guest.expected


def test_a_restore_goes_on_where_the_snapshot_was(guest: Guest) -> None:
    (offload,) = guest.vhost.resting
    for _ in range(5):
        guest.send()
        guest.vhost.run()
    guest.look()
    offload.rest()
    saved = state.save(guest.virtio.function)
    ram = guest.board.ram.read(0, 8 << 20)
    before = guest.receive.last_used, guest.receive.avail_idx, guest.transmit.last_used, guest.transmit.avail_idx
    offload.go_on()
    first = guest.vhost.server
    for _ in range(4):
        guest.send()
        guest.vhost.run()
    offload.rest()
    guest.board.ram.write(0, ram)
    state.load(guest.virtio.function, saved)
    assert first.closed and not guest.vhost.server.running  # its connections are gone with it
    offload.go_on()
    server = guest.vhost.server
    assert server is not first and server.cid == 5 and server.running
    assert ("base", 1, 5) in server.log
    (guest.receive.last_used, guest.receive.avail_idx, guest.transmit.last_used, guest.transmit.avail_idx) = before
    guest.board.run_later()
    assert [length for _, length in guest.events.used()] == [4]
    assert guest.board.ram.read(DATA - 0x1000, 4) == bytes(4)
    guest.got.clear()
    guest.transmit.free[:] = range(100, 120)
    guest.board.ram.write(DATA + 0x100000, b"again")
    assert guest.transmit.add([(DATA + 0x100000, 5, False)]) is not None
    guest.vhost.run()
    ((_, length),) = guest.receive.used()
    assert length == 5


def test_a_driver_without_a_buffer_for_the_event_hears_it_later() -> None:
    guest = Guest()
    while guest.events.add([(DATA - 0x1000, 8, True)]) is not None:
        pass
    guest.virtio.setup(EVENT_IDX)  # an empty event queue
    guest.vhost.resting[0].rest()
    saved = state.save(guest.virtio.function)
    state.load(guest.virtio.function, saved)
    guest.vhost.resting[0].go_on()
    guest.board.run_later()
    assert guest.device.reset_due
    _, _, events = (SplitDriver(guest.board.ram, queue.desc, queue.size, True) for queue in guest.device.queues)
    events.add([(DATA, 8, True)])
    guest.virtio.kick(2)
    assert not guest.device.reset_due and events.used() == [(127 - 64, 4)]


def test_without_bus_mastering_nothing_is_served(guest: Guest) -> None:
    guest.virtio.config.write(4, 2, 2)
    assert not guest.vhost.server.running
    guest.send()
    guest.virtio.config.write(4, 2, 6)
    assert guest.vhost.server.running
    guest.vhost.run()
    assert guest.look() == guest.expected


@pytest.mark.parametrize("call", ["features", "num", "addr", "running"])
def test_a_refusal_breaks_the_device_and_not_the_machine(guest: Guest, call: str) -> None:
    server = guest.vhost.server
    guest.virtio.status = 0
    server.refuse = call
    guest.virtio.setup(EVENT_IDX)
    assert guest.virtio.status & 0x40 and not server.running
    server.refuse = None
    guest.begin(4)
    assert server.running


def test_rings_that_are_not_in_ram_break_it(guest: Guest) -> None:
    guest.virtio.status = 0
    assert guest.virtio.accept(EVENT_IDX)
    driver = SplitDriver(guest.board.ram, 0x10000, 64)
    for index, desc in enumerate((driver.desc, 0x7FFFFFFF0000)):
        driver.desc = desc
        guest.virtio.program(index, driver)
    guest.virtio.status = 15
    assert guest.virtio.status & 0x40 and not guest.vhost.server.running


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFFFFFF, 1 << 40])
def test_an_address_that_is_no_guests(cid: int) -> None:
    with pytest.raises(UserError, match="3 to 4294967294"):
        VirtioVsock(cid, FakeVhost(Board().ram))


def test_an_address_that_is_taken() -> None:
    vhost = FakeVhost(Board().ram)
    VirtioVsock(9, vhost)
    with pytest.raises(UserError, match="cid=9 is another guest's: choose another number"):
        VirtioVsock(9, vhost)
    assert vhost.server.closed


def test_a_snapshot_of_another_address(guest: Guest) -> None:
    saved = state.save(guest.virtio.function)
    guest.virtio.function.check_saved(saved)
    other = Virtio.of(VirtioVsock(6, FakeVhost(guest.board.ram)))
    with pytest.raises(StateError, match="vhost-vsock had cid=5 in this snapshot"):
        other.function.check_saved(saved)


ACTIONS = st.sampled_from(
    ("send", "serve", "serve one", "look", "rest", "go on", "no master", "master", "reset", "save")
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, max_size=60), st.sampled_from((PLAIN, EVENT_IDX)))
def test_nothing_is_lost_or_comes_twice(actions: list[str], features: int) -> None:
    guest = Guest(features)
    (offload,) = guest.vhost.resting
    master = True
    for action in actions:
        server = guest.vhost.server
        match action:
            case "send" if guest.transmit.free:
                guest.send()
            case "serve":
                guest.vhost.run()
            case "serve one":
                server.serve(1)
            case "look":
                guest.look()
            case "rest":
                offload.rest()
                assert not server.running
            case "go on":
                offload.go_on()
                assert server.running == master
            case "no master" | "master":
                master = action == "master"
                guest.virtio.config.write(4, 2, 6 if master else 2)
            case "reset":
                guest.virtio.config.write(4, 2, 6)
                master = True
                guest.virtio.status = 0
                assert not server.running
                guest.begin(8)
            case "save":
                saved = state.save(guest.virtio.function)
                assert saved == state.save(guest.virtio.function)
    guest.virtio.config.write(4, 2, 6)
    offload.go_on()
    for _ in range(1000):
        if guest.look() == guest.expected:
            break
        guest.vhost.run()
    assert guest.got == guest.expected
    guest.vhost.close()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 0x3FFF), st.sampled_from((1, 2, 4, 8)), st.integers(0, 2**64 - 1)), max_size=60)
)
def test_a_guest_that_writes_anything_anywhere(writes: list[tuple[int, int, int]]) -> None:
    guest = Guest()
    for offset, size, value in writes:
        guest.virtio.write(offset & -size, size, value & ((1 << 8 * size) - 1))
        guest.virtio.read(offset & -size, size)
    (offload,) = guest.vhost.resting
    offload.rest()
    assert not guest.vhost.server.running
    guest.vhost.close()
