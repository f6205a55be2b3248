"""Interrupt controllers in the kernel, and each way to drive them: lines, routes, messages, irqfd, the PIT."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kvm_cffi import IrqchipRoute, KvmError, MsiRoute, constants
from kvm_cffi.exits import PioOut
from pyvmm.board.gsi import kernel_pins
from pyvmm.guests import load
from tests.rig.rig import Irqchip, Rig, said

MSI_TO_CPU_0 = 0xFEE00000
PIC_IRR, PIC_IMR = 1, 2
"""Offsets in struct kvm_pic_state (<asm/kvm.h>)."""
PIT_COUNT_0, PIT_MODE_0 = 0, 13
"""Offsets in struct kvm_pit_state2: channel 0's count and mode."""


def run_sending(rig: Rig, send: Callable[[], None]) -> int:
    """Run the guest to its end, sending once each time it says 'R'; how often it did."""
    ready = 0
    for exit in rig.exits():
        if said(exit, "R"):
            ready += 1
            send()
        else:
            assert not isinstance(exit, PioOut) or exit.port != 0xF4 or exit.value == 0
    return ready


@contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def test_irq_line_through_the_pic() -> None:
    with Rig(load("irq-window").with_parameters(count=4), irqchip="kernel") as rig:

        def pulse() -> None:
            rig.vm.irq_line(0, True)
            rig.vm.irq_line(0, False)

        assert run_sending(rig, pulse) == 4
        assert rig.value("taken") == 4


def test_pit2_ticks_by_itself() -> None:
    with Rig(load("timer").with_parameters(count=5), irqchip="kernel", pit=True) as rig:
        start = time.monotonic()
        assert rig.run() == ([], 0), "PIC and PIT answer in the kernel"
        assert time.monotonic() - start > 0.03, "5 ticks at 100 Hz"
        assert rig.value("ticks") == 5


def test_pit2_state() -> None:
    with Rig(load("timer").with_parameters(count=1), irqchip="kernel", pit=True) as rig:
        rig.run()
        state = rig.vm.get_pit2()
        assert struct.unpack_from("<I", state, PIT_COUNT_0)[0] == 1193182 // 100
        assert state[PIT_MODE_0] == 2
        changed = bytearray(state)
        changed[PIT_MODE_0] = 3
        rig.vm.set_pit2(bytes(changed))
        assert rig.vm.get_pit2()[PIT_MODE_0] == 3


@pytest.mark.parametrize("speaker_dummy", [True, False])
def test_pit2_answers_port_0x61_where_it_is_told_to(speaker_dummy: bool) -> None:
    with Rig(irqchip="kernel") as rig:
        rig.vm.create_pit2(speaker_dummy=speaker_dummy)
        rig.code("e4 61 24 03 e6 f4")  # in al, 0x61; and al, 3; out 0xf4, al
        exits, value = rig.run()
        assert (len(exits), value) == ((0, 0) if speaker_dummy else (1, 3))


def test_irqchip_state() -> None:
    with Rig(irqchip="kernel") as rig:
        for chip in (constants.KVM_IRQCHIP_PIC_MASTER, constants.KVM_IRQCHIP_PIC_SLAVE):
            state = bytearray(rig.vm.get_irqchip(chip))
            assert len(state) == 512
            state[PIC_IMR] = 0xA5
            rig.vm.set_irqchip(chip, bytes(state))
            assert rig.vm.get_irqchip(chip)[PIC_IMR] == 0xA5
        rig.vm.irq_line(3, True)
        assert rig.vm.get_irqchip(constants.KVM_IRQCHIP_PIC_MASTER)[PIC_IRR] == 1 << 3
        ioapic = rig.vm.get_irqchip(constants.KVM_IRQCHIP_IOAPIC)
        assert struct.unpack_from("<Q", ioapic)[0] == 0xFEC00000
        rig.vm.set_irqchip(constants.KVM_IRQCHIP_IOAPIC, ioapic)


def test_a_split_irqchip_has_no_pic() -> None:
    with Rig(irqchip="split") as rig:
        with pytest.raises(KvmError, match="KVM_GET_IRQCHIP"):
            rig.vm.get_irqchip(constants.KVM_IRQCHIP_PIC_MASTER)
        assert len(rig.vcpu.get_lapic()) == 1024, "but a local APIC"


def test_routes_of_a_pc() -> None:
    """IRQ 0 arrives at the PIC's pin 0 and at the IOAPIC's pin 2; GSIs 16 to 23 at the IOAPIC only."""
    with Rig(irqchip="kernel") as rig:
        rig.vm.set_gsi_routing(kernel_pins())
        rig.vm.irq_line(0, True)
        rig.vm.irq_line(9, True)
        assert rig.vm.get_irqchip(constants.KVM_IRQCHIP_PIC_MASTER)[PIC_IRR] & 1
        assert rig.vm.get_irqchip(constants.KVM_IRQCHIP_PIC_SLAVE)[PIC_IRR] == 1 << 1
        rig.vm.irq_line(20, True)
        assert rig.vm.get_irqchip(constants.KVM_IRQCHIP_PIC_SLAVE)[PIC_IRR] == 1 << 1


def test_gsi_routing_moves_a_line() -> None:
    with Rig("irq-window", irqchip="kernel") as rig:
        rig.vm.set_gsi_routing([IrqchipRoute(20, constants.KVM_IRQCHIP_PIC_MASTER, 0)])

        def pulse() -> None:
            rig.vm.irq_line(0, True)  # leads nowhere now
            rig.vm.irq_line(0, False)
            rig.vm.irq_line(20, True)
            rig.vm.irq_line(20, False)

        assert run_sending(rig, pulse) == 3


def test_gsi_routing_refuses_a_pin_that_is_not_there() -> None:
    with Rig(irqchip="kernel") as rig, pytest.raises(KvmError, match="KVM_SET_GSI_ROUTING"):
        rig.vm.set_gsi_routing([IrqchipRoute(0, constants.KVM_IRQCHIP_IOAPIC, 24)])


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_signal_msi(irqchip: Irqchip) -> None:
    with Rig(load("msi").with_parameters(count=3), irqchip=irqchip) as rig:
        sent = []
        assert run_sending(rig, lambda: sent.append(rig.vm.signal_msi(MSI_TO_CPU_0, 0x45))) == 3
        assert sent == [True] * 3
        assert rig.value("taken") == 3


def test_signal_msi_to_a_cpu_that_is_not_there() -> None:
    with Rig(irqchip="kernel") as rig:
        try:
            assert not rig.vm.signal_msi(MSI_TO_CPU_0 | 9 << 12, 0x45)
        except KvmError as error:
            assert error.request == "KVM_SIGNAL_MSI"


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_irq_line_of_a_gsi_that_is_a_message(irqchip: Irqchip) -> None:
    with Rig(load("msi").with_parameters(count=2), irqchip=irqchip) as rig:
        rig.vm.set_gsi_routing([MsiRoute(30, MSI_TO_CPU_0, 0x60)])

        def edge() -> None:
            rig.vm.irq_line(30, True)
            rig.vm.irq_line(30, False)

        assert run_sending(rig, edge) == 2


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_irqfd_sends_a_message(irqchip: Irqchip) -> None:
    with Rig(load("msi").with_parameters(count=3), irqchip=irqchip) as rig, eventfd() as fd:
        rig.vm.set_gsi_routing([MsiRoute(24, MSI_TO_CPU_0, 0x50)])
        rig.vm.irqfd(fd, 24)
        assert run_sending(rig, lambda: os.eventfd_write(fd, 1)) == 3
        rig.vm.irqfd(fd, 24, deassign=True)
        os.eventfd_write(fd, 1)
        assert os.eventfd_read(fd) == 1, "KVM no longer takes it"


def test_irqfd_wakes_a_halted_guest_from_another_thread() -> None:
    with Rig("msi", irqchip="kernel") as rig, eventfd() as fd:
        rig.vm.set_gsi_routing([MsiRoute(24, MSI_TO_CPU_0, 0x50)])
        rig.vm.irqfd(fd, 24)
        timer = threading.Timer(0.05, lambda: os.eventfd_write(fd, 1))
        timer.start()
        rig.run()
        timer.join()
        assert rig.value("taken") == 1


def test_irqfd_raises_a_line_of_the_pic() -> None:
    with Rig("irq-window", irqchip="kernel") as rig, eventfd() as fd:
        rig.vm.irqfd(fd, 0)
        assert run_sending(rig, lambda: os.eventfd_write(fd, 1)) == 3


def test_irqfd_with_resample_tells_of_the_eoi() -> None:
    with Rig("irq-window", irqchip="kernel") as rig, eventfd() as fd, eventfd() as resample:
        rig.vm.irqfd(fd, 0, resamplefd=resample)
        ends = 0
        for exit in rig.exits():
            if said(exit, "R"):
                ends += read(resample)
                os.eventfd_write(fd, 1)
        assert ends + read(resample) == 3, "one EOI an interrupt"
        rig.vm.irqfd(fd, 0, deassign=True)


def read(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_irqfd_refuses_what_is_no_eventfd() -> None:
    with Rig(irqchip="kernel") as rig, open("/dev/null") as null, pytest.raises(KvmError, match="KVM_IRQFD"):
        rig.vm.irqfd(null.fileno(), 4)


def test_one_eventfd_drives_one_line() -> None:
    with Rig(irqchip="kernel") as rig, eventfd() as fd:
        rig.vm.irqfd(fd, 4)
        with pytest.raises(KvmError, match="KVM_IRQFD: Device or resource busy"):
            rig.vm.irqfd(fd, 5)


def test_nmi_of_a_vcpu_with_a_local_apic() -> None:
    with Rig(load("nmi").with_parameters(count=2), irqchip="kernel") as rig:
        assert run_sending(rig, rig.vcpu.nmi) == 2
        assert rig.value("taken") == 2
