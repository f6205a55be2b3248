"""Time as devices see it: a monotonic count of nanoseconds, and timers that call back. Never a sleep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

NS_PER_SECOND = 1_000_000_000


class Timer(Protocol):
    """One pending call. Arming it again moves it; it fires once per arm, under the machine lock."""

    def arm(self, deadline: int) -> None:
        """Call back when the clock reaches *deadline* (ns on the same clock); at once if that has passed."""

    def cancel(self) -> None:
        """Forget the pending call, if any."""


class Clock(Protocol):
    def now(self) -> int:
        """Nanoseconds, monotonic."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A new timer, not armed."""


class FakeTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.deadline: int | None = None

    def arm(self, deadline: int) -> None:
        self.deadline = deadline

    def cancel(self) -> None:
        self.deadline = None


class FakeClock:
    """The clock of the unit tests: time passes only by advance(), and timers fire in the order of their deadlines."""

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self.timers: list[FakeTimer] = []

    def now(self) -> int:
        return self._now

    def timer(self, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(callback)
        self.timers.append(timer)
        return timer

    def advance(self, ns: int) -> None:
        """Let *ns* nanoseconds pass."""
        end = self._now + ns
        while True:
            due = [t for t in self.timers if t.deadline is not None and t.deadline <= end]
            if not due:
                break
            timer = min(due, key=lambda t: t.deadline or 0)
            assert timer.deadline is not None
            self._now = max(self._now, timer.deadline)
            timer.deadline = None
            timer.callback()
        self._now = end
