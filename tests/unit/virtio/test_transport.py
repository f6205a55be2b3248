"""virtio-pci as a driver meets it: capabilities, negotiation, queues, interrupts, errors and resets."""

from __future__ import annotations

import pytest

from pyvmm.testing.pci import Board
from pyvmm.trace import Channel
from pyvmm.virtio.device import RING_FEATURES, VirtioDevice
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.queue import VirtQueue
from tests.rig.virtio_driver import BAR0, SplitDriver, Virtio

VERSION_1 = 1 << 32
INDIRECT, EVENT_IDX, PACKED = 1 << 28, 1 << 29, 1 << 34
ALL_RINGS = [VERSION_1, VERSION_1 | INDIRECT, VERSION_1 | EVENT_IDX, VERSION_1 | PACKED, RING_FEATURES]
DATA = 0x100000


class Echo(VirtioDevice):
    """Gives back in upper case what it reads, on either queue."""

    device_id = 63
    queue_sizes = (16, 8)
    features = RING_FEATURES | 1 << 5

    def __init__(self) -> None:
        super().__init__()
        self.config = bytearray(b"0123456789abcdef")
        self.oks: list[bool] = []
        self.resets = 0

    def handle_queue(self, queue: VirtQueue) -> None:
        for chain in queue:
            queue.push(chain, chain.write(chain.read(4096).upper()))

    def driver_ok_changed(self, ok: bool) -> None:
        self.oks.append(ok)

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def guest() -> Virtio:
    return Virtio.of(Echo())


def echo_of(guest: Virtio) -> Echo:
    device = guest.function.device
    assert isinstance(device, Echo)
    return device


@pytest.mark.parametrize("features", ALL_RINGS)
@pytest.mark.parametrize("doorbells", [True, False])
def test_a_round_trip(features: int, doorbells: bool) -> None:
    guest = Virtio.of(Echo(), doorbells=doorbells)
    queues = guest.setup(features)
    ram = guest.board.ram
    for i in range(100):
        index = i & 1
        ram.write(DATA, b"hell%04d" % i)
        added = queues[index].add([(DATA, 8, False), (DATA + 0x100, 64, True)])
        assert added is not None
        queues[index].arm()
        guest.kick(index, 2 if i & 2 else 4)
        assert queues[index].used() == [(added, 8)]
        assert ram.read(DATA + 0x100, 8) == b"HELL%04d" % i
        assert guest.line and guest.read(0x2000, 1) == 1 and not guest.line


def test_buffers_made_available_before_driver_ok_are_served_at_driver_ok(guest: Virtio) -> None:
    assert guest.accept(VERSION_1)
    driver = SplitDriver(guest.board.ram, 0x10000, 16)
    guest.program(0, driver)
    driver.add([(DATA, 4, False)])
    guest.kick(0)
    assert driver.used() == []
    guest.status = 15
    assert len(driver.used()) == 1


def test_features_select_other_than_zero_and_one(guest: Virtio) -> None:
    assert guest.offered() == RING_FEATURES | 1 << 5
    for select in (2, 3, 0x80000000, 0xFFFFFFFF):
        guest.write(0, 4, select)
        assert guest.read(4, 4) == 0
        guest.write(8, 4, select)
        guest.write(12, 4, 0xFFFFFFFF)
        assert guest.read(12, 4) == 0
    for select in (0, 1):
        guest.write(8, 4, select)
        assert guest.read(12, 4) == 0


def test_features_that_were_not_offered_or_no_version_1(guest: Virtio) -> None:
    assert not guest.accept(VERSION_1 | 1 << 6)
    assert not guest.accept(INDIRECT)
    assert not guest.accept(0)
    assert guest.accept(VERSION_1 | 1 << 5)
    assert echo_of(guest).driver_features == VERSION_1 | 1 << 5
    guest.write(8, 4, 0)
    guest.write(12, 4, 0)
    assert guest.read(12, 4) == 1 << 5, "nothing changes after FEATURES_OK"


def test_driver_ok_without_features_ok_does_nothing(guest: Virtio) -> None:
    guest.status = 7
    assert guest.status == 3 and not echo_of(guest).driver_ok and echo_of(guest).oks == []


def test_status_bits_are_cleared_only_by_reset(guest: Virtio) -> None:
    guest.setup(VERSION_1)
    guest.status = 1
    assert guest.status == 15 and echo_of(guest).driver_ok
    guest.status = 0
    assert guest.status == 0 and not echo_of(guest).driver_ok
    assert echo_of(guest).oks == [True, False]


def test_failed_stops_the_device(guest: Virtio) -> None:
    queues = guest.setup(VERSION_1)
    guest.status = 0x80
    assert guest.status == 0x8F and not echo_of(guest).driver_ok
    queues[0].add([(DATA, 4, False)])
    guest.kick(0)
    assert queues[0].used() == []


def test_reset_brings_everything_back(guest: Virtio) -> None:
    fresh = [guest.read(i, 4) for i in range(0, 64, 4)]
    queues = guest.setup(RING_FEATURES)
    guest.write(16, 2, 1)
    guest.write(22, 2, 0)
    guest.write(26, 2, 1)
    queues[0].add([(DATA, 4, False)])
    queues[0].arm()
    guest.kick(0)
    assert guest.line
    guest.status = 0
    assert not guest.line and guest.read(0x2000, 1) == 0
    assert [guest.read(i, 4) for i in range(0, 64, 4)] == fresh
    assert echo_of(guest).resets == 2, "once by the driver before it began, once now"
    queues[0].add([(DATA, 4, False)])
    guest.kick(0)
    assert len(queues[0].used()) == 1, "what came back before the reset, no more"


def test_reset_takes_back_messages_that_wait(guest: Virtio) -> None:
    driver = guest.setup(VERSION_1)[0]
    guest.msix()
    vector_control = guest.bar2 + 16 * 1 + 12
    guest.board.memory_bus.write(vector_control, 4, 1)
    driver.add([(DATA, 4, False)])
    guest.kick(0)
    pba = guest.bar2 + guest.config.read(guest.config.find(0x11) + 8, 4) - 2
    assert guest.board.memory_bus.read(pba, 8) == 0b10
    guest.status = 0
    assert guest.board.memory_bus.read(pba, 8) == 0
    guest.board.memory_bus.write(vector_control, 4, 0)
    assert guest.messages == []


def test_a_bus_reset_resets_the_device(guest: Virtio) -> None:
    guest.setup(VERSION_1)
    guest.board.host.reset()
    assert not echo_of(guest).driver_ok
    guest.map()
    assert guest.status == 0


def test_queues_that_do_not_exist(guest: Virtio) -> None:
    for select in (2, 3, 0xFFFF):
        guest.write(22, 2, select)
        assert guest.read(22, 2) == select
        for at, size, value in ((24, 2, 8), (26, 2, 0), (28, 2, 1), (32, 4, 0x1000), (40, 4, 0x2000), (48, 4, 0x3000)):
            guest.write(at, size, value)
        assert [guest.read(at, 2) for at in (24, 26, 28, 30, 32, 40, 48)] == [0, 0xFFFF, 0, 0, 0, 0, 0]
    for offset in range(0x1008, 0x1100, 4):
        guest.write(offset, 2, 0)


def test_an_enabled_queue_does_not_change(guest: Virtio) -> None:
    guest.setup(VERSION_1)
    guest.write(22, 2, 0)
    before = [guest.read(at, 4) for at in range(24, 56, 4)]
    for at in (24, 32, 36, 40, 44, 48, 52):
        guest.write(at, 4 if at > 24 else 2, 0x1234)
    guest.write(28, 2, 0)
    assert [guest.read(at, 4) for at in range(24, 56, 4)] == before


def test_a_queue_is_enabled_by_one_and_nothing_else(guest: Virtio) -> None:
    for value in (0, 2, 0x100, 0xFFFF):
        guest.write(28, 2, value)
        assert guest.read(28, 2) == 0
    guest.write(28, 2, 1)
    assert guest.read(28, 2) == 1


def test_a_smaller_queue(guest: Virtio) -> None:
    queues = guest.setup(VERSION_1, size=4)
    guest.write(22, 2, 1)
    assert guest.read(24, 2) == 4
    for _ in range(20):
        queues[1].add([(DATA, 1, False)])
        guest.kick(1)
        assert len(queues[1].used()) == 1


@pytest.mark.parametrize(
    ("at", "size", "value"), [(24, 2, 3), (24, 2, 0), (24, 2, 32), (32, 4, 8), (40, 4, 1), (48, 4, 2), (36, 4, 1)]
)
def test_a_queue_that_can_not_be_is_needs_reset(guest: Virtio, at: int, size: int, value: int) -> None:
    assert guest.accept(VERSION_1)
    guest.program(1, SplitDriver(guest.board.ram, 0x20000, 8))
    guest.write(22, 2, 0)
    for address in (32, 40, 48):
        guest.write(address, 4, 0x10000 + 0x1000 * address)
    guest.write(at, size, value)
    guest.write(28, 2, 1)
    guest.status = 15
    assert guest.status == 0x4F and not echo_of(guest).driver_ok
    assert guest.read(0x2000, 1) == 2, "a configuration change interrupt tells of it"
    guest.setup(VERSION_1)
    assert guest.status == 15 and echo_of(guest).driver_ok


@pytest.mark.parametrize("features", [VERSION_1, VERSION_1 | PACKED])
@pytest.mark.parametrize("msix", [False, True])
def test_needs_reset_and_reset_works(guest: Virtio, features: int, msix: bool) -> None:
    queues = guest.setup(features)
    if msix:
        guest.msix()
    generation = guest.read(21, 1)
    queues[0].add([(1 << 40, 4, False)])
    guest.kick(0)
    assert guest.status & 0x40 and guest.read(21, 1) != generation
    assert guest.messages == ([0x40] if msix else []) and guest.line is (not msix)
    guest.status = 15
    assert guest.status & 0x40, "only a reset takes it away"
    queues[1].add([(DATA, 4, False)])
    guest.kick(1)
    assert queues[1].used() == []
    queues = guest.setup(features)
    added = queues[1].add([(DATA, 4, False)])
    guest.kick(1)
    assert queues[1].used() == [(added, 0)]


def test_the_trace_says_which_rule_was_broken() -> None:
    lines: list[str] = []
    board = Board(trace=Channel("pci", lambda _ns, _name, message: lines.append(message)))
    guest = Virtio.of(Echo(), board)
    driver = guest.setup(VERSION_1)[0]
    driver.add([(0x40000000, 4, True)])
    guest.kick(0)
    assert guest.status & 0x40
    said = [line for line in lines if "needs a reset" in line]
    assert said == ["0a.0 VirtioPci needs a reset: queue 0: no guest RAM at 0x40000000, length 0x4"]


def test_undefined_offsets_read_zero_and_ignore_writes(guest: Virtio) -> None:
    for size in (1, 2, 4, 8):
        for offset in (
            *range(0x40, 0x1000, 0x41),
            *range(0x1008, 0x2000, 0x43),
            0x2001,
            0x2010,
            0x2FF8,
            0x3100,
            0x3FF8,
        ):
            assert guest.read(offset, size) == 0, hex(offset)
            guest.write(offset, size, (1 << 8 * size) - 1)
            assert guest.read(offset, size) == 0
    assert guest.read(56, 8) == 0
    assert guest.status == 0


def test_common_configuration_at_every_width(guest: Virtio) -> None:
    guest.write(32, 8, 0x1122334455667788)
    assert [guest.read(32 + i, 1) for i in range(8)] == [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]
    guest.write(33, 2, 0xAABB)
    assert guest.read(32, 8) == 0x11223344_55AABB88
    guest.write(22, 4, 4 << 16 | 1)
    assert (guest.read(22, 2), guest.read(24, 2)) == (1, 4)
    guest.write(20, 1, 1)
    assert guest.read(20, 4) == 1 << 16 | 1


def test_device_configuration(guest: Virtio) -> None:
    assert guest.read(0x3000, 4) == int.from_bytes(b"0123", "little")
    assert guest.read(0x300E, 4) == int.from_bytes(b"ef", "little")
    assert guest.read(0x3010, 8) == 0
    guest.write(0x3000, 4, 0)
    assert guest.read(0x3000, 1) == ord("0")


def test_config_changed_tells_the_driver(guest: Virtio) -> None:
    device = echo_of(guest)
    device.config_changed()
    assert not guest.line, "nobody is told before DRIVER_OK"
    guest.setup(VERSION_1)
    generation = guest.read(21, 1)
    device.config_changed()
    assert guest.read(21, 1) == (generation + 1) & 0xFF
    assert guest.line and guest.read(0x2000, 1) == 2 and not guest.line


def test_isr_is_read_to_clear_by_its_byte_only(guest: Virtio) -> None:
    queues = guest.setup(VERSION_1)
    queues[0].add([(DATA, 4, False)])
    guest.kick(0)
    echo_of(guest).config_changed()
    assert guest.read(0x2001, 1) == 0 and guest.line
    assert guest.read(0x2000, 4) == 3 and not guest.line
    assert guest.read(0x2000, 1) == 0


def test_msix_each_queue_its_vector(guest: Virtio) -> None:
    queues = guest.setup(VERSION_1)
    guest.msix()
    for index in (0, 1):
        queues[index].add([(DATA, 4, False)])
        guest.kick(index)
        assert guest.messages == [0x41 + index]
    echo_of(guest).config_changed()
    assert guest.messages == [0x40]
    assert not guest.line


def test_msix_with_no_vector_is_silence(guest: Virtio) -> None:
    queues = guest.setup(VERSION_1)
    guest.msix(config_vector=0xFFFF)
    guest.write(22, 2, 0)
    guest.write(26, 2, 0xFFFF)
    queues[0].add([(DATA, 4, False)])
    guest.kick(0)
    echo_of(guest).config_changed()
    assert guest.messages == [] and not guest.line
    assert len(queues[0].used()) == 1


def test_vectors_that_do_not_exist_read_back_as_no_vector(guest: Virtio) -> None:
    for at in (16, 26):
        for vector, back in ((0, 0), (2, 2), (3, 0xFFFF), (0xFFFE, 0xFFFF), (1, 1)):
            guest.write(at, 2, vector)
            assert guest.read(at, 2) == back


def test_no_interrupt_flag(guest: Virtio) -> None:
    queues = guest.setup(VERSION_1)
    queues[0].arm(False)
    queues[0].add([(DATA, 4, False)])
    guest.kick(0)
    assert not guest.line and len(queues[0].used()) == 1


def test_pci_configuration_access_capability(guest: Virtio) -> None:
    """Section 4.1.4.9: the driver reaches the BAR without a mapping of it."""
    config = guest.config
    at = next(o for c, o in config.capabilities() if c == 9 and config.read(o + 3, 1) == 5)
    assert config.read(at + 2, 1) == 20
    config.write(4, 2, 4)

    def access(offset: int, length: int, value: int | None = None) -> int:
        config.write(at + 4, 1, 0)
        config.write(at + 8, 4, offset)
        config.write(at + 12, 4, length)
        if value is None:
            return config.read(at + 16, length)
        config.write(at + 16, length, value)
        return 0

    access(20, 1, 1)
    assert access(20, 1) == 1 and access(18, 2) == 2
    access(0, 4, 1)
    assert access(4, 4) == RING_FEATURES >> 32
    before = [guest.function.read(offset, 1) for offset in range(64)]
    for offset, length, bar in (
        (21, 2, 0),
        (1, 2, 0),
        (0, 3, 0),
        (0, 0, 0),
        (0x4000, 1, 0),
        (0xFFFFFFFC, 4, 0),
        (20, 1, 2),
    ):
        config.write(at + 4, 1, bar)
        config.write(at + 8, 4, offset)
        config.write(at + 12, 4, length)
        config.write(at + 16, 4, 0x02020202)
        config.read(at + 16, 4)
    assert [guest.function.read(offset, 1) for offset in range(64)] == before


def test_without_bus_mastering_the_queues_rest(guest: Virtio) -> None:
    queues = guest.setup(VERSION_1)
    guest.config.write(4, 2, 2)
    queues[0].add([(DATA, 4, False)])
    guest.kick(0)
    assert queues[0].used() == []
    guest.config.write(4, 2, 6)
    assert len(queues[0].used()) == 1


@pytest.mark.parametrize("features", ALL_RINGS)
def test_without_bus_mastering_nothing_is_written(guest: Virtio, features: int) -> None:
    guest.config.write(4, 2, 2)
    queues = guest.setup(features)
    rings = [(queue.desc, queue.end - queue.desc) for queue in queues]
    assert not any(any(guest.board.ram.read(gpa, length)) for gpa, length in rings)
    queues[0].add([(DATA, 8, True)])
    guest.config.write(4, 2, 6)
    assert len(queues[0].used()) == 1


def test_a_bar_that_moves_takes_doorbells_and_registers_with_it(guest: Virtio) -> None:
    queues = guest.setup(VERSION_1)
    board = guest.board
    guest.config.write(0x10, 4, 0)
    guest.config.write(0x14, 4, 1)
    assert board.memory_bus.read(BAR0 + 20, 1) == 0xFF
    assert board.memory_bus.read((1 << 32) + 20, 1) == 15
    queues[0].add([(DATA, 4, False)])
    assert not board.doorbells.ring(board.memory_bus, BAR0 + 0x1000, 2, 0)
    assert board.doorbells.ring(board.memory_bus, (1 << 32) + 0x1000, 2, 0)
    assert len(queues[0].used()) == 1


def test_a_function_that_is_unplugged_stops(guest: Virtio) -> None:
    guest.setup(VERSION_1)
    guest.msix()
    guest.board.host.root.remove(guest.function)
    assert echo_of(guest).oks == [True, False]
    assert not guest.board.doorbells.active and guest.config.read(0, 4) == 0xFFFFFFFF
    guest.function.kick(0)
    assert guest.messages == [] and not guest.line


class Greedy(Echo):
    """A device whose driver adds a buffer for each one taken."""

    def handle_queue(self, queue: VirtQueue) -> None:
        for chain in queue:
            queue.push(chain, 0)
            queue.notify()
            self.refill()

    def refill(self) -> None:
        pass


def test_a_driver_that_never_stops_can_not_hold_the_device() -> None:
    device, board = Greedy(), Board()
    later = board.later
    function = VirtioPci(device)
    board.host.root.add(function, 10)
    guest = Virtio(board, function, board.ecam(0, 10)).map()
    driver = guest.setup(VERSION_1)[0]

    def refill() -> None:
        driver.used()
        driver.add([(DATA, 4, False)])

    device.refill = refill  # type: ignore[method-assign]
    driver.add([(DATA, 4, False)])
    guest.kick(0)
    assert len(later) == 1
    guest.kick(0)
    assert len(later) == 1, "however often it kicks"
    later.pop()()
    assert len(later) == 1, "and the rest is not forgotten"


@pytest.mark.parametrize("features", ALL_RINGS)
def test_a_device_that_takes_one_chain_and_leaves_is_kicked_for_the_next(guest: Virtio, features: int) -> None:
    def take_one(queue: VirtQueue) -> None:
        for chain in queue:
            queue.push(chain, 0)
            break

    echo_of(guest).handle_queue = take_one  # type: ignore[method-assign]
    driver = guest.setup(features)[0]
    for _ in range(40):
        driver.add([(DATA, 4, True)])
        assert driver.needs_kick()
        guest.kick(0)
        assert len(driver.used()) == 1


def test_chains_from_before_a_reset_are_not_pushed_into_the_new_ring(guest: Virtio) -> None:
    driver = guest.setup(VERSION_1)[0]
    device = echo_of(guest)
    device.handle_queue = lambda queue: None  # type: ignore[method-assign]
    driver.add([(DATA, 4, True)])
    guest.kick(0)
    chain = device.queues[0].pop()
    assert chain is not None
    driver = guest.setup(VERSION_1)[0]
    device.queues[0].push(chain, 4)
    device.queues[0].notify()
    assert driver.used() == []
