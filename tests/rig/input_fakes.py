"""The guest's keyboards and mice as the router's tests see them."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.input.router import (
    DrivenKeyboardTarget,
    DrivenTabletTarget,
    DrivenWidePointerTarget,
    InputMode,
    KeyboardTarget,
    PointerTarget,
    Router,
)


class FakeKeyboard:
    """Takes *room* keys; make_room() is the guest reading them."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.on_room: Callable[[], None] | None = None
        self.on_led: Callable[[int, bool], None] = lambda led, on: None
        self.on_driver_ok: Callable[[bool], None] = lambda ok: None
        self.room = room
        self.keys: list[tuple[int, int]] = []

    @property
    def ready(self) -> bool:
        return self.room > 0

    def key(self, code: int, value: int) -> None:
        assert self.room > 0
        self.room -= 1
        self.keys.append((code, value))

    def make_room(self, room: int = 1) -> None:
        self.room += room
        if self.on_room is not None:
            self.on_room()


class FakePointer:
    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []
        self.has_wheel = True
        self.on_driver_ok: Callable[[bool], None] = lambda ok: None

    def motion(self, dx: int, dy: int) -> None:
        self.events.append(("motion", dx, dy))

    def absolute(self, x: int, y: int) -> None:
        self.events.append(("absolute", x, y))

    def button(self, code: int, pressed: bool) -> None:
        self.events.append(("button", code, int(pressed)))

    def wheel(self, dz: int) -> None:
        self.events.append(("wheel", dz, 0))

    def hwheel(self, dz: int) -> None:
        self.events.append(("hwheel", dz, 0))


def make_router(
    mode: InputMode = "auto",
    *,
    ps2_keyboard: KeyboardTarget | None = None,
    ps2_mouse: PointerTarget | None = None,
    virtio_keyboard: DrivenKeyboardTarget | None = None,
    virtio_mouse: DrivenWidePointerTarget | None = None,
    virtio_tablet: DrivenTabletTarget | None = None,
) -> Router:
    """A router with one of each, where given."""
    router = Router(mode)
    if ps2_keyboard is not None:
        router.add_ps2_keyboard(ps2_keyboard)
    if ps2_mouse is not None:
        router.add_ps2_mouse(ps2_mouse)
    if virtio_keyboard is not None:
        router.add_virtio_keyboard(virtio_keyboard)
    if virtio_mouse is not None:
        router.add_virtio_mouse(virtio_mouse)
    if virtio_tablet is not None:
        router.add_virtio_tablet(virtio_tablet)
    return router
