"""MC146818A real-time clock and the 128 bytes of CMOS RAM around it.

Ports 0x70 (index; bit 7 masks the NMI) and 0x71 (data). IRQ 8, up until register C is read.

    00-09  seconds, alarm, minutes, alarm, hours, alarm, day of week (1 = Sunday), day, month, year
    0A     UIP, divider, periodic rate      0B  SET, PIE, AIE, UIE, SQWE, DM, 24/12, DSE
    0C     IRQF, PF, AF, UF; a read clears  0D  VRT: the battery is good
    0E-7F  RAM, where a PC's BIOS leaves what it found: shutdown status 0F, equipment 14, memory sizes
           15-18, 30-31, 34-35 and 5B-5D, checksum 2E-2F of 10-2D, century 32

Source: Motorola MC146818A data sheet (1984); the bytes of a PC, Ralf Brown's CMOS.LST; Linux drivers/rtc/rtc-cmos.c and
rtc-mc146818-lib.c.

The time is the host's, in UTC, plus an offset from the moment the guest sets it. Flags are worked out when register C
is read or when an enabled interrupt falls due, so that a clock nobody listens to costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.irq import Irq
from pyvmm.trace import OFF, Channel

RTC_SECONDS: Final = 0
RTC_SECONDS_ALARM: Final = 1
RTC_MINUTES: Final = 2
RTC_MINUTES_ALARM: Final = 3
RTC_HOURS: Final = 4
RTC_HOURS_ALARM: Final = 5
RTC_DAY_OF_WEEK: Final = 6
RTC_DAY_OF_MONTH: Final = 7
RTC_MONTH: Final = 8
RTC_YEAR: Final = 9
RTC_REG_A: Final = 10
RTC_REG_B: Final = 11
RTC_REG_C: Final = 12
RTC_REG_D: Final = 13
RTC_SHUTDOWN_STATUS: Final = 0x0F
RTC_CENTURY: Final = 0x32

RTC_UIP: Final = 0x80
RTC_DIV_RESET: Final = 0x60
RTC_REF_CLCK_32KHZ: Final = 0x20
RTC_RATE_SELECT: Final = 0x0F

RTC_SET: Final = 0x80
RTC_PIE: Final = 0x40
RTC_AIE: Final = 0x20
RTC_UIE: Final = 0x10
RTC_DM_BINARY: Final = 0x04
RTC_24H: Final = 0x02

RTC_IRQF: Final = 0x80
RTC_PF: Final = 0x40
RTC_AF: Final = 0x20
RTC_UF: Final = 0x10

RTC_VRT: Final = 0x80

ALARM_DONT_CARE: Final = 0xC0
NMI_MASK: Final = 0x80
PM: Final = 0x80

TIME_REGISTERS: Final = (
    RTC_SECONDS,
    RTC_MINUTES,
    RTC_HOURS,
    RTC_DAY_OF_WEEK,
    RTC_DAY_OF_MONTH,
    RTC_MONTH,
    RTC_YEAR,
    RTC_CENTURY,
)
ALARM_REGISTERS: Final = (RTC_SECONDS_ALARM, RTC_MINUTES_ALARM, RTC_HOURS_ALARM)

CRYSTAL: Final = 32768
UPDATE_TIME: Final = 1_984_000 + 244_000
"""Nanoseconds that UIP is up before the second changes: the update cycle and the notice before it (data sheet)."""

RECHECK: Final = 60 * NS_PER_SECOND
"""An alarm further away than this is looked at again on the way: somebody may set the host's clock meanwhile."""

SHORTEST_WAIT: Final = 50_000
"""Nanoseconds. The host's wall clock and the timers' clock need not agree to the last microsecond."""

DAY: Final = 86400


def civil_from_days(days: int) -> tuple[int, int, int]:
    """(year, month, day) of the proleptic Gregorian calendar, *days* after 1970-01-01; any year, unlike datetime."""
    era, day_of_era = divmod(days + 719468, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153  # months since March
    month = shifted + 3 if shifted < 10 else shifted - 9
    return era * 400 + year_of_era + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date; *month* is 1 to 12, any *day*."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


class CmosRtc:
    """The clock chip. *wall* gives the host's time in nanoseconds since 1970 UTC, as time.time_ns does.

    *ram_below_4g* and *ram_above_4g* are the bytes of guest RAM on either side of 4 GiB; *nmi_mask* is told when the
    guest masks (True) or unmasks the NMI through port 0x70.
    """

    # fmt: off
    STATE = (
        "_index", "_nmi_masked", "_ram", "offset", "_flags", "_last_second", "_periodic_start", "_periodic_seen",
        "_timer",
    )
    # fmt: on

    def __init__(
        self,
        irq: Irq,
        clock: Clock,
        wall: Callable[[], int],
        ram_below_4g: int,
        ram_above_4g: int = 0,
        nmi_mask: Callable[[bool], None] | None = None,
        trace: Channel = OFF,
        alarm: Callable[[], None] = lambda: None,
    ) -> None:
        """*alarm* is called when the alarm's interrupt comes."""
        self._alarm = alarm
        self._irq = irq
        self._clock = clock
        self._wall = wall
        self._nmi_mask = nmi_mask
        self._trace = trace
        self._timer = clock.timer(self._on_timer)
        self._index = 0
        self._nmi_masked = False
        self._ram = bytearray(128)
        self._ram[RTC_REG_A] = RTC_REF_CLCK_32KHZ | 0x06
        self._ram[RTC_REG_B] = RTC_24H
        self._ram[RTC_REG_D] = RTC_VRT
        self._fill_in_what_the_bios_found(ram_below_4g, ram_above_4g)
        self.offset = 0
        """Nanoseconds that the guest's idea of the time is ahead of the host's."""
        self._flags = 0
        self._last_second = self._now() // NS_PER_SECOND
        self._periodic_start = clock.now()
        self._periodic_seen = 0

    def _fill_in_what_the_bios_found(self, below: int, above: int) -> None:
        ram = self._ram
        ram[0x14] = 0x06  # no floppy, a coprocessor, a PS/2 mouse, a display adapter with its own BIOS: EGA or VGA
        ram[0x15:0x17] = (640).to_bytes(2, "little")
        extended = min(max(below - (1 << 20), 0) >> 10, 0xFFFF).to_bytes(2, "little")
        ram[0x17:0x19] = extended
        ram[0x30:0x32] = extended
        ram[0x34:0x36] = min(max(below - (16 << 20), 0) >> 16, 0xFFFF).to_bytes(2, "little")
        ram[0x5B:0x5E] = min(above >> 16, 0xFFFFFF).to_bytes(3, "little")
        ram[0x2E:0x30] = sum(ram[0x10:0x2E]).to_bytes(2, "big")

    @property
    def shutdown_status(self) -> int:
        """Byte 0x0F: what a reset is for, as the guest left it (0x0A: jump through 40:67 without EOI)."""
        return self._ram[RTC_SHUTDOWN_STATUS]

    @property
    def nvram(self) -> bytes:
        """The battery-backed RAM past the clock's registers, 114 bytes; a reset of the machine leaves it."""
        return bytes(self._ram[RTC_REG_D + 1 :])

    @nvram.setter
    def nvram(self, data: bytes) -> None:
        self._ram[RTC_REG_D + 1 :] = data[: 128 - RTC_REG_D - 1].ljust(128 - RTC_REG_D - 1, b"\0")

    def reset(self) -> None:
        """The RESET pin: interrupts off, flags cleared; time, alarm and RAM stay (data sheet, pin description)."""
        self._collect()
        self._ram[RTC_REG_B] &= ~(RTC_PIE | RTC_AIE | RTC_UIE) & 0xFF
        self._flags = 0
        self._index = 0
        self._mask_nmi(False)
        self._settle()

    def restored(self) -> None:
        """After a load: whoever masks NMIs is told again."""
        if self._nmi_mask is not None:
            self._nmi_mask(self._nmi_masked)

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return sum(self.read(offset + i, 1) << (8 * i) for i in range(size))
        if offset != 1:
            return 0xFF  # the index is write-only
        index = self._index
        if index in TIME_REGISTERS:
            return self._ram[index] if self._stopped else self._encoded()[index]
        if index == RTC_REG_A:
            return self._ram[RTC_REG_A] | (RTC_UIP if self._update_in_progress else 0)
        if index == RTC_REG_C:
            return self._read_c()
        return self._ram[index]

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            for i in range(size):
                self.write(offset + i, 1, (value >> (8 * i)) & 0xFF)
        elif offset == 0:
            self._index = value & 0x7F
            self._mask_nmi(bool(value & NMI_MASK))
        elif offset == 1:
            self._write_data(self._index, value)

    def _write_data(self, index: int, value: int) -> None:
        if self._trace.enabled and index <= RTC_REG_D:
            self._trace(f"register {index:#04x} = {value:#04x}")
        if index in TIME_REGISTERS:
            if self._stopped:
                self._ram[index] = value
            else:
                self._collect()
                self._freeze()
                self._ram[index] = value
                self._go(self._now() % NS_PER_SECOND)
                self._settle()
        elif index in ALARM_REGISTERS:
            self._collect()
            self._ram[index] = value
            self._settle()
        elif index == RTC_REG_A:
            self._write_control(value & ~RTC_UIP, self._ram[RTC_REG_B])
        elif index == RTC_REG_B:
            self._write_control(self._ram[RTC_REG_A], value & ~RTC_UIE if value & RTC_SET else value)
        elif index not in (RTC_REG_C, RTC_REG_D):
            self._ram[index] = value

    def _write_control(self, a: int, b: int) -> None:
        self._collect()
        was_stopped = self._stopped
        phase = self._now() % NS_PER_SECOND
        if self._ram[RTC_REG_A] & RTC_DIV_RESET == RTC_DIV_RESET:
            phase = NS_PER_SECOND // 2  # the first update comes half a second after the divider is let go
        if not was_stopped:
            self._freeze()
        restart = (a ^ self._ram[RTC_REG_A]) & (RTC_RATE_SELECT | RTC_DIV_RESET)
        self._ram[RTC_REG_A] = a
        self._ram[RTC_REG_B] = b
        if not self._stopped and was_stopped:
            self._go(phase)
        if restart:
            self._periodic_start = self._clock.now()
            self._periodic_seen = 0
        self._settle()

    def _read_c(self) -> int:
        self._collect()
        value = self._flags | (RTC_IRQF if self._flags & self._ram[RTC_REG_B] else 0)
        self._flags = 0
        self._settle()
        return value

    def _mask_nmi(self, masked: bool) -> None:
        if masked != self._nmi_masked:
            self._nmi_masked = masked
            if self._nmi_mask is not None:
                self._nmi_mask(masked)

    # The time

    @property
    def _stopped(self) -> bool:
        ram = self._ram
        return ram[RTC_REG_B] & RTC_SET != 0 or ram[RTC_REG_A] & RTC_DIV_RESET == RTC_DIV_RESET

    def _now(self) -> int:
        """The guest's time of day while the clock runs: nanoseconds since 1970."""
        return self._wall() + self.offset

    @property
    def _update_in_progress(self) -> bool:
        return not self._stopped and self._now() % NS_PER_SECOND >= NS_PER_SECOND - UPDATE_TIME

    def _encode(self, value: int) -> int:
        if self._ram[RTC_REG_B] & RTC_DM_BINARY:
            return value
        return value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        if self._ram[RTC_REG_B] & RTC_DM_BINARY:
            return value
        return (value >> 4) * 10 + (value & 0x0F)

    def _encode_hour(self, hour: int) -> int:
        if self._ram[RTC_REG_B] & RTC_24H:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._ram[RTC_REG_B] & RTC_24H:
            return self._decode(value)
        return self._decode(value & ~PM) % 12 + (12 if value & PM else 0)

    def _encoded(self) -> dict[int, int]:
        """The time registers as they would read now."""
        days, second = divmod(self._now() // NS_PER_SECOND, DAY)
        year, month, day = civil_from_days(days)
        return {
            RTC_SECONDS: self._encode(second % 60),
            RTC_MINUTES: self._encode(second // 60 % 60),
            RTC_HOURS: self._encode_hour(second // 3600),
            RTC_DAY_OF_WEEK: self._encode((days + 4) % 7 + 1),
            RTC_DAY_OF_MONTH: self._encode(day),
            RTC_MONTH: self._encode(month),
            RTC_YEAR: self._encode(year % 100),
            RTC_CENTURY: self._encode(year // 100 % 100),
        }

    def _freeze(self) -> None:
        """The registers stand still at what they read now, and become RAM that the guest can write."""
        for index, value in self._encoded().items():
            self._ram[index] = value

    def _go(self, phase: int) -> None:
        """The clock runs on from what the registers say, *phase* nanoseconds into that second."""
        ram = self._ram
        year = self._decode(ram[RTC_CENTURY]) * 100 + self._decode(ram[RTC_YEAR])
        month = min(max(self._decode(ram[RTC_MONTH]), 1), 12)
        second = days_from_civil(year, month, self._decode(ram[RTC_DAY_OF_MONTH])) * DAY
        second += self._decode_hour(ram[RTC_HOURS]) * 3600
        second += self._decode(ram[RTC_MINUTES]) * 60 + self._decode(ram[RTC_SECONDS])
        self.offset = second * NS_PER_SECOND + phase - self._wall()
        self._last_second = second
        if self._trace.enabled:
            self._trace(f"the guest set the clock, {self.offset / NS_PER_SECOND:+.3f} s from the host's")

    # Flags and interrupts

    def _next_alarm(self, second: int) -> int | None:
        """The first second after *second* at which the alarm matches; None if it names a time that never comes."""
        ram = self._ram
        wanted: list[int | None] = []
        for index, decode, encode, limit in (
            (RTC_SECONDS_ALARM, self._decode, self._encode, 60),
            (RTC_MINUTES_ALARM, self._decode, self._encode, 60),
            (RTC_HOURS_ALARM, self._decode_hour, self._encode_hour, 24),
        ):
            value = ram[index]
            if value & ALARM_DONT_CARE == ALARM_DONT_CARE:
                wanted.append(None)
            elif decode(value) < limit and encode(decode(value)) == value:
                wanted.append(decode(value))
            else:
                return None
        at_second, at_minute, at_hour = wanted
        second += 1
        while True:  # each round moves on to the next hour, minute or second that fits; a few rounds reach the match
            of_day = second % DAY
            if at_hour is not None and of_day // 3600 != at_hour:
                second += (at_hour * 3600 - of_day) % DAY
            elif at_minute is not None and of_day // 60 % 60 != at_minute:
                second += (at_minute * 60 - of_day) % 3600
            elif at_second is not None and of_day % 60 != at_second:
                second += (at_second - of_day) % 60
            else:
                return second

    def _period(self) -> int:
        """Crystal cycles between two periodic interrupts; 0 for none."""
        a = self._ram[RTC_REG_A]
        rate = a & RTC_RATE_SELECT
        if rate == 0 or a & RTC_DIV_RESET == RTC_DIV_RESET:
            return 0
        return 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _collect(self) -> None:
        """Set the flags of what has happened since they were last looked at."""
        period = self._period()
        if period:
            count = (self._clock.now() - self._periodic_start) * CRYSTAL // (period * NS_PER_SECOND)
            if count > self._periodic_seen:
                self._periodic_seen = count
                self._flags |= RTC_PF
        if self._stopped:
            return
        second = self._now() // NS_PER_SECOND
        if second != self._last_second:
            self._flags |= RTC_UF
            alarm = self._next_alarm(self._last_second)
            self._last_second = second
            if alarm is not None and alarm <= second:
                self._flags |= RTC_AF
                if self._ram[RTC_REG_B] & RTC_AIE:
                    self._alarm()

    def _settle(self) -> None:
        """Drive the line, and set the timer for the next enabled interrupt unless one waits to be acknowledged."""
        enabled = self._ram[RTC_REG_B] & (RTC_PIE | RTC_AIE | RTC_UIE)
        pending = self._flags & enabled != 0
        self._irq.set_level(pending)
        if pending or not enabled:
            self._timer.cancel()
            return
        now = self._clock.now()
        deadlines = []
        period = self._period()
        if enabled & RTC_PIE and period:
            ticks = (self._periodic_seen + 1) * period
            deadlines.append(self._periodic_start + -(-ticks * NS_PER_SECOND // CRYSTAL))
        if not self._stopped and enabled & (RTC_UIE | RTC_AIE):
            time = self._now()
            second = self._last_second + 1 if enabled & RTC_UIE else self._next_alarm(self._last_second)
            if second is not None:
                wait = second * NS_PER_SECOND - time
                deadlines.append(now + min(max(wait, SHORTEST_WAIT), RECHECK))
        if deadlines:
            self._timer.arm(min(deadlines))
        else:
            self._timer.cancel()

    def _on_timer(self) -> None:
        self._collect()
        self._settle()
