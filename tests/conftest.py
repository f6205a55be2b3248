"""For all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

# A background job or nohup leaves these ignored, every child inherits that, and pyvmm then rightly does not end by it.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """How long an example takes says how busy the machine is. Hypothesis' plugin is off in the lab, where it is slow to
    import: who needs it there says so by himself."""
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import HealthCheck, settings

        settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("any machine")


@pytest.fixture
def no_wait() -> Iterator[None]:
    """Fail, and do not hang, where something waits that must not."""

    def fail(number: int, frame: FrameType | None) -> None:
        pytest.fail("it waits")

    old = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 60, 60)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure in the lab is shown at once, because a lab that dies later takes pytest's report with it."""
    if report.failed and os.environ.get("PYVMM_IN_LAB"):
        print(f"\n{report.nodeid} ({report.when}, {report.duration:.1f} s)\n{report.longreprtext}", file=sys.stderr)
