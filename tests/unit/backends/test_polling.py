"""When a thread waits awake: where what it waits for has just come soon, and where it was not in vain each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.backends.polling import MOST_SLEPT, POLL_NS, AdaptivePolling, Events

STEP = 1000
"""Nanoseconds of a look."""


class Bell:
    """Rings *after* nanoseconds from when it is first asked; notes each wait, as whether that ended awake."""

    def __init__(self) -> None:
        self.time = 0
        self.after = 0
        self.busy = 0
        """Nanoseconds that were spent awake."""
        self.awake: list[bool] = []
        self._rings: int | None = None

    def now(self) -> int:
        return self.time

    def poll(self, timeout: float | None, maxevents: int) -> Events:
        assert maxevents == 1 and timeout in (0, None)
        if self._rings is None:
            self._rings = self.time + self.after
        if timeout is None:
            self.time = max(self.time, self._rings)
        else:
            self.time += STEP
            self.busy += STEP
        if self.time < self._rings:
            return []
        self._rings = None
        self.awake.append(timeout == 0)
        return [(7, 1)]


def wait(polling: AdaptivePolling, bell: Bell, after: int, times: int = 1) -> list[bool]:
    bell.after, bell.awake = after, []
    for _ in range(times):
        assert polling.wait(bell.poll) == [(7, 1)]
    return bell.awake


def test_what_came_soon_is_waited_for_awake() -> None:
    bell = Bell()
    polling = AdaptivePolling(2, bell.now)
    assert wait(polling, bell, POLL_NS) == [False] and wait(polling, bell, POLL_NS // 2, 3) == [False, True, True]
    assert wait(polling, bell, 10 * POLL_NS, 2) == [False, False] and bell.busy < 3 * POLL_NS
    assert wait(polling, bell, POLL_NS // 2, 4) == [False, False, True, True], "it was in vain once"


def test_one_processor_is_left_to_who_is_to_ring() -> None:
    bell = Bell()
    assert wait(AdaptivePolling(1, bell.now), bell, 1, 9) == [False] * 9 and bell.busy == 0


def test_in_vain_it_is_ever_more_rarely_so() -> None:
    """What comes soon for who sleeps, and not for who is awake: both have one processor."""
    bell = Bell()
    polling = AdaptivePolling(2, bell.now)
    for _ in range(10_000):
        bell.after = 2 * POLL_NS if polling._soon and not polling._sleeps else POLL_NS // 2
        polling.wait(bell.poll)
    assert POLL_NS < bell.busy < 10_000 // MOST_SLEPT * 2 * POLL_NS


def test_two_that_count_at_once_do_no_harm() -> None:
    bell = Bell()
    polling = AdaptivePolling(2, bell.now)
    polling._sleeps = -1
    assert wait(polling, bell, POLL_NS // 2, 3) == [False, True, True]


@given(st.lists(st.integers(0, 3 * POLL_NS), max_size=300))
def test_it_is_never_awake_for_longer_than_it_may(gaps: list[int]) -> None:
    bell = Bell()
    polling = AdaptivePolling(2, bell.now)
    for gap in gaps:
        before = bell.busy
        wait(polling, bell, gap)
        assert bell.busy - before <= POLL_NS + STEP
