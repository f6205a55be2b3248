"""What a timeline's file says, read back by Perfetto's own messages."""

from __future__ import annotations

from pathlib import Path

from pyvmm.control.timeline.reader import TraceEvent, events


def trace_of(path: Path) -> list[TraceEvent]:
    """Its events, in the order in which they began."""
    return sorted(events(path), key=lambda event: event.began)


def flows(seen: list[TraceEvent]) -> dict[int, list[TraceEvent]]:
    """The way of each flow."""
    ways: dict[int, list[TraceEvent]] = {}
    for event in seen:
        for flow in (*event.flows, *event.ending):
            ways.setdefault(flow, []).append(event)
    return ways


def ended(seen: list[TraceEvent]) -> list[list[tuple[str, str]]]:
    """The (track, name) of the instants on the way of each flow that came to its end."""
    return [said(way) for flow, way in flows(seen).items() if any(flow in event.ending for event in way)]


def said(way: list[TraceEvent]) -> list[tuple[str, str]]:
    """The instants of a way."""
    return [(event.track, event.name) for event in way if event.ended is None]
