"""Exit loops that do more and more of what pyvmm's does, to see what each part of an exit costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from kvm_cffi._kvm import lib
from kvm_cffi.vcpu import Io
from pyvmm import guests
from pyvmm.board.layout import DEBUG_EXIT
from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine

Loop = Callable[[Machine], None]


class Ended(Exception):
    """The guest has written to the port that ends it."""


class Nothing:
    """Devices that do nothing but notice the end."""

    def read(self, address: int, size: int) -> int:
        return 0xFF

    def write(self, address: int, size: int, value: int) -> None:
        if address == DEBUG_EXIT:
            raise Ended


def cffi_call(machine: Machine) -> None:
    """KVM_RUN through cffi, which gives the GIL away and takes it again."""
    vcpu, run, packed = machine.vcpus[0]._c, lib.kvm_cffi_run, 0
    vcpu.result = 0xFF
    while packed >> 16 & 0xFFFF != DEBUG_EXIT:
        packed = run(vcpu)


def served(machine: Machine, lock: AbstractContextManager[object], pio: Io) -> None:
    run, mmio = machine.vcpus[0].run_io, machine.board.mmio
    with contextlib.suppress(Ended):
        while machine.outcome is None:
            run(lock, pio, mmio)


def call(machine: Machine) -> None:
    """And the exit taken apart, and a call of Python for it."""
    served(machine, contextlib.nullcontext(), Nothing())


def lock(machine: Machine) -> None:
    """And the machine lock."""
    served(machine, machine.life.lock, Nothing())


def bus(machine: Machine) -> None:
    """And the bus and the device."""
    served(machine, machine.life.lock, machine.board.pio)


LAYERS: dict[str, Loop] = {
    "the cffi call, GIL given away and taken": cffi_call,
    "the exit taken apart, and a call for it": call,
    "the machine lock": lock,
    "the bus and the device": bus,
}


def loops(outs: int, port: int) -> dict[str, Callable[[], float]]:
    """Each loop on a machine of its own; it returns the cycles of a port write."""
    out_cycles = guests.load("pio-bench").symbols["out_cycles"]

    def contender(loop: Loop) -> Callable[[], float]:
        def run() -> float:
            config = MachineConfig(guest="pio-bench", guest_parameters=(("outs", outs), ("ins", 0), ("port", port)))
            with Machine(config) as machine:
                loop(machine)
                return machine.memory.read_int(out_cycles, 8) / outs

        return run

    return {name: contender(loop) for name, loop in LAYERS.items()}
