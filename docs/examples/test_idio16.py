"""A driver's view of idio16.py, without KVM: pytest test_idio16.py"""

from pyvmm.testing import Board

from idio16 import Idio16

BAR = 0xC000


def test_a_changed_input_interrupts() -> None:
    board = Board()
    board.host.root.add(Idio16(), slot=3)
    config, line, bus = board.ecam(slot=3), board.lines[3], board.io_bus
    assert config.read(0, 4) == 0x0DC8494F and config.size_bar(2) == (1, 8)
    config.write(0x18, 4, BAR)
    config.write(0x04, 2, 0x1)  # decode I/O
    bus.write(BAR, 1, 0x80)
    assert bus.read(BAR + 1, 1) == 0x80 and not line.level
    bus.read(BAR + 2, 1)  # enables the interrupt
    bus.write(BAR + 4, 1, 0x01)
    assert bus.read(BAR + 5, 1) == 0x01 and bus.read(BAR + 6, 1) == 4 | 2 and line.level
    bus.write(BAR + 1, 1, 0)
    assert bus.read(BAR + 6, 1) == 0 and not line.level
