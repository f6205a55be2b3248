"""The hints: each once, where it helps, and not where it would be wrong."""

from __future__ import annotations

import pytest

from pyvmm.clock import NS_PER_SECOND, FakeClock
from pyvmm.devices.vga_text import VgaText
from pyvmm.host.hints import SILENT, UNHEARD, SilentSerial, UnheardKeys


class Guest:
    """A screen and a serial port, as far as the hints see them."""

    def __init__(self) -> None:
        self.memory = bytearray(0x8000)
        self.clock = FakeClock()
        self.changed = False
        self.vga = VgaText(memoryview(self.memory), self.clock, self._memory_changed)
        self.told: list[str] = []
        self.silent = SilentSerial(self.vga, self.clock, self.told.append)
        self.unheard = UnheardKeys(self.vga, self.clock, self.told.append)

    def _memory_changed(self) -> bool:
        changed, self.changed = self.changed, False
        return changed

    def show(self, text: bytes) -> None:
        for i, byte in enumerate(text):
            self.memory[2 * i] = byte
        self.changed = True

    def wait(self, seconds: float) -> None:
        self.clock.advance(int(seconds * NS_PER_SECOND))


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_screen_that_nobody_sees(guest: Guest) -> None:
    guest.show(b"login:")
    guest.wait(9.9)
    assert guest.told == []
    guest.wait(0.2)
    assert guest.told == [SILENT] and guest.silent.done
    guest.wait(100)
    assert guest.told == [SILENT], "once"


def test_a_screen_that_gets_its_text_late(guest: Guest) -> None:
    guest.wait(60)
    assert guest.told == [] and not guest.silent.done
    guest.show(b"login:")
    guest.wait(1)
    assert guest.told == [SILENT]


def test_one_byte_on_com1_is_enough(guest: Guest) -> None:
    guest.silent.serial_output(b"x")
    guest.show(b"login:")
    guest.wait(60)
    assert guest.told == [] and guest.silent.done


def test_keys_that_nobody_hears(guest: Guest) -> None:
    guest.silent.close()
    guest.unheard.typed("login:", on_serial=True)
    guest.unheard.serial_output(b" ")  # the rest of the prompt
    guest.wait(9.9)
    assert guest.told == []
    guest.wait(0.2)
    assert guest.told == [UNHEARD]
    guest.unheard.typed("login:", on_serial=True)
    guest.wait(60)
    assert guest.told == [UNHEARD], "once"


@pytest.mark.parametrize("answer", ["serial", "screen"])
def test_keys_that_are_answered(guest: Guest, answer: str) -> None:
    guest.silent.close()
    guest.unheard.typed("login:", on_serial=True)
    if answer == "serial":
        guest.unheard.serial_output(b"root\r\n")
    else:
        guest.show(b"root")
    guest.wait(60)
    assert guest.told == []


def test_keys_for_a_text_on_the_screen(guest: Guest) -> None:
    guest.silent.close()
    guest.unheard.typed("login:", on_serial=False)
    guest.wait(60)
    guest.show(b"login:")
    guest.unheard.typed("login:", on_serial=True)
    guest.wait(60)
    assert guest.told == []


def test_the_next_text_starts_anew(guest: Guest) -> None:
    guest.silent.close()
    guest.unheard.typed("login:", on_serial=True)
    guest.wait(8)
    guest.unheard.typed("Password:", on_serial=True)
    guest.wait(8)
    assert guest.told == []
    guest.wait(3)
    assert guest.told == [UNHEARD]


def test_nothing_is_said_after_the_end(guest: Guest) -> None:
    guest.show(b"login:")
    guest.unheard.typed("Password:", on_serial=True)
    guest.silent.close()
    guest.unheard.close()
    guest.wait(60)
    assert guest.told == []
