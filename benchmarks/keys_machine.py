"""A machine with guests/kbd-inb60 that takes QMP's input-send-event on a socket, as QEMU does; see keys.py.

usage: python -m benchmarks.keys_machine FILE COUNT [FD]

Answers the commands that come on descriptor FD and puts what the guest writes to port 0xE9 on stdout; without FD it
presses the keys itself, with machine.keyboard.key() from a thread of its own. At the end FILE has JSON: for each of the
COUNT events the clock (CLOCK_MONOTONIC, in ns) at each step of its way.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.keys import TIMEOUT, gap
from pyvmm import guests
from pyvmm.board import layout
from pyvmm.config import MachineConfig
from pyvmm.devices.i8042 import I8042
from pyvmm.input.codes import KEY_A
from pyvmm.irq import Irq
from pyvmm.machine.machine import Machine

now = time.monotonic_ns


class Steps:
    """When each event was where."""

    def __init__(self) -> None:
        self.received: list[int] = []
        """The loop's callback has the machine lock; or just before inject_key()."""
        self.parsed: list[int] = []
        self.raised: list[int] = []
        """Just before KVM_IRQ_LINE."""
        self.asked: list[int] = []
        """The guest's IN has arrived at the device."""
        self.read: list[int] = []
        """The device has its value."""


class TimedI8042:
    """The i8042, and a note of when the guest reads port 0x60."""

    def __init__(self, i8042: I8042, steps: Steps) -> None:
        self._read, self.write = i8042.read, i8042.write
        self._steps = steps

    def read(self, offset: int, size: int) -> int:
        asked = now()
        value = self._read(offset, size)
        self._steps.read.append(now())
        self._steps.asked.append(asked)
        return value


class TimedIrq:
    """IRQ 1, and a note of when it goes up."""

    def __init__(self, irq: Irq, steps: Steps) -> None:
        self._set_level, self.pulse = irq.set_level, irq.pulse
        self._steps = steps

    def set_level(self, level: bool) -> None:
        if level:
            self._steps.raised.append(now())
        self._set_level(level)


def serve(machine: Machine, fd: int, steps: Steps) -> None:
    """Be QMP's server on *fd*, in the machine's loop, as far as keys.Driver goes."""
    source = machine.board.router.source("qmp")

    def send(message: dict[str, Any]) -> None:
        os.write(fd, json.dumps(message).encode() + b"\r\n")

    def command() -> None:
        received = now()
        line = os.read(fd, 4096)
        if not line:
            machine.life.loop.remove(fd)
            return
        message = json.loads(line)
        if message["execute"] == "input-send-event":
            data = message["arguments"]["events"][0]["data"]
            steps.parsed.append(now())
            source.key(KEY_A, int(data["down"]))
            steps.received.append(received)
        machine.life.loop.post(lambda: send({"return": {}}))  # QEMU answers in another thread than the command's

    machine.life.loop.add(fd, command)
    send({"QMP": {}})


def press(machine: Machine, count: int, taken: threading.Semaphore, steps: Steps) -> None:
    """Press and release A with machine.keyboard.key(), each when the guest has taken the last."""
    for number in range(count):
        taken.acquire()
        time.sleep(gap())
        steps.received.append(now())
        machine.keyboard.key(KEY_A, 1 - number % 2)


def run(file: Path, count: int, serial: Callable[[bytes], None], connect: Callable[[Machine, Steps], None]) -> None:
    """Run a machine for *count* events, and leave their steps in *file*."""
    guest, steps = guests.load("kbd-inb60"), Steps()
    config = MachineConfig(guest=guest.name, memory=guest.memory, guest_parameters=(("count", count),))
    with Machine(config) as machine:
        machine.serial.add(serial)
        machine.board.pio.unmap(layout.I8042_DATA, 1)
        machine.board.pio.map(layout.I8042_DATA, 1, TimedI8042(machine.board.i8042, steps))
        machine.board.i8042._irq1 = TimedIrq(machine.board.i8042._irq1, steps)
        connect(machine, steps)
        machine.run(TIMEOUT)
    file.write_text(json.dumps({name: when[-count:] for name, when in vars(steps).items()}))


def main(arguments: list[str]) -> int:
    file, count = Path(arguments[0]), int(arguments[1])
    if len(arguments) > 2:
        fd = int(arguments[2])

        def stdout(data: bytes) -> None:
            os.write(1, data)

        run(file, count, stdout, lambda machine, steps: serve(machine, fd, steps))
    else:
        taken = threading.Semaphore(0)  # one for each byte from the guest, the first of which says that it is ready

        def connect(machine: Machine, steps: Steps) -> None:
            threading.Thread(target=press, args=(machine, count, taken, steps), daemon=True).start()

        run(file, count, lambda data: taken.release(), connect)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
