"""Many times of one thing: their median and their 99th percentile, a round each."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.programs import BenchError


class Latency(NamedTuple):
    """One round, in the unit of its values."""

    median: float
    p99: float


def percentile(values: Sequence[float], percent: int) -> float:
    """The least value that *percent* % of them do not exceed (nearest rank); ValueError where there is none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[-(-len(values) * percent // 100) - 1]


def latency(values: Sequence[float]) -> Latency:
    return Latency(median(values), percentile(values, 99))


def elapsed(starts: Sequence[int], ends: Sequence[int], warm_up: int) -> list[float]:
    """The µs from each start to its end, both in ns, without the first *warm_up*; BenchError unless they pair."""
    if len(starts) != len(ends) or len(starts) <= warm_up:
        raise BenchError(f"{len(starts)} events began and {len(ends)} ended")
    return [(end - start) / 1000 for start, end in zip(starts, ends, strict=True)][warm_up:]


def over_rounds(rounds: Sequence[Latency]) -> Latency:
    """The medians of the rounds' numbers."""
    return Latency(median(one.median for one in rounds), median(one.p99 for one in rounds))


def microseconds(one: Latency) -> str:
    """As a cell of a table: `81, 120`; a decimal below 100."""
    return ", ".join(f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in one)
