"""What a test of a device needs: no KVM, no machine, a clock that stands until it is moved.

board = Board()                          # a PCI host on buses of its own, RAM, lines, messages that are only noted
board.host.root.add(Edu(board.clock), 3)
config = board.ecam(0, 3)                # configuration space as a driver has it
board.clock.advance(1_000_000)           # a millisecond: timers fire
"""

from __future__ import annotations

from pyvmm.clock import FakeClock as FakeClock
from pyvmm.irq import FakeIrq as FakeIrq
from pyvmm.memory import GuestMemory as GuestMemory
from pyvmm.pci.msi import FakeMsiRouter as FakeMsiRouter
from pyvmm.pci.slot import FakeSlot as FakeSlot
from pyvmm.testing.pci import Board as Board
from pyvmm.testing.pci import Config as Config
from pyvmm.testing.pci import scan as scan
