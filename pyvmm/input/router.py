"""From the host's keys and motions to the device that the guest listens to.

    source (X11, evdev, script) ─ key(code, value) ─> Router ─> PS/2 keyboard, until virtio-input has DRIVER_OK
                                                            └─> virtio-input, from then until its reset

A key is a Linux input code and 1 or 0, press or release; auto-repeat is the business of whoever reads the key. Every
source counts its own keys: a key is up for the guest when no source holds it any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, Protocol, TypeVar

from pyvmm.input.codes import BTN_MISC, KEY_OK, LED_CAPSL, LED_NUML, LED_SCROLLL, key_name
from pyvmm.trace import OFF, Channel

InputMode = Literal["auto", "ps2", "virtio"]
"""Which side the guest's input goes to; auto is virtio while its driver is there, else PS/2."""

T = TypeVar("T")

KEYS_WAITING: Final = 1024
"""Presses that wait for a keyboard that the guest does not read; those after them are dropped, with their releases."""


class KeyboardTarget(Protocol):
    """A keyboard of the guest."""

    on_room: Callable[[], None] | None
    """The router's, which the keyboard calls when it becomes ready."""

    @property
    def ready(self) -> bool:
        """Whether a key would be taken now, after all that went before."""

    def key(self, code: int, value: int, /) -> None:
        """Press (1) or release (0) the key with a Linux input code."""


class PointerTarget(Protocol):
    """A mouse of the guest. Counts: right, down and away from the user are positive, as REL_X, REL_Y, REL_WHEEL."""

    def motion(self, dx: int, dy: int, /) -> None: ...

    def button(self, code: int, pressed: bool, /) -> None:
        """Press or release BTN_LEFT, BTN_RIGHT …"""

    def wheel(self, dz: int, /) -> None: ...


class WidePointerTarget(PointerTarget, Protocol):
    """A mouse whose wheel also goes sideways; to the right is positive, as REL_HWHEEL."""

    def hwheel(self, dz: int, /) -> None: ...


class TabletTarget(Protocol):
    """A pointer of the guest that is told where to be, both coordinates 0 to 32767."""

    @property
    def has_wheel(self) -> bool:
        """Whether it has a wheel of its own; where it has none, the mouse's turns."""

    def absolute(self, x: int, y: int, /) -> None: ...

    def button(self, code: int, pressed: bool, /) -> None: ...

    def wheel(self, dz: int, /) -> None: ...

    def hwheel(self, dz: int, /) -> None: ...


def is_button(code: int) -> bool:
    """Whether an EV_KEY code is a button of a pointer (BTN_*) and not a key."""
    return BTN_MISC <= code < KEY_OK


class Driven(Protocol):
    """A device that is of use once the guest's driver is there: virtio."""

    on_driver_ok: Callable[[bool], None]
    """The router's: the driver has set DRIVER_OK (True), or it has gone."""


class DrivenKeyboardTarget(KeyboardTarget, Driven, Protocol):
    on_led: Callable[[int, bool], None]
    """The router's: the guest has switched LED_*."""


class DrivenWidePointerTarget(WidePointerTarget, Driven, Protocol): ...


class DrivenTabletTarget(TabletTarget, Driven, Protocol): ...


class _KeyQueue:
    """The way to one keyboard: keys wait in order while it has no room. Nothing goes in that can't come out again."""

    STATE = ("_waiting", "_down")

    def __init__(self, target: KeyboardTarget, trace: Channel) -> None:
        self.target = target
        self._trace = trace
        self._waiting: deque[tuple[int, int]] = deque()
        self._down: dict[int, None] = {}  # in the order of the presses
        self._sending = False

    def key(self, code: int, value: int) -> None:
        if value:
            if code in self._down:
                return
            if len(self._waiting) >= KEYS_WAITING:
                if self._trace.enabled:
                    self._trace(f"{key_name(code)} dropped: the guest does not read its keyboard")
                return
            self._down[code] = None
        elif code in self._down:
            del self._down[code]
        else:
            return
        self._waiting.append((code, value))
        self.send()

    def send(self) -> None:
        # A target that makes room by taking a key calls back from within key(): the outer loop goes on instead.
        if self._sending:
            return
        self._sending = True
        try:
            while self._waiting and self.target.ready:
                self.target.key(*self._waiting.popleft())
        finally:
            self._sending = False

    @property
    def idle(self) -> bool:
        return not self._waiting and self.target.ready

    @property
    def down(self) -> tuple[int, ...]:
        """What the guest has been told, or will be, is held."""
        return tuple(self._down)

    def release_all(self) -> None:
        for code in list(self._down):
            self.key(code, 0)

    def forget(self) -> None:
        self._waiting.clear()
        self._down.clear()


class Source:
    """One origin of input. What it holds is released by release_all, when it goes away or loses the focus."""

    def __init__(self, router: Router, name: str, on_led: Callable[[int, bool], None] | None) -> None:
        self._router = router
        self.name = name
        self.on_led = on_led
        self._down: dict[int, None] = {}

    @property
    def down(self) -> frozenset[int]:
        """The keys and buttons that this source holds."""
        return frozenset(self._down)

    def key(self, code: int, value: int) -> None:
        """A key or button: 1 press, 0 release. A press of what is held (auto-repeat) does nothing, nor does 2."""
        if value == 1 and code not in self._down:
            self._down[code] = None
            self._router._press(code, self.name)
        elif value == 0 and code in self._down:
            del self._down[code]
            self._router._release(code, self.name)

    def motion(self, dx: int, dy: int) -> None:
        """Move the mouse: counts right and down."""
        if dx or dy:
            self._router._motion(dx, dy)

    def absolute(self, x: int, y: int) -> None:
        """Put the pointer at (x, y), each 0 to 32767; nothing happens unless the router says `absolute`."""
        self._router._absolute(x, y)

    def wheel(self, vertical: int, horizontal: int = 0) -> None:
        """Turn the wheel: clicks away from the user and to the right."""
        if vertical or horizontal:
            self._router._wheel(vertical, horizontal)

    def release_all(self) -> None:
        """Release everything that this source holds."""
        for code in list(self._down):
            self.key(code, 0)

    def close(self) -> None:
        """Release everything and leave the router."""
        self.release_all()
        self._router._sources.discard(self)


class Router:
    """Who gets the keys. The guest's keyboards, mice and tablets register here, as many as there are.

    Of each kind the virtio device that came last and has its driver gets the events; else the PS/2 one that came first.
    Events without a target are dropped.

    Its state is what the guest has been told; what the sources hold is the host's.
    """

    STATE = ("_ps2_keyboards", "_virtio_keyboards", "_driven_numbers", "_button_numbers", "_leds")

    def __init__(self, mode: InputMode = "auto", trace: Channel = OFF) -> None:
        self._trace = trace
        self._mode = mode
        self._ps2_keyboards: list[_KeyQueue] = []
        self._virtio_keyboards: list[_KeyQueue] = []
        self._ps2_mice: list[PointerTarget] = []
        self._virtio_mice: list[WidePointerTarget] = []
        self._tablets: list[TabletTarget] = []
        self._driven: list[object] = []  # virtio devices whose drivers have set DRIVER_OK
        self._holders: dict[int, int] = {}
        self._buttons: dict[int, PointerTarget | TabletTarget] = {}
        self._sources: set[Source] = set()
        self._leds: dict[int, bool] = {}
        self._room_callbacks: list[Callable[[], None]] = []
        self.on_press: Callable[[], None] = lambda: None
        """A person has pressed something."""

    # The guest's devices

    def add_ps2_keyboard(self, keyboard: KeyboardTarget) -> None:
        """A keyboard that needs no driver's word: it gets the keys while no virtio keyboard has a driver."""
        keyboard.on_room = self._keyboard_has_room
        self._ps2_keyboards.append(_KeyQueue(keyboard, self._trace))

    def add_ps2_mouse(self, mouse: PointerTarget) -> None:
        """As add_ps2_keyboard(), a mouse."""
        self._ps2_mice.append(mouse)

    def add_virtio_keyboard(self, keyboard: DrivenKeyboardTarget) -> None:
        """A keyboard that gets the keys while its driver is there; its LEDs are shown."""
        keyboard.on_room = self._keyboard_has_room
        keyboard.on_led = self.set_led
        keyboard.on_driver_ok = partial(self._keyboard_driver, keyboard)
        self._virtio_keyboards.append(_KeyQueue(keyboard, self._trace))

    def add_virtio_mouse(self, mouse: DrivenWidePointerTarget) -> None:
        """A mouse that gets the motions while its driver is there."""
        mouse.on_driver_ok = partial(self._pointer_driver, mouse, "mouse")
        self._virtio_mice.append(mouse)

    def add_virtio_tablet(self, tablet: DrivenTabletTarget) -> None:
        """A pointer that is told where to be while its driver is there."""
        tablet.on_driver_ok = partial(self._pointer_driver, tablet, "tablet")
        self._tablets.append(tablet)

    def remove(self, device: object) -> None:
        """Forget a virtio device, which has been reset; nothing where it is none of ours."""
        self._virtio_keyboards[:] = [keys for keys in self._virtio_keyboards if keys.target is not device]
        self._virtio_mice[:] = [mouse for mouse in self._virtio_mice if mouse is not device]
        self._tablets[:] = [tablet for tablet in self._tablets if tablet is not device]

    def source(self, name: str, on_led: Callable[[int, bool], None] | None = None) -> Source:
        """A new origin of input; *on_led* is told (LED_*, on) of the guest's LEDs, the present ones at once."""
        source = Source(self, name, on_led)
        self._sources.add(source)
        if on_led is not None:
            for led, on in list(self._leds.items()):
                on_led(led, on)
        return source

    # Which side

    def _keyboard_driver(self, keyboard: KeyboardTarget, ok: bool) -> None:
        """The guest's driver of a virtio keyboard has set DRIVER_OK, or it has been reset."""
        if ok == (keyboard in self._driven):
            return
        before = self._keys
        self._set_driven(keyboard, ok)
        for keys in self._virtio_keyboards:
            if not ok and keys.target is keyboard:
                keys.forget()
        if before is not None and before is not self._keys:
            before.release_all()
        self._trace_side("keyboard", ok)

    def _pointer_driver(self, pointer: object, what: str, ok: bool) -> None:
        """As _keyboard_driver, of a mouse or tablet."""
        if ok != (pointer in self._driven):
            self._set_driven(pointer, ok)
            self._release_buttons()
            self._trace_side(what, ok)

    def _set_driven(self, device: object, ok: bool) -> None:
        if ok:
            self._driven.append(device)
        else:
            self._driven.remove(device)

    def _trace_side(self, what: str, ok: bool) -> None:
        if self._trace.enabled:
            self._trace(f"virtio {what} {'has its driver' if ok else 'is reset'}, input goes by {self._mode}")

    @property
    def _keys(self) -> _KeyQueue | None:
        if self._mode != "ps2":
            for keys in reversed(self._virtio_keyboards):
                if keys.target in self._driven:
                    return keys
        return None if self._mode == "virtio" or not self._ps2_keyboards else self._ps2_keyboards[0]

    @property
    def _pointer(self) -> PointerTarget | None:
        wide = self._wide_pointer
        if wide is not None:
            return wide
        return None if self._mode == "virtio" or not self._ps2_mice else self._ps2_mice[0]

    @property
    def _wide_pointer(self) -> WidePointerTarget | None:
        return self._last_driven(self._virtio_mice)

    @property
    def _tablet(self) -> TabletTarget | None:
        return self._last_driven(self._tablets)

    def _last_driven(self, devices: list[T]) -> T | None:
        if self._mode == "ps2":
            return None
        return next((device for device in reversed(devices) if device in self._driven), None)

    @property
    def virtio_keyboard_ready(self) -> bool:
        """Whether a virtio keyboard of the guest has its driver (DRIVER_OK)."""
        return any(keys.target in self._driven for keys in self._virtio_keyboards)

    @property
    def absolute(self) -> bool:
        """Whether the guest wants positions, not motions: its tablet has a driver."""
        return self._tablet is not None

    # From the targets

    def _keyboard_has_room(self) -> None:
        for keys in (*self._ps2_keyboards, *self._virtio_keyboards):
            keys.send()
        if self.keyboard_idle:
            for callback in list(self._room_callbacks):
                callback()

    @property
    def keyboard_idle(self) -> bool:
        """Whether the guest's keyboard would take a key at once, and none waits before it."""
        keys = self._keys
        return keys is not None and keys.idle

    def on_keyboard_idle(self, callback: Callable[[], None]) -> None:
        """Call *callback* each time a keyboard has made room and nothing waits."""
        self._room_callbacks.append(callback)

    def set_led(self, led: int, on: bool) -> None:
        """The guest has switched LED_NUML, LED_CAPSL or LED_SCROLLL of its keyboard."""
        if self._leds.get(led) == on:
            return
        self._leds[led] = on
        for source in list(self._sources):
            if source.on_led is not None and source in self._sources:
                source.on_led(led, on)

    def set_leds(self, mask: int) -> None:
        """The guest has set all three LEDs of its keyboard: *mask* is of 1 << LED_NUML, LED_CAPSL and LED_SCROLLL."""
        for led in (LED_NUML, LED_CAPSL, LED_SCROLLL):
            self.set_led(led, bool(mask >> led & 1))

    def reset(self) -> None:
        """The machine has been reset: no key is down in the guest, nothing waits, no driver is there."""
        self._driven.clear()
        self._buttons.clear()
        for keys in (*self._ps2_keyboards, *self._virtio_keyboards):
            keys.forget()

    # Its state

    @property
    def _driven_numbers(self) -> list[int]:
        """`_driven`, each as its place among all virtio devices."""
        return [_place(device, self._virtio_devices) for device in self._driven]

    @_driven_numbers.setter
    def _driven_numbers(self, numbers: list[int]) -> None:
        self._driven[:] = [self._virtio_devices[number] for number in numbers]

    @property
    def _button_numbers(self) -> dict[int, int]:
        """`_buttons`, each pointer as its place among all."""
        return {code: _place(pointer, self._pointers) for code, pointer in self._buttons.items()}

    @_button_numbers.setter
    def _button_numbers(self, numbers: dict[int, int]) -> None:
        self._buttons = {code: self._pointers[number] for code, number in numbers.items()}

    @property
    def _virtio_devices(self) -> list[object]:
        return [*(keys.target for keys in self._virtio_keyboards), *self._virtio_mice, *self._tablets]

    @property
    def _pointers(self) -> list[PointerTarget | TabletTarget]:
        return [*self._ps2_mice, *self._virtio_mice, *self._tablets]

    def restored(self) -> None:
        """After a load: the sources show the guest's LEDs. release_unheld() follows when all is back."""
        for source in list(self._sources):
            if source.on_led is not None:
                for led, on in list(self._leds.items()):
                    source.on_led(led, on)

    def release_unheld(self) -> None:
        """Release what the guest believes held and no source holds any more; what waits for room goes on."""
        for keys in (*self._ps2_keyboards, *self._virtio_keyboards):
            for code in keys.down:
                if code not in self._holders:
                    keys.key(code, 0)
            keys.send()
        for code, pointer in list(self._buttons.items()):
            if code not in self._holders:
                del self._buttons[code]
                pointer.button(code, False)

    # From the sources

    def release_all(self) -> None:
        """Release every key and button of every source."""
        for source in list(self._sources):
            source.release_all()

    def _press(self, code: int, name: str) -> None:
        self.on_press()
        self._holders[code] = self._holders.get(code, 0) + 1
        if self._holders[code] > 1:
            return
        if self._trace.enabled:
            self._trace(f"{name}: {key_name(code)} pressed", ("key", code, 1))
        if not is_button(code):
            if (keys := self._keys) is not None:
                keys.key(code, 1)
        elif (pointer := self._tablet or self._pointer) is not None:
            self._buttons[code] = pointer
            pointer.button(code, True)

    def _release(self, code: int, name: str) -> None:
        self._holders[code] -= 1
        if self._holders[code]:
            return
        del self._holders[code]
        if self._trace.enabled:
            self._trace(f"{name}: {key_name(code)} released", ("key", code, 0))
        if not is_button(code):
            if (keys := self._keys) is not None:
                keys.key(code, 0)
        elif (pointer := self._buttons.pop(code, None)) is not None:
            pointer.button(code, False)

    def _release_buttons(self) -> None:
        # One by one: a release may find that a guest has broken a ring, whose device then says that its driver is gone.
        while self._buttons:
            code, pointer = self._buttons.popitem()
            pointer.button(code, False)

    def _motion(self, dx: int, dy: int) -> None:
        if (pointer := self._pointer) is not None:
            pointer.motion(dx, dy)

    def _absolute(self, x: int, y: int) -> None:
        if (tablet := self._tablet) is not None:
            tablet.absolute(min(max(x, 0), 32767), min(max(y, 0), 32767))

    def _wheel(self, vertical: int, horizontal: int) -> None:
        tablet = self._tablet
        if tablet is not None and not tablet.has_wheel:
            tablet = None
        if vertical and (pointer := tablet or self._pointer) is not None:
            pointer.wheel(vertical)
        if horizontal and (wide := tablet or self._wide_pointer) is not None:
            wide.hwheel(horizontal)


def _place(wanted: object, among: Sequence[object]) -> int:
    return next(number for number, one in enumerate(among) if one is wanted)
