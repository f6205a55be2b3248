"""A machine with Linux and a virtio keyboard, and a captured keyboard of the host; see virtio.py.

usage: python -m benchmarks.virtio_machine FILE KERNEL INITRD CMDLINE EVDEV

Captures as `pyvmm run --keyboard evdev=EVDEV` does. stdout has what the guest writes to port 0xE9. When stdin ends the
machine ends, and FILE has JSON: for each key the clock (CLOCK_MONOTONIC, in ns) at each step of its way.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.virtio import MEMORY_MB
from pyvmm.board import layout
from pyvmm.config import HostConfig, MachineConfig
from pyvmm.host.console import Console
from pyvmm.host.session import Session
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from pyvmm.virtio.input import VirtioKeyboard
from pyvmm.virtio.pci import VirtioPci

now = time.monotonic_ns


def main(arguments: list[str]) -> int:
    file, kernel, initrd = (Path(argument) for argument in arguments[:3])
    cmdline, keyboard = arguments[3:]
    steps: dict[str, list[int]] = {"captured": [], "sent": [], "answered": []}

    def debug_console(data: bytes) -> None:
        steps["answered"].append(now())
        os.write(1, data)

    config = MachineConfig(
        memory=MEMORY_MB * MIB, kernel=kernel, initrd=initrd, cmdline=cmdline, virtio_input="standard"
    )
    null = os.open(os.devnull, os.O_RDWR)
    with Machine(config) as machine:
        machine.serial.add(debug_console)
        function = machine.board.pci.root.functions[layout.VIRTIO_INPUT_SLOT << 3]
        assert isinstance(function, VirtioPci)
        device = function.device
        assert isinstance(device, VirtioKeyboard)
        send = device.key

        def key(code: int, value: int) -> None:
            steps["captured"].append(now())
            send(code, value)
            steps["sent"].append(now())

        device.key = key  # type: ignore[method-assign]
        host = HostConfig(keyboard=f"evdev={keyboard}")
        with Session(machine, host, Console(null, null)):
            machine.life.loop.add(0, lambda: machine.end(Outcome(End.QUIT)))
            outcome = machine.run()
    file.write_text(json.dumps(steps))
    return 0 if outcome.end is End.QUIT else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
