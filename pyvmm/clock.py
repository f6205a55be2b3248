"""Time as devices see it: a monotonic count of nanoseconds, and timers that call back. Never a sleep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

NS_PER_SECOND = 1_000_000_000


class Timer(Protocol):
    """One pending call. Arming it again moves it; it fires once per arm, under the machine lock."""

    deadline: int | None
    """In ns on the same clock; None while it is not armed."""

    def arm(self, deadline: int) -> None:
        """Call back when the clock reaches *deadline* (ns on the same clock); at once if that has passed."""

    def cancel(self) -> None:
        """Forget the pending call, if any."""


class Clock(Protocol):
    def now(self) -> int:
        """Nanoseconds, monotonic."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A new timer, not armed."""


class GuestTimer:
    """A Timer whose deadline is the guest's; see clock.Timer."""

    def __init__(self, clock: GuestClock, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self.host = clock.host.timer(self._fire)
        self.deadline: int | None = None
        """In ns on the guest's clock; None while it is not armed."""

    def arm(self, deadline: int) -> None:
        self.deadline = deadline
        self._clock.armed(self, deadline)

    def cancel(self) -> None:
        self.deadline = None
        self._clock.disarmed(self)

    def _fire(self) -> None:
        self.deadline = None
        self._clock.fired(self)
        self._callback()


class GuestClock:
    """Time stands between stop() and go(), and no timer fires; both are called under the machine lock."""

    def __init__(self, host: Clock) -> None:
        self.host = host
        self._offset = 0
        """Nanoseconds that the guest is behind the host."""
        self._stopped_at: int | None = None
        self._armed: dict[GuestTimer, int] = {}

    @property
    def stands(self) -> bool:
        return self._stopped_at is not None

    def now(self) -> int:
        return self.host.now() - self._offset if self._stopped_at is None else self._stopped_at

    def timer(self, callback: Callable[[], None]) -> GuestTimer:
        return GuestTimer(self, callback)

    def armed(self, timer: GuestTimer, deadline: int) -> None:
        """A timer has got a deadline."""
        self._armed[timer] = deadline
        if self._stopped_at is None:
            timer.host.arm(deadline + self._offset)

    def fired(self, timer: GuestTimer) -> None:
        """Its deadline has come."""
        self._armed.pop(timer, None)

    def disarmed(self, timer: GuestTimer) -> None:
        self._armed.pop(timer, None)
        timer.host.cancel()

    def stop(self) -> None:
        if self._stopped_at is None:
            self._stopped_at = self.now()
            for timer in self._armed:
                timer.host.cancel()

    def go(self) -> None:
        """Go on where the clock stood."""
        if self._stopped_at is not None:
            self._offset = self.host.now() - self._stopped_at
            self._stopped_at = None
            for timer, deadline in list(self._armed.items()):
                self.armed(timer, deadline)

    def set(self, now: int) -> None:
        """Let the clock say *now*, as it did when a snapshot was made; while it stands."""
        assert self._stopped_at is not None
        self._stopped_at = now


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

    def set(self, now: int) -> None:
        """Let the clock say *now*; no timer fires."""
        self._now = now

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
