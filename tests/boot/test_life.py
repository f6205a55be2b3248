"""A Linux that lives on: paused for longer than its watchdogs wait, and reset in place, under every irqchip."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pytest

from pyvmm.config import MachineConfig
from pyvmm.machine.snapshot import Snapshot
from pyvmm.testing.shell import shell
from pyvmm.testing.transcript import Transcript
from pyvmm.units import MIB
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS_CLOUD

PAUSE: Final = 35.0
"""Seconds: the soft-lockup detector of the guest waits for 20, its RCU for 21."""
HZ: Final = 250
"""CONFIG_HZ of Debian's kernels."""
CONFIGURATIONS: Final = (("kernel", 1), ("kernel", 2), ("split", 1), ("user", 1))


MOMENTS: Final = int(os.environ.get("PYVMM_SOAK_MOMENTS", "3"))
"""At which a snapshot is taken; scripts/soak has more."""
BUSY: Final = "echo go; i={}; while [ $i -gt 0 ]; do i=$((i-1)); cat /proc/interrupts >/dev/null; done; echo done-$i\n"
"""To be told how often; DONE is its last line."""
DONE: Final = "done-0"


@dataclass
class Clocks:
    """What the guest's clocks say, in seconds, and the host's."""

    before: float
    """On the host's clock, before the guest is asked, and when it has answered."""
    after: float
    monotonic: float
    """CLOCK_BOOTTIME, of the guest's clock source."""
    took: float
    """How long the guest took for all of this, by the same clock."""
    realtime: float
    jiffies: float
    """The ticks of the guest's timer."""

    @classmethod
    def of(cls, guest: Guest) -> Clocks:
        before = time.monotonic()
        text = guest.shell(
            "cat /proc/uptime; date +%s; grep '^jiffies:' /proc/timer_list | head -n 1; cat /proc/uptime"
        )
        uptime, realtime, jiffies, again = text.splitlines()
        monotonic, last = float(uptime.split()[0]), float(again.split()[0])
        return cls(before, time.monotonic(), monotonic, last - monotonic, float(realtime), int(jiffies.split()[1]) / HZ)

    def agree(self, earlier: Clocks) -> bool:
        """No clock has gone on further than another since: but for a second, and what the questions took."""
        passed, doubt = self.monotonic - earlier.monotonic, 1.5 + self.took + earlier.took
        return (
            abs(self.realtime - earlier.realtime - passed) <= doubt
            and abs(self.jiffies - earlier.jiffies - passed) <= doubt
        )


def logged(guest: Guest) -> list[str]:
    """Warnings and worse, without their times; the guest picks them out, for each byte on its console costs the lab
    an exit or two."""
    log = warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None))
    return [re.sub(r"\[ *[\d.]+\]", "", line) for line in log]


@pytest.fixture(scope="module")
def guests() -> Iterator[dict[tuple[str, int], Guest]]:
    """One of each, at its shell; they sleep while others boot."""
    with contextlib.ExitStack() as stack:
        found = {}
        for irqchip, cpus in CONFIGURATIONS:
            config = MachineConfig(
                memory=160 * MIB,
                cpus=cpus,
                kernel=CLOUD_KERNEL,
                initrd=INITRAMFS_CLOUD,
                cmdline="console=ttyS0 quiet",
                irqchip=irqchip,  # type: ignore[arg-type]
                virtio_input="none",
            )
            guest = stack.enter_context(Guest(config))
            guest.expect(USERSPACE)
            guest.expect("# ")
            found[irqchip, cpus] = guest
        yield found


def test_a_long_pause(guests: dict[tuple[str, int], Guest]) -> None:
    """All of them at once; afterwards nothing is logged, the clocks have stood as one, and timers go off."""
    before = {}
    for key, guest in guests.items():
        before[key] = Clocks.of(guest), logged(guest)
    for guest in guests.values():
        guest.machine.pause("test")
    time.sleep(PAUSE)
    for guest in guests.values():
        guest.machine.resume("test")
    for key, guest in guests.items():
        guest.shell("sleep 1; usleep 1000")
        clocks, (then, warned) = Clocks.of(guest), before[key]
        passed = clocks.monotonic - then.monotonic
        assert passed < clocks.after - then.before - PAUSE, (key, "the guest's time has stood")
        assert clocks.agree(then), (key, then, clocks)
        assert logged(guest) == warned, key
        assert guest.shell("cat /sys/devices/system/clocksource/clocksource0/current_clocksource").strip(), key


def test_many_short_pauses(guests: dict[tuple[str, int], Guest]) -> None:
    """At any moment of a busy guest."""
    for key, guest in guests.items():
        guest.send(BUSY.format(12))
        pauses = 0
        while DONE not in guest.output:
            with guest.machine.paused("test"):
                pauses += 1
            time.sleep(0.01)
            assert guest.outcome is None, key
        guest.expect(DONE)
        guest.expect("# ")
        assert pauses > 10
        assert DONE in guest.output


def at_work(guest: Guest, seed: random.Random) -> Snapshot:
    """Taken at a moment of a busy guest, which has printed nothing since it began."""
    for tries in range(10):
        guest.send(BUSY.format(12 << tries))
        guest.expect("\ngo")
        time.sleep(seed.random())
        snapshot = guest.machine.snapshot()
        with guest.machine.paused("test"):
            if not guest.output.rpartition("\ngo")[2].strip():
                return snapshot
        guest.expect(DONE)  # a fast host: it gets more to do
        guest.expect("# ")
    raise AssertionError("it was never busy for as long as that")


def test_back_to_a_snapshot(guests: dict[tuple[str, int], Guest]) -> None:
    """Taken at a moment of a busy guest, and gone back to twice: it works on from there, and finds nothing wrong."""
    seed = random.Random("Linux")
    for key, guest in guests.items():
        before, warned = Clocks.of(guest), logged(guest)
        whole = guest.machine.snapshot()  # held, for the next to be what was written since
        for _ in range(MOMENTS):
            snapshot = at_work(guest, seed)
            assert 0 < snapshot.size < whole.size / 4, "a further one has what was written since"
            for _ in range(2):
                time.sleep(seed.random())
                with guest.machine.paused("test"):
                    guest.machine.restore(snapshot)
                    guest.skip()
            guest.expect(DONE)
            guest.expect("# ")
        guest.shell("sleep 1; usleep 1000")
        clocks = Clocks.of(guest)
        passed = clocks.monotonic - before.monotonic
        assert 1 < passed < clocks.after - before.before, key
        assert clocks.agree(before), (key, before, clocks)
        assert logged(guest) == warned, key


def test_on_in_another_process(guests: dict[tuple[str, int], Guest], tmp_path: Path) -> None:
    """From a file: taken at a moment of a busy guest, it does what it did, in the time that the guest knows of."""
    seed = random.Random("file")
    for key, guest in guests.items():
        warned = logged(guest)
        for _ in range(MOMENTS // 2):
            at_work(guest, seed).save(tmp_path / "saved")
            guest.expect(DONE)
            guest.expect("# ")
        before = Clocks.of(guest)  # later than the last moment
        with Elsewhere(tmp_path / "saved") as other:
            other.expect(DONE)
            other.expect("# ")
            uptime = float(shell(other, "cat /proc/uptime").split()[0])
            assert uptime < before.monotonic + time.monotonic() - before.after
            assert shell(other, "sleep 1; usleep 1000; nproc").split() == [str(key[1])]
            log = warnings(shell(other, "dmesg -r | grep '^<[0-4]>'", status=None))
            assert [re.sub(r"\[ *[\d.]+\]", "", line) for line in log] == warned, key
            other.send("poweroff -f\n")
            assert other.process.wait() == 0, key


class Elsewhere(Transcript):
    """`pyvmm run --restore FILE`, a process of its own."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        command = [sys.executable, "-m", "pyvmm", "run", "--restore", str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 4096):
            self.feed(data)
        self.feed(b"")

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


def test_reboots_in_place(guests: dict[tuple[str, int], Guest]) -> None:
    """Linux' own reboot; of two CPUs then the reset button, too."""
    for key, guest in guests.items():
        events: list[str] = []
        warned = logged(guest)
        guest.machine.events.add(lambda event, events=events: events.append(event.kind))  # type: ignore[misc]
        guest.send("reboot -f\n")
        guest.expect(USERSPACE)
        guest.expect("# ")
        assert events == ["reset"], key
        assert guest.shell("nproc").split() == [str(key[1])]
        if key == ("kernel", 2):
            guest.machine.reset()
            guest.expect(USERSPACE)
            guest.expect("# ")
            assert events == ["reset", "reset"], key
        assert logged(guest) == warned, key
