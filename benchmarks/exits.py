"""How often Linux's start goes to the VMM, and for what: exits to userspace by kind, from KVM's trace events."""

from __future__ import annotations

import re
from collections import Counter
from statistics import median
from typing import Final, NamedTuple

from benchmarks import boot, tracefs
from benchmarks.document import table
from benchmarks.programs import BenchError, say

EVENTS: Final = {
    "kvm_userspace_exit": "",
    "kvm_mmio": "",
    # SVM_EXIT_IOIO and EXIT_REASON_IO_INSTRUCTION. kvm_pio would do less well: an IN is there only when it has been
    # answered, and so are those that the kernel's own chips answer.
    "kvm_exit": "exit_reason == 0x7b || exit_reason == 30",
}
EVENT: Final = re.compile(r"^ *(\S.*?-\d+) +\[\d+\] \S+ +\d+\.\d+: (\w+): (.*)$", re.MULTILINE)
REASON: Final = re.compile(r"reason (\w+)")
PORT: Final = re.compile(r"info1 0x([0-9a-f]+)")
GPA: Final = re.compile(r"gpa 0x([0-9a-f]+)")


class Kind(NamedTuple):
    """Addresses and what answers there."""

    name: str
    ranges: tuple[tuple[int, int], ...]


PORTS: Final = (
    Kind("PCI configuration", ((0xCF8, 0xCFF),)),
    Kind("16550", ((0x3F8, 0x3FF),)),
    Kind("VGA", ((0x3B0, 0x3DF),)),
    Kind("CMOS RTC", ((0x70, 0x77),)),
    Kind("8042", ((0x60, 0x60), (0x64, 0x64))),
    Kind("ACPI", ((0x600, 0x67F), (0xB2, 0xB3))),
    Kind("PIC, PIT, port 0x61", ((0x20, 0x21), (0x40, 0x43), (0x61, 0x61), (0xA0, 0xA1), (0x4D0, 0x4D1))),
    Kind("DMA, POST port 0x80", ((0x00, 0x0F), (0x80, 0x8F), (0xC0, 0xDF))),
    Kind("fw_cfg, debug ports", ((0x402, 0x402), (0x510, 0x51F), (0xE9, 0xE9))),
    Kind("serial ports that are not there", ((0x2E8, 0x2EF), (0x2F8, 0x2FF), (0x3E8, 0x3EF))),
)
"""Which of a PC's ports are whose; the same in the three VMMs."""
MEMORY: Final = (
    Kind("VGA", ((0xA0000, 0xBFFFF),)),
    Kind("PCI configuration", ((0xB0000000, 0xBFFFFFFF), (0xE0000000, 0xEFFFFFFF))),
    Kind("IOAPIC, local APIC", ((0xFEC00000, 0xFEC00FFF), (0xFEE00000, 0xFEE00FFF))),
    Kind("HPET", ((0xFED00000, 0xFED003FF),)),
)


def kind(kinds: tuple[Kind, ...], address: int, other: str) -> str:
    """The name of what is at *address*."""
    for name, ranges in kinds:
        if any(first <= address <= last for first, last in ranges):
            return name
    return other


def userspace_exits(text: str) -> Counter[str]:
    """The exits to userspace in a trace of EVENTS, by kind."""
    port: dict[str, int] = {}
    gpa: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for thread, event, rest in EVENT.findall(text):
        if event == "kvm_exit" and (found := PORT.search(rest)):
            port[thread] = int(found[1], 16) >> 16 & 0xFFFF
        elif event == "kvm_mmio" and (found := GPA.search(rest)):
            gpa[thread] = int(found[1], 16)
        elif event == "kvm_userspace_exit" and (found := REASON.search(rest)):
            match found[1]:
                case "KVM_EXIT_IO" if thread in port:
                    counts[kind(PORTS, port[thread], "other ports")] += 1
                case "KVM_EXIT_MMIO" if thread in gpa:
                    counts[kind(MEMORY, gpa[thread], "BARs and other memory")] += 1
                case "restart":
                    counts["signals"] += 1
                case reason:
                    counts[reason] += 1
    return counts


def commands() -> dict[str, list[str]]:
    """The contenders, and pyvmm with all interrupt controllers in Python."""
    programs = boot.commands()
    return programs | {"pyvmm --irqchip user": [*programs["pyvmm"], "--irqchip", "user"]}


def of_a_start(command: list[str]) -> Counter[str]:
    """The exits of *command* until its guest's first line."""
    with tracefs.recorded(EVENTS):
        boot.run_until(command, boot.LINE)
    text = tracefs.trace()
    if not (counts := userspace_exits(text)):
        raise BenchError(f"the kernel traced no exit: {text[-500:]}")
    return counts


def measure(rounds: int) -> str:
    programs = commands()
    runs: dict[str, list[Counter[str]]] = {name: [] for name in programs}
    for number in range(rounds):
        for name, command in programs.items():
            runs[name].append(of_a_start(command))
            say(f"round {number + 1} of {rounds}, {name}: {runs[name][-1].total()}")
    middle = {name: {what: median(run[what] for run in of) for what in set().union(*of)} for name, of in runs.items()}
    kinds = sorted(
        set().union(*middle.values()), key=lambda what: -max(counts.get(what, 0) for counts in middle.values())
    )
    rows = [["**all**", *(f"**{median(run.total() for run in of):.0f}**" for of in runs.values())]]
    rows += [[what, *(f"{counts.get(what, 0):.0f}" for counts in middle.values())] for what in kinds]
    return table(["exits to userspace until userspace", *programs], rows)
