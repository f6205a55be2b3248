"""The 16550A against its data sheet, and the probes of Linux's 8250 driver step by step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.clock import FakeClock
from pyvmm.devices.uart16550 import FIFO_SIZE, LONGEST_TIMEOUT, POLLING, THRE_BURST, THRE_PAUSE, Uart16550
from pyvmm.irq import FakeIrq

RX = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7


class Port:
    """A UART with everything around it, read and written a byte at a time."""

    def __init__(self) -> None:
        self.irq = FakeIrq()
        self.clock = FakeClock()
        self.sent = bytearray()
        self.uart = Uart16550(self.irq, self.sent.extend, self.clock)

    def inb(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def outb(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    def drain(self) -> bytes:
        data = bytearray()
        while self.inb(LSR) & 1:
            data.append(self.inb(RX))
        return bytes(data)


@pytest.fixture
def port() -> Port:
    return Port()


def test_what_is_written_is_sent_at_once(port: Port) -> None:
    for byte in b"hello":
        assert port.inb(LSR) == 0x60
        port.outb(THR, byte)
    assert port.sent == b"hello"


def test_the_divisor_hides_behind_dlab(port: Port) -> None:
    port.outb(LCR, 0x83)
    port.outb(DLL, 0x34)
    port.outb(DLM, 0x12)
    assert (port.inb(DLL), port.inb(DLM)) == (0x34, 0x12)
    port.outb(LCR, 0x03)
    assert port.inb(IER) == 0
    assert port.sent == b""
    assert port.uart.character_time == 10 * 0x1234 * 1_000_000_000 // 115200


def test_scratch_and_mcr_keep_the_bits_the_chip_has(port: Port) -> None:
    port.outb(SCR, 0xA5)
    port.outb(MCR, 0xEB)
    port.outb(IER, 0xFF)
    assert (port.inb(SCR), port.inb(MCR), port.inb(IER)) == (0xA5, 0x0B, 0x0F)


def test_wider_accesses_reach_the_registers_one_by_one(port: Port) -> None:
    port.outb(LCR, 0x80)
    port.uart.write(0, 2, 0x1234)
    assert port.uart.read(0, 2) == 0x1234
    assert port.uart.read(4, 8) == 0xFFFFFFFF_00B06000


def test_one_byte_without_a_fifo_sixteen_with_one(port: Port) -> None:
    assert port.uart.room == 1
    assert port.uart.receive(b"ab") == 1
    assert port.uart.room == 0
    assert port.drain() == b"a"
    port.outb(FCR, 0x01)
    assert port.uart.room == FIFO_SIZE
    assert port.uart.receive(bytes(range(20))) == 16
    assert port.drain() == bytes(range(16))


def test_nothing_is_lost_when_the_caller_waits_for_room(port: Port) -> None:
    port.outb(FCR, 0x01)
    typed = bytes(i % 251 for i in range(1000))
    waiting = bytearray(typed)

    def pour() -> None:
        del waiting[: port.uart.receive(bytes(waiting))]

    port.uart.on_room = pour
    pour()
    assert port.drain() == typed


def test_on_room_is_told_once_a_refusal(port: Port) -> None:
    port.outb(FCR, 0x01)
    told: list[int] = []
    port.uart.on_room = lambda: told.append(port.uart.room)
    port.uart.receive(b"x")
    assert told == []
    port.drain()
    told.clear()
    port.uart.receive(bytes(17))
    port.drain()
    port.uart.receive(b"y")
    port.drain()
    assert told == [16]


def test_on_room_when_the_guest_starts_to_listen(port: Port) -> None:
    told: list[bool] = []
    port.uart.on_room = lambda: told.append(port.uart.listening)
    port.outb(IER, 0x01)
    assert told == [True]


def poll_and_print(port: Port) -> None:
    """A loop that looks for input once and draws something, as games and monitors have it."""
    port.inb(LSR)
    while not port.inb(LSR) & 0x20:
        pass
    port.outb(THR, ord("."))


def print_line(port: Port) -> None:
    """A line of Linux's console: serial8250_console_write, and what it does before and after."""
    ier = port.inb(IER)
    port.outb(IER, 0)
    for byte in b"[    0.000000] A line.\r\n":
        port.inb(LSR)
        port.outb(THR, byte)
    port.inb(LSR)  # for BOTH_EMPTY
    port.outb(IER, ier)


def open_port(port: Port) -> None:
    """Linux's serial8250_do_startup up to where it enables the interrupt of received data."""
    for fcr in (0x01, 0x07, 0x00):
        port.outb(FCR, fcr)
    for register in (LSR, RX, IIR, MSR, LSR):
        port.inb(register)
    port.outb(LCR, 0x03)
    port.outb(MCR, 0x08)
    port.outb(IER, 0x02)
    for register in (LSR, IIR):
        port.inb(register)
    port.outb(IER, 0x00)
    for register in (LSR, RX, IIR, MSR):
        port.inb(register)


@pytest.mark.parametrize("before", [0, 1, 1000])
def test_a_guest_that_polls_and_prints_by_turns_listens(port: Port, before: int) -> None:
    """Whatever it printed before."""
    for _ in range(before):
        port.inb(LSR)
        port.outb(THR, ord("*"))
    assert not port.uart.listening
    port.uart.on_room = lambda: told.append(port.uart.listening)
    told: list[bool] = []
    turns = 0
    while not port.uart.listening:
        poll_and_print(port)
        turns += 1
        assert turns <= POLLING + 1
    assert turns >= POLLING and told == [True]
    poll_and_print(port)
    assert port.uart.listening, "from then on"
    port.uart.receive(b"x")
    assert port.inb(LSR) & 0x01 and port.inb(RX) == ord("x")


def test_what_is_typed_ahead_of_linux_is_not_lost(port: Port) -> None:
    """The console's lines and the looks of the driver that opens the port are no listening."""
    for lines in (500, 0, 3):
        for _ in range(lines):
            print_line(port)
        for _ in range(3):  # a port may be opened, closed and opened again before anybody reads
            open_port(port)
            port.outb(IER, 0x05)
            assert port.uart.listening
            port.outb(IER, 0x00)
            assert not port.uart.listening
    for _ in range(500):
        print_line(port)
    assert not port.uart.listening


def test_a_tight_loop_over_lsr_listens(port: Port) -> None:
    for _ in range(POLLING + 1):
        assert not port.uart.listening
        port.inb(LSR)
        port.inb(MSR)
    assert port.uart.listening


def test_received_data_at_the_trigger_level(port: Port) -> None:
    port.outb(FCR, 0x81)
    port.outb(IER, 0x01)
    port.uart.receive(bytes(7))
    assert not port.irq.level and port.inb(IIR) == 0xC1
    port.uart.receive(b"8")
    assert port.irq.level and port.inb(IIR) == 0xC4
    port.inb(RX)
    assert not port.irq.level


def test_a_character_timeout_announces_what_is_below_the_trigger(port: Port) -> None:
    port.outb(LCR, 0x03)
    port.outb(FCR, 0xC1)
    port.outb(IER, 0x01)
    port.uart.receive(b"abc")
    port.clock.advance(4 * port.uart.character_time - 1)
    assert not port.irq.level
    port.clock.advance(1)
    assert port.irq.level and port.inb(IIR) == 0xCC
    assert port.inb(RX) == ord("a")
    assert not port.irq.level, "reading a byte starts the wait again"
    port.clock.advance(4 * port.uart.character_time)
    assert port.inb(IIR) == 0xCC
    assert port.drain() == b"bc"
    port.clock.advance(10**9)
    assert not port.irq.level


def test_each_byte_moves_the_timeout(port: Port) -> None:
    port.outb(LCR, 0x03)
    port.outb(FCR, 0xC1)
    port.outb(IER, 0x01)
    for _ in range(5):
        port.uart.receive(b"x")
        port.clock.advance(3 * port.uart.character_time)
        assert not port.irq.level
    port.clock.advance(port.uart.character_time)
    assert port.irq.level


def test_the_timeout_is_bounded_at_slow_speeds(port: Port) -> None:
    port.outb(LCR, 0x80)
    port.uart.write(0, 2, 0xFFFF)
    port.outb(LCR, 0x03)
    port.outb(FCR, 0xC1)
    port.outb(IER, 0x01)
    port.uart.receive(b"x")
    port.clock.advance(LONGEST_TIMEOUT)
    assert port.irq.level


def test_thre_comes_with_the_enable_and_goes_with_the_iir_read(port: Port) -> None:
    port.outb(IER, 0x02)
    assert port.irq.level
    assert port.inb(IIR) == 0x02
    assert not port.irq.level and port.inb(IIR) == 0x01
    port.outb(IER, 0x02)
    assert not port.irq.level, "only a change of the enable raises it"
    port.outb(THR, 0x41)
    assert port.irq.level and port.inb(IIR) == 0x02
    port.outb(IER, 0x00)
    port.outb(IER, 0x02)
    assert port.inb(IIR) == 0x02


def test_each_byte_written_makes_an_edge(port: Port) -> None:
    port.outb(IER, 0x02)
    edges = port.irq.edges
    for _ in range(10):
        port.outb(THR, 0x41)
    assert port.irq.edges == edges + 10


def test_iir_names_the_highest_and_a_read_clears_only_thre_if_it_named_it(port: Port) -> None:
    port.outb(FCR, 0x01)
    port.outb(IER, 0x0F)
    port.uart.set_modem_lines(0)
    port.uart.receive(b"q")
    port.uart.receive_break()
    assert port.inb(IIR) == 0xC4
    assert port.inb(RX) == ord("q")
    assert port.inb(IIR) == 0xC6, "the break is next"
    assert port.inb(LSR) == 0xF1
    assert port.inb(IIR) == 0xC4
    assert port.inb(RX) == 0
    assert port.inb(IIR) == 0xC2
    assert port.inb(IIR) == 0xC0
    assert port.irq.level
    assert port.inb(MSR) == 0x0B
    assert port.inb(IIR) == 0xC1 and not port.irq.level


def test_a_driver_that_always_has_more_is_let_go(port: Port) -> None:
    """serial8250_interrupt of Linux 2.6 complains after 256 rounds: "too much work for irq4"."""
    port.outb(FCR, 0x01)
    port.outb(IER, 0x02)
    for _ in range(20):
        rounds = 0
        while not port.inb(IIR) & 1:
            rounds += 1
            assert rounds < 256
            for _ in range(16):
                port.outb(THR, 0x2E)
        assert rounds <= THRE_BURST
        assert not port.irq.level
        port.clock.advance(THRE_PAUSE)
        assert port.irq.level, "and called again"


def test_modem_lines_show_changes_until_read(port: Port) -> None:
    assert port.inb(MSR) == 0xB0
    port.uart.set_modem_lines(0xF0)
    assert port.inb(MSR) == 0xF0, "RI rising is no event"
    port.uart.set_modem_lines(0x00)
    assert port.inb(MSR) == 0x0F
    assert port.inb(MSR) == 0x00


def test_loopback_wires_the_outputs_to_the_inputs(port: Port) -> None:
    for mcr, msr in ((0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0x0A, 0x90)):
        port.outb(MCR, 0x10 | mcr)
        assert port.inb(MSR) & 0xF0 == msr
    port.outb(THR, 0x5A)
    assert port.sent == b""
    assert port.uart.receive(b"x") == 0 and port.uart.room == 0
    assert port.drain() == b"\x5a"


def test_loopback_overruns_the_fifo(port: Port) -> None:
    """size_fifo() of Linux 8250_port.c counts this way."""
    port.outb(FCR, 0x07)
    port.outb(MCR, 0x10)
    for i in range(256):
        port.outb(THR, i)
    assert port.inb(LSR) == 0x63
    assert port.inb(LSR) == 0x61
    assert port.drain() == bytes(range(16))


def test_overrun_without_a_fifo_keeps_the_new_byte(port: Port) -> None:
    port.outb(MCR, 0x10)
    port.outb(THR, 1)
    port.outb(THR, 2)
    assert port.inb(LSR) == 0x63
    assert port.drain() == b"\x02"


def test_leaving_loopback_makes_room(port: Port) -> None:
    port.outb(MCR, 0x10)
    assert port.uart.receive(b"x") == 0
    told: list[int] = []
    port.uart.on_room = lambda: told.append(port.uart.receive(b"x"))
    port.outb(MCR, 0x00)
    assert told == [1]


def test_break_in_loopback(port: Port) -> None:
    port.outb(MCR, 0x10)
    port.outb(LCR, 0x43)
    assert port.inb(LSR) == 0x71
    assert port.inb(RX) == 0


def test_linux_autoconfig_finds_a_16550a(port: Port) -> None:
    """autoconfig(), autoconfig_16550a() and the tests of serial8250_do_startup(), access by access."""
    port.outb(IER, 0x00)
    assert port.inb(IER) & 0x0F == 0
    port.outb(IER, 0x0F)
    assert port.inb(IER) & 0x0F == 0x0F
    port.outb(IER, 0x00)
    port.outb(MCR, 0x1A)
    assert port.inb(MSR) & 0xF0 == 0x90
    port.outb(MCR, 0x00)
    port.outb(LCR, 0xBF)
    port.outb(FCR, 0x00)
    port.outb(LCR, 0x00)
    port.outb(FCR, 0x01)
    assert port.inb(IIR) >> 6 == 3
    port.outb(LCR, 0x80)
    assert port.inb(FCR) != 0, "no EFR: not a 16650"
    port.outb(LCR, 0xBF)
    assert port.inb(FCR) != 0
    port.outb(LCR, 0x00)
    mcr = port.inb(MCR)
    port.outb(LCR, 0xE0)
    exist = port.inb(FCR)
    port.outb(LCR, 0x00)
    port.outb(MCR, mcr ^ 0x10)
    port.outb(LCR, 0xE0)
    again = port.inb(FCR)
    port.outb(LCR, 0x00)
    port.outb(MCR, mcr)
    assert not (exist ^ again) & 0x10, "no EXCR2: not a NatSemi SuperIO"
    port.outb(IER, 0x40)
    assert not port.inb(IER) & 0x40, "no UUE: not an XScale"
    port.outb(IER, 0x02)
    assert not port.inb(IIR) & 1
    port.outb(IER, 0x00)
    port.outb(IER, 0x02)
    assert port.inb(LSR) & 0x40
    assert not port.inb(IIR) & 1, "THRE comes again: no backup timer"
    port.outb(IER, 0x00)
    assert not port.irq.level


def test_reset(port: Port) -> None:
    port.outb(FCR, 0x01)
    port.outb(IER, 0x0F)
    port.uart.receive(b"abc")
    port.uart.reset()
    assert not port.irq.level
    assert [port.inb(i) for i in (IER, IIR, LCR, MCR, LSR)] == [0, 1, 0, 0, 0x60]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("in"), st.integers(0, 15), st.sampled_from((1, 2, 4, 8))),
        st.tuples(st.just("out"), st.integers(0, 7), st.integers(0, 255)),
        st.tuples(st.just("receive"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("break"), st.just(0), st.just(0)),
        st.tuples(st.just("lines"), st.integers(0, 255), st.just(0)),
        st.tuples(st.just("advance"), st.integers(0, 5_000_000), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_any_sequence_leaves_a_chip_that_agrees_with_itself(operations: list[tuple[str, int, int]]) -> None:
    port = Port()
    for name, a, b in operations:
        if name == "in":
            assert 0 <= port.uart.read(a, b) < 1 << (8 * b)
        elif name == "out":
            port.outb(a, b)
        elif name == "receive":
            room = port.uart.room
            assert port.uart.receive(bytes(a)) == min(a, room)
        elif name == "break":
            port.uart.receive_break()
        elif name == "lines":
            port.uart.set_modem_lines(a)
        else:
            port.clock.advance(a)
        assert 0 <= port.uart.room <= FIFO_SIZE
        level = port.irq.level
        assert (port.inb(IIR) & 1 == 0) == level


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=10), st.sampled_from((0x00, 0x01, 0x41, 0x81, 0xC1)))
def test_an_interrupt_driven_reader_gets_every_byte_in_order(chunks: list[bytes], fcr: int) -> None:
    port = Port()
    port.outb(LCR, 0x03)
    port.outb(FCR, fcr)
    port.outb(IER, 0x01)
    waiting = bytearray(b"".join(chunks))
    got = bytearray()
    while waiting or port.uart.room < (16 if fcr else 1):
        del waiting[: port.uart.receive(bytes(waiting))]
        port.clock.advance(LONGEST_TIMEOUT)
        assert port.irq.level
        while port.irq.level:
            got.append(port.inb(RX))
    assert got == b"".join(chunks)
