"""Linux 2.6.11 with two CPUs, in a lab with two processors (scripts/lab -smp 2).

Its CPUs compare their time stamp counters by turns, thousands of times, with interrupts off. On one processor each turn
takes the other vCPU thread's share of time, and the boot minutes.
"""

from __future__ import annotations

import re
from pathlib import Path

from pyvmm.config import MachineConfig
from pyvmm.machine.outcome import End
from tests.rig.guest import Guest
from tests.rig.lab import PATIENT

MIB = 1 << 20


def test_2_6_11_brings_up_two_cpus_and_panics(guests26: Path) -> None:
    """It has no support for an initial RAM disk, so it ends for want of a root file system."""
    config = MachineConfig(
        memory=256 * MIB,
        cpus=2,
        kernel=guests26 / "bzImage-2.6.11",
        cmdline=f"earlyprintk=serial,ttyS0,115200 console=ttyS0 {PATIENT}",
        virtio_input="standard",
    )
    with Guest(config) as guest:
        outcome = guest.wait()
        assert outcome.end is End.PANIC and outcome.status == 4
        assert outcome.message == "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(3,1)"
        for text in ("Processor #1", "Brought up 2 CPUs", "ACPI: Interpreter enabled", "PCI Root Bridge [PCI0]"):
            assert text in guest.output
        assert re.search(r"input: AT Translated Set 2 keyboard on isa0060/serio0", guest.output)
        # psmouse gives each answer 200 of its own ticks, and takes the mouse for another where one came later: in a lab
        # with two processors that is one boot of three. test_ps2.py sees the right name.
        assert re.search(r"input: (ImEx|Im)?PS/2 \w+ \w*? ?Mouse on isa0060/serio1", guest.output)
        assert re.match(r"vCPU(s 0, 1 | 0 .*; vCPU 1 )", outcome.report), outcome.report
        assert any(outcome.message in line for line in outcome.report.splitlines()), "the kernel's own text"
