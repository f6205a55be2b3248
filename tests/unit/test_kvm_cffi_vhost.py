"""kvm_cffi.vhost against the kernel's structures: what is sent, byte by byte."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from kvm_cffi import address_of, constants, vhost
from kvm_cffi._kvm import ffi
from kvm_cffi.vhost import VhostNet, VhostVsock

SIZES = {"SET_MEM_TABLE": 8 + 2 * 32, "SET_VRING_ADDR": 40, "SET_OWNER": 0, "SET_RUNNING": 4}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    log: list[tuple[str, bytes]] = []

    def kernel(fd: int, request: str, argument: Any = ffi.NULL) -> int:
        size = next((size for name, size in SIZES.items() if request.endswith(name)), 8)
        log.append((request, bytes(ffi.buffer(ffi.cast("char *", argument), size)) if size else b""))
        if request == "VHOST_GET_VRING_BASE":
            argument.num = 0x1234
        if request == "VHOST_GET_FEATURES":
            argument[0] = 1 << 32
        return 0

    monkeypatch.setattr(vhost, "ioctl", kernel)
    monkeypatch.setattr(vhost.os, "open", lambda path, flags: -1)  # type: ignore[attr-defined]
    return log


def test_the_numbers_of_the_header() -> None:
    """_IO(0xAF, n), with sizes and directions (asm-generic/ioctl.h)."""
    assert constants.VHOST_SET_OWNER == 0xAF01
    assert constants.VHOST_GET_FEATURES == 0x8008AF00
    assert constants.VHOST_SET_VRING_ADDR == 0x4028AF11
    assert constants.VHOST_GET_VRING_BASE == 0xC008AF12
    assert constants.VHOST_VSOCK_SET_GUEST_CID == 0x4008AF60
    assert constants.VHOST_NET_SET_BACKEND == 0x4008AF30


def test_what_is_sent(sent: list[tuple[str, bytes]]) -> None:
    low, high = memoryview(bytearray(0x1000)), memoryview(bytearray(0x3000))
    server = VhostVsock()
    server.set_owner()
    assert server.get_features() == 1 << 32
    server.set_features(1 << 32 | 1)
    server.set_mem_table([(0, low), (0x100000000, high)])
    server.set_vring_num(1, 128)
    server.set_vring_base(1, 7)
    assert server.get_vring_base(1) == 0x1234
    server.set_vring_addr(1, 0x1000, 0x2000, 0x3000)
    server.set_vring_kick(0, 5)
    server.set_vring_call(1, vhost.NO_FD)
    server.set_guest_cid(3)
    server.set_running(True)
    VhostNet().set_backend(1, 9)
    assert sent == [
        ("VHOST_SET_OWNER", b""),
        ("VHOST_GET_FEATURES", bytes(8)),
        ("VHOST_SET_FEATURES", struct.pack("<Q", 1 << 32 | 1)),
        (
            "VHOST_SET_MEM_TABLE",
            struct.pack("<II", 2, 0)
            + struct.pack("<QQQQ", 0, 0x1000, address_of(low), 0)
            + struct.pack("<QQQQ", 0x100000000, 0x3000, address_of(high), 0),
        ),
        ("VHOST_SET_VRING_NUM", struct.pack("<II", 1, 128)),
        ("VHOST_SET_VRING_BASE", struct.pack("<II", 1, 7)),
        ("VHOST_GET_VRING_BASE", struct.pack("<II", 1, 0)),
        ("VHOST_SET_VRING_ADDR", struct.pack("<IIQQQQ", 1, 0, 0x1000, 0x3000, 0x2000, 0)),
        ("VHOST_SET_VRING_KICK", struct.pack("<Ii", 0, 5)),
        ("VHOST_SET_VRING_CALL", struct.pack("<Ii", 1, -1)),
        ("VHOST_VSOCK_SET_GUEST_CID", struct.pack("<Q", 3)),
        ("VHOST_VSOCK_SET_RUNNING", struct.pack("<i", 1)),
        ("VHOST_NET_SET_BACKEND", struct.pack("<Ii", 1, 9)),
    ]
