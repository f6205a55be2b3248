"""machine.keyboard and machine.inject_*: a script's hands on the guest's keyboard and pointer, from any thread."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.input.keymap import Stroke, key_code, strokes
from pyvmm.input.router import Router, Source
from pyvmm.input.typist import Typist
from pyvmm.loop import Loop


class Keyboard:
    """Types on the guest's keyboard: the next key goes when the guest has taken the last, never after a sleep."""

    def __init__(self, loop: Loop, typist: Typist, driver_ok: Callable[[], bool]) -> None:
        self._loop = loop
        self._typist = typist
        self._driver_ok = driver_ok

    def type(self, text: str) -> None:
        """Type *text* as on a US keyboard; raises KeyTextError for a character it lacks."""
        self._strokes(list(strokes(text)))

    def press(self, *names: str) -> None:
        """Press keys together and release them: press("a"), press("ctrl", "c"); raises KeyTextError."""
        self._strokes([tuple(key_code(name) for name in names)])

    def _strokes(self, wanted: list[Stroke]) -> None:
        self._loop.post(lambda: self._typist.strokes(wanted))

    @property
    def idle(self) -> bool:
        """Whether the guest has taken everything."""
        return self._typist.idle

    @property
    def driver_ok(self) -> bool:
        """Whether the guest's virtio keyboard has a driver (DRIVER_OK)."""
        return self._driver_ok()


class Injection:
    """Raw input events, by Linux input codes; they take the way that the router gives to every host event."""

    router: Router
    loop: Loop
    _source: Source | None = None

    def _inject(self, event: Callable[[Source], None]) -> None:
        def run() -> None:
            if self._source is None:
                self._source = self.router.source("inject")
            event(self._source)

        self.loop.post(run)

    def inject_key(self, code: int, value: int) -> None:
        """Press (1) or release (0) KEY_*."""
        self._inject(lambda source: source.key(code, value))

    def inject_button(self, code: int, value: int) -> None:
        """Press (1) or release (0) BTN_*."""
        self.inject_key(code, value)

    def inject_rel(self, dx: int, dy: int) -> None:
        """Move the mouse by counts right and down."""
        self._inject(lambda source: source.motion(dx, dy))

    def inject_abs(self, x: int, y: int) -> None:
        """Put the tablet's pointer at (x, y), each 0 to 32767."""
        self._inject(lambda source: source.absolute(x, y))

    def inject_wheel(self, vertical: int, horizontal: int = 0) -> None:
        """Turn the wheel: clicks away from the user and to the right."""
        self._inject(lambda source: source.wheel(vertical, horizontal))
