"""Vcpu.run_io(): port I/O and MMIO are carried out at once, under the lock, which is free while the guest runs."""

from __future__ import annotations

import threading

import pytest

from kvm_cffi.exits import Intr
from tests.rig.rig import Rig, interrupted_after

SPIN = "ebfe"  # jmp .
RAM = 0x80000
"""Real mode sees what lies above it."""


class Notes:
    """An address space that writes down what it is asked for; a read gives 0x5A."""

    def __init__(self, lock: threading.Lock) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.lock = lock

    def read(self, address: int, size: int) -> int:
        assert self.lock.locked()
        self.seen.append((address, size))
        return 0x5A

    def write(self, address: int, size: int, value: int) -> None:
        assert self.lock.locked()
        self.seen.append((address, size, value))


def test_io_is_carried_out_under_the_lock() -> None:
    lock = threading.Lock()
    pio, mmio = Notes(lock), Notes(lock)
    with Rig(size=RAM) as rig:
        # mov al,0x41; out 0xe9,al; in al,0xe8; out 0xea,al; mov dx,0xe000; mov ds,dx; mov al,[0x10]; mov [0x11],al
        rig.code("b041 e6e9 e4e8 e6ea ba00e0 8eda a01000 a21100 ebfe")
        with interrupted_after(0.2):
            while (exit := rig.vcpu.run_io(lock, pio, mmio)) is None:
                assert not lock.locked()
        assert exit == Intr() and not lock.locked()
    assert pio.seen == [(0xE9, 1, 0x41), (0xE8, 1), (0xEA, 1, 0x5A)]
    assert mmio.seen == [(0xE0010, 1), (0xE0011, 1, 0x5A)]


def test_the_lock_is_free_while_the_guest_runs() -> None:
    lock, taken = threading.Lock(), threading.Event()

    def take() -> None:
        with lock:
            taken.set()

    with Rig() as rig:
        rig.code(SPIN)
        thread = threading.Timer(0.05, take)
        thread.start()
        with interrupted_after(0.5):
            assert rig.vcpu.run_io(lock, Notes(lock), Notes(lock)) == Intr()
        assert taken.is_set()
        thread.join()


def test_a_device_that_raises_leaves_the_lock_free() -> None:
    class Broken(Notes):
        def write(self, address: int, size: int, value: int) -> None:
            raise ZeroDivisionError

    lock = threading.Lock()
    with Rig() as rig:
        rig.code("b041 e6e9")
        with pytest.raises(ZeroDivisionError):
            rig.vcpu.run_io(lock, Broken(lock), Notes(lock))
    assert not lock.locked()


def test_coalesced_writes_come_before_the_exit() -> None:
    lock = threading.Lock()
    pio, mmio = Notes(lock), Notes(lock)
    with Rig() as rig:
        rig.vm.register_coalesced(0xE9, 1, pio=True)
        rig.code("b041 e6e9 40 e6e9 40 e6ea")  # out 0xe9 twice, al one more each time; out 0xea
        assert rig.vcpu.run_io(lock, pio, mmio) is None
    assert pio.seen == [(0xE9, 1, 0x41), (0xE9, 1, 0x42), (0xEA, 1, 0x43)] and mmio.seen == []
