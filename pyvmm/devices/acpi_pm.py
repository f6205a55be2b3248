"""ACPI fixed hardware: power-management timer, sleep, buttons and general-purpose events, as an ICH9 has them.

One block of I/O ports (a PC puts it at 0x600), little-endian registers that may be accessed in bytes:

    00  PM1_STS    a written 1 clears a bit       02  PM1_EN    which status bits raise the SCI
    04  PM1_CNT    SCI_EN, SLP_TYP, SLP_EN        08  PM_TMR    32 bits, 3.579545 MHz, read only
    20  GPE0_STS   16 events, a written 1 clears  22  GPE0_EN   which events raise the SCI

and the two ports of APM (0xB2, 0xB3): a command written to the first would wake a BIOS in SMM, whose only work here is
SCI_EN, on with ACPI_ENABLE and off with ACPI_DISABLE. Every other command is *smi*'s.

The SCI is a level: high while SCI_EN is set and an enabled status bit is. Writing PM1_CNT with SLP_EN and the SLP_TYP
of S5 turns the machine off, and so does SLP_TYP 0, by which a small kernel that reads no tables turns off QEMU: `outw`
of 0x2000 to port 0x604. The SLP_TYP of S3 puts the machine to sleep where it can: its processors lose what they had,
and all else keeps power. The other sleep states are not there, and asking for them does nothing.

It wakes for an enabled status bit, and for either button: WAK_STS is set, and the processor begins anew.

The power button sets PWRBTN_STS and general-purpose event GPE_POWER_BUTTON. The FADT's PWR_BUTTON flag tells a full
ACPI system to use the second; a guest without an AML interpreter can enable the first. The sleep button sets
SLPBTN_STS, and the alarm of the RTC RTC_STS. A key that is pressed during sleep sets GPE_KEYBOARD.

Source: ACPI 6.5, 4.8 (fixed hardware) and 16.1 (sleeping states); Intel ICH9 data sheet, 13.7 (APM) and 13.8.3 (power
management I/O registers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.devices.dwords import read_dwords, written_dwords
from pyvmm.irq import Irq
from pyvmm.trace import OFF, Channel

PM1_STS: Final = 0x00
PM1_EN: Final = 0x02
PM1_CNT: Final = 0x04
PM_TMR: Final = 0x08
GPE0_STS: Final = 0x20
GPE0_EN: Final = 0x22
GPE0_LENGTH: Final = 4
"""Bytes of GPE0_STS and GPE0_EN together."""
PM_LENGTH: Final = 0x40
"""Bytes of the whole block of ports."""
APM_LENGTH: Final = 2

# PM1_STS and PM1_EN.
TMR_STS: Final = 1 << 0
GBL_STS: Final = 1 << 5
PWRBTN_STS: Final = 1 << 8
SLPBTN_STS: Final = 1 << 9
RTC_STS: Final = 1 << 10
WAK_STS: Final = 1 << 15
TMR_EN: Final = 1 << 0
GBL_EN: Final = 1 << 5
PWRBTN_EN: Final = 1 << 8
SLPBTN_EN: Final = 1 << 9
RTC_EN: Final = 1 << 10
PM1_EN_MASK: Final = TMR_EN | GBL_EN | PWRBTN_EN | SLPBTN_EN | RTC_EN

# PM1_CNT.
SCI_EN: Final = 1 << 0
BM_RLD: Final = 1 << 1
SLP_TYP_SHIFT: Final = 10
SLP_TYP: Final = 7 << SLP_TYP_SHIFT
SLP_EN: Final = 1 << 13
PM1_CNT_MASK: Final = SCI_EN | BM_RLD | SLP_TYP
SLP_TYP_S3: Final = 1
SLP_TYP_S5: Final = 7
SLP_TYP_SOFT_OFF_QEMU: Final = 0
"""S5 in QEMU's tables (hw/acpi/core.c, acpi_pm1_cnt_write)."""

ACPI_ENABLE: Final = 0x02
ACPI_DISABLE: Final = 0x03

GPE_POWER_BUTTON: Final = 2
GPE_KEYBOARD: Final = 5

PM_TIMER_HZ: Final = 3_579_545
TIMER_BITS: Final = 32
"""As the FADT's TMR_VAL_EXT says. TMR_STS is set whenever the highest bit changes."""


def _no_sleep() -> bool:
    return False


def _nobody_wakes(reason: str) -> None: ...


class AcpiPm:
    """The block of PM_LENGTH ports; `apm` is the device of the APM_LENGTH ports of the SMI command.

    *sleep* is asked to put the machine into S3, and says whether it will. *wake* is told why it is to end, perhaps more
    than once; who ends it calls woken().
    """

    # fmt: off
    STATE = (
        "_epoch", "_halves_seen", "_pm1_sts", "_pm1_en", "_pm1_cnt", "_gpe0_sts", "_gpe0_en", "_gpe0_wanted", "_timer",
        "apm", "asleep",
    )
    # fmt: on

    def __init__(
        self,
        sci: Irq,
        clock: Clock,
        power_off: Callable[[], None],
        trace: Channel = OFF,
        smi: Callable[[int], None] = lambda command: None,
        sleep: Callable[[], bool] = _no_sleep,
        wake: Callable[[str], None] = _nobody_wakes,
    ) -> None:
        self._sci = sci
        self._suspend = sleep
        self._wake = wake
        self.asleep = False
        """In S3."""
        self._clock = clock
        self._power_off = power_off
        self._trace = trace
        self._timer = clock.timer(self._update)
        self.apm = Apm(self, smi)
        self.reset()

    def reset(self) -> None:
        """What a reset of the machine leaves: everything off, the timer at 0."""
        self.asleep = False
        self._epoch = self._clock.now()
        self._halves_seen = 0
        self._pm1_sts = 0
        self._pm1_en = 0
        self._pm1_cnt = 0
        self._gpe0_sts = 0
        self._gpe0_en = 0
        self._gpe0_wanted = 0
        """Those that were ever enabled: while an OS serves one, it is not."""
        self.apm.reset()
        self._update()

    @property
    def acpi_enabled(self) -> bool:
        """Whether an ACPI system has taken over; if not, nobody would notice the power button."""
        return bool(self._pm1_cnt & SCI_EN)

    def enable(self, on: bool) -> None:
        """Set or clear SCI_EN, as the SMI commands do."""
        if self._trace.enabled:
            self._trace("ACPI mode" if on else "legacy mode")
        self._pm1_cnt = self._pm1_cnt | SCI_EN if on else self._pm1_cnt & ~SCI_EN
        self._update()

    def power_button(self) -> None:
        """A press of the power button; one that ends the sleep is no more than that (ACPI 6.5, 4.8.2.2.1)."""
        if self._trace.enabled:
            self._trace("power button")
        self._pm1_sts |= PWRBTN_STS
        if self.asleep:
            self._update()
        else:
            self.raise_gpe(GPE_POWER_BUTTON)

    def sleep_button(self) -> None:
        """A press of the sleep button."""
        if self._trace.enabled:
            self._trace("sleep button")
        self._pm1_sts |= SLPBTN_STS
        self._update()

    def rtc_alarm(self) -> None:
        """The alarm of the RTC has come, and its interrupt is enabled there."""
        self._pm1_sts |= RTC_STS
        self._update()

    def key(self) -> None:
        """A key was pressed; awake the keyboard's own interrupt tells of that."""
        if self.asleep:
            self.raise_gpe(GPE_KEYBOARD)

    def woken(self) -> None:
        """The sleep is over."""
        self.asleep = False
        self._pm1_sts |= WAK_STS
        self._update()

    def wake_if_due(self) -> None:
        """After a load: what was to end the sleep is told once more."""
        if self.asleep:
            self._update()

    def hears(self, event: int) -> bool:
        """Whether an ACPI system wants general-purpose event *event*."""
        return self.acpi_enabled and bool(self._gpe0_wanted >> event & 1)

    def raise_gpe(self, event: int) -> None:
        """General-purpose event 0 to 15 has happened: set its status bit."""
        self._gpe0_sts |= 1 << event & 0xFFFF
        self._update()

    def read(self, offset: int, size: int) -> int:
        return read_dwords(self._read_dword, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        for register, dword, mask in written_dwords(offset, size, value):
            self._write_dword(register, dword, mask)

    def _read_dword(self, register: int) -> int:
        if register == PM_TMR:
            return self._ticks() & ((1 << TIMER_BITS) - 1)
        if register == PM1_STS:
            return self._pm1_status() | self._pm1_en << 16
        if register == PM1_CNT:
            return self._pm1_cnt
        if register == GPE0_STS:
            return self._gpe0_sts | self._gpe0_en << 16
        return 0

    def _write_dword(self, register: int, value: int, mask: int) -> None:
        """Write the bits of *mask* in the registers at *register*, which is a multiple of 4."""
        if register == PM1_STS:
            self._pm1_sts &= ~value
            if value & TMR_STS:
                self._halves_seen = self._halves()
            self._pm1_en = (self._pm1_en & ~(mask >> 16) | value >> 16) & PM1_EN_MASK
        elif register == PM1_CNT:
            self._pm1_cnt = (self._pm1_cnt & ~mask | value) & PM1_CNT_MASK
            if value & SLP_EN:
                self._sleep(self._pm1_cnt >> SLP_TYP_SHIFT & 7)
        elif register == GPE0_STS:
            self._gpe0_sts &= ~value
            self._gpe0_en = self._gpe0_en & ~(mask >> 16) | value >> 16
            self._gpe0_wanted |= self._gpe0_en
        self._update()

    def _sleep(self, slp_typ: int) -> None:
        if self._trace.enabled:
            self._trace(f"SLP_EN with SLP_TYP {slp_typ}")
        if slp_typ in (SLP_TYP_S5, SLP_TYP_SOFT_OFF_QEMU):
            self._power_off()
        elif slp_typ == SLP_TYP_S3 and not self.asleep:
            self.asleep = self._suspend()

    def _wake_reason(self) -> str:
        """Why a sleeping machine is to wake; empty where it is not."""
        pm1, gpe = self._pm1_sts, self._gpe0_sts & self._gpe0_en
        if pm1 & PWRBTN_STS:
            return "power button"
        if pm1 & SLPBTN_STS:
            return "sleep button"
        if pm1 & self._pm1_en & RTC_STS:
            return "RTC alarm"
        if gpe >> GPE_KEYBOARD & 1:
            return "key"
        return f"general-purpose event {(gpe & -gpe).bit_length() - 1}" if gpe else ""

    def _ticks(self) -> int:
        return (self._clock.now() - self._epoch) * PM_TIMER_HZ // NS_PER_SECOND

    def _halves(self) -> int:
        """How often the highest bit of the timer has changed."""
        return self._ticks() >> (TIMER_BITS - 1)

    def _pm1_status(self) -> int:
        return self._pm1_sts | (TMR_STS if self._halves() != self._halves_seen else 0)

    def _update(self) -> None:
        """Drive the SCI, and wake up when an enabled timer changes its highest bit next."""
        timer_pending = self._pm1_en & TMR_EN and self._pm1_cnt & SCI_EN
        events = self._pm1_sts & self._pm1_en or self._gpe0_sts & self._gpe0_en
        if timer_pending:
            events = events or self._pm1_status() & TMR_STS
        if timer_pending and not events:
            ticks = (self._halves() + 1) << (TIMER_BITS - 1)
            self._timer.arm(self._epoch + -(-ticks * NS_PER_SECOND // PM_TIMER_HZ))
        else:
            self._timer.cancel()
        self._sci.set_level(bool(events and self._pm1_cnt & SCI_EN))
        if self.asleep and (reason := self._wake_reason()):
            self._wake(reason)


class Apm:
    """APM_CNT and APM_STS: a command for the BIOS, and a byte that the two sides may use as they like."""

    STATE = ("_cnt", "_sts")

    def __init__(self, pm: AcpiPm, smi: Callable[[int], None]) -> None:
        self._pm = pm
        self._smi = smi
        self.reset()

    def reset(self) -> None:
        self._cnt = 0
        self._sts = 0

    def read(self, offset: int, size: int) -> int:
        return (self._cnt | self._sts << 8) >> 8 * offset

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._cnt = value & 0xFF
            if size > 1:
                self._sts = value >> 8 & 0xFF
            if self._cnt in (ACPI_ENABLE, ACPI_DISABLE):
                self._pm.enable(self._cnt == ACPI_ENABLE)
            else:
                self._smi(self._cnt)
        else:
            self._sts = value & 0xFF
