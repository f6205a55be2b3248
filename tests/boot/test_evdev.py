"""Host capture with the kernel's own evdev: devices made by uinput, and the lab's own PS/2 keyboard and mouse."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from evdev import InputDevice, UInput

from pyvmm.errors import UserError
from pyvmm.host.capture.evdev import EvdevCapture, is_keyboard
from pyvmm.input import codes as ic
from tests.rig.console import Start
from tests.rig.input_fakes import FakeKeyboard, FakePointer, make_router
from tests.rig.lab import ROOT, monitor

A, B, LEFT, RIGHT = ic.KEY_A, ic.KEY_B, ic.KEY_LEFTCTRL, ic.KEY_RIGHTCTRL
KEYBOARD: dict[int, Sequence[int]] = {
    ic.EV_KEY: [*range(1, 120)],
    ic.EV_LED: [ic.LED_NUML, ic.LED_CAPSL, ic.LED_SCROLLL],
}
MOUSE: dict[int, Sequence[int]] = {
    ic.EV_KEY: [ic.BTN_LEFT, ic.BTN_RIGHT],
    ic.EV_REL: [ic.REL_X, ic.REL_Y, ic.REL_WHEEL],
}


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    for module in ("evdev", "uinput", "psmouse"):
        subprocess.run(["modprobe", module], check=True)


class Hand:
    """A device made by uinput, and a second reader of it: the host."""

    def __init__(self, capabilities: dict[int, Sequence[int]] = KEYBOARD, name: str = "pyvmm test keyboard") -> None:
        self.uinput = UInput(capabilities, name=name)
        deadline = time.monotonic() + 10
        while self.uinput.device is None and time.monotonic() < deadline:
            time.sleep(0.05)
            self.uinput.device = self.uinput._find_device(self.uinput.fd)
        assert self.uinput.device is not None
        self.path = str(self.uinput.device.path)
        self.host = InputDevice(self.path)

    def send(self, *events: tuple[int, int, int]) -> None:
        for event in events:
            self.uinput.write(*event)
        self.uinput.syn()

    def key(self, code: int, value: int) -> None:
        self.send((ic.EV_KEY, code, value))

    def host_saw(self) -> list[tuple[int, int]]:
        """The keys that the host has seen since it was last asked."""
        seen = []
        while select.select([self.host], [], [], 0.1)[0]:
            seen += [(event.code, event.value) for event in self.host.read() if event.type == ic.EV_KEY]
        return seen

    def unplug(self) -> None:
        self.host.close()
        self.uinput.close()


class Guest:
    """The guest's devices, and the capture that fills them."""

    def __init__(self, **options: str | None) -> None:
        self.keyboard = FakeKeyboard()
        self.mouse = FakePointer()
        self.router = make_router(ps2_keyboard=self.keyboard, ps2_mouse=self.mouse)
        self.lines: list[str] = []
        self.capture = EvdevCapture.of_host(self.router, notify=self.lines.append, **options)  # type: ignore[arg-type]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, (self.keyboard.keys, self.mouse.events, self.capture.grabbed)
            if select.select([self.capture], [], [], 0.1)[0]:
                self.capture.process()


@pytest.fixture
def hand() -> Iterator[Hand]:
    hand = Hand()
    yield hand
    try:
        hand.unplug()
    except OSError:
        pass


@pytest.fixture
def guest(hand: Hand) -> Iterator[Guest]:
    guest = Guest(keyboard=hand.path)
    yield guest
    guest.capture.close()


def test_keys_go_to_the_guest_alone(hand: Hand, guest: Guest) -> None:
    assert guest.capture.grabbed == [hand.path]
    for code in (A, B):
        for value in (1, 0):
            hand.key(code, value)
    guest.until(lambda: len(guest.keyboard.keys) == 4)
    assert guest.keyboard.keys == [(A, 1), (A, 0), (B, 1), (B, 0)]
    assert hand.host_saw() == []
    guest.capture.close()
    hand.key(A, 1)
    hand.key(A, 0)
    assert hand.host_saw() == [(A, 1), (A, 0)]


def test_a_held_key_is_waited_for(hand: Hand) -> None:
    hand.key(ic.KEY_ENTER, 1)
    guest = Guest(keyboard=hand.path)
    assert guest.capture.grabbed == []
    hand.key(ic.KEY_ENTER, 0)
    guest.until(lambda: guest.capture.grabbed == [hand.path])
    assert hand.host_saw() == [(ic.KEY_ENTER, 1), (ic.KEY_ENTER, 0)] and guest.keyboard.keys == []
    guest.capture.close()


def test_the_chord(hand: Hand, guest: Guest) -> None:
    hand.key(A, 1)
    hand.key(LEFT, 1)
    hand.key(RIGHT, 1)
    guest.until(lambda: guest.capture.grabbed == [])
    assert guest.keyboard.keys == [(A, 1), (LEFT, 1), (A, 0), (LEFT, 0)]
    for code in (A, LEFT, RIGHT):
        hand.key(code, 0)
    hand.key(B, 1)
    hand.key(B, 0)
    assert hand.host_saw()[-2:] == [(B, 1), (B, 0)]
    for code, value in ((LEFT, 1), (RIGHT, 1), (LEFT, 0), (RIGHT, 0)):
        hand.key(code, value)
    guest.until(lambda: guest.capture.grabbed == [hand.path])
    assert hand.host_saw() == [(LEFT, 1), (RIGHT, 1), (LEFT, 0), (RIGHT, 0)]
    assert guest.keyboard.keys[4:] == []


def test_unplugged_while_pressed(hand: Hand, guest: Guest) -> None:
    hand.key(A, 1)
    guest.until(lambda: guest.keyboard.keys == [(A, 1)])
    hand.unplug()
    guest.until(lambda: guest.keyboard.keys == [(A, 1), (A, 0)])
    assert guest.capture.grabbed == []


def test_plugged_in_later(hand: Hand) -> None:
    guest = Guest()
    assert hand.path in guest.capture.grabbed
    other = Hand(name="pyvmm second keyboard")
    guest.until(lambda: other.path in guest.capture.grabbed)
    other.key(B, 1)
    guest.until(lambda: guest.keyboard.keys == [(B, 1)])
    other.unplug()
    guest.until(lambda: other.path not in guest.capture.grabbed)
    assert guest.keyboard.keys == [(B, 1), (B, 0)]
    guest.capture.close()


def test_the_guests_leds(hand: Hand, guest: Guest) -> None:
    device = InputDevice(hand.path)
    guest.router.set_leds(1 << ic.LED_CAPSL | 1 << ic.LED_NUML)
    assert sorted(device.leds()) == [ic.LED_NUML, ic.LED_CAPSL]
    guest.router.set_leds(0)
    assert device.leds() == []
    guest.router.set_leds(1 << ic.LED_SCROLLL)
    guest.capture.close()
    assert device.leds() == []
    device.close()


def test_a_mouse() -> None:
    hand = Hand(MOUSE, "pyvmm test mouse")
    guest = Guest(keyboard=None, mouse=hand.path)
    hand.send((ic.EV_REL, ic.REL_X, 5), (ic.EV_REL, ic.REL_Y, -7))
    hand.send((ic.EV_REL, ic.REL_WHEEL, 1), (ic.EV_KEY, ic.BTN_LEFT, 1))
    guest.until(lambda: len(guest.mouse.events) == 3)
    assert guest.mouse.events == [("motion", 5, -7), ("wheel", 1, 0), ("button", ic.BTN_LEFT, 1)]
    guest.capture.close()
    assert guest.mouse.events[3:] == [("button", ic.BTN_LEFT, 0)]
    hand.unplug()


def test_the_labs_own_keyboard_and_mouse() -> None:
    guest = Guest(keyboard="", mouse="")
    assert guest.lines == []
    monitor("sendkey shift-a")
    guest.until(lambda: len(guest.keyboard.keys) >= 4)
    assert guest.keyboard.keys[:2] == [(ic.KEY_LEFTSHIFT, 1), (A, 1)]
    assert sorted(guest.keyboard.keys[2:]) == [(A, 0), (ic.KEY_LEFTSHIFT, 0)]
    monitor("mouse_move 9 4")
    guest.until(lambda: sum(dx for kind, dx, _ in guest.mouse.events if kind == "motion") == 9)
    guest.capture.close()


def test_ten_thousand_events(hand: Hand, guest: Guest) -> None:
    """Bursts that fit the kernel's queue: nothing lost, the order kept."""
    expected = []
    for burst in range(500):
        for i in range(10):
            for value in (1, 0):
                code = 2 + (burst + i) % 10
                hand.key(code, value)
                expected.append((code, value))
        guest.until(lambda: len(guest.keyboard.keys) == len(expected))
    assert guest.keyboard.keys == expected


def test_a_queue_that_runs_over_leaves_no_key_down(hand: Hand, guest: Guest) -> None:
    for i in range(3000):
        hand.key(2 + i % 50, 1)
        hand.key(2 + i % 50, 0)
    hand.key(A, 1)
    guest.until(lambda: guest.keyboard.keys[-1:] == [(A, 1)])
    hand.key(A, 0)
    guest.until(lambda: guest.keyboard.keys[-1:] == [(A, 0)])
    down: set[int] = set()
    for code, value in guest.keyboard.keys:
        assert (code in down) != bool(value)
        down ^= {code}
    assert not down


CHILD = """
import sys, time, os, signal
from pyvmm.host.capture.evdev import EvdevCapture
from pyvmm.input.router import Router
capture = EvdevCapture.of_host(Router(), keyboard=sys.argv[1])
print("grabbed" if capture.grabbed else "not grabbed", flush=True)
if sys.argv[2] == "exit":
    sys.exit(0)
if sys.argv[2] == "raise":
    raise RuntimeError("a bug")
time.sleep(60)
"""


@pytest.mark.parametrize("end", ["exit", "raise", "kill"])
def test_the_keyboard_comes_back_however_we_end(hand: Hand, end: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, hand.path, end], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    assert child.stdout is not None and child.stdout.readline() == b"grabbed\n"
    if end == "kill":
        hand.key(A, 1)
        hand.key(A, 0)
        assert hand.host_saw() == []
        child.send_signal(signal.SIGKILL)
    child.wait(90)
    hand.key(B, 1)
    hand.key(B, 0)
    assert hand.host_saw()[-2:] == [(B, 1), (B, 0)]
    device = InputDevice(hand.path)
    device.grab()
    device.close()


def test_grabbed_by_another_program(hand: Hand) -> None:
    hand.host.grab()
    with pytest.raises(UserError, match="another program has grabbed it"):
        Guest(keyboard=hand.path)


def test_without_permission_one_line_says_what_to_do(hand: Hand) -> None:
    """As a user who may not open the device."""
    os.chmod(hand.path, 0o600)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with pytest.raises(UserError) as caught:
                Guest(keyboard="")
            line = str(caught.value)
            assert "no permission" in line and "udev rule" in line and "\n" not in line
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_is_a_keyboard_here(hand: Hand) -> None:
    names = {}
    for path in sorted(os.listdir("/dev/input")):
        if path.startswith("event"):
            try:
                device = InputDevice(f"/dev/input/{path}")
            except OSError as error:
                assert error.errno == errno.ENODEV
                continue
            names[device.name] = is_keyboard(device)
            device.close()
    assert names["AT Translated Set 2 keyboard"] and names["pyvmm test keyboard"]
    assert not any(is_it for name, is_it in names.items() if "Power Button" in name or "Mouse" in name)


def test_pyvmm_run_takes_the_hosts_keyboard(hand: Hand, pyvmm: Start) -> None:
    """A key that a hand presses on the host is read by the guest's own driver, and the machine's end gives it back."""
    console = pyvmm("run", "--keyboard", f"evdev={hand.path}", "--trace", "evdev", "keyboard")
    console.expect("is the guest's")
    console.expect("> ")
    for code in (ic.KEY_H, ic.KEY_E, ic.KEY_Y, ic.KEY_ENTER):
        hand.key(code, 1)
        hand.key(code, 0)
    console.expect("hey: no such command")
    assert hand.host_saw() == []
    for code in (LEFT, ic.KEY_D):
        hand.key(code, 1)
    assert console.wait() == 0
    for code in (ic.KEY_D, LEFT, B):
        hand.key(code, 0)
    hand.key(B, 1)
    assert hand.host_saw()[-1] == (B, 1)
    hand.key(B, 0)


def test_pyvmm_run_with_a_device_that_is_no_keyboard(pyvmm: Start) -> None:
    console = pyvmm("run", "--keyboard", "evdev=/dev/null", "keyboard")
    console.expect("/dev/null")
    assert console.wait() == 2 and len(console.output.splitlines()) == 1
