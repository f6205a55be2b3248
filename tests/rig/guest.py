"""A guest under test: a machine that runs in a thread of this process, with a script's hands on all of it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

from pyvmm.config import MachineConfig
from pyvmm.host.console import Console
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import Outcome
from pyvmm.machine.saved import Saved
from pyvmm.screen.screen import Screen
from pyvmm.testing.patience import LOOK_S, PATIENCE, Patience
from pyvmm.testing.shell import shell
from pyvmm.testing.transcript import Transcript, TranscriptError

USERSPACE = "pyvmm guest: userspace"
"""The first line of scripts/guest-init."""


def irq_counts(table: str) -> dict[str, list[int]]:
    """/proc/interrupts as {"1": [count on each CPU], "LOC": …}; a device that has a name is found by it too."""
    lines = table.splitlines()
    start = next(i for i, line in enumerate(lines) if "CPU0" in line)
    cpus = len(lines[start].split())
    counts: dict[str, list[int]] = {}
    for line in lines[start + 1 :]:
        label, _, rest = line.partition(":")
        words = rest.split()
        numbers = [int(word) for word in words[:cpus] if word.isdigit()]
        counts[label.strip()] = numbers
        if label.strip().isdigit() and len(words) > cpus:
            counts[words[-1]] = numbers
    return counts


def system_ram(iomem: str) -> list[int]:
    """The sizes of the pieces of RAM in /proc/iomem."""
    pieces = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM$", iomem, re.MULTILINE)
    return [int(last, 16) + 1 - int(first, 16) for first, last in pieces]


LABS_OWN = (
    re.compile(r"Unstable clock detected(.|\n)*?on the kernel command line"),
    re.compile(r"(?<=\] )(clocksource: |hrtimer: interrupt took |sched: RT throttling ).*"),
)
"""Warnings that the lab's processor is to blame for, not the machine under test: on a busy host the time between two
looks at a clock is long, and so is that which an interrupt's thread takes."""


def warnings(log: str) -> list[str]:
    """The lines of `dmesg -r` that are warnings or worse, but for LABS_OWN."""
    for pattern in LABS_OWN:
        log = pattern.sub("", log)
    return [line for line in log.splitlines() if re.match(r"<[0-4]>\[ *\d+\.\d+\] .*\S", line)]


class Guest(Transcript):
    """Runs from its construction until it ends or close(); what it sends on COM1 is the transcript.

    Each vCPU stays on one processor: in a lab with two, one that moves meets a triple fault now and then, in QEMU too.
    """

    def __init__(self, config: MachineConfig, saved: Saved | None = None) -> None:
        """*saved*, which has *config*, goes on: Guest.restored()."""
        super().__init__(f"{config.kernel} {config.cmdline}")
        self.trace: list[str] = []
        self.exits = 0
        """How often the guest has gone to userspace until its first line."""
        self.machine = Machine(config, lambda ns, channel, message: self.trace.append(f"{channel} {message}"), saved)
        self.machine.serial.add(self.feed)
        input_end, self._input = os.pipe()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        self._fds = [input_end, self._input, nowhere]
        self._console = Console(input_end, nowhere)
        self._console.attach(
            self.machine.life.loop, self.machine.board.com1, self.machine.life.cpus.throttle, lambda letter: None
        )
        for number, thread in enumerate(self.machine.life.cpus.threads if config.cpus > 1 else []):
            thread.call(partial(os.sched_setaffinity, 0, {number % (os.cpu_count() or 1)}))
        self.machine.events.add(lambda event: self.feed(b"") if event.kind == "ended" else None)
        self.machine.start()

    @classmethod
    def restored(cls, path: Path) -> Self:
        """One that was saved."""
        saved = Saved(str(path))
        return cls(saved.config, saved)

    def feed(self, data: bytes) -> None:
        super().feed(data)
        if not self.exits and USERSPACE.encode() in self._received[-2 * len(USERSPACE) :]:
            self.exits = sum(vcpu.exits for vcpu in self.machine.vcpus)

    @property
    def outcome(self) -> Outcome | None:
        return self.machine.outcome

    def error(self, text: str) -> TranscriptError:
        """With how the guest ended, if it has."""
        if self.machine.life.error is not None:
            text += f" (the machine raised {self.machine.life.error!r})"
        elif self.outcome is not None:
            text += f" ({self.outcome.end.name}: {self.outcome.message}\n{self.outcome.report}\n)"
        return super().error(text)

    def send(self, text: str) -> None:
        """Type *text* at the other end of COM1."""
        os.write(self._input, text.encode())

    def shell(self, command: str, timeout: float = PATIENCE, status: int | None = 0) -> str:
        """What *command* printed in the shell on COM1."""
        return shell(self, command, timeout, status)

    @property
    def screen(self) -> Screen:
        """What the guest's screen shows now."""
        return self.machine.screen

    def patience(self, seconds: float = PATIENCE) -> Patience:
        """Output and what changes on the screen is progress."""
        screen = self.machine.board.vga
        return Patience(seconds, self.pid, lambda: (len(self._received), self.machine.call(screen.generation)))

    def until(self, condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
        """Wait until *condition* holds; AssertionError says *what* did not come."""
        patience = self.patience(timeout)
        while not condition():
            if patience.is_over or self.outcome is not None:
                rows = "\n".join(row.rstrip() for row in self.screen.text()).rstrip()
                raise self.error(f"{what} did not come within {timeout:g} s of its own time; the screen:\n{rows}\nand")
            time.sleep(0.05)

    def expect_screen(self, text: str, timeout: float = PATIENCE) -> None:
        """Wait until the screen shows *text*."""
        self.until(lambda: text in self.screen, f"{text!r} on the screen", timeout)

    def type(self, text: str, timeout: float = PATIENCE) -> None:
        """Type *text* on the guest's keyboard, and wait until the guest has taken it."""
        self.machine.keyboard.type(text)
        self.machine.call(lambda: None)  # type() takes its turn in the loop too
        self.until(lambda: self.machine.keyboard.idle, f"the guest's reading of {text!r}", timeout)

    def wait(self, timeout: float = PATIENCE) -> Outcome:
        """How the guest ended; raises what the machine raised."""
        patience = self.patience(timeout)
        while not self.machine.life.wait_for_the_end(LOOK_S):
            if patience.is_over:
                raise self.error(f"still running after {timeout:g} s of its own time")
        return self.machine.run()

    def close(self) -> None:
        """End the guest if it has not ended, and give everything back."""
        self.machine.close()
        self._console.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
