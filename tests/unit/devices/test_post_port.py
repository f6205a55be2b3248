"""The POST code port."""

from __future__ import annotations

from pyvmm.devices.post_port import PostPort
from pyvmm.trace import Channel


def test_the_last_code_reads_back_and_is_traced() -> None:
    lines: list[str] = []
    port = PostPort(Channel("post", lambda ns, channel, message: lines.append(message)))
    port.write(0, 1, 0xA5)
    port.write(0, 2, 0x1234)
    port.write(1, 1, 0xFF)
    assert port.code == port.read(0, 1) == 0x34
    assert port.read(1, 1) == 0xFF
    assert lines == ["POST code 0xa5", "POST code 0x34"]
