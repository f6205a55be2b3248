"""A driver's view of edu.py, exact in time and without KVM: pytest test_edu.py"""

from pyvmm.testing import Board

from edu import Edu

BAR = 0xD0000000


def test_factorial_interrupt_and_dma() -> None:
    board = Board()
    board.host.root.add(Edu(board.clock, dma_ms=100), slot=3)
    config, line, bus = board.ecam(slot=3), board.lines[3], board.memory_bus
    assert config.read(0, 4) == 0x11E81234 and config.size_bar(0) == (0, 1 << 20)
    config.write(0x10, 4, BAR)
    config.write(0x04, 2, 0x6)  # memory, bus master
    assert bus.read(BAR, 4) == 0x010000ED
    bus.write(BAR + 0x20, 4, 0x80)
    bus.write(BAR + 0x08, 4, 10)
    board.clock.advance(9_999)
    assert bus.read(BAR + 0x20, 4) == 0x81 and not line.level
    board.clock.advance(1)
    assert bus.read(BAR + 0x08, 4) == 3628800 and bus.read(BAR + 0x24, 4) == 1 and line.level
    bus.write(BAR + 0x64, 4, 1)
    board.ram.write(0x1000, b"to the device and back")
    for source, destination, command in ((0x1000, 0x40010, 0x01), (0x40010, 0x2000, 0x07)):
        for register, value in ((0x80, source), (0x88, destination), (0x90, 22), (0x98, command)):
            bus.write(BAR + register, 8, value)
        board.clock.advance(100_000_000)
    assert board.ram.read(0x2000, 22) == b"to the device and back" and line.level
