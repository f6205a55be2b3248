"""Parts whose state is in the kernel: what a guest has made of vCPUs, PICs, IOAPIC and PIT goes into a fresh twin."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

import pytest

from pyvmm import state
from pyvmm.vcpu.state import MSR_IA32_TSC, VcpuState
from tests.rig.board import Board, board

CONFIGURATIONS: Final = [
    ("timer", "kernel", 1),
    ("timer", "split", 1),
    ("keyboard", "kernel", 1),
    ("msi", "kernel", 1),
    ("smp", "kernel", 2),
    ("smp", "split", 2),
    ("rtc", "user", 1),
]
MOMENTS: Final = 3
PIT_CHANNEL: Final = 24
"""Bytes of struct kvm_pit_channel_state (<asm/kvm.h>)."""


def timeless(state: VcpuState) -> VcpuState:
    """Without what goes on while nothing runs."""
    return replace(state, msrs={index: value for index, value in state.msrs.items() if index != MSR_IA32_TSC})


def vcpus(machine: Board) -> list[VcpuState]:
    return [timeless(state) for state in machine.life.cpus.save()]


def without_load_times(chips: state.Plain) -> state.Plain:
    """Of an irqchip: without count_load_time of struct kvm_pit_channel_state, which KVM_SET_PIT2 makes the present."""
    if not isinstance(chips, dict) or not isinstance(pit := chips.get("pit"), bytes):
        return chips
    channels = [pit[start : start + PIT_CHANNEL - 8] for start in range(0, 3 * PIT_CHANNEL, PIT_CHANNEL)]
    return {**chips, "pit": [*channels, pit[3 * PIT_CHANNEL :]]}


@pytest.mark.parametrize(("guest", "irqchip", "cpus"), CONFIGURATIONS)
def test_a_fresh_twin_takes_it(guest: str, irqchip: str, cpus: int) -> None:
    seed = random.Random(f"{guest} {irqchip}")
    with board(guest, irqchip=irqchip, cpus=cpus) as machine, board(guest, irqchip=irqchip, cpus=cpus) as twin:
        fresh = vcpus(twin)
        for _ in range(MOMENTS):
            moment = sum(vcpu.exits for vcpu in machine.vcpus) + seed.randrange(1, 40)
            machine.wait(lambda n=moment: sum(vcpu.exits for vcpu in machine.vcpus) >= n, 1)  # type: ignore[misc]
            with machine.paused("test"):
                states, chips = machine.life.cpus.save(), state.save(machine.board.irqchip)
                state.load(twin.board.irqchip, chips)
                twin.life.cpus.load(states)
                assert vcpus(twin) == [timeless(one) for one in states]
                assert vcpus(twin) != fresh
                assert without_load_times(state.save(twin.board.irqchip)) == without_load_times(chips)
