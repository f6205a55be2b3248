"""Devices as --device makes them, without a machine."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from pyvmm.backends.disks import Disks
from pyvmm.backends.sockets import Sockets
from pyvmm.backends.wire import Networks
from pyvmm.clock import Clock, FakeClock
from pyvmm.device_spec import DeviceSpec
from pyvmm.devices.pc_testdev import FlushPage, IsaLines
from pyvmm.irq import FakeIrq
from pyvmm.loop import Loop
from pyvmm.machine.registry import Services, make
from pyvmm.memory import GuestMemory
from pyvmm.trace import OFF, Channel
from pyvmm.virtio.vhost import RingServers
from tests.rig.net_driver import FakeWire, OneWire
from tests.rig.vhost import FakeVhost

SERVICES: Services = {
    Channel: lambda: OFF,
    Clock: FakeClock,
    Disks: lambda: Disks(lambda call: None),
    FlushPage: lambda: lambda gpa: None,
    IsaLines: lambda: [FakeIrq() for _ in range(16)],
    Networks: lambda: OneWire(FakeWire()),
    RingServers: lambda: FakeVhost(GuestMemory.of_size(0x1000)),
    Sockets: lambda: Sockets(Loop(nullcontext())),
}


def made(text: str) -> Any:
    """The device that NAME,KEY=VALUE,... or FILE.py:CLASS,... is."""
    return make(DeviceSpec.parse(text), SERVICES)
