"""The PS/2 keyboard: keys as Linux input codes on one side, scan codes of set 1, 2 or 3 on the other.

    ED  set LEDs (one option)          F5  defaults, stop scanning        FA  set 3: all keys typematic, make and break
    EE  echo                           F6  defaults                       FB  set 3: the keys that follow: typematic
    F0  scan code set: 0 asks, 1–3     F7  set 3: all keys typematic      FC  … make and break
    F2  identify: AB 83                F8  set 3: all keys make and break FD  … make only
    F3  typematic rate and delay       F9  set 3: all keys make only      FE  resend the last byte
    F4  start scanning                                                    FF  reset, then AA (test passed)

Every command and option is answered with FA (FE if it is none); EE and FE are their own answer.
After power-on: set 2, scanning, 500 ms before a held key repeats, then 10.9 times a second.

Codes that the host has not fetched wait in a buffer of 16 bytes; a key that does not fit in whole leaves an overrun
code (FF in set 1, else 00) instead. Three things are kinder than the chip: the break code of a key whose make code went
out is never lost but waits for room, a key does not repeat while the host has yet to fetch its last code, and F4 does
not empty the buffer.

A byte takes a millisecond on the cable and no time here, but however much is to be sent, the host finds nothing to
fetch after 16 bytes at the most, for as long as one byte takes: a driver that empties the controller before it starts
must come to an end, and Linux's i8042_flush() takes more than 16 bytes for a sign that there is no controller.

Source: IBM PS/2 Technical Reference, Keyboards (101- and 102-key); Linux's drivers/input/keyboard/atkbd.c for what a
driver expects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from pyvmm.clock import Clock
from pyvmm.devices.ps2_device import PS2_RET_ACK, PS2_RET_BAT, PS2_RET_NAK, Ps2Device
from pyvmm.devices.scancodes import KEY_OF_SET3, SET3_MAKE_BREAK, SET3_MAKE_ONLY, sequences
from pyvmm.input.codes import KEY_HANGEUL, KEY_HANJA, KEY_PAUSE, LED_CAPSL, LED_NUML, LED_SCROLLL, key_name
from pyvmm.trace import OFF, Channel

CMD_SETLEDS: Final = 0xED
CMD_ECHO: Final = 0xEE
CMD_SCANSET: Final = 0xF0
CMD_GETID: Final = 0xF2
CMD_SETREP: Final = 0xF3
CMD_ENABLE: Final = 0xF4
CMD_RESET_DIS: Final = 0xF5
CMD_RESET_DEF: Final = 0xF6
CMD_SETALL_TYPEMATIC: Final = 0xF7
CMD_SETALL_MB: Final = 0xF8
CMD_SETALL_MAKE: Final = 0xF9
CMD_SETALL_MBR: Final = 0xFA
CMD_SET_TYPEMATIC: Final = 0xFB
CMD_SET_MB: Final = 0xFC
CMD_SET_MAKE: Final = 0xFD
CMD_RESEND: Final = 0xFE
CMD_RESET_BAT: Final = 0xFF

KEYBOARD_ID: Final = (0xAB, 0x83)
BUFFER_SIZE: Final = 16
"""Bytes, the one in the controller's output buffer and the overrun code included."""
BURST: Final = 8
"""Bytes after which the keyboard pauses before it sends what waits; the longest sequence, of Pause, fits in twice."""
PAUSE: Final = 1_000_000
"""Nanoseconds; also what must pass between two codes for the second not to count as following the first."""
DEFAULT_REPEAT: Final = 0x2B
"""Option of CMD_SETREP after power-on: 500 ms, 10.9 a second."""

TYPEMATIC: Final = 1
MAKE_BREAK: Final = 2
_ALL_KEYS: Final = {CMD_SETALL_TYPEMATIC: 1, CMD_SETALL_MB: 2, CMD_SETALL_MAKE: 0, CMD_SETALL_MBR: 3}
_THESE_KEYS: Final = {CMD_SET_TYPEMATIC: 1, CMD_SET_MB: 2, CMD_SET_MAKE: 0}
_NEVER_REPEAT: Final = frozenset({KEY_PAUSE, KEY_HANGEUL, KEY_HANJA})


def _ignore_leds(_mask: int) -> None:
    pass


class Ps2Keyboard(Ps2Device):
    """A keyboard on a PS/2 cable.

    *leds* is called with the lit LEDs, as a mask of 1 << LED_NUML, LED_CAPSL and LED_SCROLLL, whenever the guest sets
    them. A source that types faster than a hand waits for `ready` before each `key` and goes on from `on_room`; then
    nothing is lost, however slow the guest.
    """

    # fmt: off
    STATE = (
        "leds", "_emptied", "_down", "_owed", "_command", "_scanning", "_set", "_repeat_option", "_all_keys",
        "_key_types", "_overrun", "_row", "_pausing", "_repeat_key", "_repeat_code", "_repeat_timer", "_pause_timer",
    )
    # fmt: on

    def __init__(self, clock: Clock, leds: Callable[[int], None] = _ignore_leds, trace: Channel = OFF) -> None:
        super().__init__()
        self.on_room: Callable[[], None] | None = None
        """Called when `ready` may have become true: the guest has read the last code, or has let the keyboard scan."""
        self._clock = clock
        self._set_leds = leds
        self._trace = trace
        self._repeat_timer = clock.timer(self._repeat)
        self._pause_timer = clock.timer(self._end_pause)
        self._down: dict[int, bytes] = {}  # each key that is held, and the break code its release sends
        self._owed: deque[bytes] = deque()  # break codes that found no room; at most one for a key
        self._repeat_code = b""
        self.leds = 0
        self._power_on()

    def _power_on(self) -> None:
        self._command = 0
        self._scanning = True
        self._emptied = self._clock.now()  # when the guest read the last code
        self._last_sent = PS2_RET_BAT
        self._defaults()

    def _defaults(self) -> None:
        self._set = 2
        self._repeat_option = DEFAULT_REPEAT
        self._all_keys = -1  # type of all keys in set 3, or -1: each has its own
        self._key_types: dict[int, int] = {}
        self._forget()

    def _forget(self) -> None:
        """Empty the buffer. What is held now is as good as released for the guest."""
        self._reports.clear()
        self._owed.clear()
        self._overrun = False
        self._row = 0  # bytes sent since there was nothing to fetch for PAUSE
        self._pausing = False
        self._pause_timer.cancel()
        self._stop_repeat()
        for key in self._down:
            self._down[key] = b""

    def reset(self) -> None:
        """Power-on state. No AA is sent: it is the firmware that fetches it, before the guest runs."""
        self._answers.clear()
        self._taken_report = False
        self._down.clear()
        self._power_on()
        self._light(0)

    # The keys

    @property
    def scan_code_set(self) -> int:
        """The set in use: 1, 2 or 3."""
        return self._set

    @property
    def ready(self) -> bool:
        """True if the keyboard scans, the guest has read every code that was sent, and no pause is due."""
        return self._scanning and not (self._reports or self._taken_report or self._owed or self._pausing)

    @property
    def down(self) -> tuple[int, ...]:
        """The keys that are held, in the order they were pressed."""
        return tuple(self._down)

    def key(self, code: int, value: int) -> None:
        """Key *code* (KEY_*) goes down (*value* 1) or up (0). 2, the host's repeat, is ignored: this one repeats."""
        if value == 1 and code not in self._down:
            self._press(code)
        elif value == 0 and code in self._down:
            self._release(code)

    def release_all(self) -> None:
        """All keys go up, the last pressed first: the host's keyboard has gone away, or belongs to another window."""
        for code in reversed(self._down.copy()):
            self._release(code)

    def _press(self, code: int) -> None:
        self._down[code] = b""
        if not self._scanning:
            if self._trace.enabled:
                self._trace(f"keyboard: {key_name(code)} down, not scanning: dropped")
            return
        pair = sequences(self._set, code, self._down)
        if pair is None:
            if self._trace.enabled:
                self._trace(f"keyboard: {key_name(code)} has no code in scan code set {self._set}")
            return
        make, release = pair
        kind = self._type(code)
        self._stop_repeat()
        if self._owed or not self._room(make):
            self._overflow(code)
            return
        self._down[code] = release if kind & MAKE_BREAK else b""
        self._send(make, code, "down")
        if kind & TYPEMATIC:
            self._repeat_key = code
            self._repeat_code = make[-2:] if len(make) > 2 else make  # PrintScreen repeats without its fake shift
            self._repeat_timer.arm(self._clock.now() + (1 + (self._repeat_option >> 5)) * 250_000_000)

    def _release(self, code: int) -> None:
        release = self._down.pop(code)
        if code == self._repeat_key:
            self._stop_repeat()
        if not release or not self._scanning:
            return
        if self._owed or not self._room(release):
            self._owed.append(release)
        else:
            self._send(release, code, "up")

    def _send(self, codes: bytes, code: int, what: str) -> None:
        if self._trace.enabled:
            message = f"keyboard: {key_name(code)} {what} -> {codes.hex(' ')} (scan code set {self._set})"
            self._trace(message, ("codes", code, int(what != "up"), *codes))
        if not (self._reports or self._taken_report) and self._clock.now() - self._emptied >= PAUSE:
            self._row = 0
        self._append(codes)
        self.data_ready()

    def _append(self, codes: bytes) -> None:
        self._overrun = False
        self._reports.extend(codes)
        self._row += len(codes)

    def _room(self, codes: bytes) -> bool:
        return len(self._reports) + self._taken_report + len(codes) < BUFFER_SIZE

    def _overflow(self, code: int) -> None:
        if self._trace.enabled:
            self._trace(f"keyboard: {key_name(code)} down, buffer full: dropped")
        if not self._overrun:
            self._overrun = True
            self._reports.append(0xFF if self._set == 1 else 0x00)

    def _report_taken(self) -> None:
        if self._reports:
            return
        self._emptied = self._clock.now()
        if self._owed or self._row > BURST:
            self._pausing = True
            self._pause_timer.arm(self._emptied + PAUSE)
        else:
            self._tell_room()

    def _end_pause(self) -> None:
        self._pausing = False
        self._row = len(self._reports) + self._taken_report  # of a source that does not wait
        while self._owed and self._room(self._owed[0]):
            self._append(self._owed.popleft())
        self.data_ready()
        self._tell_room()

    def _tell_room(self) -> None:
        if self.on_room is not None and self.ready:
            self.on_room()

    # Typematic

    def _type(self, code: int) -> int:
        if self._set != 3:
            return MAKE_BREAK if code in _NEVER_REPEAT else MAKE_BREAK | TYPEMATIC
        own = self._key_types.get(code, self._all_keys)
        if own >= 0:
            return own
        if code in SET3_MAKE_BREAK:
            return MAKE_BREAK
        return 0 if code in SET3_MAKE_ONLY else TYPEMATIC

    def _repeat(self) -> None:
        if self.ready:
            self._send(self._repeat_code, self._repeat_key, "repeats")
        self._repeat_timer.arm(self._clock.now() + self.repeat_period)

    def _stop_repeat(self) -> None:
        self._repeat_key = -1
        self._repeat_code = b""
        self._repeat_timer.cancel()

    @property
    def repeat_period(self) -> int:
        """Nanoseconds from one repeat of a held key to the next: (8 + A) × 2^B × 4.17 ms, A bits 2–0, B bits 4–3."""
        return ((8 + (self._repeat_option & 7)) << (self._repeat_option >> 3 & 3)) * 4_170_000

    # The host's side

    def write(self, value: int) -> None:
        """A command, or an option of the command before. From 0x80 up it is no option but the next command."""
        if self._trace.enabled:
            self._trace(f"keyboard: host sends {value:#04x}")
        command = self._command
        if command in _THESE_KEYS and value not in _COMMANDS:
            self._set_key_type(command, value)
        elif command and value < 0x80:
            self._command = 0
            self._option(command, value)
        else:
            self._command = 0
            self._execute(value)
        self._tell_room()  # a command may have emptied the buffer or begun to scan

    def _execute(self, command: int) -> None:
        if command in (CMD_SETLEDS, CMD_SCANSET, CMD_SETREP) or command in _THESE_KEYS:
            self._command = command
            self._answer(PS2_RET_ACK)
        elif command == CMD_ECHO:
            self._answer(CMD_ECHO)
        elif command == CMD_GETID:
            self._answer(PS2_RET_ACK, *KEYBOARD_ID)
        elif command == CMD_ENABLE:
            self._answer(PS2_RET_ACK)
            self._scanning = True
        elif command in (CMD_RESET_DIS, CMD_RESET_DEF):
            self._defaults()
            self._scanning = self._scanning and command == CMD_RESET_DEF
            self._answer(PS2_RET_ACK)
        elif command in _ALL_KEYS:
            self._key_types.clear()
            self._all_keys = _ALL_KEYS[command]
            self._answer(PS2_RET_ACK)
        elif command == CMD_RESEND:
            self._resend()
        elif command == CMD_RESET_BAT:
            self._answers.clear()
            self._power_on()
            self._light(0)
            self._answer(PS2_RET_ACK, PS2_RET_BAT)
        else:
            self._answer(PS2_RET_NAK)

    def _option(self, command: int, value: int) -> None:
        if command == CMD_SETLEDS:
            self._light(value)
            self._answer(PS2_RET_ACK)
        elif command == CMD_SETREP:
            self._repeat_option = value
            self._answer(PS2_RET_ACK)
        elif value == 0:  # what is left is CMD_SCANSET
            self._answer(PS2_RET_ACK, self._set)
        elif value <= 3:
            self._set = value
            self._forget()
            self._answer(PS2_RET_ACK)
        else:
            self._answer(PS2_RET_NAK)

    def _set_key_type(self, command: int, scan_code: int) -> None:
        key = KEY_OF_SET3.get(scan_code)
        if key is None:
            self._answer(PS2_RET_NAK)
        else:
            self._key_types[key] = _THESE_KEYS[command]
            self._answer(PS2_RET_ACK)

    def _light(self, option: int) -> None:
        """*option* as CMD_SETLEDS has it: bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock."""
        self.leds = (option & 1) << LED_SCROLLL | (option >> 1 & 1) << LED_NUML | (option >> 2 & 1) << LED_CAPSL
        self._set_leds(self.leds)


_COMMANDS: Final = frozenset(range(CMD_SETLEDS, 0x100))
