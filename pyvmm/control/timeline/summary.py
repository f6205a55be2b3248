"""`pyvmm timeline FILE`: what a timeline shows, in words."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from pyvmm.control.timeline.reader import TraceEvent, events
from pyvmm.control.timeline.writer import CATEGORY_EXIT
from pyvmm.errors import printable

ROWS: Final = 20
"""Lines of a table; what there is more of is counted."""
WIDTH: Final = 48
"""Characters of a name."""
BAR: Final = 40
SLOWEST: Final = 10
RESTING: Final = ("KVM_EXIT_HLT", "KVM_EXIT_INTR")
"""Exits after which a vCPU may sleep or stand still, which is no work: they are counted, and not among the slowest."""
UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))


@dataclass
class Total:
    """How many of something there were, and how long they took, in nanoseconds."""

    count: int = 0
    time: int = 0
    longest: int = 0

    def add(self, time: int) -> None:
        self.count += 1
        self.time += time
        self.longest = max(self.longest, time)


@dataclass
class Summary:
    """What is counted of a timeline's events; add() them in any order."""

    devices: dict[str, Total] = field(default_factory=dict)
    places: dict[str, Total] = field(default_factory=dict)
    slowest: list[tuple[int, int, str, str]] = field(default_factory=list)
    """(nanoseconds, when, track, name), a heap of the SLOWEST."""
    histogram: dict[int, int] = field(default_factory=dict)
    """How many took less than 2**n µs, and not less than half of that."""
    tracks: set[str] = field(default_factory=set)
    """Those that had exits."""
    first: int | None = None
    last: int = 0
    begun: dict[int, int] = field(default_factory=dict)
    """When a flow was first seen."""
    flows: list[int] = field(default_factory=list)
    """How long those took that came to their end."""

    def add(self, event: TraceEvent) -> None:
        self.first = event.began if self.first is None else min(self.first, event.began)
        self.last = max(self.last, event.began, event.ended or 0)
        for flow in event.flows:
            self.begun[flow] = min(event.began, self.begun.get(flow, event.began))
        for flow in event.ending:
            self.flows.append(max(0, event.began - self.begun.pop(flow, event.began)))
        if event.category == CATEGORY_EXIT and event.ended is not None:
            self._exit(event, max(0, event.ended - event.began))

    def _exit(self, event: TraceEvent, time: int) -> None:
        self.tracks.add(event.track)
        device = event.name.partition(": ")[0]
        self.devices.setdefault(device, Total()).add(time)
        self.places.setdefault(event.name, Total()).add(time)
        if event.name in RESTING:
            return
        bucket = (time // 1000).bit_length()
        self.histogram[bucket] = self.histogram.get(bucket, 0) + 1
        one = time, event.began, event.track, event.name
        if len(self.slowest) < SLOWEST:
            heapq.heappush(self.slowest, one)
        else:
            heapq.heappushpop(self.slowest, one)

    def text(self) -> str:
        """All of it, in lines."""
        exits, first = sum(total.count for total in self.devices.values()), self.first or 0
        lines = [f"{duration(self.last - first)}, {_count(exits, 'exit')} of {_count(len(self.tracks), 'vCPU')}"]
        if not exits:
            return lines[0]
        lines += _table("exits by device", self.devices)
        lines += _table("exits by device and port", self.places)
        lines += ["", f"the slowest {len(self.slowest)}, but for {' and '.join(RESTING)}"]
        for time, when, track, name in sorted(self.slowest, reverse=True):
            lines.append(f"  {duration(time):>9}  {_cut(name):<{WIDTH}} {_cut(track)}, {(when - first) / 1e9:.6f} s")
        lines += ["", "how long they take"]
        most = max(self.histogram.values(), default=1)
        for bucket in range(min(self.histogram, default=0), max(self.histogram, default=-1) + 1):
            count = self.histogram.get(bucket, 0)
            bar = "#" * -(-count * BAR // most)
            lines.append(f"  less than {duration(1000 << bucket):>9} {count:>9}  {bar}".rstrip())
        if self.flows:
            middle, longest = duration(int(median(self.flows))), duration(max(self.flows))
            lines += ["", f"{_count(len(self.flows), 'flow')} came to the end: median {middle}, longest {longest}"]
        return "\n".join(lines)


def summarize(path: Path) -> str:
    """Of the timeline in *path*, without its name. Raises UserError for what is none."""
    summary = Summary()
    for event in events(path):
        summary.add(event)
    return summary.text()


def _table(title: str, totals: dict[str, Total]) -> list[str]:
    lines = ["", f"{title:<{WIDTH + 2}} {'exits':>9} {'time':>9} {'mean':>9} {'longest':>9}"]
    ordered = sorted(totals.items(), key=lambda item: item[1].time, reverse=True)
    for name, total in ordered[:ROWS]:
        mean = duration(total.time // total.count)
        times = f"{duration(total.time):>9} {mean:>9} {duration(total.longest):>9}"
        lines.append(f"  {_cut(name):<{WIDTH}} {total.count:>9} {times}")
    rest = ordered[ROWS:]
    if rest:
        lines.append(f"  and {len(rest)} more, {_count(sum(total.count for _, total in rest), 'exit')}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cut(name: str) -> str:
    """A name of the file's, as it may be shown."""
    name = printable(name[:WIDTH])
    return name if len(name) <= WIDTH else f"{name[: WIDTH - 1]}…"


def duration(ns: int) -> str:
    """*ns* nanoseconds, three digits: 12.3 µs."""
    for size, unit in UNITS:
        if ns >= size:
            value = ns / size
            return f"{value:.0f} {unit}" if value >= 100 or unit == "ns" else f"{value:.3g} {unit}"
    return "0 ns"
