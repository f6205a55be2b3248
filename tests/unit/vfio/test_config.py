"""Configuration space by a mask: the device's bits and ours, and lists of capabilities however they are broken."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.pci.regs import PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_PM, PCI_CAPABILITY_LIST, PCI_STATUS
from pyvmm.vfio.config import HIDDEN, HostConfigSpace, capabilities, extended_capabilities


class Real:
    """A device's own configuration space; what is written to it is kept."""

    def __init__(self, image: bytes | bytearray) -> None:
        self.image = bytearray(image)
        self.written: list[tuple[int, bytes]] = []
        self.config = HostConfigSpace(bytes(image), self.read, self.write)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.image[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))


def image_of(caps: list[tuple[int, int]], extended: Sequence[tuple[int, int]] = (), size: int = 4096) -> bytearray:
    """*caps* and *extended* are (offset, ID), in the order of their list; all else is the low byte of its offset."""
    image = bytearray(i & 0xFF for i in range(size))
    image[PCI_STATUS] = 0x10
    link = PCI_CAPABILITY_LIST
    for at, cap_id in caps:
        image[link], image[at], link = at, cap_id, at + 1
    image[link] = 0
    after = 0
    for at, cap_id in reversed(extended):
        image[at : at + 4] = (cap_id | 1 << 16 | after << 20).to_bytes(4, "little")
        after = at
    if size > 256 and not extended:
        image[0x100:0x104] = bytes(4)
    return image


def test_the_device_answers_behind_the_header_and_we_in_it() -> None:
    real = Real(image_of([(0x40, PCI_CAP_ID_PM), (0x60, PCI_CAP_ID_MSI)]))
    config = real.config
    real.image[0x44] = 0x99
    assert config.read(0x44, 1) == 0x99
    config.write(0x44, 4, 0x11223344)
    assert real.written == [(0x44, bytes.fromhex("44332211"))]
    assert config.read(0x10, 4) == 0
    config.write(0x10, 4, 0xFFFFFFFF)
    assert len(real.written) == 1, "BARs are ours"
    config.put_capability(0x60, bytes(8), b"\x01")
    config.write(0x60, 4, 0xFFFFFFFF)
    assert len(real.written) == 1 and config.read(0x60, 4) == 0x00010005
    assert list(capabilities(config.data)) == [(0x40, PCI_CAP_ID_PM), (0x60, PCI_CAP_ID_MSI)]


def test_status_is_the_devices_but_for_the_list_of_capabilities() -> None:
    real = Real(image_of([(0x40, PCI_CAP_ID_PM)]))
    real.image[PCI_STATUS] = 0x08
    assert real.config.read(PCI_STATUS, 2) == 0x0718, "INTx pending of the device's, capabilities of ours"
    real.config.write(PCI_STATUS - 2, 4, 0xFFFF0000)
    assert real.written == [(6, b"\xef"), (7, b"\xff")]


def test_what_would_size_or_add_functions_is_hidden() -> None:
    real = Real(image_of([], [(0x100, 0x0E), (0x140, 0x10), (0x180, 0x03), (0x200, 0x15), (0x300, 0x0B)]))
    shown = [(cap.offset, cap.cap_id) for cap in extended_capabilities(real.config.data)]
    assert shown == [(0x100, 0), (0x180, 0x03), (0x300, 0x0B)]
    assert real.config.read(0x144, 4) == 0
    real.config.write(0x148, 2, 1)
    assert real.written == []
    assert real.config.read(0x184, 1) == 0x84
    assert [cap.cap_id for cap in extended_capabilities(Real(image_of([], [(0x100, 0x10)])).config.data)] == []


def test_a_port_adds_a_capability_to_a_device_that_has_none_of_it() -> None:
    real = Real(image_of([(0x40, PCI_CAP_ID_PM)], size=256))
    at = real.config.add_capability(PCI_CAP_ID_EXP, bytes(range(58)))
    assert at == 0x48 and real.config.find_capability(PCI_CAP_ID_EXP) == at
    assert real.config.read(at + 2, 2) == 0x0100


@given(st.binary(min_size=256, max_size=256), st.binary(min_size=64, max_size=64))
def test_any_bytes_make_a_configuration_space(head: bytes, extended: bytes) -> None:
    image = bytearray(head) + bytearray(extended) * 60
    image[PCI_STATUS] |= 0x10
    real = Real(bytes(image))
    assert len(list(capabilities(real.config.data))) <= 48
    for cap in extended_capabilities(real.config.data):
        assert cap.cap_id not in HIDDEN
    for offset in range(0, 4096, 61):
        real.config.write(offset, 4, 0xFFFFFFFF)
        assert 0 <= real.config.read(offset, 4) <= 0xFFFFFFFF
    assert all(offset >= 0x40 or offset in (6, 7) for offset, _ in real.written)
