"""BARs that a running guest sizes, moves and disables, over RAM and over each other, behind bridges or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyvmm.bus import Bus
from pyvmm.memory import Region
from pyvmm.pci.decoder import AddressClaim, AddressDecoder
from pyvmm.pci.device import PciDevice
from pyvmm.pci.doorbell import Doorbell, FakeDoorbells, FakeWatchedDoorbell
from pyvmm.pci.root_port import RootPort
from pyvmm.testing.pci import Board, scan
from tests.rig.toys import Registers, Toy


@pytest.fixture
def board() -> Board:
    return Board()


def test_a_bar_answers_where_the_guest_puts_it(board: Board) -> None:
    toy = Toy()
    board.host.root.add(toy, 3)
    config = board.ecam(0, 3)
    config.write(0x10, 4, 0xC0000000)
    config.write(0x18, 4, 0x00000000)
    config.write(0x1C, 4, 0x00000001)
    config.write(0x20, 4, 0xC000)
    assert board.memory_bus.read(0xC0000010, 4) == 0xFFFFFFFF, "decode is off"
    config.write(4, 2, 3)
    board.memory_bus.write(0xC0000010, 4, 7)
    board.memory_bus.write(0x100000020, 4, 8)
    board.io_bus.write(0xC004, 1, 9)
    assert (toy.mem32.data, toy.mem64.data, toy.io.data) == ({0x10: 7}, {0x20: 8}, {4: 9})
    config.write(0x10, 4, 0xD0000000)
    assert board.memory_bus.read(0xC0000010, 4) == 0xFFFFFFFF
    assert board.memory_bus.read(0xD0000010, 4) == 7
    config.write(4, 2, 1)
    assert board.memory_bus.read(0xD0000010, 4) == 0xFFFFFFFF
    assert board.io_bus.read(0xC004, 1) == 9
    config.write(0x20, 4, 0)
    assert board.io_bus.read(4, 1) == 0xFF, "a BAR of 0 is nowhere"
    config.write(0x20, 4, 0xC000)
    assert board.io_bus.read(0xC004, 1) == 9
    board.host.reset()
    assert board.io_bus.read(0xC004, 1) == 0xFF


def test_sizing_with_decode_on_is_harmless(board: Board) -> None:
    """Linux 2.6 sizes BARs without turning decode off."""
    board.host.root.add(Toy(), 3)
    config = board.ports(0, 3)
    config.write(0x10, 4, 0xC0000000)
    config.write(4, 2, 3)
    assert config.size_bar(0) == (0, 0x1000)
    assert config.size_bar(2) == (0xC, 0x10000)
    assert config.size_bar(4) == (1, 32)
    assert board.memory_bus.read(0xC0000000, 4) == 0


def test_a_bar_over_ram_is_hidden_and_comes_back(board: Board) -> None:
    toy = Toy()
    board.host.root.add(toy, 3)
    config = board.ecam(0, 3)
    config.write(4, 2, 2)
    config.write(0x10, 4, 0x00200000)
    claim = toy.bar0.claim
    assert isinstance(claim, AddressClaim) and not claim.visible
    config.write(0x10, 4, 0xC0000000)
    assert claim.visible == ((0xC0000000, 0xC0001000),)


def test_the_lower_of_two_that_overlap_is_hidden_where_they_do(board: Board) -> None:
    first, second = Toy(), Toy()
    board.host.root.add(first, 3)
    board.host.root.add(second, 4)
    first.mem32.data[0] = 1
    second.mem64.data[0x8000] = 2
    second.mem64.data[0x0] = 3
    low, high = board.ecam(0, 3), board.ecam(0, 4)
    low.write(4, 2, 2)
    high.write(4, 2, 2)
    high.write(0x18, 4, 0xC0000000)
    low.write(0x10, 4, 0xC0008000)
    assert board.memory_bus.read(0xC0008000, 4) == 1
    assert board.memory_bus.read(0xC0000000, 4) == 3
    low.write(0x10, 4, 0xC1000000)
    assert board.memory_bus.read(0xC0008000, 4) == 2


def test_a_bar_over_another_device_is_hidden(board: Board) -> None:
    other = Registers({0: 0x42})
    board.memory_bus.map(0xFEC00000, 0x1000, other)
    board.host.root.add(Toy(), 3)
    config = board.ecam(0, 3)
    config.write(4, 2, 2)
    config.write(0x10, 4, 0xFEC00000)
    assert board.memory_bus.read(0xFEC00000, 4) == 0x42
    config.write(0x10, 4, 0xE0000000)
    assert board.memory_bus.read(0xE0000000 + (3 << 15), 2) == 0x1234, "ECAM stays reachable"


class Bell(PciDevice):
    vendor_id, device_id = 0x1234, 2

    def __init__(self) -> None:
        super().__init__()
        self.rung = 0
        self.bar = self.add_memory_bar(0, 0x1000, self)
        self.bar.add_doorbell(0x10, Doorbell(self.ring))

    def ring(self) -> None:
        self.rung += 1


def test_doorbells_move_with_their_bar(board: Board) -> None:
    bell = Bell()
    board.host.root.add(bell, 3)
    config = board.ecam(0, 3)
    assert not board.doorbells.active
    config.write(0x10, 4, 0xC0000000)
    config.write(4, 2, 2)
    assert board.doorbells.ring(board.memory_bus, 0xC0000010, 2, 0)
    config.write(0x10, 4, 0xC8000000)
    assert not board.doorbells.ring(board.memory_bus, 0xC0000010, 2, 0)
    assert board.doorbells.ring(board.memory_bus, 0xC8000010, 4, 0)
    assert bell.rung == 2
    config.write(0x10, 4, 0x00100000)
    assert not board.doorbells.active, "no doorbell over RAM"
    config.write(0x10, 4, 0xC8000000)
    config.write(4, 2, 0)
    assert not board.doorbells.active
    config.write(4, 2, 2)
    board.host.root.remove(bell)
    assert not board.doorbells.active and board.memory_bus.ranges == board.memory_bus.ranges[:1]


def test_a_ring_before_a_reset_is_heard_before_it(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a device as it was when the guest rang: what has rung and was not heard is heard as the doorbell goes."""
    heard: list[str] = []

    class Resettable(Bell):
        def ring(self) -> None:
            heard.append("ring")

        def reset(self) -> None:
            heard.append("reset")

    def remove(
        watched: FakeWatchedDoorbell, gone: Callable[[FakeWatchedDoorbell], None] = FakeWatchedDoorbell.remove
    ) -> None:
        gone(watched)
        bell.ring()

    monkeypatch.setattr(FakeWatchedDoorbell, "remove", remove)
    bell = Resettable()
    board.host.root.add(bell, 3)
    config = board.ecam(0, 3)
    config.write(0x10, 4, 0xC0000000)
    config.write(4, 2, 2)
    bell.reset_function()
    assert heard == ["ring", "reset"]


def test_two_doorbells_that_trade_places(board: Board) -> None:
    first, second = Bell(), Bell()
    board.host.root.add(first, 3)
    board.host.root.add(second, 4)
    one, two = board.ecam(0, 3), board.ecam(0, 4)
    one.write(4, 2, 2)
    two.write(4, 2, 2)
    one.write(0x10, 4, 0xC0000000)
    two.write(0x10, 4, 0xC0000000)
    board.doorbells.ring(board.memory_bus, 0xC0000010, 4, 0)
    one.write(0x10, 4, 0xD0000000)
    board.doorbells.ring(board.memory_bus, 0xC0000010, 4, 0)
    assert (first.rung, second.rung) == (1, 1)


def test_behind_a_root_port_only_through_its_windows(board: Board) -> None:
    port, toy = RootPort(), Toy()
    board.host.root.add(port, 4)
    port.child.add(toy, 0)
    assert board.ecam(1).read(0, 4) == 0xFFFFFFFF, "no bus number yet"
    scan(board.ecam)
    bridge, config = board.ecam(0, 4), board.ecam(1)
    config.write(0x10, 4, 0xC0000000)
    config.write(0x1C, 4, 2)
    config.write(0x20, 4, 0xC000)
    config.write(4, 2, 7)
    toy.mem32.data[0] = toy.mem64.data[0] = toy.io.data[0] = 5
    assert board.memory_bus.read(0xC0000000, 4) == 0xFFFFFFFF
    bridge.write(0x20, 4, 0xC000C000)
    bridge.write(0x24, 4, 0x00000000)
    bridge.write(0x28, 4, 2)
    bridge.write(0x2C, 4, 2)
    bridge.write(0x1C, 2, 0xC0C0)
    assert board.memory_bus.read(0xC0000000, 4) == 0xFFFFFFFF, "the bridge's own decode is off"
    bridge.write(4, 2, 3)
    assert board.memory_bus.read(0xC0000000, 4) == 5
    assert board.memory_bus.read(0x200000000, 4) == 5
    assert board.io_bus.read(0xC000, 1) == 5
    for register, last in ((0x10, 0xC00FF000), (0x18, 0x2000F0000), (0x20, 0xCFE0)):
        config.write(register, 4, last & 0xFFFFFFFF)
    assert board.memory_bus.read(0xC00FFFF8, 8) == board.memory_bus.read(0x2000FFFF8, 8) == 0, "to the last byte"
    assert board.io_bus.read(0xCFFF, 1) == 0
    bridge.write(4, 2, 2)
    assert board.io_bus.read(0xCFFF, 1) == 0xFF
    assert not toy.bus_master
    bridge.write(4, 2, 7)
    assert toy.bus_master
    bridge.write(0x20, 4, 0x0000FFF0)
    assert board.memory_bus.read(0xC0000000, 4) == 0xFFFFFFFF
    bridge.write(0x3E, 2, 0x40)
    assert config.read(4, 2) == 0, "the secondary bus was reset"


def test_a_bridge_without_a_bus_number_takes_no_accesses(board: Board) -> None:
    ports = [RootPort(), RootPort()]
    for slot, port in enumerate(ports, 4):
        board.host.root.add(port, slot)
        port.child.add(Toy(), 0)
    board.ecam(0, 4).write(0x1A, 1, 0xFF)
    board.ecam(0, 5).write(0x18, 4, 0x00010100)
    assert board.ecam(1).read(0, 4) == 0x11E81234
    assert board.ecam(2).read(0, 4) == 0xFFFFFFFF


def test_a_reset_reaches_what_is_behind_the_bridges_of_that_bus(board: Board) -> None:
    above, below, toy = RootPort(), RootPort(), Toy()
    board.host.root.add(above, 4)
    above.child.add(below, 0)
    below.child.add(toy, 0)
    assert set(scan(board.ecam)) == {(0, 4, 0), (1, 0, 0), (2, 0, 0)}
    board.ecam(2).write(4, 2, 7)
    board.ecam(0, 4).write(0x3E, 2, 0x40)
    assert toy.command == 0 and below.secondary == 0


def test_a_function_behind_a_port_is_an_express_endpoint_with_the_link_up(board: Board) -> None:
    port, toy = RootPort(7), Toy()
    board.host.root.add(port, 4)
    bridge = board.ecam(0, 4)
    at = bridge.find(0x10)
    assert bridge.read(at + 2, 2) == 0x0142
    assert bridge.read(at + 0x12, 2) == 0x0001
    port.child.add(toy, 0)
    assert bridge.read(at + 0x12, 2) == 0x2011
    assert bridge.read(at + 0x0F, 1) == 7
    scan(board.ecam)
    endpoint = board.ecam(1)
    assert endpoint.read(endpoint.find(0x10) + 2, 2) == 0x0002
    with pytest.raises(ValueError, match="only slot 00"):
        port.child.add(Toy(), 1)


def test_two_devices_that_are_equal_are_two(board: Board) -> None:
    first, second = Toy(), Toy()
    board.host.root.add(first, 3)
    board.host.root.add(second, 4)
    assert first.mem32 == second.mem32
    for number in (4, 3):
        board.ecam(0, number).write(0x10, 4, 0xC0000000)
        board.ecam(0, number).write(4, 2, 2)
    board.memory_bus.write(0xC0000000, 4, 7)
    assert (first.mem32.data, second.mem32.data) == ({0: 7}, {}), "the first to be plugged in has the address"


SPANS = st.tuples(st.integers(0, 60), st.integers(1, 20))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), SPANS, st.booleans()), max_size=25))
def test_at_each_address_the_first_claim_answers(moves: list[tuple[int, tuple[int, int], bool]]) -> None:
    """Against a model that asks, address by address, who is first."""
    bus, doorbells = Bus("mem", 70), FakeDoorbells()
    fixed = Registers()
    bus.map(30, 5, fixed)
    decoder = AddressDecoder(bus, 70, doorbells)
    decoder.added(Region(10, memoryview(bytearray(4))))
    devices = [Registers() for _ in range(4)]
    claims = [decoder.claim(device) for device in devices]
    for claim in claims:
        claim.add_doorbell(2, Doorbell(lambda: None, 1))
    where: list[tuple[int, int] | None] = [None] * 4
    for index, (start, length), there in moves:
        where[index] = (start, start + length) if there else None
        claims[index].place(start, [(start, start + length)] if there else [])
        decoder.apply()
        answers = {
            a: (device, a - start + offset) for start, end, device, offset in bus.ranges for a in range(start, end)
        }
        bells = set()
        for address in range(70):
            expected = None
            if 30 <= address < 35:
                expected = (fixed, address - 30)
            elif not 10 <= address < 14:
                for device, place in zip(devices, where, strict=True):
                    if place and place[0] <= address < place[1]:
                        expected = (device, address - place[0])
                        break
            assert answers.get(address) == expected
            if expected and expected[0] is not fixed and expected[1] == 2:
                bells.add(address)
        assert {address for _, address in doorbells.active} == bells


class LastRings(FakeDoorbells):
    """Doorbells that ring once more as they go, as an eventfd does that a guest has written but nobody has read."""

    def add(self, bus: Bus, address: int, doorbell: Doorbell) -> LastRing:
        super().add(bus, address, doorbell)
        assert doorbell.callback is not None
        return LastRing(self, (bus.name, address), doorbell.callback)


class LastRing(FakeWatchedDoorbell):
    def __init__(self, owner: LastRings, key: tuple[str, int], callback: Callable[[], None]) -> None:
        super().__init__(owner, key)
        self._callback = callback

    def remove(self) -> None:
        super().remove()
        self._callback()


ACTIONS = st.tuples(
    st.integers(0, 3), st.sampled_from(["move", "hide", "release", "claim", "bell"]), st.integers(0, 60)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ACTIONS, max_size=12), st.lists(ACTIONS, max_size=8))
@example(  # the first of a claim that is released has another come to where its second is
    [(0, "move", 1), (0, "move", 5), (3, "bell", 3), (3, "release", 0)],
    [(0, "move", 31), (0, "move", 0), (0, "move", 0), (0, "move", 0)],
)
def test_whoever_hears_a_doorbell_go_may_change_all_claims(
    moves: list[tuple[int, str, int]], answers: list[tuple[int, str, int]]
) -> None:
    bus, doorbells = Bus("mem", 80), LastRings()
    decoder = AddressDecoder(bus, 80, doorbells)
    claims: list[AddressClaim | None] = [None] * 4

    def rung() -> None:
        if answers:
            act(*answers.pop())

    def act(index: int, what: str, where: int) -> None:
        claim = claims[index]
        if claim is None:
            if what == "claim":
                claims[index] = claim = decoder.claim(Registers())
                claim.add_doorbell(2, Doorbell(rung, 1))
            return
        match what:
            case "move":
                claim.place(where, [(where, where + 8)])
            case "hide":
                claim.place(0, ())
            case "bell" if all(bell.offset != where % 8 for bell in claim.doorbells):
                claim.add_doorbell(where % 8, Doorbell(rung, 1))
            case "release":
                claims[index] = None
                decoder.release(claim)
        decoder.apply()

    for index in range(4):
        act(index, "claim", 0)
        act(index, "move", 10 * index)
    for move in moves:
        act(*move)
    decoder.apply()
    live = [claim for claim in claims if claim is not None]
    answering = {a: device for start, end, device, _ in bus.ranges for a in range(start, end)}
    for address, device in answering.items():
        first = min(
            (decoder._claims.index(c), c) for c in live if any(start <= address < end for start, end in c.spans)
        )
        assert first[1].device is device
    assert len(answering) == len({a for c in live for start, end in c.spans for a in range(start, end)})
    wanted = {
        c.base + bell.offset for c in live for bell in c.doorbells if answering.get(c.base + bell.offset) is c.device
    }
    assert {address for _, address in doorbells.active} == wanted
