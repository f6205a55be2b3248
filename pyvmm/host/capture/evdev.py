"""The host's own keyboards and mice, taken for the guest (`--keyboard evdev`, `--mouse evdev`).

A device is grabbed (EVIOCGRAB: nobody else on the host sees its events) only once all its keys are up, so that the host
is never left with a key that it saw pressed and not released. Both Ctrl keys together give all devices back, and take
them again. When a device is given back, is unplugged or the machine ends, the guest gets the releases of what was held;
the kernel drops a grab with its descriptor, so not even a crash keeps the user's keyboard.

Devices are told apart by what they can do, not by udev's properties, which are missing where no udevd runs. Those
plugged in later are taken as well.

Source: Linux Documentation/input/event-codes.rst (SYN_DROPPED), drivers/input/evdev.c.
"""

from __future__ import annotations

import atexit
import errno
import grp
import os
import select
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from pyvmm.errors import UserError
from pyvmm.input import codes as ic
from pyvmm.input.router import Router, is_button
from pyvmm.trace import OFF, Channel

CHORD: Final = frozenset({ic.KEY_LEFTCTRL, ic.KEY_RIGHTCTRL})
"""The keys that give the devices back, or take them again, when they are down together on one keyboard."""

KEYBOARD_KEYS: Final = frozenset({ic.KEY_ESC, ic.KEY_ENTER, ic.KEY_SPACE, ic.KEY_LEFTSHIFT, *range(ic.KEY_A, ic.KEY_L)})
"""What a device has if it is a keyboard, and power buttons, lid switches and remote controls lack."""


class Event(Protocol):
    """struct input_event without its time."""

    @property
    def type(self) -> int: ...
    @property
    def code(self) -> int: ...
    @property
    def value(self) -> int: ...


class EventDevice(Protocol):
    """As much of python-evdev's InputDevice as is used here. Every call may raise OSError (ENODEV: unplugged)."""

    @property
    def path(self) -> Any: ...
    @property
    def name(self) -> str: ...
    def fileno(self) -> int: ...
    def capabilities(self) -> Mapping[int, Sequence[Any]]: ...
    def active_keys(self) -> Sequence[int]: ...
    def leds(self) -> Sequence[int]: ...
    def set_led(self, led_num: int, value: int, /) -> None: ...
    def grab(self) -> None: ...
    def ungrab(self) -> None: ...
    def read(self) -> Iterable[Event]: ...
    def close(self) -> None: ...


class Finder(Protocol):
    """Which device nodes there are, and which come."""

    def paths(self) -> list[str]:
        """Every /dev/input/event* now."""

    def fileno(self) -> int:
        """Readable when devices have come."""

    def added(self) -> list[str]:
        """Those that have come since the last call; others that are there may be among them."""

    def close(self) -> None: ...


def is_keyboard(device: EventDevice) -> bool:
    """Whether it has the keys of a keyboard."""
    return KEYBOARD_KEYS.issubset(device.capabilities().get(ic.EV_KEY, ()))


def is_mouse(device: EventDevice) -> bool:
    """Whether it moves a pointer by counts and has a left button; a tablet or touch pad does not."""
    capabilities = device.capabilities()
    return {ic.REL_X, ic.REL_Y} <= set(capabilities.get(ic.EV_REL, ())) and ic.BTN_LEFT in set(
        capabilities.get(ic.EV_KEY, ())
    )


def permission_advice(path: str) -> str:
    """One line for a device that may not be opened: the group that may, or the udev rule that lets the user."""
    try:
        group = grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        group = "input"
    if group == "root":
        return (
            f'{path}: no permission: add the udev rule SUBSYSTEM=="input", GROUP="input", MODE="0660", then see again'
        )
    return (
        f"{path}: no permission: add yourself to group {group} (usermod -aG {group} $USER, then log in again) "
        'or add the udev rule SUBSYSTEM=="input", TAG+="uaccess"'
    )


class _Captured:
    """One open device: taken or not, and which of its keys are down."""

    def __init__(self, device: EventDevice, capture: EvdevCapture, router: Router, keyboard: bool, mouse: bool) -> None:
        self.device = device
        self.path = os.path.realpath(str(device.path))
        self._capture = capture
        self.keyboard = keyboard
        self.mouse = mouse
        self.grabbed = False
        self._down = set(device.active_keys())
        self._dx = self._dy = self._wheel = self._hwheel = 0
        self._host_leds: list[int] = []
        self._guest_leds: dict[int, bool] = {}
        self._source = router.source(f"evdev {device.name}", self._set_led if keyboard else None)

    def take(self) -> None:
        """Grab the device if all its keys are up; else the release of the last one comes here again."""
        if self.grabbed or self._down:
            return
        self.device.grab()
        # A key may have gone down since the last event was read: then the host has it, and keeps the device.
        self._down = set(self.device.active_keys())
        if self._down:
            self.device.ungrab()
            return
        self.grabbed = True
        self._capture.tell(f"{self.device.name} is the guest's: both Ctrl keys give it back")
        if self.keyboard:
            self._host_leds = list(self.device.leds())
            for led, on in self._guest_leds.items():
                self._light(led, on)

    def give_back(self) -> None:
        """Release in the guest what is held, put the host's LEDs back, let the host have the device."""
        if not self.grabbed:
            return
        self.grabbed = False
        self._source.release_all()
        for led in self._guest_leds:
            self._light(led, led in self._host_leds)
        try:
            self.device.ungrab()
        except OSError:  # unplugged
            pass

    def close(self) -> None:
        self.give_back()
        self._source.close()
        try:
            self.device.close()
        except OSError:
            pass

    def _set_led(self, led: int, on: bool) -> None:
        self._guest_leds[led] = on
        if self.grabbed:
            self._light(led, on)

    def _light(self, led: int, on: bool) -> None:
        try:
            self.device.set_led(led, int(on))
        except OSError:  # opened for reading only, or unplugged
            pass

    def handle(self, events: Iterable[Event]) -> None:
        """What the device sent, in its order."""
        was_grabbed = self.grabbed
        for event in events:
            match event.type:
                case ic.EV_SYN if event.code == ic.SYN_DROPPED:
                    self._find_lost()
                    return
                case ic.EV_SYN if event.code == ic.SYN_REPORT:
                    self._move()
                case ic.EV_KEY:
                    self._key(event.code, event.value)
                case ic.EV_REL if self.grabbed and self.mouse:
                    self._relative(event.code, event.value)
                case _:
                    pass
            if self.grabbed and not was_grabbed:
                return  # the host has seen the rest, and what take() asked the kernel is newer

    def _find_lost(self) -> None:
        # The kernel's queue ran over. EVIOCGKEY says which keys are down now, and empties the queue of older ones; what
        # has been read already is older too.
        now = set(self.device.active_keys())
        for code in self._down - now:
            self._key(code, 0)
        for code in now - self._down:
            self._key(code, 1)

    def _key(self, code: int, value: int) -> None:
        if value == 1:
            self._down.add(code)
        elif value == 0:
            self._down.discard(code)
        if value == 1 and code in CHORD and self._down >= CHORD:
            self._capture.toggle()
        elif self.grabbed:
            self._forward(code, value)
        elif not self._down and self._capture.wanted:
            self.take()

    def _forward(self, code: int, value: int) -> None:
        if self.mouse if is_button(code) else self.keyboard:
            self._move()  # what moved before the button went down, before it
            self._source.key(code, value)

    def _relative(self, code: int, value: int) -> None:
        match code:
            case ic.REL_X:
                self._dx += value
            case ic.REL_Y:
                self._dy += value
            case ic.REL_WHEEL:
                self._wheel += value
            case ic.REL_HWHEEL:
                self._hwheel += value
            case _:
                pass

    def _move(self) -> None:
        self._source.motion(self._dx, self._dy)
        self._source.wheel(self._wheel, self._hwheel)
        self._dx = self._dy = self._wheel = self._hwheel = 0


class EvdevCapture:
    """The host's keyboards and mice in the guest's hands: one descriptor for a loop, `process` when it is readable.

    *keyboard* and *mouse*: None takes none, "" all there are, a path that one. *notify* gets lines for the user.
    Raises UserError where what was asked for can't be had.
    """

    def __init__(
        self,
        router: Router,
        finder: Finder,
        open_device: Callable[[str], EventDevice],
        *,
        keyboard: str | None = "",
        mouse: str | None = None,
        notify: Callable[[str], None] = lambda line: None,
        trace: Channel = OFF,
    ) -> None:
        self._router = router
        self._finder = finder
        self._open = open_device
        self._keyboard = keyboard
        self._mouse = mouse
        self._notify = notify
        self._trace = trace
        self._devices: dict[int, _Captured] = {}
        self.wanted = True
        self._epoll = select.epoll()
        self._epoll.register(finder.fileno(), select.EPOLLIN)
        self._closed = False
        atexit.register(self.close)
        try:
            self._take_all()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_host(
        cls,
        router: Router,
        *,
        keyboard: str | None = "",
        mouse: str | None = None,
        notify: Callable[[str], None] = lambda line: None,
        trace: Channel = OFF,
    ) -> EvdevCapture:
        """With this host's /dev/input and its udev."""
        from evdev import InputDevice

        from pyvmm.host.capture.udev import UdevFinder

        return cls(router, UdevFinder(), InputDevice, keyboard=keyboard, mouse=mouse, notify=notify, trace=trace)

    # For the loop

    def fileno(self) -> int:
        """Readable when a device has sent something, has gone or has come."""
        return self._epoll.fileno()

    def process(self) -> None:
        """Carry what the devices sent to the guest; never waits."""
        ready = [fd for fd, _ in self._epoll.poll(0)]
        for fd in ready:
            if (captured := self._devices.get(fd)) is not None:
                self._serve(fd, captured)
        if self._finder.fileno() in ready:  # last: what has gone may have left its path to what has come
            for path in self._finder.added():
                self._plugged_in(path)

    def _serve(self, fd: int, captured: _Captured) -> None:
        try:
            captured.handle(captured.device.read())
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose(fd, error)

    def close(self) -> None:
        """Give everything back; any number of times."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for fd in list(self._devices):
            self._remove(fd)
        self._epoll.close()
        self._finder.close()

    # For the devices

    def tell(self, line: str) -> None:
        """A line for the trace."""
        if self._trace.enabled:
            self._trace(line)

    def toggle(self) -> None:
        """The chord: give everything back, or take it again once all keys are up."""
        self.wanted = not self.wanted
        if self.wanted:
            self._take_again()
            return
        self.tell("given back to the host: both Ctrl keys take it again")
        self.give_back()

    def give_back(self) -> None:
        """Let the host have everything; before the process stops."""
        for captured in self._devices.values():
            captured.give_back()

    def take_again(self) -> None:
        """The process continues: what was typed meanwhile was the host's."""
        self.process()
        if self.wanted:
            self._take_again()

    def _take_again(self) -> None:
        for fd, captured in list(self._devices.items()):
            try:
                captured.take()
            except OSError as error:
                self._lose(fd, error)

    @property
    def grabbed(self) -> list[str]:
        """The paths of the devices that the guest has now."""
        return [captured.path for captured in self._devices.values() if captured.grabbed]

    # Finding them

    def _take_all(self) -> None:
        named = {path for path in (self._keyboard, self._mouse) if path}
        denied = []
        for path in sorted({*self._finder.paths(), *named}):
            try:
                self._add(path)
            except PermissionError:
                denied.append(path)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise UserError(_busy(path)) from None
                if path in named:
                    raise UserError(f"{path}: {os.strerror(error.errno or 0)}: name a /dev/input/eventN") from None
        have_keyboard = any(captured.keyboard for captured in self._devices.values())
        have_mouse = any(captured.mouse for captured in self._devices.values())
        for option, have, what in ((self._keyboard, have_keyboard, "keyboard"), (self._mouse, have_mouse, "mouse")):
            if option is None or have:
                continue
            if denied and (not option or option in denied):
                raise UserError(permission_advice(option or denied[0]))
            if option:
                raise UserError(f"{option} is no {what}: name another /dev/input/eventN")
            self._notify(f"no {what} in /dev/input: the next one that is plugged in is the guest's")

    def _plugged_in(self, path: str) -> None:
        try:
            self._add(path)
        except PermissionError:
            self._notify(permission_advice(path))
        except OSError as error:
            if error.errno == errno.EBUSY:
                self._notify(_busy(path))
            self.tell(f"{path}: {error.strerror}")

    def _add(self, path: str) -> None:
        """Open *path* and take it if it is what was asked for; raises OSError where the host won't have it."""
        real = os.path.realpath(path)
        if any(captured.path == real for captured in self._devices.values()):
            return
        may_be_keyboard, may_be_mouse = _matches(self._keyboard, real), _matches(self._mouse, real)
        if not (may_be_keyboard or may_be_mouse):
            return
        device = self._open(real)
        try:
            keyboard, mouse = may_be_keyboard and is_keyboard(device), may_be_mouse and is_mouse(device)
            if not (keyboard or mouse):
                device.close()
                return
            captured = _Captured(device, self, self._router, keyboard, mouse)
        except OSError:
            device.close()
            raise
        fd = device.fileno()
        self._devices[fd] = captured
        self._epoll.register(fd, select.EPOLLIN)
        self.tell(f"{real}: {device.name}")
        try:
            if self.wanted:
                captured.take()
        except OSError:
            self._remove(fd)
            raise

    def _lose(self, fd: int, error: OSError) -> None:
        """The device is gone, or is somebody else's now."""
        if error.errno == errno.EBUSY:
            self._notify(_busy(self._devices[fd].path))
        self._remove(fd)

    def _remove(self, fd: int) -> None:
        captured = self._devices.pop(fd)
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass
        self.tell(f"{captured.path}: gone")
        captured.close()


def _matches(option: str | None, path: str) -> bool:
    return option is not None and (not option or os.path.realpath(option) == path)


def _busy(path: str) -> str:
    return f"{path}: another program has grabbed it: end that one first"
