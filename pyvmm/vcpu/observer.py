"""Who watches a vCPU's exits one by one: the trace, a timeline, a debugger's step, a recording."""

from __future__ import annotations

from typing import Protocol

from kvm_cffi import Exit, Vcpu
from kvm_cffi.exits import MmioRead, PioIn
from pyvmm.trace import Channel
from pyvmm.vcpu.exits import describe


class Observer(Protocol):
    """Called in the vCPU's thread; exited() and answered() under the machine lock."""

    def entering(self, vcpu: Vcpu) -> None:
        """KVM_RUN is next."""

    def gathered(self, pio: bool, address: int, size: int, value: int) -> None:
        """KVM had kept this write, of whichever vCPU, until now (KVM_REGISTER_COALESCED_MMIO); under the lock."""

    def exited(self, vcpu: Vcpu, exit: Exit) -> None:
        """It has come back with *exit*, which has not been served yet."""

    def answered(self, vcpu: Vcpu, exit: Exit, value: int) -> None:
        """A device has given *value* for a read; the guest gets it at the next KVM_RUN."""


class RunTrace:
    """The trace channel `kvm-run`: a line for each KVM_RUN."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def wanted(self) -> bool:
        return self._channel.on

    def entering(self, vcpu: Vcpu) -> None:
        self._channel(f"vcpu{vcpu.id} KVM_RUN")

    def gathered(self, pio: bool, address: int, size: int, value: int) -> None: ...

    def exited(self, vcpu: Vcpu, exit: Exit) -> None: ...

    def answered(self, vcpu: Vcpu, exit: Exit, value: int) -> None: ...


class ExitTrace:
    """The trace channel `exits`: a line for each exit, and for what a read is answered with."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def wanted(self) -> bool:
        return self._channel.on

    def entering(self, vcpu: Vcpu) -> None: ...

    def gathered(self, pio: bool, address: int, size: int, value: int) -> None: ...

    def exited(self, vcpu: Vcpu, exit: Exit) -> None:
        self._channel(f"vcpu{vcpu.id} {describe(exit)}")

    def answered(self, vcpu: Vcpu, exit: Exit, value: int) -> None:
        if isinstance(exit, PioIn):
            self._channel(f"vcpu{vcpu.id} gets {value:#x} from port {exit.port:#x}")
        elif isinstance(exit, MmioRead):
            self._channel(f"vcpu{vcpu.id} gets {value:#x} from {exit.address:#x}")
