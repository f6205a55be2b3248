"""scripts/bench boot-exits and boot-lab: what they make of a trace."""

from __future__ import annotations

import itertools

import pytest

from benchmarks import exits, tracefs

# As Linux 6.1 prints them. The port of an IN is in kvm_exit's info1, bits 31:16; kvm_pio comes when it is answered.
TRACE = """\
# tracer: nop
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
           vcpu0-301     [000] d..1.    40.000100: kvm_exit: vcpu 0 reason io rip 0x1 info1 0x000000000cf80241 info2 0x2
           vcpu0-301     [000] .....    40.000110: kvm_pio: pio_write at 0xcf8 size 4 count 1 val 0x80000000
           vcpu0-301     [000] .....    40.000120: kvm_userspace_exit: reason KVM_EXIT_IO (2)
           vcpu0-301     [000] d..1.    40.000200: kvm_exit: vcpu 0 reason io rip 0x1 info1 0x000000000cfc0241 info2 0x2
           vcpu0-301     [000] .....    40.000220: kvm_userspace_exit: reason KVM_EXIT_IO (2)
           vcpu0-301     [000] .....    40.000230: kvm_pio: pio_read at 0xcfc size 2 count 1 val 0x8086
           vcpu0-301     [000] d..1.    40.000300: kvm_exit: vcpu 0 reason io rip 0x1 info1 0x0000000000430241 info2 0x2
           vcpu0-301     [000] .....    40.000310: kvm_pio: pio_write at 0x43 size 1 count 1 val 0x34
       CPU 1/KVM-302     [000] .....    40.000400: kvm_mmio: mmio unsatisfied-read len 4 gpa 0xe0000100 val 0x0
       CPU 1/KVM-302     [000] .....    40.000410: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
       CPU 1/KVM-302     [000] .....    40.000420: kvm_mmio: mmio read len 4 gpa 0xe0000100 val 0x0
       CPU 1/KVM-302     [000] .....    40.000430: kvm_mmio: mmio write len 4 gpa 0xfec00000 val 0x10
           vcpu0-301     [000] .....    40.000500: kvm_mmio: mmio write len 1 gpa 0xc0000014 val 0x1
           vcpu0-301     [000] .....    40.000510: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
           vcpu0-301     [000] .....    40.000600: kvm_userspace_exit: reason restart (4)
           vcpu0-301     [000] .....    40.000700: kvm_userspace_exit: reason KVM_EXIT_HLT (5)
           vcpu0-301     [000] d..1.    40.000800: kvm_exit: vcpu 0 reason io rip 0x1 info1 0x0000000000640219 info2 0x2
           vcpu0-301     [000] .....    40.000810: kvm_userspace_exit: reason KVM_EXIT_IO (2)
"""


def test_userspace_exits() -> None:
    assert exits.userspace_exits(TRACE) == {
        "PCI configuration": 3,
        "BARs and other memory": 1,
        "8042": 1,
        "signals": 1,
        "KVM_EXIT_HLT": 1,
    }
    assert exits.userspace_exits("") == {}


@pytest.mark.parametrize("kinds", [exits.PORTS, exits.MEMORY])
def test_each_address_is_of_one_kind(kinds: tuple[exits.Kind, ...]) -> None:
    ranges = sorted(span for _, ranges in kinds for span in ranges)
    assert all(first <= last for first, last in ranges)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ranges))


def test_first_entry() -> None:
    text = "       pyvmm-301     [000] d..1.    40.000123: kvm_entry: vcpu 0, rip 0x100000\n"
    assert tracefs.first_entry(TRACE + text + text.replace("40.", "41.")) == 40.000123
    assert tracefs.first_entry(TRACE) is None
