"""The capture of the host's devices against a model of the kernel's evdev; the real one: tests/boot/test_evdev.py."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import UserError
from pyvmm.host.capture import evdev
from pyvmm.host.capture.evdev import EvdevCapture, is_keyboard, is_mouse
from pyvmm.input import codes as ic
from tests.rig.input_fakes import FakeKeyboard, FakePointer, make_router

A, B, LEFT, RIGHT = ic.KEY_A, ic.KEY_B, ic.KEY_LEFTCTRL, ic.KEY_RIGHTCTRL
KEYS = {ic.EV_KEY: [*range(1, 120)], ic.EV_LED: [ic.LED_NUML, ic.LED_CAPSL, ic.LED_SCROLLL]}
MOUSE = {ic.EV_KEY: [ic.BTN_LEFT, ic.BTN_RIGHT], ic.EV_REL: [ic.REL_X, ic.REL_Y, ic.REL_WHEEL]}
POWER_BUTTON = {ic.EV_KEY: [ic.KEY_POWER]}


class Event(NamedTuple):
    type: int
    code: int
    value: int


class FakeDevice:
    """A device node: what happens on it goes to the one who grabbed it, else also to the host."""

    def __init__(self, path: str, capabilities: Mapping[int, Sequence[int]], name: str = "device") -> None:
        self.path = path
        self.name = name
        self._capabilities = capabilities
        self.grabbed = False
        self.grabbed_by_other = False
        self.unplugged = False
        self.closed = False
        self.queue: deque[Event] = deque()
        self.down: set[int] = set()
        self.host_down: set[int] = set()
        self.host_saw_release: list[int] = []
        self.lit: set[int] = set()
        self.presses_before_grab: list[int] = []
        self._read_fd, self._write_fd = os.pipe()

    # The hand

    def send(self, *events: tuple[int, int, int]) -> None:
        for kind, code, value in events:
            if kind == ic.EV_KEY and value != 2:
                if (code in self.down) == bool(value):
                    continue
                self.down ^= {code}
                if not self.grabbed:
                    self.host_down = self.host_down | {code} if value else self.host_down - {code}
            self.queue.append(Event(kind, code, value))
        self.queue.append(Event(ic.EV_SYN, ic.SYN_REPORT, 0))
        os.write(self._write_fd, b".")

    def key(self, code: int, value: int) -> None:
        self.send((ic.EV_KEY, code, value))

    def unplug(self) -> None:
        self.unplugged = True
        os.write(self._write_fd, b".")

    def lose_all(self) -> None:
        """The queue runs over, as the kernel tells it."""
        self.queue.clear()
        self.queue.append(Event(ic.EV_SYN, ic.SYN_DROPPED, 0))

    # As python-evdev has it

    def _check(self) -> None:
        if self.unplugged:
            raise OSError(errno.ENODEV, "No such device")

    def fileno(self) -> int:
        return self._read_fd

    def capabilities(self) -> Mapping[int, Sequence[int]]:
        self._check()
        return self._capabilities

    def active_keys(self) -> list[int]:
        self._check()
        self.queue = deque(event for event in self.queue if event.type != ic.EV_KEY)  # as EVIOCGKEY does
        return sorted(self.down)

    def leds(self) -> list[int]:
        self._check()
        return sorted(self.lit)

    def set_led(self, led_num: int, value: int) -> None:
        self._check()
        self.lit = self.lit | {led_num} if value else self.lit - {led_num}

    def grab(self) -> None:
        self._check()
        if self.grabbed_by_other:
            raise OSError(errno.EBUSY, "Device or resource busy")
        if self.presses_before_grab:
            self.key(self.presses_before_grab.pop(), 1)
        self.grabbed = True

    def ungrab(self) -> None:
        self._check()
        self.grabbed = False

    def read(self) -> Iterator[Event]:
        os.read(self._read_fd, 4096)
        self._check()
        if not self.queue:
            raise BlockingIOError
        events, self.queue = list(self.queue), deque()
        return iter(events)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.grabbed = False
        os.close(self._read_fd)
        os.close(self._write_fd)


class Host:
    """/dev/input with its udev."""

    def __init__(self, *devices: FakeDevice) -> None:
        self.nodes: dict[str, FakeDevice | int] = {device.path: device for device in devices}
        self.new: list[str] = []
        self._read_fd, self._write_fd = os.pipe()
        self.keyboard = FakeKeyboard()
        self.mouse = FakePointer()
        self.router = make_router(ps2_keyboard=self.keyboard, ps2_mouse=self.mouse)
        self.lines: list[str] = []

    def paths(self) -> list[str]:
        return list(self.nodes)

    def fileno(self) -> int:
        return self._read_fd

    def added(self) -> list[str]:
        os.read(self._read_fd, 4096)
        new, self.new = self.new, []
        return new

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)

    def plug(self, device: FakeDevice) -> None:
        self.nodes[device.path] = device
        self.new.append(device.path)
        os.write(self._write_fd, b".")

    def open(self, path: str) -> FakeDevice:
        node = self.nodes.get(path, errno.ENOENT)
        if isinstance(node, int):
            raise OSError(node, os.strerror(node))
        if node.unplugged:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return node

    def capture(self, keyboard: str | None = "", mouse: str | None = None) -> EvdevCapture:
        return EvdevCapture(self.router, self, self.open, keyboard=keyboard, mouse=mouse, notify=self.lines.append)


@pytest.fixture
def board() -> FakeDevice:
    return FakeDevice("/dev/input/event3", KEYS, "keyboard")


def press_chord(device: FakeDevice, capture: EvdevCapture) -> None:
    for code, value in ((LEFT, 1), (RIGHT, 1), (RIGHT, 0), (LEFT, 0)):
        device.key(code, value)
        capture.process()


def test_kinds_by_capabilities() -> None:
    keyboard, mouse, button = (FakeDevice("/dev/input/event0", kind) for kind in (KEYS, MOUSE, POWER_BUTTON))
    assert is_keyboard(keyboard) and not is_mouse(keyboard)
    assert is_mouse(mouse) and not is_keyboard(mouse)
    assert not is_keyboard(button) and not is_mouse(button)


def test_keys_reach_the_guest_and_not_the_host(board: FakeDevice) -> None:
    host = Host(board)
    capture = host.capture()
    assert capture.grabbed == [board.path]
    for value in (1, 2, 2, 0):
        board.key(A, value)
        capture.process()
    assert host.keyboard.keys == [(A, 1), (A, 0)] and not board.host_down
    capture.close()
    capture.close()
    assert board.closed


def test_a_key_that_is_down_delays_the_grab(board: FakeDevice) -> None:
    board.key(ic.KEY_ENTER, 1)
    board.key(A, 1)
    capture = Host(board).capture()
    assert capture.grabbed == []
    board.key(ic.KEY_ENTER, 0)
    capture.process()
    assert capture.grabbed == []
    board.key(A, 0)
    capture.process()
    assert capture.grabbed == [board.path] and not board.host_down
    capture.close()


def test_a_key_that_goes_down_in_the_last_moment_stays_the_hosts(board: FakeDevice) -> None:
    host = Host(board)
    board.presses_before_grab = [A]
    capture = host.capture()
    assert not board.grabbed and board.host_down == {A}
    board.key(A, 0)
    capture.process()
    assert board.grabbed and not board.host_down and host.keyboard.keys == []
    capture.close()


def test_the_chord_gives_back_and_takes_again(board: FakeDevice) -> None:
    host = Host(board)
    capture = host.capture()
    board.key(A, 1)
    board.key(LEFT, 1)
    board.key(RIGHT, 1)
    capture.process()
    assert not board.grabbed
    assert host.keyboard.keys == [(A, 1), (LEFT, 1), (A, 0), (LEFT, 0)]
    for code in (A, LEFT, RIGHT):
        board.key(code, 0)
    board.key(B, 1)
    board.key(B, 0)
    capture.process()
    assert not board.grabbed and host.keyboard.keys[4:] == []
    press_chord(board, capture)
    assert board.grabbed and host.keyboard.keys[4:] == []
    board.key(B, 1)
    capture.process()
    assert host.keyboard.keys[4:] == [(B, 1)]
    capture.close()


def test_while_the_process_is_stopped_the_host_has_everything(board: FakeDevice) -> None:
    host = Host(board)
    capture = host.capture()
    board.key(A, 1)
    capture.process()
    capture.give_back()
    assert not board.grabbed and host.keyboard.keys == [(A, 1), (A, 0)]
    board.key(A, 0)
    for code in (B, ic.KEY_ENTER):  # the user continues the process
        board.key(code, 1)
        board.key(code, 0)
    capture.take_again()
    assert board.grabbed and host.keyboard.keys[2:] == []
    press_chord(board, capture)
    capture.give_back()
    capture.take_again()
    assert not board.grabbed, "given back by the chord before"
    capture.close()


def test_one_that_another_program_took_meanwhile_is_one_line(board: FakeDevice) -> None:
    """While all is the host's; the keyboard with the chord is fine, its mouse is not."""
    mouse = FakeDevice("/dev/input/event5", MOUSE, "mouse")
    host = Host(board, mouse)
    capture = host.capture(mouse="")
    press_chord(board, capture)
    assert capture.grabbed == [] and host.lines == []
    mouse.grabbed_by_other = True
    press_chord(board, capture)
    assert capture.grabbed == [board.path] and mouse.closed
    assert len(host.lines) == 1 and "another program" in host.lines[0]
    capture.close()


def test_an_unplugged_keyboard_releases_its_keys(board: FakeDevice) -> None:
    host = Host(board)
    capture = host.capture()
    board.key(A, 1)
    capture.process()
    board.unplug()
    capture.process()
    assert host.keyboard.keys == [(A, 1), (A, 0)] and board.closed and capture.grabbed == []
    capture.close()


def test_one_that_is_plugged_in_is_taken(board: FakeDevice) -> None:
    host = Host()
    capture = host.capture()
    assert host.lines == ["no keyboard in /dev/input: the next one that is plugged in is the guest's"]
    host.plug(FakeDevice("/dev/input/event9", POWER_BUTTON))
    host.plug(board)
    capture.process()
    assert capture.grabbed == [board.path]
    host.plug(board)  # told twice
    capture.process()
    assert capture.grabbed == [board.path]
    capture.close()


def test_one_that_comes_back_under_the_same_name_is_taken(board: FakeDevice) -> None:
    """As after the host's suspend, when all of a keyboard's nodes have gone and come before anybody looked."""
    host = Host(board)
    capture = host.capture()
    again = FakeDevice(board.path, KEYS, "keyboard")
    host.plug(again)
    board.unplug()
    capture.process()
    assert board.closed and again.grabbed and capture.grabbed == [again.path]
    capture.close()


def test_one_that_is_plugged_in_while_given_back_stays_the_hosts(board: FakeDevice) -> None:
    other = FakeDevice("/dev/input/event4", KEYS)
    host = Host(board)
    capture = host.capture()
    press_chord(board, capture)
    host.plug(other)
    capture.process()
    assert capture.grabbed == []
    press_chord(other, capture)
    assert sorted(capture.grabbed) == [board.path, other.path]
    capture.close()


def test_lost_events_are_found_again(board: FakeDevice) -> None:
    host = Host(board)
    capture = host.capture()
    board.key(A, 1)
    capture.process()
    board.key(A, 0)
    board.key(B, 1)
    board.lose_all()
    board.send((ic.EV_KEY, ic.KEY_C, 1), (ic.EV_KEY, ic.KEY_C, 0))
    capture.process()
    assert host.keyboard.keys == [(A, 1), (A, 0), (B, 1)]
    board.key(B, 0)
    capture.process()
    assert host.keyboard.keys[3:] == [(B, 0)]
    capture.close()


def test_the_guests_leds_while_it_has_the_keyboard(board: FakeDevice) -> None:
    board.lit = {ic.LED_NUML}
    host = Host(board)
    host.router.set_leds(1 << ic.LED_CAPSL)
    capture = host.capture()
    assert board.lit == {ic.LED_CAPSL}
    host.router.set_leds(1 << ic.LED_SCROLLL)
    assert board.lit == {ic.LED_SCROLLL}
    press_chord(board, capture)
    assert board.lit == {ic.LED_NUML}
    host.router.set_leds(1 << ic.LED_CAPSL)
    assert board.lit == {ic.LED_NUML}
    press_chord(board, capture)
    assert board.lit == {ic.LED_CAPSL}
    capture.close()
    assert board.lit == {ic.LED_NUML}


def test_mouse(board: FakeDevice) -> None:
    mouse = FakeDevice("/dev/input/event5", MOUSE)
    host = Host(board, mouse)
    capture = host.capture(mouse="")
    assert sorted(capture.grabbed) == [board.path, mouse.path]
    mouse.send((ic.EV_REL, ic.REL_X, 3), (ic.EV_REL, ic.REL_Y, -2), (ic.EV_KEY, ic.BTN_LEFT, 1))
    mouse.send((ic.EV_REL, ic.REL_WHEEL, -1), (ic.EV_REL, ic.REL_WHEEL_HI_RES, -120))
    capture.process()
    mouse.unplug()
    capture.process()
    assert host.mouse.events == [
        ("motion", 3, -2),
        ("button", ic.BTN_LEFT, 1),
        ("wheel", -1, 0),
        ("button", ic.BTN_LEFT, 0),
    ]
    capture.close()


def test_only_what_was_asked_for(board: FakeDevice) -> None:
    mouse, other = FakeDevice("/dev/input/event5", MOUSE), FakeDevice("/dev/input/event6", KEYS)
    host = Host(board, mouse, other)
    capture = host.capture(keyboard=other.path)
    assert capture.grabbed == [other.path]
    host.plug(FakeDevice("/dev/input/event7", KEYS))
    capture.process()
    assert capture.grabbed == [other.path]
    capture.close()


def test_a_device_that_is_both(board: FakeDevice) -> None:
    both = FakeDevice("/dev/input/event8", {ic.EV_KEY: [*KEYS[ic.EV_KEY], ic.BTN_LEFT], ic.EV_REL: MOUSE[ic.EV_REL]})
    host = Host(both)
    capture = host.capture()
    both.send((ic.EV_REL, ic.REL_X, 3), (ic.EV_KEY, ic.BTN_LEFT, 1), (ic.EV_KEY, A, 1))
    capture.process()
    assert host.keyboard.keys == [(A, 1)] and host.mouse.events == []
    capture.close()


def test_no_permission_is_one_line(board: FakeDevice) -> None:
    host = Host()
    host.nodes[board.path] = errno.EACCES
    with pytest.raises(UserError) as caught:
        host.capture()
    assert "\n" not in str(caught.value)
    assert "/dev/input/event3: no permission" in str(caught.value)
    assert "group input" in str(caught.value) and "udev rule" in str(caught.value)


def test_no_permission_for_another_device_does_not_matter(board: FakeDevice) -> None:
    host = Host(board)
    host.nodes["/dev/input/event0"] = errno.EACCES
    capture = host.capture()
    assert capture.grabbed == [board.path]
    host.nodes["/dev/input/event1"] = errno.EACCES
    host.new.append("/dev/input/event1")
    os.write(host._write_fd, b".")
    capture.process()
    assert len(host.lines) == 1 and "no permission" in host.lines[0]
    capture.close()


def test_the_group_of_the_node_is_named(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "event0")
    open(path, "w").close()
    if os.getuid() == 0:
        os.chown(path, 0, 1)
        assert "usermod -aG daemon $USER" in evdev.permission_advice(path)
        os.chown(path, 0, 0)
        assert 'GROUP="input"' in evdev.permission_advice(path)
    else:
        assert "udev rule" in evdev.permission_advice(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/dev/input/event77", "No such file"),
        ("/dev/input/event0", "no permission"),
        ("/dev/input/event1", "is no keyboard"),
        ("/dev/input/event2", "another program"),
        ("/dev/input/event4", "No such device"),
    ],
)
def test_a_path_that_will_not_do_is_one_line(path: str, words: str) -> None:
    busy = FakeDevice("/dev/input/event2", KEYS)
    busy.grabbed_by_other = True
    host = Host(FakeDevice("/dev/input/event1", MOUSE), busy)
    host.nodes["/dev/input/event0"] = errno.EACCES
    host.nodes["/dev/input/event4"] = errno.ENODEV
    with pytest.raises(UserError) as caught:
        host.capture(keyboard=path)
    assert words in str(caught.value) and path in str(caught.value) and "\n" not in str(caught.value)


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["press", "release"]), st.integers(0, 1), st.sampled_from([A, B, LEFT, RIGHT])),
        st.tuples(st.sampled_from(["process", "replug", "lose"]), st.integers(0, 1), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_no_key_is_stuck_anywhere(actions: list[tuple[str, int, int]]) -> None:
    boards = [FakeDevice("/dev/input/event0", KEYS), FakeDevice("/dev/input/event1", KEYS)]
    host = Host(*boards)
    capture = host.capture()
    for action, which, code in actions:
        board = boards[which]
        match action:
            case "press" | "release":
                board.key(code, int(action == "press"))
            case "lose":
                board.lose_all()
            case "replug":
                board.unplug()
                capture.process()
                boards[which] = FakeDevice(board.path, KEYS)
                host.plug(boards[which])
            case _:
                capture.process()
        for board in boards:
            # The host never holds a key of a device that it no longer hears.
            assert not (board.grabbed and board.host_down)
    for board in boards:
        for code in list(board.down):
            board.key(code, 0)
        board.send()
    capture.process()
    down: set[int] = set()
    for code, value in host.keyboard.keys:
        assert (code in down) != bool(value)
        down ^= {code}
    assert not down
    assert all(not board.host_down for board in boards)
    capture.close()
    assert all(board.closed for board in boards)
