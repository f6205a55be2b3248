"""benchmarks/vfio.py: what a guest's lines say, and the table of it."""

from __future__ import annotations

from benchmarks.vfio import MEASURED, OURS, QEMU, Contender, parsed, report


def test_lines_of_the_guest() -> None:
    assert parsed("depth-1 1234") == ("depth-1", 1234.0)
    assert parsed("ping round-trip min/avg/max = 0.500/1.250/3.000 ms") == ("ping", 1250.0)
    for line in ("", "depth-1", "depth-1 reads: no disk", "ping", "mark begin", "pyvmm guest: exit 0"):
        assert parsed(line) is None


def test_the_table() -> None:
    ours, other = Contender(OURS, []), Contender(QEMU, [])
    for name in MEASURED:
        ours.values[name] += [90, 100, 110]
        other.values[name] += [100, 100, 100]
    for contender in (ours, other):
        contender.exits += [{"exits": 10.0, "io_exits": 1.0}, {"exits": 20.0, "io_exits": 1.0}]
    text = report(ours, other)
    assert "| nvme, 4 KiB random reads a second, one at a time | 100 (90–110) | 100 (100–100) | 1.00 |" in text
    assert "| exits | 15 (10–20) | 15 (10–20) |" in text and "mmio_exits" not in text
