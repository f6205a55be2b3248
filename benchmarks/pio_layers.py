"""Exit loops that do more and more of what pyvmm's does, to see what each part of an exit costs."""

from __future__ import annotations

from collections.abc import Callable

from kvm_cffi._kvm import lib
from kvm_cffi.exits import PioIn, PioOut
from pyvmm import guests
from pyvmm.config import MachineConfig
from pyvmm.layout import DEBUG_EXIT
from pyvmm.machine import Machine

Loop = Callable[[Machine], None]


def cffi_call(machine: Machine) -> None:
    """KVM_RUN through cffi, which gives the GIL away and takes it again."""
    vcpu, run, packed = machine.vcpus[0]._c, lib.kvm_cffi_run, 0
    while packed >> 16 & 0xFFFF != DEBUG_EXIT:
        packed = run(vcpu, 0xFF)


def decode(machine: Machine) -> None:
    """And the exit as an object."""
    run, port = machine.vcpus[0].run, 0
    while port != DEBUG_EXIT:
        port = run(0xFF)[0]  # type: ignore[misc]  # only port I/O comes here


def match(machine: Machine) -> None:
    """And the match on its type."""
    run, last = machine.vcpus[0].run, 0
    while last != DEBUG_EXIT:
        exit = run(0xFF)
        match exit:
            case PioOut() | PioIn():
                last = exit.port


def lock(machine: Machine) -> None:
    """And the machine lock."""
    run, last, machine_lock = machine.vcpus[0].run, 0, machine.lock
    while last != DEBUG_EXIT:
        exit = run(0xFF)
        with machine_lock:
            match exit:
                case PioOut() | PioIn():
                    last = exit.port


def coalesced(machine: Machine) -> None:
    """And the look for coalesced writes."""
    vcpu, last, machine_lock = machine.vcpus[0], 0, machine.lock
    run = vcpu.run
    while last != DEBUG_EXIT:
        exit = run(0xFF)
        with machine_lock:
            if vcpu.coalesced:
                raise AssertionError("nothing is coalesced here")
            match exit:
                case PioOut() | PioIn():
                    last = exit.port


def bus(machine: Machine) -> None:
    """And the bus and the device."""
    vcpu, last, machine_lock, pio = machine.vcpus[0], 0, machine.lock, machine.pio
    run, result = vcpu.run, 0
    while last != DEBUG_EXIT:
        exit = run(result)
        with machine_lock:
            if vcpu.coalesced:
                raise AssertionError("nothing is coalesced here")
            match exit:
                case PioOut():
                    pio.write(*exit)
                    last = exit.port
                case PioIn():
                    result = pio.read(*exit)


LAYERS: dict[str, Loop] = {
    "the cffi call, GIL given away and taken": cffi_call,
    "the exit decoded into an object": decode,
    "`match` on its type": match,
    "the machine lock": lock,
    "the look for coalesced writes": coalesced,
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
