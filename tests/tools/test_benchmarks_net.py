"""benchmarks/net_lab.py: what the guest prints, the commands, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import net_lab
from benchmarks.net_lab import HOSTS, TAP, VHOST, WHAT
from benchmarks.programs import BenchError
from benchmarks.virtio import OURS, QEMU


def test_what_the_guest_prints() -> None:
    text = "".join(f"net {way} {what} {number}.5\r\n" for number, way in enumerate(HOSTS) for what in WHAT)
    assert net_lab.measured(text)[VHOST, "take"] == 1.5
    with pytest.raises(BenchError, match="did not end"):
        net_lab.measured(text[:-20])


def test_both_have_the_same_three_ways_out() -> None:
    ours, qemu = ([str(word) for word in net_lab.command(name, Path("/i"), Path("/p"))] for name in (OURS, QEMU))
    assert [ours[at + 1] for at, word in enumerate(ours) if word == "--net"] == [
        "tap,name=pvb0",
        "tap,name=pvb1,vhost",
        "user",
    ]
    backends = [qemu[at + 1] for at, word in enumerate(qemu) if word == "-netdev"]
    assert ["pvb0" in backends[0], "vhost=on" in backends[1], "stream" in backends[2]] == [True] * 3


def test_the_table_judges_each_way() -> None:
    runs = {(way, what): 100.0 for way in HOSTS for what in WHAT}
    slow = runs | {(VHOST, "take"): 90.0, (TAP, "there-and-back"): 150.0}
    table = net_lab.report({OURS: [slow, slow], QEMU: [runs, runs]})
    assert (
        "| vhost-net, MB/s to the guest | 90.0 (90.0–90.0) | 100.0 (100.0–100.0) | 0.90 (goal: at least 0.95; m"
        in table
    )
    assert "| tap, a byte there and back, µs | 150 (150–150) | 100 (100–100) | 0.67 (goal: at least 0.5; met" in table
