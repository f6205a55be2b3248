"""What a trace calls a register of configuration space, and what it says of a function's DMA, messages and pins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.memory import GuestMemory, GuestMemoryError
from pyvmm.pci.device import PciDevice
from pyvmm.pci.names import register_name
from pyvmm.pci.root_port import RootPort
from pyvmm.testing.pci import Board
from pyvmm.trace import Channel


class Device(PciDevice):
    vendor_id, device_id, interrupt_pin = 0x1234, 0x5678, 1

    def __init__(self) -> None:
        super().__init__()
        self.add_memory_bar(1, 0x1000, self)
        self.add_msi(2)


@pytest.mark.parametrize(
    ("offset", "name"),
    [
        *((0x00, "VENDOR_ID"), (0x04, "COMMAND"), (0x05, "COMMAND+0x1"), (0x06, "STATUS"), (0x0E, "HEADER_TYPE")),
        *((0x14, "BAR1"), (0x16, "BAR1+0x2"), (0x3D, "INTERRUPT_PIN"), (0x40, "MSI"), (0x44, "MSI+0x4")),
        *((0x100, "0x100"), (0xFFF, "0xfff")),
    ],
)
def test_registers_have_names(offset: int, name: str) -> None:
    assert register_name(Device(), offset) == name


def test_those_of_a_bridge_and_of_nobody() -> None:
    port = RootPort(0)
    assert register_name(port, 0x19) == "SECONDARY_BUS" and register_name(port, 0x3E) == "BRIDGE_CONTROL"
    assert register_name(port, port.config.find_capability(0x10) + 2) == "EXP+0x2"
    assert register_name(None, 0x2C) == "SUBSYSTEM_VENDOR_ID" and register_name(None, 0x40) == "0x40"


@given(st.binary(min_size=256, max_size=256), st.integers(0, 4095))
def test_whatever_configuration_space_holds(data: bytes, offset: int) -> None:
    """A capability list that a device made wrong, or let the guest write, ends all the same."""
    device = Device()
    device.config.data[:] = data
    assert register_name(device, offset)


@pytest.fixture
def traced() -> tuple[Board, Device, Channel, list[str]]:
    """A device with a channel of its own, bus master, BAR 1 at 0xd0000000."""
    lines: list[str] = []
    channel = Channel("device", lambda ns, name, line: lines.append(line))
    board = Board()
    device = Device()
    board.host.root.add(device, 3, trace=channel)
    config = board.ecam(0, 3)
    config.write(0x14, 4, 0xD0000000)
    config.write(0x04, 2, 0x6)
    assert lines == ["BAR1 is at 0xd0000000, 0x1000 bytes, but decoding is off", "BAR1 is at 0xd0000000, 0x1000 bytes"]
    lines.clear()
    return board, device, channel, lines


def test_dma(traced: tuple[Board, Device, Channel, list[str]]) -> None:
    board, device, _, lines = traced
    device.dma.write(0x1000, bytes(range(20)))
    assert device.dma.read(0x1001, 2) == b"\x01\x02" and device.dma.read_int(0x1000, 4) == 0x03020100
    device.dma.write_int(0x1000, 2, 0x12345)
    device.dma.view(0x2000, 4)[:] = b"view"
    assert board.ram.read(0x2000, 4) == b"view" and board.ram.read(0x1000, 3) == b"\x45\x23\x02"
    device.dma.lasting_view(0x3000, 8)
    assert lines == [
        "DMA write 0x1000, 20 bytes: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f …",
        "DMA read 0x1001, 2 bytes: 01 02",
        "DMA read 0x1000, 4 bytes: 00 01 02 03",
        "DMA write 0x1000, 2 bytes: 45 23",
        "DMA view of 0x2000, 4 bytes",
        "DMA view of 0x3000, 8 bytes, kept",
    ]
    lines.clear()
    with pytest.raises(GuestMemoryError):
        device.dma.read(1 << 40, 4)
    board.ecam(0, 3).write(0x04, 2, 0x2)
    with pytest.raises(GuestMemoryError):
        device.dma.write(0x1000, b"x")
    assert lines == [
        "DMA read 0x10000000000, 4 bytes: no RAM there",
        "DMA write 0x1000, 1 bytes: bus mastering is off",
    ]


def test_unwatched_dma_is_guest_memory_itself(traced: tuple[Board, Device, Channel, list[str]]) -> None:
    board, device, channel, lines = traced
    channel.enabled = False
    assert device.dma is board.ram
    device.dma.write(0x1000, b"x")
    assert lines == []


@given(gpa=st.integers(-1, 1 << 14), length=st.integers(-1, 300), data=st.binary(max_size=40))
def test_watched_or_not_it_is_the_same_memory(gpa: int, length: int, data: bytes) -> None:
    from pyvmm.pci.dma import TracedMemory

    one, other = (GuestMemory.of_size(1 << 13) for _ in range(2))
    lines: list[str] = []
    watched = TracedMemory(one, Channel("x", lambda ns, name, line: lines.append(line)))

    def all_of(memory: GuestMemory) -> list[object]:
        got: list[object] = []
        for call in (lambda: memory.write(gpa, data), lambda: memory.read(gpa, length), lambda: memory.clear(gpa, 4)):
            try:
                got.append(call())
            except GuestMemoryError as error:
                got.append(str(error))
        return got

    assert all_of(watched) == all_of(other) and len(lines) == 3
    assert one.read(0, 1 << 13) == other.read(0, 1 << 13) and watched.regions == one.regions


def test_messages_and_the_pin(traced: tuple[Board, Device, Channel, list[str]]) -> None:
    board, device, _, lines = traced
    device.interrupt.set_level(True)
    device.interrupt.set_level(True)
    device.interrupt.set_level(False)
    assert lines == ["INTA up", "INTA down"]
    lines.clear()
    config = board.ecam(0, 3)
    at = config.find(5)
    for offset, size, value in ((4, 4, 0xFEE00000), (12, 2, 0x40), (16, 4, 2), (2, 2, 0x11)):
        config.write(at + offset, size, value)
    for vector in (0, 1):
        device.send_message(vector)
    assert lines == ["MSI 0: 0x40 to 0xfee00000", "MSI 1: masked, it waits"]
    assert board.msi.sent == [(0xFEE00000, 0x40)]
