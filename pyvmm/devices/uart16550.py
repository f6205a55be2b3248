"""16550A UART: a serial port with two 16-byte FIFOs.

Eight ports from the base (COM1 0x3F8, IRQ 4; COM2 0x2F8, IRQ 3):

    +0  RBR read, THR write     DLL while LCR.DLAB
    +1  IER                     DLM while LCR.DLAB
    +2  IIR read, FCR write
    +3  LCR    +4  MCR    +5  LSR    +6  MSR    +7  SCR

One interrupt line, up while an enabled source is pending; IIR names the source of the highest priority: line status,
received data or character timeout, transmitter empty, modem status.

Source: National Semiconductor PC16550D data sheet (1995), section 8; what drivers expect, from Linux
drivers/tty/serial/8250/8250_port.c (autoconfig, serial8250_do_startup).

Where this differs from the chip: a byte is sent the moment it is written, so THRE and TEMT are always set; and OUT2
does not gate the interrupt, as a PC's board has it, because small kernels forget to set it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.irq import Irq
from pyvmm.trace import OFF, Channel

UART_RX: Final = 0
UART_IER: Final = 1
UART_IIR: Final = 2
UART_LCR: Final = 3
UART_MCR: Final = 4
UART_LSR: Final = 5
UART_MSR: Final = 6
UART_SCR: Final = 7

UART_IER_RDI: Final = 0x01
UART_IER_THRI: Final = 0x02
UART_IER_RLSI: Final = 0x04
UART_IER_MSI: Final = 0x08

UART_IIR_NO_INT: Final = 0x01
UART_IIR_MSI: Final = 0x00
UART_IIR_THRI: Final = 0x02
UART_IIR_RDI: Final = 0x04
UART_IIR_RLSI: Final = 0x06
UART_IIR_RX_TIMEOUT: Final = 0x0C
UART_IIR_FIFO_ENABLED: Final = 0xC0

UART_FCR_ENABLE_FIFO: Final = 0x01
UART_FCR_CLEAR_RCVR: Final = 0x02
UART_FCR_TRIGGER_SHIFT: Final = 6
TRIGGER_LEVELS: Final = (1, 4, 8, 14)

UART_LCR_WLEN: Final = 0x03
UART_LCR_STOP: Final = 0x04
UART_LCR_PARITY: Final = 0x08
UART_LCR_SBC: Final = 0x40
UART_LCR_DLAB: Final = 0x80

UART_MCR_DTR: Final = 0x01
UART_MCR_RTS: Final = 0x02
UART_MCR_OUT1: Final = 0x04
UART_MCR_OUT2: Final = 0x08
UART_MCR_LOOP: Final = 0x10
UART_MCR_BITS: Final = 0x1F

UART_LSR_DR: Final = 0x01
UART_LSR_OE: Final = 0x02
UART_LSR_PE: Final = 0x04
UART_LSR_FE: Final = 0x08
UART_LSR_BI: Final = 0x10
UART_LSR_THRE: Final = 0x20
UART_LSR_TEMT: Final = 0x40
UART_LSR_FIFOE: Final = 0x80

UART_MSR_DCTS: Final = 0x01
UART_MSR_DDSR: Final = 0x02
UART_MSR_TERI: Final = 0x04
UART_MSR_DDCD: Final = 0x08
UART_MSR_CTS: Final = 0x10
UART_MSR_DSR: Final = 0x20
UART_MSR_RI: Final = 0x40
UART_MSR_DCD: Final = 0x80

FIFO_SIZE: Final = 16
BASE_BAUD: Final = 115200
"""Bits a second at divisor 1: a PC clocks the chip at 1.8432 MHz, sixteen clocks a bit."""

LONGEST_TIMEOUT: Final = 1_000_000
"""Nanoseconds. The four characters of the receive timeout would be most of a second at 50 baud, and the host's bytes
come all at once: nothing is gained by waiting longer than this."""

THRE_BURST: Final = 128
THRE_PAUSE: Final = 50_000
"""After so many transmitter interrupts the next one comes this many nanoseconds late. The chip never lets a driver
refill it for ever inside one interrupt; Linux before 5.0 gives up after 256 rounds: "too much work for irq4"."""

POLLING: Final = 64
"""A guest that looks into LSR for input so often, and finds none, is waiting for some.

A look that a write to THR follows was for the transmitter. One that a write to IER follows was Linux's console, which
waits until each line is sent before it lets the interrupts on again (serial8250_console_write)."""

_IDLE: Final = UART_LSR_THRE | UART_LSR_TEMT
_IDLE_DR: Final = _IDLE | UART_LSR_DR
_BYTES: Final = tuple(bytes((value,)) for value in range(256))


class Uart16550:
    """A serial port. *transmit* gets what the guest sends, a byte a call; receive() takes what it is sent.

    The modem at the other end is connected and ready: CTS, DSR and DCD are up.
    """

    # fmt: off
    STATE = (
        "_modem", "_dl", "_scr", "_rbr", "_ier", "_fcr", "_lcr", "_mcr", "_lines", "_deltas", "_errors", "_flawed",
        "_fifo", "_depth", "_trigger", "_starved", "_looked", "_idle_polls", "_thre_pending", "_thre_count",
        "_thre_timer", "_timed_out", "_timeout_deadline", "_timeout_armed", "_timeout_timer",
    )
    # fmt: on

    def __init__(self, irq: Irq, transmit: Callable[[bytes], None], clock: Clock, trace: Channel = OFF) -> None:
        self._irq = irq
        self._transmit = transmit
        self._clock = clock
        self._trace = trace
        self._timeout_timer = clock.timer(self._on_timeout)
        self._thre_timer = clock.timer(self._on_thre)
        self.on_room: Callable[[], None] | None = None
        """Called when there is room again after receive() left something over or filled the FIFO, and when the guest
        starts listening."""
        self._modem = UART_MSR_CTS | UART_MSR_DSR | UART_MSR_DCD
        self._dl = 1
        self._scr = 0
        self._rbr = 0
        self.reset()

    def reset(self) -> None:
        """The MR pin. The divisor and the scratch register keep their values (data sheet, table I)."""
        self._ier = 0
        self._fcr = 0
        self._lcr = 0
        self._mcr = 0
        self._lines = self._modem
        self._deltas = 0
        self._errors = 0  # OE, PE, FE and BI as LSR shows them
        self._flawed = 0  # how many bytes of the FIFO have an error
        self._thre_pending = False
        self._thre_count = 0
        self._timed_out = False
        self._timeout_deadline = 0
        self._timeout_armed = False
        self._starved = True
        self._looked = False  # into LSR, and it is open what for
        self._idle_polls = 0
        self._fifo: deque[int] = deque()  # what was received, oldest first; LSR's error bits of a byte above it
        self._depth = 1
        self._trigger = 1
        self._timeout_timer.cancel()
        self._thre_timer.cancel()
        self._update()
        self._tell_room()

    def tell_room(self) -> None:
        """After a load, once all is back: whoever waits for on_room with bytes left over is called."""
        self._starved = True
        self._tell_room()

    # The host's side

    @property
    def room(self) -> int:
        """How many bytes receive() would take now."""
        if self._mcr & UART_MCR_LOOP:
            return 0
        return self._depth - len(self._fifo)

    @property
    def listening(self) -> bool:
        """Whether the guest's driver takes interrupts for what it receives, or polls for it. A driver that opens the
        port clears the FIFO first, as Linux does, so what is sent before this is true can be lost."""
        return self._ier & UART_IER_RDI != 0 or self._idle_polls >= POLLING

    def receive(self, data: bytes) -> int:
        """Bytes from the host to the guest; returns how many were taken. The rest is the caller's until on_room."""
        taken = min(self.room, len(data))
        if taken:
            self._fifo.extend(data[:taken])
            self._watch_for_timeout()
            self._update()
        if taken < len(data) or (taken and self.room == 0):
            self._starved = True
        return taken

    def receive_break(self) -> None:
        """The line was held at space for longer than a character. Lost in loopback, as on the wire."""
        if not self._mcr & UART_MCR_LOOP:
            self._push(UART_LSR_BI << 8)

    def set_modem_lines(self, lines: int) -> None:
        """Drive CTS, DSR, RI and DCD, given as the UART_MSR_ bits of those that are up."""
        self._modem = lines & 0xF0
        self._update_lines()

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return sum(self.read(offset + i, 1) << (8 * i) for i in range(size))
        if offset == UART_LSR:
            if self._errors or self._flawed:
                return self._read_lsr()
            if self._fifo:
                return _IDLE_DR
            if self._looked:
                self._idle_polls += 1
                if self._idle_polls == POLLING:
                    self._starved = True
                    self._tell_room()
            self._looked = True
            return _IDLE
        if offset == UART_RX:
            return self._dl & 0xFF if self._lcr & UART_LCR_DLAB else self._read_rbr()
        if offset == UART_IER:
            return self._dl >> 8 if self._lcr & UART_LCR_DLAB else self._ier
        if offset == UART_IIR:
            return self._read_iir()
        if offset == UART_LCR:
            return self._lcr
        if offset == UART_MCR:
            return self._mcr
        if offset == UART_MSR:
            msr = self._lines | self._deltas
            self._deltas = 0
            self._update()
            return msr
        return self._scr if offset == UART_SCR else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            for i in range(size):
                self.write(offset + i, 1, (value >> (8 * i)) & 0xFF)
        elif offset == UART_RX:
            if self._lcr & UART_LCR_DLAB:
                self._dl = self._dl & 0xFF00 | value
            else:
                self._write_thr(value)
        elif offset == UART_IER:
            if self._lcr & UART_LCR_DLAB:
                self._dl = self._dl & 0x00FF | value << 8
            else:
                self._write_ier(value & 0x0F)
        elif offset == UART_IIR:
            self._write_fcr(value)
        elif offset == UART_LCR:
            began = value & ~self._lcr & UART_LCR_SBC
            self._lcr = value
            if began and self._mcr & UART_MCR_LOOP:
                self._push(UART_LSR_BI << 8)
        elif offset == UART_MCR:
            self._write_mcr(value & UART_MCR_BITS)
        elif offset == UART_SCR:
            self._scr = value

    def _write_thr(self, value: int) -> None:
        # The write takes the interrupt away and the empty transmitter brings it back: an edge for each byte,
        # which a driver that never reads IIR waits for.
        if self._thre_pending:
            self._thre_pending = False
            if self._ier & UART_IER_THRI:
                self._update()
        if self._mcr & UART_MCR_LOOP:
            self._push(value)
        else:
            self._transmit(_BYTES[value])
        self._looked = False
        if self._thre_count < THRE_BURST:
            self._thre_pending = True
            if self._ier & UART_IER_THRI:
                self._update()
        elif self._thre_count == THRE_BURST:
            self._thre_count += 1
            self._thre_timer.arm(self._clock.now() + THRE_PAUSE)

    def _write_ier(self, value: int) -> None:
        changed = value ^ self._ier
        self._ier = value
        self._looked = False
        if changed & UART_IER_RDI:
            self._idle_polls = 0
        if changed & UART_IER_THRI:
            # Enabling the interrupt while the transmitter is empty raises it; 8250_port.c tests for this.
            self._thre_pending = bool(value & UART_IER_THRI)
        self._watch_for_timeout()
        self._update()
        if changed & value & UART_IER_RDI:
            self._starved = True
            self._tell_room()

    def _write_fcr(self, value: int) -> None:
        if not value & UART_FCR_ENABLE_FIFO:
            value = 0
        if (value ^ self._fcr) & UART_FCR_ENABLE_FIFO or value & UART_FCR_CLEAR_RCVR:
            self._fifo.clear()
            self._flawed = 0
            self._timed_out = False
            self._looked = False
            self._idle_polls = 0  # whoever clears what came has yet to listen
        self._fcr = value
        self._depth = FIFO_SIZE if value else 1
        self._trigger = TRIGGER_LEVELS[value >> UART_FCR_TRIGGER_SHIFT] if value else 1
        self._watch_for_timeout()
        self._update()
        self._tell_room()

    def _write_mcr(self, value: int) -> None:
        left_loop = self._mcr & ~value & UART_MCR_LOOP
        if value & ~self._mcr & UART_MCR_LOOP:
            self._starved = True
        self._mcr = value
        self._update_lines()
        if left_loop:
            self._tell_room()

    def _read_rbr(self) -> int:
        if self._fifo:
            entry = self._fifo.popleft()
            self._rbr = entry & 0xFF
            if self._flawed:
                self._flawed -= entry > 0xFF
                self._reveal()
            self._timed_out = False
            self._watch_for_timeout()
            self._update()
            if not self._fifo:
                self._tell_room()
        return self._rbr

    def _read_lsr(self) -> int:
        lsr = self._errors | (_IDLE_DR if self._fifo else _IDLE)
        if self._flawed:
            lsr |= UART_LSR_FIFOE if self._fcr else 0
            if self._fifo[0] > 0xFF:
                self._fifo[0] &= 0xFF
                self._flawed -= 1
        self._errors = 0
        self._update()
        return lsr

    def _read_iir(self) -> int:
        iir = self._source()
        if iir == UART_IIR_THRI:
            self._thre_pending = False
            if self._thre_count < THRE_BURST:
                self._thre_count += 1
            self._update()
        return iir | (UART_IIR_FIFO_ENABLED if self._fcr else 0)

    # Inside

    def _source(self) -> int:
        ier = self._ier
        if ier & UART_IER_RLSI and self._errors:
            return UART_IIR_RLSI
        if ier & UART_IER_RDI:
            if len(self._fifo) >= self._trigger:
                return UART_IIR_RDI
            if self._timed_out:
                return UART_IIR_RX_TIMEOUT
        if ier & UART_IER_THRI and self._thre_pending:
            return UART_IIR_THRI
        if ier & UART_IER_MSI and self._deltas:
            return UART_IIR_MSI
        return UART_IIR_NO_INT

    def _update(self) -> None:
        self._irq.set_level(self._ier != 0 and self._source() != UART_IIR_NO_INT)

    def _push(self, entry: int) -> None:
        """A byte from the line, its LSR error bits above it, whether there is room or not."""
        if len(self._fifo) < self._depth:
            self._fifo.append(entry)
            self._flawed += entry > 0xFF
        else:
            self._errors |= UART_LSR_OE
            if not self._fcr:  # without a FIFO the new byte takes the place of the old; with one it is lost
                self._flawed = int(entry > 0xFF)
                self._fifo[0] = entry
        self._reveal()
        self._watch_for_timeout()
        self._update()

    def _reveal(self) -> None:
        """A byte's errors show in LSR when it is the next to be read."""
        if self._fifo:
            self._errors |= self._fifo[0] >> 8

    def _watch_for_timeout(self) -> None:
        """Four characters after the last byte came or was read, what is below the trigger level is announced too."""
        if 0 < len(self._fifo) < self._trigger and self._ier & UART_IER_RDI:
            self._timeout_deadline = self._clock.now() + min(4 * self.character_time, LONGEST_TIMEOUT)
            if not self._timeout_armed:
                self._timeout_armed = True
                self._timeout_timer.arm(self._timeout_deadline)

    @property
    def character_time(self) -> int:
        """Nanoseconds that a character takes on the line, from the divisor and the frame in LCR."""
        lcr = self._lcr
        bits = 7 + (lcr & UART_LCR_WLEN) + bool(lcr & UART_LCR_STOP) + bool(lcr & UART_LCR_PARITY)
        return bits * (self._dl or 0x10000) * NS_PER_SECOND // BASE_BAUD

    def _on_timeout(self) -> None:
        self._timeout_armed = False
        if not self._fifo:
            return
        if self._clock.now() < self._timeout_deadline:
            self._timeout_armed = True
            self._timeout_timer.arm(self._timeout_deadline)
        else:
            self._timed_out = True
            self._update()

    def _on_thre(self) -> None:
        self._thre_count = 0
        self._thre_pending = True
        self._update()

    def _update_lines(self) -> None:
        lines = self._modem
        if self._mcr & UART_MCR_LOOP:
            mcr = self._mcr
            lines = UART_MSR_CTS if mcr & UART_MCR_RTS else 0
            lines |= UART_MSR_DSR if mcr & UART_MCR_DTR else 0
            lines |= UART_MSR_RI if mcr & UART_MCR_OUT1 else 0
            lines |= UART_MSR_DCD if mcr & UART_MCR_OUT2 else 0
        changed = lines ^ self._lines
        fell = self._lines & ~lines
        self._lines = lines
        # The ring indicator counts only when it ends (TERI).
        self._deltas |= (changed & ~UART_MSR_RI | fell & UART_MSR_RI) >> 4
        self._update()

    def _tell_room(self) -> None:
        if self._starved and self.room:
            self._starved = False
            if self._trace.enabled:
                self._trace(f"room for {self.room} bytes")
            if self.on_room is not None:
                self.on_room()
