"""A vCPU's lock: free while the guest runs, taken again before the exit is seen. And exits carried out at once."""

from __future__ import annotations

import threading

import pytest

from kvm_cffi import Lock
from kvm_cffi.exits import Intr
from tests.kvm.rig import Rig, interrupted_after

SPIN = "ebfe"  # jmp .
RAM = 0x80000
"""Real mode sees what lies above it."""


class Notes:
    """An address space that writes down what it is asked for; a read gives 0x5A."""

    def __init__(self, lock: Lock | None = None) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.lock = lock

    def read(self, address: int, size: int) -> int:
        self.held()
        self.seen.append((address, size))
        return 0x5A

    def write(self, address: int, size: int, value: int) -> None:
        self.held()
        self.seen.append((address, size, value))

    def held(self) -> None:
        if self.lock is not None:
            with pytest.raises(RuntimeError, match="deadlock"):
                self.lock.acquire()


def test_io_is_carried_out_under_the_lock() -> None:
    lock = Lock()
    pio, mmio = Notes(lock), Notes(lock)
    with Rig(size=RAM) as rig, lock:
        # mov al,0x41; out 0xe9,al; in al,0xe8; out 0xea,al; mov dx,0xe000; mov ds,dx; mov al,[0x10]; mov [0x11],al
        rig.code("b041 e6e9 e4e8 e6ea ba00e0 8eda a01000 a21100 ebfe")
        rig.vcpu.lock = lock
        with interrupted_after(0.2):
            while (exit := rig.vcpu.run_io(pio, mmio)) is None:
                pass
        assert exit == Intr()
        rig.vcpu.lock = None
    assert pio.seen == [(0xE9, 1, 0x41), (0xE8, 1), (0xEA, 1, 0x5A)]
    assert mmio.seen == [(0xE0010, 1), (0xE0011, 1, 0x5A)]


def test_the_lock_is_free_while_the_guest_runs() -> None:
    lock, taken = Lock(), threading.Event()

    def take() -> None:
        with lock:
            taken.set()

    with Rig() as rig, lock:
        rig.code(SPIN)
        rig.vcpu.lock = lock
        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(0.02)
        with interrupted_after(0.2):
            assert rig.vcpu.run() == Intr()
        assert taken.is_set()
        with pytest.raises(RuntimeError, match="deadlock"):
            lock.acquire()
        thread.join()


def test_the_lock_is_taken_again_after_an_error() -> None:
    lock = Lock()
    with Rig() as rig, lock:
        rig.code(SPIN)
        rig.vcpu.lock = lock
        rig.vcpu.immediate_exit = True
        assert rig.vcpu.run_io(Notes(), Notes()) == Intr()
        with pytest.raises(RuntimeError, match="deadlock"):
            lock.acquire()


def test_coalesced_writes_come_before_the_exit() -> None:
    pio, mmio = Notes(), Notes()
    with Rig() as rig:
        rig.vm.register_coalesced(0xE9, 1, pio=True)
        rig.code("b041 e6e9 40 e6e9 40 e6ea")  # out 0xe9 twice, al one more each time; out 0xea
        assert rig.vcpu.run_io(pio, mmio) is None
    assert pio.seen == [(0xE9, 1, 0x41), (0xE9, 1, 0x42), (0xEA, 1, 0x43)] and mmio.seen == []


def test_a_closed_vcpu_takes_no_lock() -> None:
    with Rig() as rig:
        vcpu = rig.vcpu
    vcpu.lock = Lock()
    assert vcpu.lock is None
