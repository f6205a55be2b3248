"""benchmarks/timeline.py: what it makes of its measurements."""

from __future__ import annotations

from benchmarks.timeline import OFF, ON, report


def test_the_report_compares_round_by_round() -> None:
    text = report(
        {OFF: [10.0, 20.0, 30.0], ON: [11.0, 21.5, 31.25]}, {OFF: [10.0] * 3, ON: [13.0] * 3}, [3.0, 2.0, 4.0]
    )
    assert "| more, at most 2 | 1.25 (1.00–1.50), met | 3.00 (3.00–3.00), missed |" in text
    assert text.endswith("Making messages of a record, at the end: 3.00 (2.00–4.00) µs.")
