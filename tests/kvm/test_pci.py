"""A guest that drives a PCI device: BARs that move while it runs, a doorbell by ioeventfd, interrupts by irqfd."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pyvmm.board.doorbell import IoeventfdDoorbell
from pyvmm.board.msi import EventfdMsi
from pyvmm.machine.outcome import End, Outcome
from tests.rig.board import Board, board

OK = Outcome(End.DEBUG_EXIT, 0)
NO_DEVICE = Outcome(End.DEBUG_EXIT, 1)
ENTROPY = """
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.pci import VirtioPci


class Four(VirtioDevice):
    device_id = 4
    queue_sizes = (64,)

    def __init__(self, number):
        super().__init__()
        self.number = number

    def handle_queue(self, queue):
        assert queue.transport is self.transport
        for chain in queue:
            queue.push(chain, chain.write(bytes([self.number]) * chain.writable_size))


class Entropy(VirtioPci):
    def __init__(self, number):
        super().__init__(Four(number))
"""


def finish(machine: Board) -> None:
    """The guest's value is the number of the step that went wrong: see guests/pci/main.c."""
    outcome = machine.finish(30)
    assert outcome == OK, f"step {machine.value('step')} after {machine.value('interrupts')} interrupts"


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_msix(irqchip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[int] = []
    sent: list[EventfdMsi] = []
    ring, pulse = IoeventfdDoorbell._rung, EventfdMsi.pulse

    def count_ring(self: IoeventfdDoorbell) -> None:
        rung.append(self._address)
        ring(self)

    def count_pulse(self: EventfdMsi) -> None:
        sent.append(self)
        pulse(self)

    monkeypatch.setattr(IoeventfdDoorbell, "_rung", count_ring)
    monkeypatch.setattr(EventfdMsi, "pulse", count_pulse)
    with board("pci", rng=True, irqchip=irqchip) as machine:
        finish(machine)
        assert machine.value("interrupts") == 5
    assert rung == [0xD0004000 + 0x1000] + 4 * [0xD0000000 + 0x1000], "each kick came by the ioeventfd, none by an exit"
    assert len(sent) == 5 and len(set(sent)) == 1, "one vector"


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_intx_through_the_pics(irqchip: str) -> None:
    with board("pci", rng=True, irqchip=irqchip, parameters={"intx": 1}) as machine:
        finish(machine)
        assert machine.value("interrupts") == 3


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_intx_through_the_ioapic(irqchip: str) -> None:
    """Level-triggered: with a split irqchip the IOAPIC is ours and each EOI an exit."""
    with board("pci", rng=True, irqchip=irqchip, parameters={"intx": 2}) as machine:
        finish(machine)
        assert machine.value("interrupts") == 3


def test_among_other_devices() -> None:
    with board("pci", rng=True, virtio_input="standard", tablet=True, root_ports=2) as machine:
        finish(machine)


def test_a_virtio_device_from_a_file_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "entropy.py"
    file.write_text(ENTROPY)
    with board("pci", devices=(f"{file}:Entropy,number=4",)) as machine:
        finish(machine)
        assert machine.value("interrupts") == 5


def test_no_such_device() -> None:
    with board("pci", virtio_input="standard") as machine:
        assert machine.finish(30) == NO_DEVICE


def test_without_a_descriptor_for_the_doorbells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write there is an exit then; the guest, which moves the BAR while it runs, sees no difference."""

    def none_left(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(IoeventfdDoorbell, "__init__", none_left)
    with board("pci", rng=True) as machine:
        finish(machine)
        assert machine.value("interrupts") == 5
