"""Waiting awake for what comes soon, as KVM's halt polling does (virt/kvm/halt-polling) and QEMU's iothreads.

A guest that has one thing done at a time rings again as soon as it has that. The thread that slept meanwhile, on a
processor at rest, would take longer to wake up than to do what it is asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, Protocol

POLL_NS: Final = 100_000
"""Nanoseconds that one waits awake at most, and within which something has to come for the next to be waited for so."""
MOST_SLEPT: Final = 255
"""Waits that are slept through after some that were in vain: where no processor is free there is nothing to win."""

Events = list[tuple[int, int]]


class Poll(Protocol):
    """select.epoll.poll()."""

    def __call__(self, timeout: float | None, maxevents: int, /) -> Events: ...


class AdaptivePolling:
    """For all threads that wait for the same; one of them at a time does so awake. It keeps no lock: who comes in
    between costs a wait that is awake or is not."""

    def __init__(self, processors: int | None = None, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._now = now
        self._of_use = (processors or len(os.sched_getaffinity(0))) > 1
        self._soon = False
        """The last that came did so within POLL_NS."""
        self._sleeps = 0
        """Waits that are yet to be slept through."""
        self._missed = 0
        """How many were after the last time in vain."""

    def wait(self, poll: Poll) -> Events:
        """One event of *poll*, when there is one."""
        began = self._now()
        if self._soon and self._sleeps > 0:  # two may have counted the last
            self._sleeps -= 1
        elif self._soon:
            self._soon = False  # for the others
            while self._now() - began < POLL_NS:
                events = poll(0, 1)
                if events:
                    self._soon, self._missed = True, 0
                    return events
            self._sleeps = self._missed = min(2 * self._missed + 1, MOST_SLEPT)
        events = poll(None, 1)
        self._soon = self._of_use and self._now() - began < POLL_NS
        return events
