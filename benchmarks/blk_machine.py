"""A machine with guests/blk-bench, and what its threads take; see blk.py.

usage: python benchmarks/blk_machine.py COUNT DEPTH

Prints JSON: the processor time of each thread in µs a request (/proc/PID/task/TID/schedstat), and what the guest said.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from pathlib import Path

from pyvmm import guests
from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.units import MIB


def taken(thread: threading.Thread) -> float:
    """The processor time that it has had, in µs."""
    return int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) / 1000


def name(thread: threading.Thread) -> str:
    if thread.name.startswith("disk"):
        return "the disk's threads: doorbell, ring, preadv, interrupt"
    return "the loop" if thread.name == "machine" else "the vCPU"


def main(count: int, depth: int) -> int:
    guest = guests.load("blk-bench")
    said: list[bytes] = []
    with tempfile.TemporaryDirectory() as directory:
        disk = Path(directory) / "disk"
        disk.write_bytes(bytes(16 * MIB))
        parameters = (("count", count), ("depth", depth))
        config = MachineConfig(
            guest=guest.name,
            memory=guest.memory,
            guest_parameters=parameters,
            devices=(f"virtio-blk,path={disk}",),
        )
        seen: dict[threading.Thread, float] = {}
        ended = threading.Event()

        def look() -> None:
            """In the loop, when the guest says its last."""
            for thread in threading.enumerate():
                if thread is not threading.main_thread() and thread.native_id is not None:
                    seen[thread] = taken(thread)
            ended.set()

        def hear(data: bytes) -> None:
            said.append(data)
            if b"\n" in data:
                look()

        with Machine(config) as machine:
            machine.serial.add(hear)
            machine.start()
            ended.wait(100)
        sums: dict[str, float] = {}
        for thread, us in seen.items():
            sums[name(thread)] = sums.get(name(thread), 0) + us / count
    print(json.dumps({**dict(sorted(sums.items())), "said": b"".join(said).decode()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
