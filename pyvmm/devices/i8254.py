"""8254 programmable interval timer: three 16-bit counters at 1.193182 MHz.

Ports 0x40-0x42 one counter each, 0x43 control words. Counter 0 is IRQ 0, counter 1 was memory refresh, counter 2 the
speaker, with its gate and output in port 0x61. The gates of 0 and 1 are always up.

Source: Intel 8254 data sheet (231164), "Operational Description" for the commands, "Mode Definitions" for the modes.

Nothing counts here: a counter remembers when its count was loaded, and count, output and interrupts follow from the
clock and that moment, so that they never drift. A count takes effect in the clock it is written in, one
sooner than on the chip.

What becomes of late ticks. An edge of counter 0 is late when the host was busy. If the interrupt controller calls
acknowledged() in each INTA cycle of IRQ 0, an edge that comes while the last one still waits in IRR is owed, and goes
in with that call; at most MAX_BACKLOG nanoseconds' worth is owed, so that a long pause of the host is not replayed.
Where nobody calls acknowledged(), and with reinject=False (right for guests that count lost ticks by the TSC, as Linux
does), such edges merge into one.

A guest that takes longer for a tick than ticks are apart (1000 a second, each with seven exits, on a slow host) would
do nothing else: the next always waits. When what is owed runs over though the guest has been taking one after the
other, all of it is lost, and the ticks pause for as long as that went on: about half of the time is the guest's own.
From then on only SLOW_BACKLOG ticks are owed, until KEEPS_UP ticks in a row have found none waiting.

Where this differs from the chip: a control word that takes OUT of counter 0 up makes no interrupt, as with KVM's PIT.
"""

from __future__ import annotations

from typing import Final

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.irq import Irq
from pyvmm.trace import OFF, Channel

PIT_TICK_RATE: Final = 1_193_182
"""Clocks a second: 14.31818 MHz / 12."""

PIT_CONTROL: Final = 3

RW_LATCH: Final = 0
RW_LSB: Final = 1
RW_MSB: Final = 2
RW_WORD: Final = 3

READ_BACK: Final = 3
READ_BACK_NO_COUNT: Final = 0x20
READ_BACK_NO_STATUS: Final = 0x10

STATUS_OUT: Final = 0x80
STATUS_NULL_COUNT: Final = 0x40

CONTROL_BCD: Final = 0x01

MIN_PERIOD: Final = 200_000
"""Nanoseconds between two interrupts of a periodic counter, at the least, whatever the guest programs; as KVM's PIT."""

MAX_BACKLOG: Final = 100_000_000
SLOW_BACKLOG: Final = 8
KEEPS_UP: Final = 100


def ns_of(ticks: int) -> int:
    """The first nanosecond at which *ticks* clocks have passed."""
    return -(-ticks * NS_PER_SECOND // PIT_TICK_RATE)


class Counter:
    """One of the three. Its times are the numbers of PIT clocks since the machine's clock began, passed in as *now*."""

    # fmt: off
    STATE = (
        "gate", "control", "mode", "count", "start", "paused", "edges", "pending", "pending_at", "null_count",
        "write_lsb", "read_msb", "latched", "latched_msb", "status",
    )
    # fmt: on

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.control = 0  # D5-D0 of the last control word: RW, mode, BCD
        self.mode = 0
        self.count = 0x10000  # the N in effect, 1 to 65536 or 10000
        self.start: int | None = None  # when N was loaded; None: not yet, or its trigger has not come
        self.paused: int | None = None  # clocks since start when the gate stopped the clock
        self.edges = 0  # rising edges of OUT before start
        self.pending: int | None = None  # the next N, loaded at pending_at or by a trigger
        self.pending_at: int | None = None
        self.null_count = True
        self.write_lsb: int | None = None
        self.read_msb = False
        self.latched: int | None = None
        self.latched_msb = False
        self.status: int | None = None

    # What the clock has done

    def ticks(self, now: int) -> int:
        """Clocks counted since N was loaded."""
        if self.start is None:
            return 0
        return now - self.start if self.paused is None else self.paused

    def load_pending(self, now: int) -> None:
        """Modes 2 and 3: a new count takes effect at the end of the period, or half period, it was written in."""
        if self.pending_at is None or now < self.pending_at or self.pending is None:
            return
        ticks = self.ticks(self.pending_at)
        self.edges += ticks // self.count
        high = self.mode == 3 and ticks % self.count != 0
        self.start = self.pending_at
        self.count = self.pending
        if high:  # the new count begins with the low half
            self.start -= (self.count + 1) // 2
        self.pending = self.pending_at = None
        self.null_count = False

    def out(self, now: int) -> bool:
        """The output pin."""
        self.load_pending(now)
        if self.start is None:
            return self.mode != 0
        ticks = self.ticks(now)
        if self.mode <= 1:
            return ticks >= self.count
        if self.mode >= 4:
            return ticks != self.count
        if self.paused is not None:
            return True
        if self.mode == 2:
            return self.count == 1 or ticks % self.count != self.count - 1
        return ticks % self.count < (self.count + 1) // 2

    def value(self, now: int) -> int:
        """What the counting element reads, as the 16 bits the guest sees."""
        self.load_pending(now)
        ticks = self.ticks(now)
        n = self.count
        if self.mode == 2:
            value = n - ticks % n
        elif self.mode == 3:
            half = (n + 1) // 2
            phase = ticks % n
            value = n - (n & 1) - 2 * (phase if phase < half else phase - half)
        else:
            value = n - ticks
        if self.control & CONTROL_BCD:
            value %= 10000
            return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10
        return value & 0xFFFF

    def rising_edges(self, now: int) -> int:
        """How often OUT has gone up since the control word."""
        self.load_pending(now)
        if self.start is None:
            return self.edges
        ticks = self.ticks(now)
        if self.mode in (2, 3):
            return self.edges + ticks // self.count
        return self.edges + (ticks >= self.count + (self.mode >= 4))

    def next_edge(self, now: int) -> int | None:
        """When OUT goes up next; None if that takes a command or a trigger."""
        self.load_pending(now)
        if self.start is None or self.paused is not None:
            return None
        ticks = self.ticks(now)
        if self.mode in (2, 3):
            edge = self.start + (ticks // self.count + 1) * self.count
            # A half period that ends sooner changes what comes after it.
            return edge if self.pending_at is None else min(edge, self.pending_at)
        last = self.count + (self.mode >= 4)
        return None if ticks >= last else self.start + last

    # What the guest does

    def write_control(self, value: int) -> None:
        self.control = value & 0x3F
        self.mode = value >> 1 & 7
        if self.mode > 5:
            self.mode -= 4  # bit 2 of the mode is ignored in modes 2 and 3
        self.start = self.paused = self.pending = self.pending_at = None
        self.edges = 0
        self.null_count = True
        self.write_lsb = self.latched = self.status = None
        self.read_msb = self.latched_msb = False

    def keeps(self, value: int) -> bool:
        """Whether *value* is a first byte with which nothing happens yet; then it is taken. A guest with one-shot ticks
        writes one for each."""
        if self.mode == 0 or self.write_lsb is not None or self.control >> 4 != RW_WORD:
            return False
        self.write_lsb = value
        return True

    def write(self, value: int, now: int) -> bool:
        """A byte of the count; True when that completes it."""
        access = self.control >> 4
        if access == RW_LSB:
            count = value
        elif access == RW_MSB:
            count = value << 8
        elif self.write_lsb is None:
            self.write_lsb = value
            if self.mode == 0:
                self.start = self.paused = None  # the first byte stops the counter
            return False
        else:
            count = self.write_lsb | value << 8
            self.write_lsb = None
        if self.control & CONTROL_BCD:
            count = (count >> 12) * 1000 + (count >> 8 & 15) * 100 + (count >> 4 & 15) * 10 + (count & 15)
            count = count or 10000
        self.load(count or 0x10000, now)
        return True

    def load(self, count: int, now: int) -> None:
        self.load_pending(now)
        self.null_count = True
        if self.mode in (1, 5):
            self.pending = count
        elif self.mode in (2, 3) and self.start is not None:
            self.pending = count
            if self.paused is None:
                ticks = self.ticks(now)
                high = (self.count + 1) // 2
                end = self.count
                if self.mode == 3 and ticks % self.count < high:
                    end = high
                self.pending_at = self.start + ticks // self.count * self.count + end
        else:
            self.begin(count, now)
            if not self.gate:
                self.paused = 0

    def begin(self, count: int, now: int) -> None:
        self.count = count
        self.start = now
        self.paused = self.pending = self.pending_at = None
        self.edges = 0
        self.null_count = False

    def set_gate(self, level: bool, now: int) -> None:
        if level == self.gate:
            return
        self.load_pending(now)
        self.gate = level
        if self.mode in (1, 5):
            if level and (self.pending is not None or self.start is not None):
                self.begin(self.count if self.pending is None else self.pending, now)
        elif self.start is None:
            pass
        elif not level:
            self.paused = now - self.start
            self.pending_at = None
        elif self.mode in (2, 3):
            self.begin(self.count if self.pending is None else self.pending, now)
        elif self.paused is not None:
            self.start = now - self.paused
            self.paused = None

    def latch_count(self, now: int) -> None:
        if self.latched is None:
            self.latched = self.value(now)
            self.latched_msb = False

    def latch_status(self, now: int) -> None:
        if self.status is None:
            self.status = (STATUS_OUT if self.out(now) else 0) | self.control
            self.status |= STATUS_NULL_COUNT if self.null_count else 0

    def read(self, now: int) -> int:
        if self.status is not None:
            status, self.status = self.status, None
            return status
        access = self.control >> 4
        if self.latched is not None:
            value = self.latched
            msb = access == RW_MSB or self.latched_msb
            if access == RW_WORD and not msb:
                self.latched_msb = True
            else:
                self.latched = None
        else:
            value = self.value(now)
            msb = access == RW_MSB or (access == RW_WORD and self.read_msb)
            self.read_msb = access == RW_WORD and not msb
        return value >> 8 if msb else value & 0xFF


class I8254:
    """The chip at ports 0x40-0x43. *irq* is IRQ 0, the output of counter 0."""

    # fmt: off
    STATE = (
        "_counters", "_timer", "_seen", "_owed", "_earliest", "_in_irr", "_acknowledges", "_row", "_row_since",
        "_free", "_slow", "_paused_until", "lost",
    )
    # fmt: on

    def __init__(self, irq: Irq, clock: Clock, reinject: bool = True, trace: Channel = OFF) -> None:
        self._irq = irq
        self._clock = clock
        self._reinject = reinject
        self._trace = trace
        self._timer = clock.timer(self._on_timer)
        self.reset()

    def reset(self) -> None:
        """Power-up: nothing counts until it is programmed."""
        self._counters = (Counter(True), Counter(True), Counter(False))
        self.lost = 0
        """Ticks of counter 0 that the guest never got."""
        self._in_irr = False
        self._acknowledges = False
        self._seen = 0
        self._owed = 0
        self._earliest = 0
        self._row = 0  # ticks taken one after the other, each with the next one waiting
        self._row_since = 0  # when the one before them was taken
        self._free = 0  # ticks taken with none waiting
        self._slow = False
        self._paused_until = 0
        self._timer.cancel()
        self._irq.set_level(False)

    # The pins

    def out2(self) -> bool:
        """The output of counter 2: bit 5 of port 0x61, and the speaker."""
        return self._counters[2].out(self._now())

    def set_gate2(self, level: bool) -> None:
        """The gate of counter 2: bit 0 of port 0x61."""
        self._counters[2].set_gate(level, self._now())

    def acknowledged(self) -> None:
        """The processor took IRQ 0 (the INTA cycle, not the EOI). A tick that is owed goes in now."""
        self._acknowledges = True
        self._in_irr = False
        if not self._owed:
            self._row = 0
            self._row_since = self._clock.now()
            self._free += 1
            if self._free >= KEEPS_UP:
                self._slow = False
            return
        self._row += 1
        self._free = 0
        self._owed -= 1
        self._edge()

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return sum(self.read(offset + i, 1) << (8 * i) for i in range(size))
        if offset >= PIT_CONTROL:
            return 0xFF
        return self._counters[offset].read(self._now())

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            for i in range(size):
                self.write(offset + i, 1, (value >> (8 * i)) & 0xFF)
        elif offset < PIT_CONTROL:
            counter = self._counters[offset]
            if counter.keeps(value):
                return
            now = self._now()
            if offset == 0 and self._timer.deadline is not None:  # else no edge is left to come
                self._deliver(now)
            if counter.write(value, now) and self._trace.enabled:
                self._trace(f"counter {offset}: mode {counter.mode}, count {counter.pending or counter.count}")
            if offset == 0:
                self._changed(now)
        elif offset == PIT_CONTROL:
            self._command(value)

    def _command(self, value: int) -> None:
        now = self._now()
        select = value >> 6
        if select == READ_BACK:
            for i, counter in enumerate(self._counters):
                if value & 2 << i:
                    if not value & READ_BACK_NO_COUNT:
                        counter.latch_count(now)
                    if not value & READ_BACK_NO_STATUS:
                        counter.latch_status(now)
        elif value >> 4 & 3 == RW_LATCH:
            self._counters[select].latch_count(now)
        else:
            if select == 0:
                self._deliver(now)
            self._counters[select].write_control(value)
            if select == 0:
                self._changed(now)

    def _now(self) -> int:
        return self._clock.now() * PIT_TICK_RATE // NS_PER_SECOND

    # IRQ 0

    def _changed(self, now: int) -> None:
        """The guest programmed counter 0."""
        counter = self._counters[0]
        self._owed = self._row = self._paused_until = 0
        if counter.mode == 4 and counter.start == now:  # each tick of a guest with one-shot ticks: the short way
            self._seen = 0
            self._timer.arm(ns_of(now + counter.count + 1))
            return
        self._seen = counter.rising_edges(now)
        if counter.mode == 0:
            self._irq.set_level(counter.out(now))
        self._arm(now)

    def _arm(self, now: int) -> None:
        counter = self._counters[0]
        edge = counter.next_edge(now)
        if edge is None:
            if self._timer.deadline is not None:
                self._timer.cancel()
        elif counter.mode in (2, 3) and ns_of(counter.count) < MIN_PERIOD:
            self._timer.arm(max(ns_of(edge), self._earliest))
        else:
            self._timer.arm(max(ns_of(edge), self._paused_until))

    def _on_timer(self) -> None:
        now = self._now()
        self._deliver(now)
        self._arm(now)

    def _deliver(self, now: int) -> None:
        """Interrupt for what has gone up since the last time."""
        counter = self._counters[0]
        edges = counter.rising_edges(now)
        due = edges - self._seen
        self._seen = edges
        if due == 0:
            return
        self._earliest = self._clock.now() + MIN_PERIOD
        if counter.mode == 0:
            self._irq.set_level(True)
            return
        period = ns_of(counter.count)
        keep = 0
        if self._reinject and self._acknowledges and period >= MIN_PERIOD and not self._paused_until:
            keep = min(MAX_BACKLOG // period, SLOW_BACKLOG if self._slow else MAX_BACKLOG)
        self._paused_until = 0
        merged = self._in_irr and self._acknowledges
        owed = self._owed + due - (0 if merged else 1)
        if owed > keep:
            kept = keep
            if self._row >= keep > 0:
                kept = 0
                self._pause()
            self.lost += owed - kept
            owed = kept
            if self._trace.enabled:
                self._trace(f"{self.lost} ticks lost so far")
        self._owed = owed
        # An edge is driven even while one waits: the guest may have initialized the PIC and lost that one.
        self._edge()

    def _pause(self) -> None:
        """The guest has done nothing but take ticks since _row_since."""
        now = self._clock.now()
        self._slow = True
        self._row = self._free = 0
        self._paused_until = now + min(now - self._row_since, MAX_BACKLOG)

    def _edge(self) -> None:
        self._in_irr = True
        self._irq.set_level(False)
        self._irq.set_level(True)
