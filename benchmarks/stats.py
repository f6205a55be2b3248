"""Medians of runs that were made in turn, and their ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

Runs = dict[str, list[float]]
"""What each contender needed, one value a round; value i of all contenders is of round i."""


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None]) -> Runs:
    """Run each contender once a round, so that what disturbs the machine disturbs them all alike."""
    runs: Runs = {name: [] for name in contenders}
    for number in range(rounds):
        for name, contender in contenders.items():
            value = contender()
            runs[name].append(value)
            say(f"round {number + 1} of {rounds}, {name}: {value:.4g}")
    return runs


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """The median of the rounds' ratios value/base; raises ValueError where the rounds do not pair."""
    return median(value / other for value, other in zip(values, base, strict=True))


def spread(values: Sequence[float], digits: int) -> str:
    """The median and what lies around it: `8.61 (8.4–9.9)`, with so many digits behind the point."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def verdict(ratio: float, goal: float) -> str:
    """Whether a ratio keeps its goal, in the words of the table."""
    return f"goal: at most {goal:g}; {'met' if ratio <= goal else 'missed'}"
