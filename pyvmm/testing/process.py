"""What /proc tells of a program under test, for tests that follow it instead of sleeping and guessing (proc(5))."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_S = 0.2
MOST_CPU_S = 20.0
"""What a program that comes to rest uses up until then at the most."""
WAKES_A_SECOND = 10
"""Of a program that rests: its threads may look at something now and then."""


def status(path: Path) -> dict[str, str]:
    """The fields of a status file of a process or thread."""
    fields = (line.partition(":") for line in (path / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in fields}


def catches(pid: int, number: int) -> bool:
    """Whether it has a handler for the signal."""
    return bool(int(status(Path(f"/proc/{pid}"))["SigCgt"], 16) >> (number - 1) & 1)


def is_stopped(pid: int) -> bool:
    """By a signal."""
    return status(Path(f"/proc/{pid}"))["State"].startswith("T")


def memory(pid: int) -> int:
    """Resident bytes that are not guest RAM."""
    return int(status(Path(f"/proc/{pid}"))["RssAnon"].split()[0]) << 10


def cpu_time(pid: int) -> float:
    """Seconds that its threads have run for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def threads(pid: int) -> Iterator[Path]:
    """Of the process and of those that it has started, and they, but for the thread that asks."""
    own = os.path.realpath("/proc/thread-self")
    with contextlib.suppress(OSError):  # it has just ended
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            if os.fspath(task) != own:
                yield task
            with contextlib.suppress(OSError):
                for child in (task / "children").read_text().split():
                    yield from threads(int(child))


def wants_to_run(pid: int) -> bool:
    """Whether some thread of the program is on a processor, or waits for one or for a disk."""
    for task in threads(pid):
        with contextlib.suppress(OSError):
            if status(task)["State"][0] in "RD":
                return True
    return False


def rests(pid: int) -> bool:
    """Wait until the process is asleep and has hardly been awake since the last look; False if it ends before, or is
    busy without end."""
    switches, looked = -1, 0.0
    with contextlib.suppress(OSError):
        while cpu_time(pid) < MOST_CPU_S:
            tasks = [status(task) for task in Path(f"/proc/{pid}/task").iterdir()]
            if any(task["State"].startswith("Z") for task in tasks):
                return False
            before, since = switches, time.monotonic() - looked
            switches, looked = sum(int(task["voluntary_ctxt_switches"]) for task in tasks), time.monotonic()
            asleep = all(task["State"].startswith("S") for task in tasks)
            if asleep and 0 <= before <= switches <= before + WAKES_A_SECOND * since:
                return True
            time.sleep(LOOK_S)
    return False
