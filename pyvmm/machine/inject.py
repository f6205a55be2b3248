"""machine.keyboard, machine.mouse, machine.tablet: a script's hands on the guest, from any thread.

All three are one source of the router; events take the way that it gives to every host event. The codes are Linux's
(pyvmm.input.codes).
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.input.keymap import Stroke, key_code, strokes
from pyvmm.input.router import Router, Source
from pyvmm.input.typist import Typist

Post = Callable[[Callable[[], None]], None]
"""Runs a call soon, under the machine lock (Loop.post)."""


class Hands:
    """The router's source that a script moves; it comes into being with the first event."""

    def __init__(self, router: Router, post: Post) -> None:
        self._router = router
        self._post = post
        self._source: Source | None = None

    def __call__(self, event: Callable[[Source], None]) -> None:
        """Do *event* with the source, soon."""

        def run() -> None:
            if self._source is None:
                self._source = self._router.source("inject")
            event(self._source)

        self._post(run)


class Keyboard:
    """Types on the guest's keyboard: the next key goes when the guest has taken the last, never after a sleep."""

    def __init__(self, hands: Hands, post: Post, typist: Typist, router: Router) -> None:
        self._hands = hands
        self._post = post
        self._typist = typist
        self._router = router

    def type(self, text: str) -> None:
        """Type *text* as on a US keyboard; raises KeyTextError for a character it lacks."""
        self._strokes(list(strokes(text)))

    def press(self, *names: str) -> None:
        """Press keys together and release them: press("a"), press("ctrl", "c"); raises KeyTextError."""
        self._strokes([tuple(key_code(name) for name in names)])

    def _strokes(self, wanted: list[Stroke]) -> None:
        self._post(lambda: self._typist.strokes(wanted))

    def key(self, code: int, value: int) -> None:
        """Press (1) or release (0) KEY_*, whether or not the guest is ready for it."""
        self._hands(lambda source: source.key(code, value))

    @property
    def idle(self) -> bool:
        """Whether the guest has taken everything."""
        return self._typist.idle

    @property
    def driver_ok(self) -> bool:
        """Whether a virtio keyboard of the guest has its driver (DRIVER_OK)."""
        return self._router.virtio_keyboard_ready


class Mouse:
    """Moves the guest's mouse."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands

    def move(self, dx: int, dy: int) -> None:
        """Counts right and down."""
        self._hands(lambda source: source.motion(dx, dy))

    def button(self, code: int, value: int) -> None:
        """Press (1) or release (0) BTN_*."""
        self._hands(lambda source: source.key(code, value))

    def wheel(self, vertical: int, horizontal: int = 0) -> None:
        """Clicks away from the user and to the right."""
        self._hands(lambda source: source.wheel(vertical, horizontal))


class Tablet:
    """Puts the guest's pointer somewhere; its buttons are the mouse's."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands

    def move(self, x: int, y: int) -> None:
        """Put the pointer at (x, y), each 0 to 32767."""
        self._hands(lambda source: source.absolute(x, y))
