"""What a process in the guest reads from /dev/input/event*: evtest with busybox alone."""

from __future__ import annotations

import re
import struct
from itertools import count

from tests.rig.guest import Guest

INPUT_EVENT = struct.Struct("<qqHHi")
"""struct input_event of a 64-bit guest: seconds, microseconds, type, code, value."""
Event = tuple[int, int, int]
TRIES = 500  # looks for events that do not come; each takes the guest 50 ms and more


def input_devices(guest: Guest) -> dict[str, dict[str, str]]:
    """/proc/bus/input/devices by name: the I, P and H lines, and "event", the name of the device's node."""
    devices = {}
    for block in guest.shell("cat /proc/bus/input/devices").split("\n\n"):
        if name := re.search(r'N: Name="(.*)"', block):
            device = dict(re.findall(r"^([IPH]): (.*)$", block, re.MULTILINE))
            found = re.search(r"\bevent\d+", device["H"])
            devices[name[1]] = device | {"event": found[0] if found else ""}
    return devices


_numbers = count()


class Events:
    """A reader of one event device; it reads from now on."""

    def __init__(self, guest: Guest, name: str) -> None:
        node = input_devices(guest)[name]["event"]
        self._guest = guest
        self.file = f"/tmp/{node}-{next(_numbers)}"
        self._seen = 0
        guest.shell(f"cat /dev/input/{node} >{self.file} & sleep 0.2")

    def read(self, count: int) -> list[Event]:
        """Wait until *count* events have come since the last call; all that have, as (type, code, value).

        Where they do not come it is fewer, and the shell in the guest is still there for the next test.
        """
        size = (self._seen + count) * INPUT_EVENT.size
        fewer = f'[ "$(wc -c <{self.file})" -lt {size} ] && [ $((n += 1)) -lt {TRIES} ]'
        wait = f"n=0; while {fewer}; do usleep 20000; done"
        dump = self._guest.shell(f"{wait}; od -An -v -tx1 -j{self._seen * INPUT_EVENT.size} {self.file}")
        data = bytes.fromhex("".join(dump.split()))
        events = [event[2:] for event in INPUT_EVENT.iter_unpack(data)]
        self._seen += len(events)
        return events

    def read_until(self, last: Event) -> list[Event]:
        """All that have come since the last call, once *last* is among them; fewer where it does not come.

        For a pointer, of which nobody can say how many: what moves while the guest is busy comes in one packet.
        """
        seen: list[Event] = []
        while last not in seen and (more := self.read(1)):
            seen += more
        return seen
