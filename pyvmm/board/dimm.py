"""RAM that comes and goes while a guest runs: a device that is asked for like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyvmm.config import MEMORY_BLOCK
from pyvmm.device_spec import DeviceSpec
from pyvmm.units import size_of, size_text

if TYPE_CHECKING:
    from pyvmm.memory import Region

MEMORY: Final = "memory"
"""What it is asked for by."""


class Dimm:
    """RAM in a slot of its own (-m SIZE,slots=N,max=SIZE), which may come and go while the guest runs.

    *size* is written as -m has it, a multiple of 128M; *address* is where the guest finds it, such a multiple too, or
    the lowest that is free. ValueError for another size or address.
    """

    def __init__(self, size: str, *, address: int | None = None) -> None:
        self.size = size_of(size)
        """In bytes."""
        block = size_text(MEMORY_BLOCK)
        if not self.size or self.size % MEMORY_BLOCK:
            raise ValueError(f"size={size} is no multiple of {block}")
        if address is not None and address % MEMORY_BLOCK:
            raise ValueError(f"address={address:#x} is no multiple of {block}")
        self.address = address
        """Where the guest has it; None until it is plugged in, where nobody has said."""
        self.slot: int | None = None
        """None while it is in none."""
        self.region: Region | None = None

    def spec(self, name: str | None = None) -> DeviceSpec:
        """What it would be asked for by, called *name*, to be where it is."""
        place = ("size", size_text(self.size)), *(() if self.address is None else (("address", f"{self.address:#x}"),))
        return DeviceSpec(MEMORY, place, name, slot=self.slot)

    def __repr__(self) -> str:
        where = "" if self.address is None else f" at {self.address:#x}"
        return f"<Dimm of {size_text(self.size)}{where}>"
