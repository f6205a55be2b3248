"""Vcpu.run_io(): port I/O and MMIO are carried out at once, under the lock, which is free while the guest runs."""

from __future__ import annotations

import threading

import pytest

from kvm_cffi.exits import Intr
from pyvmm.bus import Bus
from pyvmm.guests import load
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


class Counter:
    """Each read gives one more."""

    def __init__(self) -> None:
        self.next, self.reads, self.strings = 1, 0, 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        self.next += 1
        return self.next - 1

    def write(self, offset: int, size: int, value: int) -> None: ...


class AtOnce(Counter):
    def read_string(self, offset: int, size: int, count: int) -> bytes | None:
        if size == 1:
            return None
        self.strings += 1
        first = self.next
        self.next += count
        return b"".join(number.to_bytes(size, "little") for number in range(first, self.next))


@pytest.mark.parametrize("kind", [Counter, AtOnce])
def test_a_device_may_answer_a_string_at_once(kind: type[Counter]) -> None:
    lock, device = threading.Lock(), kind()
    pio, ended = Bus("PIO", 1 << 16), Notes(lock)
    pio.map(0x1234, 4, device)
    pio.map(0xF4, 1, ended)
    with Rig(load("string-io").with_parameters(port=0x1234)) as rig:
        while not ended.seen:
            rig.vcpu.run_io(lock, pio, ended)
        assert rig.memory.read(rig.symbol("in_bytes"), 5) == bytes([1, 2, 3, 4, 5])
        assert rig.memory.read(rig.symbol("in_words"), 8) == bytes([6, 0, 7, 0, 8, 0, 9, 0])
        assert rig.value("in_sum") == sum(range(10, 10 + 2048))
        assert any(record.items > 100 and record.data >= 10 for record in rig.vcpu.last_exits())
    if kind is AtOnce:
        assert device.reads < 2000 and device.strings > 2
