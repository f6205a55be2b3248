"""Starting one of the guests that come with pyvmm."""

from __future__ import annotations

from pyvmm import guests
from pyvmm.boot.entry import CpuState, long_mode, protected_mode, real_mode
from pyvmm.config import ConfigError, MachineConfig
from pyvmm.memory import GuestMemory

REAL_MODE_STACK = 0x7000
STACK = 0x80000


def load_guest(config: MachineConfig, memory: GuestMemory) -> CpuState:
    """Put the guest that *config* names, or the default one, into RAM; UserError where that does not go."""
    name = guests.DEFAULT if config.guest is None else config.guest
    guest = guests.load(name).with_parameters(**dict(config.guest_parameters))
    if guest.memory > config.memory:
        raise ConfigError(f"guest {guest.name} needs {guest.memory >> 10} KiB: give it that", {"memory": config.memory})
    memory.write(guest.address, guest.image)
    if guest.mode == "real":
        return real_mode(0, guest.entry, sp=REAL_MODE_STACK)
    if guest.mode == "protected":
        return protected_mode(memory, guest.entry, esp=STACK)
    return long_mode(memory, guest.entry, rsp=STACK)
