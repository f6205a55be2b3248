"""Writes that cost no exit: ioeventfd, and coalesced ports and MMIO."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kvm_cffi import KvmError
from kvm_cffi.exits import MmioRead, MmioWrite, PioIn, PioOut
from pyvmm.guests import load
from tests.rig.rig import Rig

BASE = 0xD0000000


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def rings(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def writes(rig: Rig) -> list[tuple[int, int]]:
    """(address, size) of each write that was an exit, the guest's end left out."""
    exits, _ = rig.run(lambda exit: 0)
    return [exit[:2] for exit in exits if isinstance(exit, PioOut | MmioWrite)]


def test_ioeventfd_of_a_port(fd: int) -> None:
    with Rig("pio") as rig:
        rig.vm.ioeventfd(fd, 0x5000, 2, pio=True)
        assert writes(rig) == [(0x5000, 1), (0x5000, 4), (0x80, 1)], "only the write of two bytes rings"
        assert rings(fd) == 1


def test_ioeventfd_takes_no_reads(fd: int) -> None:
    with Rig("pio") as rig:
        rig.vm.ioeventfd(fd, 0x5000, 1, pio=True)
        exits, _ = rig.run(lambda exit: 0)
        assert PioIn(0x5000, 1) in exits
        assert rings(fd) == 1


@pytest.mark.parametrize(("datamatch", "count"), [(0x2211, 1), (0x2212, 0)])
def test_ioeventfd_with_datamatch(fd: int, datamatch: int, count: int) -> None:
    with Rig("pio") as rig:
        rig.vm.ioeventfd(fd, 0x5000, 2, datamatch=datamatch, pio=True)
        assert ((0x5000, 2) in writes(rig)) == (count == 0)
        assert rings(fd) == count


def test_ioeventfds_told_apart_by_datamatch() -> None:
    """What virtio's queue notification does: one address, a queue a datum."""
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(4)]
    with Rig("string-io") as rig:
        for n, fd in enumerate(fds):
            rig.vm.ioeventfd(fd, 0x5000, 4, datamatch=n, pio=True)
        dwords = [exit for exit in rig.run(lambda exit: 0)[0] if isinstance(exit, PioOut) and exit.size == 4]
        assert [exit.value for exit in dwords] == list(range(4, 2049))
        assert [rings(fd) for fd in fds] == [1, 1, 1, 1]
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_ioeventfd_of_mmio(fd: int, size: int) -> None:
    address = {1: BASE, 2: BASE + 2, 4: BASE + 4, 8: BASE + 8}[size]
    with Rig(load("mmio").with_parameters(base=BASE)) as rig:
        rig.vm.ioeventfd(fd, address, size)
        assert (address, size) not in writes(rig)
        assert rings(fd) == 1


def test_ioeventfd_of_any_length(fd: int) -> None:
    with Rig("pio") as rig:
        rig.vm.ioeventfd(fd, 0x5000, 0, pio=True)
        assert writes(rig) == [(0x80, 1)]
        assert rings(fd) == 3


def test_ioeventfd_taken_away(fd: int) -> None:
    with Rig("pio") as rig:
        rig.vm.ioeventfd(fd, 0x5000, 2, datamatch=0x2211, pio=True)
        rig.vm.ioeventfd(fd, 0x5000, 2, datamatch=0x2211, pio=True, deassign=True)
        assert (0x5000, 2) in writes(rig)
        assert rings(fd) == 0
        with pytest.raises(KvmError, match="KVM_IOEVENTFD: No such file or directory"):
            rig.vm.ioeventfd(fd, 0x5000, 2, datamatch=0x2211, pio=True, deassign=True)


def test_ioeventfd_twice_at_one_place_is_refused(fd: int) -> None:
    with Rig() as rig:
        rig.vm.ioeventfd(fd, BASE, 4)
        with pytest.raises(KvmError, match="KVM_IOEVENTFD: File exists"):
            rig.vm.ioeventfd(fd, BASE, 4)
        with pytest.raises(KvmError, match="KVM_IOEVENTFD: Invalid argument"):
            rig.vm.ioeventfd(fd, BASE, 3)


def test_coalesced_ports() -> None:
    with Rig("pio") as rig:
        rig.vm.register_coalesced(0x5000, 4, pio=True)
        assert list(rig.vcpu.coalesced_writes()) == []
        assert writes(rig) == [(0x80, 1)]
        assert list(rig.vcpu.coalesced_writes()) == [
            (True, 0x5000, 1, 0x11),
            (True, 0x5000, 2, 0x2211),
            (True, 0x5000, 4, 0x44332211),
        ]
        assert list(rig.vcpu.coalesced_writes()) == [], "each once"


def test_coalesced_mmio_keeps_the_order_before_the_next_exit() -> None:
    with Rig(load("mmio").with_parameters(base=BASE)) as rig:
        rig.vm.register_coalesced(BASE, 16)
        first = rig.vcpu.run()
        assert first == MmioRead(BASE, 1), "reads are exits"
        assert list(rig.vcpu.coalesced_writes()) == [
            (False, BASE, 1, 0x11),
            (False, BASE + 2, 2, 0x2211),
            (False, BASE + 4, 4, 0x44332211),
            (False, BASE + 8, 8, 0x8877665544332211),
        ]


def test_a_full_ring_makes_an_exit_and_loses_nothing() -> None:
    """2049 dwords do not fit into a page of 24-byte entries: the one that finds it full comes by an exit."""
    with Rig("string-io") as rig:
        rig.vm.register_coalesced(0x5000, 4, pio=True)
        got: list[int] = []
        full = 0
        for exit in rig.exits(lambda exit: 0):
            waiting = [value for _, _, size, value in rig.vcpu.coalesced_writes() if size == 4]
            got += waiting
            if isinstance(exit, PioOut) and exit.size == 4:
                full += 1
                assert len(waiting) > 50
                got.append(exit.value)
        assert got == list(range(2049))
        assert full >= 2049 // 170 - 1, "no ring holds more"


def test_what_is_added_while_the_ring_is_emptied_waits() -> None:
    """Or a vCPU that writes again and again would keep whoever empties it, and holds the machine lock, for ever."""
    with Rig() as rig:
        rig.vm.register_coalesced(0x5000, 4, pio=True)
        # mov dx, 0x5000; out dx, al; out dx, ax; out 0xe9, al; out dx, eax; out 0xe9, al
        rig.code("ba 0050 ee ef e6 e9 66 ef e6 e9")
        assert isinstance(rig.vcpu.run(), PioOut)
        writes = rig.vcpu.coalesced_writes()
        assert next(writes)[2] == 1
        assert isinstance(rig.vcpu.run(), PioOut)
        assert [size for _, _, size, _ in writes] == [2]
        assert [size for _, _, size, _ in rig.vcpu.coalesced_writes()] == [4]


def test_coalescing_taken_away() -> None:
    with Rig("pio") as rig:
        rig.vm.register_coalesced(0x5000, 4, pio=True)
        rig.vm.unregister_coalesced(0x5000, 4, pio=True)
        assert len(writes(rig)) == 4
        assert list(rig.vcpu.coalesced_writes()) == []


def test_the_ring_is_the_vms() -> None:
    """Any vCPU sees what another one wrote."""
    with Rig("pio", irqchip="none") as rig:
        second = rig.create_vcpu(local_apic=False)
        rig.vm.register_coalesced(0x5000, 4, pio=True)
        writes(rig)
        assert len(list(second.coalesced_writes())) == 3
        assert list(rig.vcpu.coalesced_writes()) == []
