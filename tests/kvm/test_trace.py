"""--trace: the twelve steps of a key, in their order, as far as the monitor can see them."""

from __future__ import annotations

import pytest

from pyvmm.config import Irqchip, MachineConfig
from pyvmm.layout import MIB
from pyvmm.machine import Machine

RAISED: dict[Irqchip, list[tuple[str, str]]] = {
    "kernel": [("irq", "KVM_IRQ_LINE: IRQ 1 up")],
    "split": [],
    "user": [("irq", "KVM_INTERRUPT vector 0x21")],
}
"""How the interrupt gets to the vCPU; under split the guest takes it from the PIC too, by its own route."""


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_the_steps_of_a_key(irqchip: Irqchip) -> None:
    seen: list[tuple[str, str]] = []
    config = MachineConfig(
        guest="keyboard",
        memory=16 * MIB,
        irqchip=irqchip,
        trace=frozenset({"input", "i8042", "irq", "exits"}),
    )
    with Machine(config, trace_sink=lambda ns, channel, message: seen.append((channel, message))) as machine:
        assert machine.wait(lambda: "> " in machine.screen)
        machine.keyboard.press("a")
        assert machine.wait(lambda: "> a" in machine.screen)
    steps = [
        ("input", "script: KEY_A pressed"),
        ("i8042", "keyboard: KEY_A down -> 1c (scan code set 2)"),
        ("i8042", "translation 1c -> 1e"),
        ("i8042", "output buffer = 0x1e, OBF"),
        ("i8042", "IRQ 1 up"),
        *RAISED[irqchip],
        ("exits", "vcpu0 KVM_RUN"),
        ("exits", "vcpu0 KVM_EXIT_IO in port 0x60 size 1"),
        ("i8042", "read of port 0x60 returns 0x1e, OBF clear"),
        ("exits", "vcpu0 gets 0x1e from port 0x60"),
        ("exits", "vcpu0 KVM_EXIT_IO out port 0x3f8 size 1 = 0x61"),
    ]
    at = 0
    for step in steps:
        assert step in seen[at:], f"{step} does not follow {seen[at - 1]}"
        at = seen.index(step, at) + 1
