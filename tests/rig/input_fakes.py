"""The guest's keyboards and mice as the router's tests see them."""

from __future__ import annotations

from collections.abc import Callable


class FakeKeyboard:
    """Takes *room* keys; make_room() is the guest reading them."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.on_room: Callable[[], None] | None = None
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
