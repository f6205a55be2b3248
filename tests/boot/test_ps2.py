"""PS/2 keyboard and mouse and the VGA console under a current Linux, with each --irqchip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.config import Irqchip, MachineConfig
from pyvmm.control.timeline.timeline import Timeline
from pyvmm.input import codes as ic
from tests.rig.events import Events, input_devices
from tests.rig.guest import Guest, irq_counts, warnings
from tests.rig.lab import GENERIC_KERNEL, INITRAMFS_GENERIC
from tests.rig.timeline import ended, trace_of
from tests.rig.while_typing import back_while_typing

MIB = 1 << 20
KEYBOARD, MOUSE = "AT Translated Set 2 keyboard", "ImExPS/2 Generic Explorer Mouse"
SYN = (ic.EV_SYN, ic.SYN_REPORT, 0)
KEYS = (ic.KEY_A, ic.KEY_LEFTSHIFT, ic.KEY_KP7, ic.KEY_RIGHTCTRL, ic.KEY_UP, ic.KEY_INSERT, ic.KEY_SYSRQ, ic.KEY_PAUSE)
"""A key with one byte of scan code, and one of each kind that takes more."""


@pytest.fixture(scope="module", params=["kernel", "split", "user"])
def irqchip(request: pytest.FixtureRequest) -> Irqchip:
    chip: Irqchip = request.param
    return chip


@pytest.fixture(scope="module")
def guest(irqchip: Irqchip) -> Iterator[Guest]:
    """One shell on the VGA console, a second one, for the questions of these tests, on the serial port."""
    config = MachineConfig(
        memory=512 * MIB,
        kernel=GENERIC_KERNEL,
        initrd=INITRAMFS_GENERIC,
        cmdline="console=tty0 quiet",
        irqchip=irqchip,
        virtio_input="none",
    )
    with Guest(config) as guest:
        guest.expect_screen("# ")
        guest.type("setsid sh -i </dev/ttyS0 >/dev/ttyS0 2>&1 &\n")
        guest.expect("# ")
        yield guest


def test_a_typed_command_shows_its_result_on_the_screen(guest: Guest) -> None:
    guest.type('clear; echo "Result: {$((6 * 7))} <~!@#%^&*_+|?>"\n')
    guest.expect_screen("Result: {42} <~!@#%^&*_+|?>\n")


def test_caps_lock_and_its_led(guest: Guest) -> None:
    leds: list[tuple[int, bool]] = []
    source = guest.machine.board.router.source("leds", lambda led, on: leds.append((led, on)))
    guest.machine.keyboard.press("capslock")
    guest.until(lambda: (ic.LED_CAPSL, True) in leds, "the LED of Caps Lock")
    guest.type("ECHO IN-CAPS\n")
    guest.expect_screen("\nin-caps\n")
    guest.machine.keyboard.press("capslock")
    guest.until(lambda: leds[-1] == (ic.LED_CAPSL, False), "the LED going out")
    source.close()


def test_drivers_probe_without_a_warning(guest: Guest, irqchip: Irqchip) -> None:
    devices = input_devices(guest)
    assert devices[KEYBOARD]["P"] == "Phys=isa0060/serio0/input0"
    assert devices[MOUSE]["P"] == "Phys=isa0060/serio1/input0"
    said = warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None))
    if irqchip == "user":  # of a PC with no APIC Linux says that it is one: no boot CPU listed, ELCR set anew, no PMU
        said = [line for line in said if re.search("i8042|serio|atkbd|psmouse|input|keyboard|mouse", line)]
    assert said == []


def test_keys_as_a_program_in_the_guest_reads_them(guest: Guest) -> None:
    events = Events(guest, KEYBOARD)
    for code in KEYS:
        guest.machine.keyboard.key(code, 1)
        guest.machine.keyboard.key(code, 0)
    seen = [event for event in events.read(3 * 2 * len(KEYS)) if event[0] == ic.EV_KEY]
    assert seen == [(ic.EV_KEY, code, value) for code in KEYS for value in (1, 0)]


def test_the_mouse_as_a_program_in_the_guest_reads_it(guest: Guest) -> None:
    events = Events(guest, MOUSE)
    machine = guest.machine
    machine.mouse.move(5, -3)
    assert events.read(3) == [(ic.EV_REL, ic.REL_X, 5), (ic.EV_REL, ic.REL_Y, -3), SYN]
    machine.mouse.move(-300, 0)  # more than fits in one packet
    machine.mouse.wheel(1)
    machine.mouse.wheel(-2)
    buttons = (ic.BTN_LEFT, ic.BTN_RIGHT, ic.BTN_MIDDLE, ic.BTN_SIDE, ic.BTN_EXTRA)
    for button in buttons:
        machine.mouse.button(button, 1)
        machine.mouse.button(button, 0)
    seen = events.read_until((ic.EV_KEY, buttons[-1], 0))
    assert sum(value for kind, code, value in seen if (kind, code) == (ic.EV_REL, ic.REL_X)) == -300
    assert sum(value for kind, code, value in seen if (kind, code) == (ic.EV_REL, ic.REL_WHEEL)) == -1
    pressed = [event for event in seen if event[0] == ic.EV_KEY]
    assert pressed == [(ic.EV_KEY, button, value) for button in buttons for value in (1, 0)]


def test_keys_are_flows_from_the_script_to_the_drivers_read(guest: Guest, tmp_path: Path) -> None:
    """Each byte of each key has its interrupt, and the driver's read of port 0x60 ends the flow."""
    path = tmp_path / "timeline"
    with Timeline(guest.machine, path):
        for code in (ic.KEY_A, ic.KEY_UP):
            guest.machine.keyboard.key(code, 1)
            guest.machine.keyboard.key(code, 0)
        guest.machine.call(lambda: None)
        guest.until(lambda: guest.machine.keyboard.idle, "the guest's reading of the keys")
    ways = {way[0][1]: way for way in ended(trace_of(path)) if way[0][0] == "input"}
    assert list(ways) == [f"inject: {key} {what}" for key in ("KEY_A", "KEY_UP") for what in ("pressed", "released")]
    for name, way in ways.items():
        said = [line for track, line in way if track not in ("input", "ps2-keyboard", "i8042")]
        reads = [line for _, line in way if line.startswith("read of port 0x60 returns ")]
        assert way[1][0] == "ps2-keyboard" and way[-1][1] == reads[-1]
        assert len(reads) == (2 if "KEY_UP" in name else 1)
        assert len(said) >= len(reads) and all(re.search(r"\b(IRQ|pin) 1\b", line) for line in said), way


def test_back_to_a_snapshot_that_was_taken_while_typing(guest: Guest) -> None:
    back_while_typing(guest, Events(guest, KEYBOARD), Events(guest, MOUSE))


def test_interrupts_come_from_the_chip_that_was_asked_for(guest: Guest, irqchip: Irqchip) -> None:
    table = guest.shell("cat /proc/interrupts")
    counts = irq_counts(table)
    assert counts["1"][0] > 100 and counts["12"][0] > 20 and counts["ttyS0"][0] > 20
    assert ("XT-PIC" if irqchip == "user" else "IO-APIC") in next(
        line for line in table.splitlines() if line.lstrip().startswith("1:")
    )
    if irqchip == "user":
        assert counts["0"][0] > 100 and "LOC" in counts and counts["LOC"] == [0]
