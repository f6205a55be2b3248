"""A snapshot while somebody types: what was pressed then is released after going back, and keys and mouse go on."""

from __future__ import annotations

from pyvmm.input import codes as ic
from tests.rig.events import Event, Events
from tests.rig.guest import Guest

TYPED = (ic.KEY_A, ic.KEY_S, ic.KEY_D, ic.KEY_F, ic.KEY_G, ic.KEY_H)
HELD, LAST = ic.KEY_LEFTSHIFT, ic.KEY_Z


def back_while_typing(guest: Guest, keyboard: Events, mouse: Events) -> None:
    """Some keys are with the guest, some on their way through the chips and some in the router when it is taken."""
    machine = guest.machine
    machine.keyboard.key(HELD, 1)
    for code in TYPED:
        machine.keyboard.key(code, 1)
        machine.keyboard.key(code, 0)
    snapshot = machine.snapshot()
    machine.mouse.move(1, 1)
    machine.keyboard.key(HELD, 0)
    with machine.paused("test"):
        machine.restore(snapshot)
        guest.skip()
    machine.keyboard.key(LAST, 1)
    machine.keyboard.key(LAST, 0)
    seen = [event for event in keyboard.read_until((ic.EV_KEY, LAST, 0)) if event[0] == ic.EV_KEY]
    check(seen)
    machine.mouse.move(7, -3)
    assert (ic.EV_REL, ic.REL_Y, -3) in mouse.read_until((ic.EV_REL, ic.REL_Y, -3))


def check(seen: list[Event]) -> None:
    """In the order in which they were pressed, each with its release, the held one's last but for those after it."""
    codes = [HELD, *TYPED, LAST]
    pressed = [code for _, code, value in seen if value == 1]
    assert pressed == [code for code in codes if code in pressed] and pressed[-1] == LAST, seen
    down: set[int] = set()
    for _, code, value in seen:
        assert (code in down) is (value != 1), seen
        if value != 2:  # a repeat of a key that is held
            down ^= {code}
    assert not down, seen
