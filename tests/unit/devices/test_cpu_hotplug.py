"""The registers of ACPI's CPU hot-plug, as the board's AML and OVMF use them and as a hostile guest does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.devices.cpu_hotplug import (
    CPU_HOTPLUG_LENGTH,
    CPUHP_COMMAND,
    CPUHP_DATA,
    CPUHP_EJECT,
    CPUHP_ENABLED,
    CPUHP_ID,
    CPUHP_INSERT,
    CPUHP_NEXT,
    CPUHP_OST_EVENT,
    CPUHP_OST_STATUS,
    CPUHP_REMOVE,
    CPUHP_SELECTOR,
    CPUHP_STATUS,
    CpuHotplug,
)
from pyvmm.devices.ost import (
    OST_DEVICE_CHECK,
    OST_EJECT_REQUEST,
    OST_EJECTION_IN_PROGRESS,
    OST_EJECTION_PROCESSING,
    OST_INSERTION_IN_PROGRESS,
    OST_SUCCESS,
)

POSSIBLE = 8
CPU = st.integers(0, POSSIBLE - 1)
ACCESS = st.tuples(
    st.booleans(),
    st.integers(0, CPU_HOTPLUG_LENGTH - 1),
    st.sampled_from([1, 2, 4]),
    st.one_of(st.integers(0, 31), st.integers(0, 0xFFFFFFFF)),
)


class Bench:
    """The chip of POSSIBLE CPUs, two of which there are from the start."""

    def __init__(self, present: int = 2, possible: int = POSSIBLE) -> None:
        self.events = 0
        self.ejected: list[int] = []
        self.refused: list[tuple[int, int, int]] = []
        self.chip = CpuHotplug(
            possible, present, self._event, self.ejected.append, lambda *what: self.refused.append(what)
        )

    def _event(self) -> None:
        self.events += 1

    def read(self, register: int, size: int = 4) -> int:
        return self.chip.read(register, size)

    def select(self, cpu: int, command: int | None = None) -> None:
        self.chip.write(CPUHP_SELECTOR, 4, cpu)
        if command is not None:
            self.chip.write(CPUHP_COMMAND, 1, command)

    def status(self, cpu: int) -> int:
        self.select(cpu)
        return self.read(CPUHP_STATUS, 1)

    def ost(self, cpu: int, event: int, status: int) -> None:
        """As the AML's COST."""
        self.select(cpu, CPUHP_OST_EVENT)
        self.chip.write(CPUHP_DATA, 4, event)
        self.chip.write(CPUHP_COMMAND, 1, CPUHP_OST_STATUS)
        self.chip.write(CPUHP_DATA, 4, status)

    def scan(self) -> list[tuple[int, int]]:
        """As the AML's CSCN: the CPUs that it notifies, and of what."""
        notified: list[tuple[int, int]] = []
        self.select(0)
        while True:
            self.chip.write(CPUHP_COMMAND, 1, CPUHP_NEXT)
            status, cpu = self.read(CPUHP_STATUS, 1), self.read(CPUHP_DATA)
            bit = status & CPUHP_INSERT or status & CPUHP_REMOVE
            if not bit:
                return notified
            notified.append((cpu, bit))
            self.chip.write(CPUHP_STATUS, 1, bit)


def test_what_has_come_and_what_is_to_go_is_told_once() -> None:
    bench = Bench()
    bench.chip.plugged(5)
    bench.chip.plugged(3)
    bench.chip.ask_to_eject(1)
    assert bench.events == 3
    assert bench.scan() == [(1, CPUHP_REMOVE), (3, CPUHP_INSERT), (5, CPUHP_INSERT)]
    assert bench.scan() == []
    assert [bench.status(cpu) for cpu in range(POSSIBLE)] == [1, 1, 0, 1, 0, 1, 0, 0]
    assert bench.chip.leaving(1) and bench.chip.present == 0b101011, "it has been told, and is still there"


def test_one_that_comes_and_is_to_go_before_anybody_looks_is_told_both() -> None:
    bench = Bench()
    bench.chip.plugged(3)
    bench.chip.ask_to_eject(3)
    assert bench.status(3) == CPUHP_ENABLED | CPUHP_INSERT | CPUHP_REMOVE
    assert bench.scan() == [(3, CPUHP_INSERT), (3, CPUHP_REMOVE)]
    bench.chip.unplugged(3)
    assert bench.scan() == [] and not bench.chip.leaving(3)


def test_the_guest_ejects_any_but_the_first_once() -> None:
    bench = Bench(3)
    for cpu in (1, 1, 0, 7, 2):
        bench.select(cpu)
        bench.chip.write(CPUHP_STATUS, 1, CPUHP_EJECT)
    assert bench.ejected == [1, 2] and bench.chip.present == 1
    bench.chip.plugged(1)
    assert bench.scan() == [(1, CPUHP_INSERT)]


def test_enumeration_as_ovmf_does_it() -> None:
    """QEMU, docs/specs/acpi_cpu_hotplug, "Enumerate CPUs present/non present CPUs"."""
    bench = Bench(3, 255)
    bench.chip.plugged(200)
    present = iterator = 0
    bench.select(0, CPUHP_NEXT)
    assert bench.read(CPUHP_SELECTOR) == 0, "the modern interface"
    bench.select(0)
    while True:
        present += bench.read(CPUHP_STATUS, 1) & CPUHP_ENABLED
        iterator += 1
        bench.select(iterator)
        if not bench.read(CPUHP_DATA):
            break
    assert (present, iterator) == (4, 255)


def test_the_apic_id() -> None:
    bench = Bench()
    bench.select(6, CPUHP_ID)
    assert (bench.read(CPUHP_DATA), bench.read(CPUHP_SELECTOR)) == (6, 0)
    bench.select(6, 77)
    assert bench.read(CPUHP_DATA) == 0, "a command that there is not"


def test_a_selector_of_no_cpu_hides_all() -> None:
    bench = Bench()
    bench.chip.ask_to_eject(1)
    bench.select(POSSIBLE)
    for register in range(CPU_HOTPLUG_LENGTH):
        if register >= CPUHP_STATUS:
            bench.chip.write(register, 1, 0xFF)
        assert bench.read(register, 1) == 0
    assert bench.ejected == [] and bench.scan() == [(1, CPUHP_REMOVE)]


@pytest.mark.parametrize("event", [OST_EJECT_REQUEST, OST_EJECTION_PROCESSING])
def test_a_refusal_to_let_go_is_told_once(event: int) -> None:
    bench = Bench()
    bench.ost(1, event, 0x82)
    assert bench.refused == [], "nobody has asked"
    bench.chip.ask_to_eject(1)
    bench.ost(1, event, OST_EJECTION_IN_PROGRESS)
    bench.ost(1, OST_DEVICE_CHECK, 0x82)
    bench.ost(1, event, OST_SUCCESS)
    assert bench.refused == [] and bench.chip.leaving(1)
    bench.ost(1, event, 0x82)
    bench.ost(1, event, 0x82)
    assert bench.refused == [(1, event, 0x82)] and not bench.chip.leaving(1)


def test_a_refusal_to_take_it_is_told_once() -> None:
    bench = Bench()
    bench.chip.plugged(4)
    bench.ost(4, OST_DEVICE_CHECK, OST_INSERTION_IN_PROGRESS)
    assert bench.refused == []
    bench.ost(4, OST_DEVICE_CHECK, 0x81)
    bench.ost(4, OST_DEVICE_CHECK, 0x81)
    assert bench.refused == [(4, OST_DEVICE_CHECK, 0x81)]
    bench.chip.plugged(5)
    bench.ost(5, OST_DEVICE_CHECK, OST_SUCCESS)
    bench.ost(5, OST_DEVICE_CHECK, 0x81)
    assert len(bench.refused) == 1, "it was taken"


def test_a_reset_forgets_what_nobody_has_taken_notice_of_and_keeps_what_is_there() -> None:
    bench = Bench()
    bench.chip.plugged(5)
    bench.chip.ask_to_eject(1)
    bench.select(5, CPUHP_OST_STATUS)
    bench.chip.reset()
    assert bench.read(CPUHP_STATUS, 1) == CPUHP_ENABLED, "of CPU 0"
    assert bench.scan() == [] and not bench.chip.leaving(1)
    assert bench.chip.present == 0b100011


@given(st.lists(st.one_of(CPU, ACCESS), max_size=60), st.sets(st.integers(1, POSSIBLE - 1)))
def test_whatever_a_guest_does(steps: list[int | tuple[bool, int, int, int]], asked: set[int]) -> None:
    """Nothing raises, the first CPU stays, what is ejected was there, and each question has one answer."""
    bench = Bench(POSSIBLE)
    there = set(range(POSSIBLE))
    for cpu in asked:
        bench.chip.ask_to_eject(cpu)
    for step in steps:
        if isinstance(step, int):
            if step not in there:
                there.add(step)
                bench.chip.plugged(step)
                asked = asked | {step}
            continue
        is_write, offset, size, value = step
        before = len(bench.ejected)
        if is_write:
            bench.chip.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= bench.chip.read(offset, size) < 1 << 8 * size
        for cpu in bench.ejected[before:]:
            there.remove(cpu)
    assert 0 in there
    assert bench.chip.present == sum(1 << cpu for cpu in there)
    assert len(bench.refused) <= len(asked) + len(bench.ejected)
    told = bench.scan()
    assert {cpu for cpu, _ in told} <= there and len(told) <= 2 * POSSIBLE


@given(st.lists(st.integers(-(1 << 300), 1 << 300), min_size=8, max_size=8), st.lists(ACCESS, max_size=20))
def test_whatever_a_file_has(values: list[int], steps: list[tuple[bool, int, int, int]]) -> None:
    bench = Bench()
    state.load(bench.chip, dict(zip(CpuHotplug.STATE, values, strict=True)))
    for is_write, offset, size, value in steps:
        if is_write:
            bench.chip.write(offset, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= bench.chip.read(offset, size) < 1 << 8 * size
    assert bench.chip.present & 1 and 0 < bench.chip.present < 1 << POSSIBLE
    assert len(bench.scan()) <= 2 * POSSIBLE


@given(st.integers(0, CPU_HOTPLUG_LENGTH - 1), st.sampled_from([1, 2, 4]), CPU, st.sampled_from([0, 1, 3]))
def test_any_width_reads_the_bytes_that_there_are(offset: int, size: int, cpu: int, command: int) -> None:
    bench = Bench()
    bench.chip.plugged(3)
    bench.chip.ask_to_eject(3)
    bench.select(cpu, command)
    image = bytes(bench.read(at, 1) for at in range(CPU_HOTPLUG_LENGTH)) + bytes(4)
    assert bench.read(offset, size) == int.from_bytes(image[offset : offset + size], "little")
