"""The address of a network card on its wire: 48 bits (IEEE 802, section 8)."""

from __future__ import annotations

import os
import re

from pyvmm.errors import printable


def parse_mac(text: str) -> bytes:
    """52:54:00:12:34:56. Raises ValueError for what is no address of one card."""
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise ValueError(f"mac={printable(text)}: write it as 52:54:00:12:34:56")
    address = bytes.fromhex(text.replace(":", ""))
    if address[0] & 1 or not any(address):
        raise ValueError(f"mac={text}: that is no address of one card: let it begin with 52:54:00")
    return address


def random_mac() -> bytes:
    """Of those that QEMU's guests have, too: two machines on a wire differ."""
    return b"\x52\x54\x00" + os.urandom(3)
