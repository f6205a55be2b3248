"""What of guest RAM a snapshot keeps, without a KVM: the guest's writes are those that views were asked for."""

from __future__ import annotations

import gc
import mmap
import os
import weakref
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvm_cffi import map_memory, pages
from pyvmm.board.fake_vm import FakeVm
from pyvmm.board.memslots import HUGE_PAGE, MemorySlots, Ram
from pyvmm.board.pages import PAGE, Pages, RamPages
from pyvmm.memory import Region
from pyvmm.units import MIB

PLUG = 1 << 32
"""Where RAM is plugged in."""
PAGES = 200
"""Of a region: the last word of a bitmap is not whole."""


class Rig:
    """RAM in two regions, and its snapshots."""

    def __init__(self, size: int = MIB + 64 * PAGE, shared: bool = False) -> None:
        self.ram = Ram(size, shared=shared)
        self.memory = self.ram.memory
        vm = FakeVm()
        slots = MemorySlots(vm)
        self.memory.watch(slots)
        self.pages = RamPages(vm, self.memory, slots)

    def close(self) -> None:
        self.ram.close()

    @property
    def plugged(self) -> int:
        """Bytes of RAM that was plugged in."""
        return sum(len(region.buffer) for region in self.memory.ram if region.gpa >= PLUG)

    def plug(self, size: int) -> None:
        """Have so much of it, which is new where it was less or more; 0 for none."""
        if self.plugged != size:
            if self.plugged:
                self.memory.remove(PLUG)
            if size:
                self.memory.add(Region(PLUG, map_memory(size, HUGE_PAGE)))

    def contents(self) -> list[bytes]:
        return [bytes(region.buffer) for region in self.memory.ram]


@pytest.mark.parametrize("shared", [False, True], ids=["anonymous", "memfd"])
def test_what_nobody_touched_is_not_taken(shared: bool) -> None:
    with closing(Rig(64 * MIB, shared)) as rig:
        rig.memory.write(0x5000, b"written")
        rig.memory.write(32 * MIB, b"written too")
        rig.memory.view(16 * MIB, 1)  # and stays zero
        before = resident()
        assert rig.pages.take().size == 2 * PAGE
        assert resident() - before < 4 * MIB


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def test_what_another_process_wrote_is_taken() -> None:
    """Into a memfd that this process has not looked at since."""
    with closing(Rig(8 * MIB, shared=True)) as rig:
        assert rig.ram.fd is not None
        os.pwrite(rig.ram.fd, b"from elsewhere", 5 * MIB + 100)
        taken = rig.pages.take()
        assert taken.size == PAGE
        rig.memory.write(5 * MIB + 100, b"written over!!")
        rig.pages.put_back(taken)
        assert rig.memory.read(5 * MIB + 100, 14) == b"from elsewhere"


def copied(memory: memoryview, fd: int | None = None, offset: int = 0) -> tuple[int, mmap.mmap, bytearray]:
    room, own = pages.store(len(memory)), pages.bitmap(len(memory))
    return pages.copy_touched(memory, room, own, fd, offset), room, own


def test_a_host_that_does_not_tell_has_all_pages_read(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = map_memory(PAGES * PAGE, HUGE_PAGE)
    memory[7 * PAGE] = 1
    monkeypatch.setattr(pages, "_open_pagemap", lambda: -1)
    number, room, own = copied(memory)
    assert number == 1 and own[0] == 1 << 7 and not any(own[1:]) and room[7 * PAGE] == 1
    pipe, other = os.pipe()  # has no lseek(), as hugetlbfs
    assert copied(memory, pipe)[0] == 1
    os.close(pipe)
    os.close(other)


@given(st.sets(st.integers(0, PAGES - 1)), st.integers(0, 3))
def test_a_memfd_from_an_offset_on(written: set[int], offset: int) -> None:
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, (PAGES + offset) * PAGE)
        whole = map_memory((PAGES + offset) * PAGE, HUGE_PAGE, fd)
        for number in written:
            os.pwrite(fd, b"x", (number + offset) * PAGE + 5)
        number, room, own = copied(whole[offset * PAGE :], fd, offset * PAGE)
        assert number == len(written)
        assert {page for page in range(PAGES) if own[page // 8] >> page % 8 & 1} == written
        assert all(room[page * PAGE + 5] == ord("x") for page in written)
    finally:
        os.close(fd)


def test_how_far_it_is_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_PIECE", 64)
    told: list[tuple[int, int]] = []
    with closing(Rig()) as rig:
        rig.pages.take(lambda done, total: told.append((done, total)))
        total = sum(len(region.buffer) for region in rig.memory.ram)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (total, total) and len(told) > 3 and {of for _, of in told} == {total}


def test_a_series_of_which_one_is_held_does_not_grow() -> None:
    with closing(Rig()) as rig:
        held: Pages | None = None
        for number in range(100):
            rig.memory.write(number % 50 * PAGE, bytes((number + 1,)))
            held = rig.pages.take()
            gc.collect()
            rig.pages.release_unused()
            assert len(rig.pages.levels) == 1
        before = rig.contents()
        rig.memory.write(0, b"no longer")
        assert held is not None
        rig.pages.put_back(held)
        assert rig.contents() == before


def test_one_that_was_let_go_last_is_free_at_once() -> None:
    """What was written since counts from the one below."""
    with closing(Rig()) as rig:
        first = rig.pages.take()
        before = rig.contents()
        for number in range(10):
            rig.memory.write(number * PAGE, b"x")
            second = rig.pages.take()
            del second
            gc.collect()
            rig.pages.release_unused()
            assert rig.pages.levels == [first.level]
        rig.pages.put_back(first)
        assert rig.contents() == before


class AnyOrder(RuleBasedStateMachine):
    """Write, take, go back, let go, plug in and out: what is held is what RAM was like, and there are few levels."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.held: list[tuple[Pages, list[bytes]]] = []

    def teardown(self) -> None:
        self.held.clear()
        self.rig.close()

    @rule(page=st.integers(0, 63), high=st.booleans(), value=st.integers(0, 255))
    def write(self, page: int, high: bool, value: int) -> None:
        self.rig.memory.write((MIB if high else 0) + page * PAGE + value, bytes((value,)))

    @precondition(lambda self: self.rig.plugged)
    @rule(page=st.integers(0, 63), value=st.integers(0, 255))
    def write_to_what_was_plugged_in(self, page: int, value: int) -> None:
        self.rig.memory.write(PLUG + page * PAGE + value, bytes((value,)))

    @rule(pages=st.sampled_from([0, 64, 100]))
    def plug(self, pages: int) -> None:
        self.rig.plug(pages * PAGE)

    @rule()
    def take(self) -> None:
        self.held.append((self.rig.pages.take(), self.rig.contents()))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1000))
    def go_back(self, which: int) -> None:
        taken, contents = self.held[which % len(self.held)]
        self.rig.plug(len(contents[2]) if len(contents) > 2 else 0)  # as a machine demands
        self.rig.pages.put_back(taken)
        assert self.rig.contents() == contents

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1000))
    def let_go(self, which: int) -> None:
        del self.held[which % len(self.held)]
        gc.collect(0)
        self.rig.pages.release_unused()

    @invariant()
    def few_levels(self) -> None:
        assert len(self.rig.pages.levels) <= 2 * len(self.held) + 1
        assert self.rig.pages.logging is bool(self.held)


TestAnyOrder: Callable[..., object] = AnyOrder.TestCase
AnyOrder.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_ram_that_was_gone_meanwhile_is_what_it_was() -> None:
    with closing(Rig()) as rig:
        rig.plug(64 * PAGE)
        rig.memory.write(PLUG + 5 * PAGE, b"five")
        first, before = rig.pages.take(), rig.contents()
        rig.plug(0)
        rig.plug(64 * PAGE)
        assert rig.memory.read(PLUG + 5 * PAGE, 4) == bytes(4)
        rig.memory.write(PLUG + 6 * PAGE, b"six")
        second, after = rig.pages.take(), rig.contents()
        assert second.size == 2 * PAGE, "what has changed to zero, and what was written"
        for taken, contents in ((first, before), (second, after), (first, before)):
            rig.pages.put_back(taken)
            assert rig.contents() == contents


def test_ram_that_comes_costs_a_snapshot_nothing() -> None:
    with closing(Rig()) as rig:
        taken = rig.pages.take()
        rig.plug(64 * MIB)
        before = resident()
        again = rig.pages.take()
        rig.pages.put_back(again)
        assert again.size == 0 and resident() - before < 4 * MIB
        rig.plug(0)
        rig.pages.put_back(taken)


def test_what_somebody_wrote_who_does_not_say_where() -> None:
    with closing(Rig()) as rig:
        rig.memory.write(0x5000, b"before")
        taken = rig.pages.take()
        before = rig.contents()
        for region in rig.memory.ram:
            for at in (0, len(region.buffer) // 2, len(region.buffer) - 6):
                region.buffer[at : at + 6] = b"behind"  # nobody was asked for a view
        rig.memory.written_anywhere()
        rig.pages.put_back(taken)
        assert rig.contents() == before
        rig.ram.regions[0].buffer[0:1] = b"x"
        rig.pages.put_back(taken)  # said once it counts once
        assert rig.contents() != before


def test_the_log_ends_with_the_last_snapshot_at_the_moment_it_is_let_go() -> None:
    """A set of weak references may count it still."""
    with closing(Rig()) as rig:
        taken = rig.pages.take()
        weakref.finalize(taken, rig.pages.release_unused)
        assert rig.pages.logging
        del taken
        gc.collect()
        assert not rig.pages.logging
