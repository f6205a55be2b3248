"""The slot of a PCI Express root port: cards that come and go, as a hot-plug driver hears of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.pci import regs
from pyvmm.pci.root_port import FIRST_SLOT_NUMBER, RootPort
from pyvmm.pci.slot import FakeSlot
from tests.rig.toys import Toy

PDC, PDS, DLLSC = regs.PCI_EXP_SLTSTA_PDC, regs.PCI_EXP_SLTSTA_PDS, regs.PCI_EXP_SLTSTA_DLLSC
LISTEN = regs.PCI_EXP_SLTCTL_HPIE | regs.PCI_EXP_SLTCTL_PDCE | regs.PCI_EXP_SLTCTL_DLLSCE
BOTH = PDC | DLLSC


class Bench:
    """A port, plugged in, and what its driver sees of it."""

    def __init__(self, number: int = 2) -> None:
        self.slot = FakeSlot()
        self.port = RootPort(number)
        self.port.connect(self.slot)
        self.ejections = 0
        self.port.ejected = self._ejected
        self.at = self.port.config.find_capability(regs.PCI_CAP_ID_EXP)

    def _ejected(self) -> None:
        self.ejections += 1

    def read(self, register: int, size: int = 2) -> int:
        return self.port.config_read(self.at + register, size)

    def write(self, register: int, value: int) -> None:
        self.port.config_write(self.at + register, 2, value)

    @property
    def status(self) -> int:
        return self.read(regs.PCI_EXP_SLTSTA)

    @property
    def link(self) -> bool:
        return bool(self.read(regs.PCI_EXP_LNKSTA) & regs.PCI_EXP_LNKSTA_DLLLA)

    @property
    def line(self) -> bool:
        return self.slot.lines[2].level

    def card(self) -> Toy:
        card = Toy()
        self.port.child.add(card, 0)
        return card


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_the_slot_says_of_itself(bench: Bench) -> None:
    capabilities = bench.read(regs.PCI_EXP_SLTCAP, 4)
    wanted = regs.PCI_EXP_SLTCAP_HPC | regs.PCI_EXP_SLTCAP_HPS | regs.PCI_EXP_SLTCAP_NCCS
    assert capabilities == wanted | (FIRST_SLOT_NUMBER + 2) << 19
    assert bench.read(regs.PCI_EXP_FLAGS) & regs.PCI_EXP_FLAGS_SLOT
    bench.write(regs.PCI_EXP_SLTCTL, 0xFFFF)
    assert bench.read(regs.PCI_EXP_SLTCTL) == LISTEN, "no button, latch, indicator or power controller"


def test_a_card_that_is_there_from_the_start_is_no_event(bench: Bench) -> None:
    bench.card()
    assert (bench.status, bench.link, bench.line) == (PDS, True, False)


def test_a_card_comes(bench: Bench) -> None:
    bench.write(regs.PCI_EXP_SLTCTL, LISTEN)
    assert bench.port.listening
    bench.card()
    bench.port.tell()
    assert (bench.status, bench.link, bench.line) == (PDS | BOTH, True, True)
    bench.write(regs.PCI_EXP_SLTSTA, PDC)
    assert bench.line, "of the link it was told too"
    bench.write(regs.PCI_EXP_SLTSTA, DLLSC)
    assert (bench.status, bench.line) == (PDS, False)


def test_a_message_comes_when_an_event_and_its_enable_meet(bench: Bench) -> None:
    assert bench.port.msi is not None
    bench.port.config_write(4, 2, 4)
    msi = bench.port.msi.offset
    bench.port.config_write(msi + 4, 4, 0xFEE00000)
    bench.port.config_write(msi + 2, 2, 1)
    bench.card()
    bench.port.tell()
    assert bench.slot.msi.sent == []
    bench.write(regs.PCI_EXP_SLTCTL, LISTEN)
    assert len(bench.slot.msi.sent) == 1
    bench.port.tell()
    assert len(bench.slot.msi.sent) == 1, "it has not been answered"
    bench.write(regs.PCI_EXP_SLTSTA, BOTH)
    bench.port.tell()
    assert len(bench.slot.msi.sent) == 2 and not bench.line


def test_a_card_goes_when_its_driver_has_let_go_of_it(bench: Bench) -> None:
    card = bench.card()
    bench.write(regs.PCI_EXP_SLTCTL, LISTEN)
    bench.port.ask_to_eject()
    assert (bench.status, bench.line) == (BOTH, True)
    assert bench.port.leaving and card.slot is not None, "it answers still"
    assert not bench.link and bench.ejections == 0, "who looks before he has taken notice is somebody else"
    bench.write(regs.PCI_EXP_SLTSTA, BOTH)
    assert bench.status == 0 and bench.ejections == 0
    assert not bench.link and bench.ejections == 1
    assert not bench.link and bench.ejections == 1, "once, however often it looks"
    bench.port.ask_to_eject()
    bench.write(regs.PCI_EXP_SLTSTA, BOTH)
    assert not bench.link and bench.ejections == 2, "it was asked again"
    bench.port.child.remove(card)
    assert not bench.port.leaving and card.slot is None
    assert not bench.link and bench.ejections == 2
    bench.card()
    bench.port.ask_to_eject()
    bench.write(regs.PCI_EXP_SLTSTA, BOTH)
    assert not bench.link and bench.ejections == 3, "the next one goes too"


def test_a_card_is_pulled_out(bench: Bench) -> None:
    card = bench.card()
    bench.write(regs.PCI_EXP_SLTCTL, LISTEN)
    bench.port.child.remove(card)
    bench.port.tell()
    assert (bench.status, bench.link, bench.line) == (BOTH, False, True)


def test_a_reset_changes_nothing_of_what_is_in_the_slot(bench: Bench) -> None:
    bench.card()
    bench.write(regs.PCI_EXP_SLTCTL, LISTEN)
    bench.port.tell()
    bench.port.reset_function()
    assert (bench.status, bench.link, bench.line, bench.read(regs.PCI_EXP_SLTCTL)) == (PDS, True, False, 0)
    assert not bench.port.listening


WHERE = st.integers(0, regs.PCI_CFG_SPACE_SIZE - 1)
ACCESS = st.tuples(st.booleans(), WHERE, st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF))


@given(st.lists(st.one_of(ACCESS, st.sampled_from(["come", "tell", "ask", "pull"])), max_size=40))
def test_whatever_a_guest_does_the_slot_shows_what_is_in_it(steps: list[tuple[bool, int, int, int] | str]) -> None:
    bench, card = Bench(), None
    for step in steps:
        if step == "come" and card is None:
            card = bench.card()
        elif step == "tell":
            bench.port.tell()
        elif step == "ask" and card is not None:
            bench.port.ask_to_eject()
        elif step == "pull" and card is not None:
            bench.port.child.remove(card)
            card = None
        elif isinstance(step, tuple):
            is_write, offset, size, value = step
            if is_write:
                bench.port.config_write(offset, size, value & (1 << 8 * size) - 1)
            else:
                bench.port.config_read(offset, size)
        if card is not None and bench.ejections:
            bench.port.child.remove(card)
            card = None
        bench.ejections = 0
        shown = card is not None and not bench.port.leaving
        assert bool(bench.port.config.get(bench.at + regs.PCI_EXP_SLTSTA, 2) & PDS) == shown
        assert bool(bench.port.config.get(bench.at + regs.PCI_EXP_LNKSTA, 2) & regs.PCI_EXP_LNKSTA_DLLLA) == shown
