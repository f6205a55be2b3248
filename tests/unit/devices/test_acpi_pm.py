"""The fixed ACPI hardware, driven as ACPICA drives it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.clock import NS_PER_SECOND, FakeClock
from pyvmm.devices.acpi_pm import (
    ACPI_DISABLE,
    ACPI_ENABLE,
    GBL_EN,
    GPE0_EN,
    GPE0_STS,
    GPE_KEYBOARD,
    GPE_POWER_BUTTON,
    PM1_CNT,
    PM1_EN,
    PM1_STS,
    PM_LENGTH,
    PM_TIMER_HZ,
    PM_TMR,
    PWRBTN_EN,
    PWRBTN_STS,
    RTC_EN,
    SCI_EN,
    SLP_EN,
    SLP_TYP_S3,
    SLP_TYP_S5,
    SLP_TYP_SHIFT,
    TMR_EN,
    TMR_STS,
    WAK_STS,
    AcpiPm,
)
from pyvmm.irq import FakeIrq

HALF = 1 << 31


class Bench:
    def __init__(self, now: int = 12345) -> None:
        self.sci = FakeIrq()
        self.clock = FakeClock(now)
        self.offs = 0
        self.sleeps = 0
        self.can_sleep = True
        self.wakes: list[str] = []
        self.pm = AcpiPm(self.sci, self.clock, self.power_off, sleep=self.sleep, wake=self.wakes.append)

    def sleep(self) -> bool:
        self.sleeps += 1
        return self.can_sleep

    def asleep(self) -> AcpiPm:
        """In S3, with nothing that would wake it."""
        self.acpi().write(PM1_CNT, 2, SCI_EN | SLP_TYP_S3 << SLP_TYP_SHIFT | SLP_EN)
        assert self.pm.asleep
        return self.pm

    def power_off(self) -> None:
        self.offs += 1

    def acpi(self) -> AcpiPm:
        self.pm.apm.write(0, 1, ACPI_ENABLE)
        return self.pm


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_smi_command_takes_the_machine_into_acpi_mode_and_back(bench: Bench) -> None:
    pm = bench.pm
    assert not pm.acpi_enabled
    pm.apm.write(0, 1, ACPI_ENABLE)
    assert pm.read(PM1_CNT, 2) == SCI_EN
    assert pm.acpi_enabled
    pm.apm.write(0, 1, 0x55)
    assert pm.read(PM1_CNT, 2) == SCI_EN
    pm.apm.write(0, 1, ACPI_DISABLE)
    assert pm.read(PM1_CNT, 2) == 0


def test_apm_remembers_both_bytes(bench: Bench) -> None:
    apm = bench.pm.apm
    apm.write(1, 1, 0xA5)
    apm.write(0, 1, 0x5A)
    assert (apm.read(0, 1) & 0xFF, apm.read(1, 1) & 0xFF, apm.read(0, 2)) == (0x5A, 0xA5, 0xA55A)
    apm.write(0, 2, 0x1200 | ACPI_ENABLE)
    assert (apm.read(1, 1) & 0xFF, bench.pm.acpi_enabled) == (0x12, True)


def test_power_button_as_a_control_method(bench: Bench) -> None:
    """_E02: the status is cleared first, then the method runs; a press meanwhile raises the SCI again."""
    pm = bench.acpi()
    pm.write(GPE0_EN, 1, 1 << GPE_POWER_BUTTON)
    pm.power_button()
    assert bench.sci.level
    assert pm.read(GPE0_STS, 1) & 0xFF == 1 << GPE_POWER_BUTTON
    pm.write(GPE0_STS, 1, 1 << GPE_POWER_BUTTON)
    assert not bench.sci.level
    pm.power_button()
    assert bench.sci.edges == 2


def test_power_button_as_a_fixed_event(bench: Bench) -> None:
    pm = bench.acpi()
    pm.write(PM1_EN, 2, PWRBTN_EN)
    pm.power_button()
    assert bench.sci.level
    assert pm.read(PM1_STS, 2) & 0xFFFF == PWRBTN_STS
    pm.write(PM1_STS, 2, TMR_STS)  # another bit
    assert bench.sci.level
    pm.write(PM1_STS, 2, PWRBTN_STS)
    assert not bench.sci.level
    assert pm.read(PM1_STS, 2) & 0xFFFF == 0


def test_no_sci_without_sci_en_or_enable(bench: Bench) -> None:
    pm = bench.pm
    pm.power_button()
    assert not bench.sci.level
    pm.write(PM1_EN, 2, PWRBTN_EN)
    assert not bench.sci.level
    pm.apm.write(0, 1, ACPI_ENABLE)
    assert bench.sci.level  # the status has been waiting
    pm.apm.write(0, 1, ACPI_DISABLE)
    assert not bench.sci.level


def test_a_general_purpose_event(bench: Bench) -> None:
    pm = bench.acpi()
    pm.raise_gpe(9)
    assert not bench.sci.level
    pm.write(GPE0_EN + 1, 1, 1 << 1)
    assert bench.sci.level
    assert pm.read(GPE0_STS, 4) == 0x02000200
    pm.write(GPE0_EN + 1, 1, 0)
    assert not bench.sci.level
    assert pm.read(GPE0_STS, 2) & 0xFFFF == 0x200


def test_s5_as_acpica_enters_it(bench: Bench) -> None:
    """acpi_hw_legacy_sleep(): SLP_TYP first, then SLP_TYP with SLP_EN."""
    pm = bench.acpi()
    typ = SLP_TYP_S5 << SLP_TYP_SHIFT
    pm.write(PM1_CNT, 2, SCI_EN | typ)
    assert bench.offs == 0
    pm.write(PM1_CNT, 2, SCI_EN | typ | SLP_EN)
    assert bench.offs == 1
    assert pm.read(PM1_CNT, 2) == SCI_EN | typ  # SLP_EN reads as 0


def test_s5_by_bytes(bench: Bench) -> None:
    bench.pm.write(PM1_CNT + 1, 1, (SLP_TYP_S5 << SLP_TYP_SHIFT | SLP_EN) >> 8)
    assert bench.offs == 1


def test_the_write_that_powers_off_under_qemu(bench: Bench) -> None:
    """What small kernels do without ACPI: `outw 0x2000, 0x604`."""
    bench.pm.write(PM1_CNT, 2, SCI_EN)
    assert bench.offs == 0
    bench.pm.write(PM1_CNT, 2, SLP_EN)
    assert bench.offs == 1


@pytest.mark.parametrize("typ", [typ for typ in range(1, 8) if typ != SLP_TYP_S5])
def test_other_sleep_states_do_nothing(bench: Bench, typ: int) -> None:
    bench.pm.write(PM1_CNT, 2, typ << SLP_TYP_SHIFT | SLP_EN)
    assert bench.offs == 0


def test_timer_runs_at_its_frequency(bench: Bench) -> None:
    assert bench.pm.read(PM_TMR, 4) == 0
    bench.clock.advance(NS_PER_SECOND)
    assert bench.pm.read(PM_TMR, 4) == PM_TIMER_HZ
    bench.clock.advance(NS_PER_SECOND * 9)
    assert bench.pm.read(PM_TMR, 4) == 10 * PM_TIMER_HZ
    bench.pm.write(PM_TMR, 4, 0)
    assert bench.pm.read(PM_TMR, 4) == 10 * PM_TIMER_HZ


def ns_of(ticks: int) -> int:
    """The first nanosecond at which the timer shows *ticks*."""
    return -(-ticks * NS_PER_SECOND // PM_TIMER_HZ)


def test_timer_wraps_after_32_bits(bench: Bench) -> None:
    bench.clock.advance(ns_of(1 << 32) - 1)
    assert bench.pm.read(PM_TMR, 4) == 0xFFFFFFFF
    bench.clock.advance(1)
    assert bench.pm.read(PM_TMR, 4) == 0


def test_timer_status_at_each_change_of_the_highest_bit(bench: Bench) -> None:
    pm = bench.acpi()
    for half in range(1, 5):
        bench.clock.advance(12345 + ns_of(half * HALF) - bench.clock.now() - 1)
        assert pm.read(PM1_STS, 2) & TMR_STS == 0
        bench.clock.advance(1)
        assert pm.read(PM1_STS, 2) & TMR_STS
        pm.write(PM1_STS, 2, TMR_STS)
        assert pm.read(PM1_STS, 2) & TMR_STS == 0


def test_timer_interrupt(bench: Bench) -> None:
    """With TMR_EN the SCI comes by itself, once a change, and nothing is armed without it."""
    pm = bench.acpi()
    (timer,) = bench.clock.timers
    assert timer.deadline is None
    pm.write(PM1_EN, 2, TMR_EN)
    bench.clock.advance(ns_of(HALF) - 1)
    assert not bench.sci.level
    bench.clock.advance(1)
    assert bench.sci.level
    assert timer.deadline is None
    bench.clock.advance(ns_of(HALF))
    pm.write(PM1_STS, 2, TMR_STS)
    assert not bench.sci.level
    bench.clock.advance(ns_of(HALF))
    assert (bench.sci.level, bench.sci.edges) == (True, 2)
    pm.write(PM1_EN, 2, 0)
    assert not bench.sci.level
    assert timer.deadline is None


def test_timer_interrupt_is_not_lost_behind_another_event(bench: Bench) -> None:
    pm = bench.acpi()
    pm.write(PM1_EN, 2, TMR_EN | PWRBTN_EN)
    pm.power_button()
    bench.clock.advance(ns_of(HALF))
    pm.write(PM1_STS, 2, PWRBTN_STS)
    assert bench.sci.level
    pm.write(PM1_STS, 2, TMR_STS)
    assert not bench.sci.level


def test_every_fixed_event_can_be_enabled(bench: Bench) -> None:
    """ACPICA writes an enable bit and complains where it does not stay."""
    pm = bench.acpi()
    for bit in (TMR_EN, GBL_EN, PWRBTN_EN, RTC_EN):
        pm.write(PM1_EN, 2, bit)
        assert pm.read(PM1_EN, 2) == bit
        assert not bench.sci.level


def test_reset(bench: Bench) -> None:
    pm = bench.acpi()
    pm.write(PM1_EN, 2, PWRBTN_EN | TMR_EN)
    pm.write(GPE0_EN, 2, 0xFFFF)
    pm.power_button()
    bench.clock.advance(NS_PER_SECOND)
    pm.reset()
    assert not bench.sci.level
    assert [pm.read(offset, 4) for offset in range(0, PM_LENGTH, 4)] == [0] * (PM_LENGTH // 4)
    assert bench.clock.timers[0].deadline is None


ACCESSES = st.tuples(
    st.booleans(), st.integers(0, PM_LENGTH - 1), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFFFFFF)
)


@settings(max_examples=60)
@given(st.lists(st.one_of(ACCESSES, st.integers(0, 1 << 41), st.just("press"))))
def test_hostile_guest(steps: list[tuple[bool, int, int, int] | int | str]) -> None:
    """Nothing raises; a dword is its bytes; the SCI is what the registers say; the timer is armed in the future."""
    bench = Bench()
    pm = bench.acpi()
    for step in steps:
        if isinstance(step, int):
            bench.clock.advance(step)
        elif isinstance(step, str):
            pm.power_button()
        else:
            write, offset, size, value = step
            if write:
                pm.write(offset, size, value & ((1 << 8 * size) - 1))
                pm.apm.write(offset & 1, size, value)
            whole = pm.read(offset, size) & ((1 << 8 * size) - 1)
            parts = [pm.read(offset + i, 1) & 0xFF for i in range(size)]
            assert whole == int.from_bytes(bytes(parts), "little")
        pm1 = pm.read(PM1_STS, 4)
        gpe = pm.read(GPE0_STS, 4)
        pending = pm1 & pm1 >> 16 & 0xFFFF or gpe & gpe >> 16 & 0xFFFF
        assert bench.sci.level == bool(pending and pm.acpi_enabled)
        deadline = bench.clock.timers[0].deadline
        assert deadline is None or deadline > bench.clock.now()


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.booleans())
def test_bytes_and_words_write_alike(status: int, enable: int, gpe: bool) -> None:
    block = GPE0_STS if gpe else PM1_STS
    results = []
    for split in (True, False):
        pm = Bench().acpi()
        for event in range(16):
            pm.raise_gpe(event)
        pm.power_button()
        value = status | enable << 16
        if split:
            for i in range(4):
                pm.write(block + i, 1, value >> 8 * i & 0xFF)
        else:
            pm.write(block, 4, value)
        results.append(pm.read(block, 4))
    assert results[0] == results[1]


# S3


def test_nothing_wakes_it_that_is_not_enabled(bench: Bench) -> None:
    pm = bench.asleep()
    pm.rtc_alarm()
    pm.key()
    pm.raise_gpe(3)
    assert bench.wakes == [] and pm.asleep
    pm.write(PM1_EN, 2, RTC_EN)
    assert bench.wakes == ["RTC alarm"], "its status waits"


@pytest.mark.parametrize(
    ("register", "enable", "event", "reason"),
    [
        (PM1_EN, 0, AcpiPm.power_button, "power button"),
        (PM1_EN, 0, AcpiPm.sleep_button, "sleep button"),
        (PM1_EN, RTC_EN, AcpiPm.rtc_alarm, "RTC alarm"),
        (GPE0_EN, 1 << GPE_KEYBOARD, AcpiPm.key, "key"),
        (GPE0_EN, 1 << 3, lambda pm: pm.raise_gpe(3), "general-purpose event 3"),
    ],
)
def test_what_wakes_it(bench: Bench, register: int, enable: int, event: Callable[[AcpiPm], None], reason: str) -> None:
    pm = bench.asleep()
    pm.write(register, 2, enable)
    assert bench.wakes == []
    event(pm)
    assert set(bench.wakes) == {reason} and pm.asleep, "until who wakes it says that it is done"
    pm.woken()
    assert not pm.asleep and pm.read(PM1_STS, 2) & WAK_STS
    bench.wakes.clear()
    event(pm)
    assert bench.wakes == [], "it is awake"
    pm.write(PM1_STS, 2, WAK_STS)
    assert not pm.read(PM1_STS, 2) & WAK_STS


def test_the_power_button_wakes_and_does_nothing_more(bench: Bench) -> None:
    pm = bench.asleep()
    pm.power_button()
    assert pm.read(PM1_STS, 2) & 0xFFFF == PWRBTN_STS and pm.read(GPE0_STS, 2) & 0xFFFF == 0


def test_what_waits_already_ends_the_sleep_at_once(bench: Bench) -> None:
    pm = bench.acpi()
    pm.write(PM1_EN, 2, RTC_EN)
    pm.rtc_alarm()
    assert bench.sci.level, "awake it is an event"
    pm.write(PM1_CNT, 2, SLP_TYP_S3 << SLP_TYP_SHIFT | SLP_EN)
    assert bench.wakes == ["RTC alarm"]


def test_a_machine_that_cannot_sleep_stays_awake(bench: Bench) -> None:
    bench.can_sleep = False
    pm = bench.acpi()
    pm.write(PM1_CNT, 2, SCI_EN | SLP_TYP_S3 << SLP_TYP_SHIFT | SLP_EN)
    assert (bench.sleeps, pm.asleep) == (1, False)
    pm.power_button()
    assert bench.wakes == []


def test_it_falls_asleep_once_and_a_reset_wakes_it(bench: Bench) -> None:
    pm = bench.asleep()
    pm.write(PM1_CNT, 2, SCI_EN | SLP_TYP_S3 << SLP_TYP_SHIFT | SLP_EN)  # another vCPU, on its way to stand still
    assert bench.sleeps == 1
    pm.reset()
    assert not pm.asleep and pm.read(PM1_STS, 2) & WAK_STS == 0


def test_after_a_load_what_was_to_wake_it_does(bench: Bench) -> None:
    pm = bench.asleep()
    pm.power_button()
    saved = state.save(pm)
    other = Bench()
    state.load(other.pm, saved)
    other.pm.wake_if_due()
    assert other.wakes == ["power button"] and other.pm.asleep


def test_an_event_that_is_being_served_is_still_wanted() -> None:
    """ACPICA disables an event until its method has run; who asks then whether anybody listens hears yes."""
    pm = AcpiPm(FakeIrq(), FakeClock(), lambda: None)
    pm.write(GPE0_EN, 2, 1 << 3)
    assert not pm.hears(3), "not in ACPI mode"
    pm.enable(True)
    assert pm.hears(3) and not pm.hears(4)
    pm.write(GPE0_EN, 2, 0)
    assert pm.hears(3)
    pm.reset()
    pm.enable(True)
    assert not pm.hears(3)
