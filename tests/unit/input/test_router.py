from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import state
from pyvmm.clock import FakeClock
from pyvmm.devices.ps2_keyboard import Ps2Keyboard
from pyvmm.devices.ps2_mouse import Ps2Mouse
from pyvmm.input.codes import BTN_LEFT, KEY_A, KEY_B, KEY_LEFTSHIFT, LED_CAPSL, LED_NUML, LED_SCROLLL
from pyvmm.input.router import KEYS_WAITING, InputMode, Router, Source
from pyvmm.input.typist import Typist
from tests.rig.input_fakes import FakeKeyboard, FakePointer, make_router


class Board:
    """A router with every target."""

    def __init__(self, mode: InputMode = "auto", room: int = 1_000_000) -> None:
        self.ps2 = FakeKeyboard(room)
        self.virtio = FakeKeyboard(room)
        self.mouse = FakePointer()
        self.virtio_mouse = FakePointer()
        self.tablet = FakePointer()
        self.router = make_router(
            mode,
            ps2_keyboard=self.ps2,
            ps2_mouse=self.mouse,
            virtio_keyboard=self.virtio,
            virtio_mouse=self.virtio_mouse,
            virtio_tablet=self.tablet,
        )


def test_keys_follow_the_driver() -> None:
    board = Board()
    source = board.router.source("test")
    source.key(KEY_A, 1)
    source.key(KEY_A, 0)
    board.virtio.on_driver_ok(True)
    source.key(KEY_B, 1)
    source.key(KEY_B, 0)
    board.virtio.on_driver_ok(False)
    source.key(KEY_A, 1)
    assert board.ps2.keys == [(KEY_A, 1), (KEY_A, 0), (KEY_A, 1)]
    assert board.virtio.keys == [(KEY_B, 1), (KEY_B, 0)]


def test_a_key_held_at_the_switch_is_released_on_the_old_side() -> None:
    board = Board()
    source = board.router.source("test")
    source.key(KEY_LEFTSHIFT, 1)
    board.virtio.on_driver_ok(True)
    assert board.ps2.keys == [(KEY_LEFTSHIFT, 1), (KEY_LEFTSHIFT, 0)]
    source.key(KEY_LEFTSHIFT, 0)
    assert board.ps2.keys[2:] == [] and board.virtio.keys == []


def test_a_reset_driver_gets_no_release_and_leaves_nothing_waiting() -> None:
    board = Board(room=1)
    board.virtio.on_driver_ok(True)
    source = board.router.source("test")
    source.key(KEY_A, 1)
    source.key(KEY_B, 1)
    board.virtio.on_driver_ok(False)
    board.virtio.make_room(10)
    assert board.virtio.keys == [(KEY_A, 1)]


def test_a_device_that_is_gone_gets_nothing_whatever_its_driver_said() -> None:
    board = Board()
    source = board.router.source("test")
    for device in (board.virtio, board.virtio_mouse, board.tablet):
        device.on_driver_ok(True)
        device.on_driver_ok(False)  # it is reset first
        board.router.remove(device)
    source.key(KEY_A, 1)
    source.key(BTN_LEFT, 1)
    source.motion(1, 1)
    source.absolute(5, 5)
    assert board.ps2.keys == [(KEY_A, 1)] and board.virtio.keys == []
    saved = state.save(board.router)
    state.load(board.router, saved)
    board.router.remove(board.ps2)
    source.key(KEY_A, 0)
    assert board.ps2.keys == [(KEY_A, 1), (KEY_A, 0)], "a part of the board stays"


@pytest.mark.parametrize(("mode", "ps2", "virtio"), [("ps2", 2, 0), ("virtio", 0, 1), ("auto", 1, 1)])
def test_modes(mode: InputMode, ps2: int, virtio: int) -> None:
    board = Board(mode)
    source = board.router.source("test")
    source.key(KEY_A, 1)
    source.key(KEY_A, 0)
    board.virtio.on_driver_ok(True)
    source.key(KEY_B, 1)
    source.key(KEY_B, 0)
    assert (len(board.ps2.keys), len(board.virtio.keys)) == (2 * ps2, 2 * virtio)


def test_two_sources_may_hold_one_key() -> None:
    board = Board()
    one, two = board.router.source("one"), board.router.source("two")
    one.key(KEY_A, 1)
    two.key(KEY_A, 1)
    one.key(KEY_A, 0)
    assert board.ps2.keys == [(KEY_A, 1)]
    two.release_all()
    assert board.ps2.keys == [(KEY_A, 1), (KEY_A, 0)]


def test_auto_repeat_and_stray_releases_are_dropped() -> None:
    board = Board()
    source = board.router.source("test")
    for value in (0, 1, 2, 1, 2, 0, 0):
        source.key(KEY_A, value)
    assert board.ps2.keys == [(KEY_A, 1), (KEY_A, 0)]


def test_a_source_that_goes_away_releases_its_keys_and_buttons() -> None:
    board = Board()
    source = board.router.source("test")
    source.key(KEY_A, 1)
    source.key(BTN_LEFT, 1)
    source.close()
    assert board.ps2.keys == [(KEY_A, 1), (KEY_A, 0)]
    assert board.mouse.events == [("button", BTN_LEFT, 1), ("button", BTN_LEFT, 0)]


def test_order_is_kept_while_the_guest_does_not_read() -> None:
    board = Board(room=0)
    source = board.router.source("test")
    for code in range(1, 50):
        source.key(code, 1)
        source.key(code, 0)
    assert board.ps2.keys == [] and not board.router.keyboard_idle
    while board.ps2.room or len(board.ps2.keys) < 98:
        board.ps2.make_room()
    assert board.ps2.keys == [(code, value) for code in range(1, 50) for value in (1, 0)]
    assert not board.router.keyboard_idle
    board.ps2.make_room()
    assert board.router.keyboard_idle


def test_the_queue_is_bounded_and_a_dropped_press_has_no_release() -> None:
    board = Board(room=0)
    source = board.router.source("test")
    for _ in range(10 * KEYS_WAITING):
        source.key(KEY_A, 1)
        source.key(KEY_A, 0)
    source.key(KEY_B, 1)
    board.ps2.make_room(100 * KEYS_WAITING)
    source.key(KEY_B, 0)
    assert board.ps2.keys == [(KEY_A, 1), (KEY_A, 0)] * (KEYS_WAITING // 2)


def test_reset_forgets_what_the_guest_forgets() -> None:
    board = Board(room=1)
    source = board.router.source("test")
    source.key(KEY_A, 1)
    source.key(KEY_B, 1)
    board.virtio.on_driver_ok(True)
    board.router.reset()
    board.ps2.make_room(10)
    source.key(KEY_A, 0)
    source.key(KEY_B, 0)
    source.key(KEY_A, 1)
    assert board.ps2.keys == [(KEY_A, 1), (KEY_A, 1)]


def test_pointers() -> None:
    board = Board()
    source = board.router.source("test")
    source.motion(3, -4)
    source.motion(0, 0)
    source.wheel(1)
    source.wheel(0, 5)  # which a PS/2 mouse has not
    source.key(BTN_LEFT, 1)
    source.absolute(1, 2)
    board.virtio_mouse.on_driver_ok(True)
    source.key(BTN_LEFT, 0)
    source.motion(1, 1)
    assert board.mouse.events == [
        ("motion", 3, -4),
        ("wheel", 1, 0),
        ("button", BTN_LEFT, 1),
        ("button", BTN_LEFT, 0),
    ]
    assert board.virtio_mouse.events == [("motion", 1, 1)]
    assert not board.router.absolute
    board.tablet.on_driver_ok(True)
    assert board.router.absolute
    source.absolute(-5, 99999)
    source.key(BTN_LEFT, 1)
    source.wheel(0, -1)
    assert board.tablet.events == [("absolute", 0, 32767), ("button", BTN_LEFT, 1), ("hwheel", -1, 0)]


def test_the_mouses_wheel_turns_where_the_tablet_has_none() -> None:
    board = Board()
    source = board.router.source("test")
    board.tablet.has_wheel = False
    board.tablet.on_driver_ok(True)
    source.wheel(1)
    board.virtio_mouse.on_driver_ok(True)
    source.wheel(-1, 2)
    assert board.mouse.events == [("wheel", 1, 0)]
    assert board.virtio_mouse.events == [("wheel", -1, 0), ("hwheel", 2, 0)]
    assert board.tablet.events == []


def test_the_boards_own_keyboard_and_mouse_are_targets() -> None:
    keyboard = Ps2Keyboard(FakeClock())
    router = make_router(ps2_keyboard=keyboard, ps2_mouse=Ps2Mouse(FakeClock()))
    typist = Typist(router)
    typist.type("ok")
    codes = []
    while (code := keyboard.take()) >= 0:
        codes.append(code)
        keyboard.taken()
    assert bytes(codes).hex(" ") == "44 f0 44 42 f0 42"
    assert typist.idle


def test_leds_reach_the_sources_once() -> None:
    board = Board()
    seen: list[tuple[int, bool]] = []
    board.router.source("test", lambda led, on: seen.append((led, on)))
    board.router.set_leds(1 << LED_CAPSL)
    board.router.set_leds(1 << LED_CAPSL)
    assert seen == [(LED_NUML, False), (LED_CAPSL, True), (LED_SCROLLL, False)]
    late: list[tuple[int, bool]] = []
    board.router.source("late", lambda led, on: late.append((led, on)))
    assert sorted(late) == sorted(seen)


def test_without_targets_nothing_happens() -> None:
    router = Router()
    source = router.source("test")
    source.key(KEY_A, 1)
    source.key(BTN_LEFT, 1)
    source.motion(1, 1)
    source.wheel(1, 1)
    source.close()
    assert not router.keyboard_idle


events = st.lists(
    st.one_of(
        st.tuples(st.just("key"), st.integers(0, 1), st.sampled_from([KEY_A, KEY_B, BTN_LEFT]), st.integers(0, 2)),
        st.tuples(st.just("driver"), st.booleans()),
        st.tuples(st.just("room"), st.booleans()),
        st.tuples(st.just("release_all")),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(events)
def test_no_key_is_ever_stuck(steps: list[tuple[object, ...]]) -> None:
    board = Board(room=0)
    sources = [board.router.source("one"), board.router.source("two")]
    for step in steps:
        match step:
            case ("key", int(which), int(code), int(value)):
                sources[which].key(code, value)
            case ("driver", bool(ok)):
                if not ok:
                    board.virtio.keys.clear()  # the driver has forgotten them
                board.virtio.on_driver_ok(ok)
                board.virtio_mouse.on_driver_ok(ok)
            case ("room", bool(virtio)):
                (board.virtio if virtio else board.ps2).make_room()
            case _:
                board.router.release_all()
    for source in sources:
        source.close()
    board.ps2.make_room(1000)
    board.virtio.make_room(1000)
    pairs = [board.ps2.keys, board.virtio.keys]
    pairs += [[(code, value) for _, code, value in mouse.events] for mouse in (board.mouse, board.virtio_mouse)]
    for keys in pairs:
        down: set[int] = set()
        for code, value in keys:
            assert (code in down) != bool(value)
            down ^= {code}
        assert not down


def test_a_source_that_a_led_closes_is_told_of_no_more_leds() -> None:
    router = Router()
    told: list[str] = []
    sources: dict[str, Source] = {}

    def close_others(name: str, led: int, on: bool) -> None:
        told.append(name)
        for other in sources.keys() - {name}:
            sources[other].close()

    for name in ("a", "b", "c"):
        sources[name] = router.source(name, lambda led, on, name=name: close_others(name, led, on))  # type: ignore[misc]
    router.set_led(LED_CAPSL, True)
    assert len(told) == 1


def test_a_led_that_another_led_switches() -> None:
    """A source may answer with LEDs of its own as it is told of the present ones."""
    router = Router()
    router.set_led(LED_NUML, True)
    told: list[tuple[int, bool]] = []

    def answer(led: int, on: bool) -> None:
        told.append((led, on))
        router.set_led(LED_CAPSL, True)

    router.source("test", answer)
    assert (LED_NUML, True) in told and router.source("other") is not None


def test_what_the_guest_believes_held_comes_back_and_what_nobody_holds_goes_up() -> None:
    virtio, mouse = FakeKeyboard(), FakePointer()
    router = make_router(ps2_keyboard=FakeKeyboard(), virtio_keyboard=virtio, ps2_mouse=mouse)
    lit: list[tuple[int, bool]] = []
    source = router.source("hand", lambda led, on: lit.append((led, on)))
    virtio.on_driver_ok(True)
    router.set_led(1, True)
    source.key(30, 1)
    source.key(48, 1)
    source.key(0x110, 1)
    saved = state.save(router)

    source.key(30, 0)
    source.key(0x110, 0)
    virtio.on_driver_ok(False)
    router.set_led(1, False)
    virtio.keys.clear()
    mouse.events.clear()
    lit.clear()
    state.load(router, saved)
    assert (virtio.keys, mouse.events, lit) == ([], [], [(1, True)])
    assert router.virtio_keyboard_ready and state.save(router) == saved
    router.release_unheld()
    assert virtio.keys == [(30, 0)]  # 48 is held still
    assert mouse.events == [("button", 0x110, 0)]
    source.key(48, 0)
    assert virtio.keys == [(30, 0), (48, 0)]


def test_keys_that_waited_for_room_go_on_after_a_load() -> None:
    keyboard = FakeKeyboard(room=1)
    router = make_router(ps2_keyboard=keyboard)
    source = router.source("hand")
    source.key(30, 1)
    source.key(30, 0)
    saved = state.save(router)
    keyboard.make_room(5)
    keyboard.keys.clear()
    state.load(router, saved)
    router.release_unheld()
    assert keyboard.keys == [(30, 0)]
