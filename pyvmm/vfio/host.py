"""What a device that is passed through needs of this host: itself, and a wire for its INTx.

kvm_cffi.vfio.VfioDevice is the one, board/passthrough.py gives both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvm_cffi.vfio import IrqInfo, VfioRegion
from pyvmm.pci.device import PciDevice


class HostDevice(Protocol):
    """See kvm_cffi.vfio.VfioDevice. All of it raises OSError where the host refuses."""

    can_reset: bool

    def region(self, index: int) -> VfioRegion | None: ...

    def read(self, region: VfioRegion, offset: int, size: int) -> bytes: ...

    def write(self, region: VfioRegion, offset: int, data: bytes) -> None: ...

    def map(self, region: VfioRegion, offset: int, size: int) -> memoryview: ...

    def irq(self, index: int) -> IrqInfo: ...

    def set_triggers(self, index: int, fds: Sequence[int | None]) -> int: ...

    def disable(self, index: int) -> None: ...

    def unmask(self, index: int) -> None: ...

    def unmask_by(self, index: int, fd: int) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class IntxLine(Protocol):
    """A way for the device's INTx to the guest's interrupt controllers, and back for the end of the interrupt."""

    trigger: int
    """The eventfd that the device signals."""
    unmask: int | None
    """The eventfd that KVM signals when the guest has ended the interrupt; None where the function is told itself."""
    is_up: bool
    """It has raised the line by itself, and the guest has not ended that interrupt."""

    def close(self) -> None: ...


class Passthrough(Protocol):
    """Gives devices of the host: what a VfioPci is made with."""

    def open(self, name: str) -> HostDevice:
        """The device at *name*, [DDDD:]BB:DD.F, whose DMA reaches guest RAM from now on. UserError says what is in the
        way, and what to do. It is closed at the end of the board, if nobody has closed it before."""

    def give_back(self, name: str) -> None:
        """Close the device *name*, whose driver on this host may have it again."""

    def hot_reset(self, name: str) -> None:
        """Reset the bus that the device *name* is on. OSError where one of its devices is not in a group of this
        guest's, or the bus has no reset."""

    def iova(self, address: int) -> str:
        """What an address of the devices' leads to: guest RAM and where that is on this host, or why to nothing."""

    def let_peers_reach(self, memory: memoryview) -> None:
        """Let all devices of this guest reach *memory*, a piece of a BAR, where the guest sees it, as long as there is
        that view of it."""

    def submit(self, job: Callable[[], None], done: Callable[[], None]) -> None:
        """Run *job*, which raises nothing, in another thread, then *done* under the machine lock."""

    def drain(self) -> None:
        """Wait until all that was submitted is done. Raises UserError where the host does not answer."""

    def say(self, line: str) -> None:
        """One line for the user."""

    def watch_trace(self, call: Callable[[], None]) -> None:
        """*call* hears, by the loop, when somebody may have begun or ceased to watch a channel of the trace."""

    def unwatch_trace(self, call: Callable[[], None]) -> None:
        """It hears no more of it; nothing where it does not hear."""

    def watch(self, call: Callable[[], None]) -> int:
        """An eventfd for a device to signal: *call* hears of it, by the loop."""

    def unwatch(self, fd: int) -> None:
        """Close an eventfd of watch()."""

    def intx(
        self,
        function: PciDevice,
        raised: Callable[[], None],
        ended: Callable[[], None],
        seen: Callable[[str], None] | None,
    ) -> IntxLine:
        """A line for the INTx of *function*, which is plugged in. Where KVM cannot do all of it, *raised* is called
        when the device signals, and *ended* when the guest ends an interrupt of that line. With *seen* each goes by the
        loop, and is told."""
