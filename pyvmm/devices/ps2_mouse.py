"""The PS/2 mouse: standard, IntelliMouse (wheel) and IntelliMouse Explorer (wheel and five buttons).

    E6  scaling 1:1            EC  leave wrap mode         F4  start reporting (stream mode)
    E7  scaling 2:1            EE  enter wrap mode         F5  stop reporting
    E8  resolution (option)    F0  remote mode             F6  defaults
    E9  status: 3 bytes        F2  identify: 0, 3 or 4     FE  resend the last byte
    EA  stream mode            F3  sample rate (option)    FF  reset, then AA and 0
    EB  read data: a packet

Every command and option is answered with FA, FE if it is none. After power-on: stream mode, not reporting, 100 packets
a second, resolution 2 (4 counts a mm), scaling 1:1, identity 0. Sample rates 200, 100, 80 in a row make it an
IntelliMouse (identity 3), 200, 200, 80 an Explorer (identity 4), until reset.

    packet  byte 0   Y over, X over, Y sign, X sign, 1, middle, right, left
            1, 2     X to the right, Y up: low eight bits of nine
            3        identity 3: wheel, towards the user positive; identity 4: 0, 0, extra, side and four bits of wheel

One packet at a time waits for the host; while it does, and until the next sample is due, movement adds up and each
change of a button keeps a packet of its own. An overflow bit is set when movement has been lost, which takes more than
ACCUMULATED_LIMIT counts. A count of the host's is a count here at every resolution.

Source: IBM PS/2 Hardware Interface Technical Reference, "Mouse"; Microsoft, IntelliMouse and Explorer "wheel" protocol
as in Linux's drivers/input/mouse/psmouse-base.c.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.devices.ps2_device import PS2_RET_ACK, PS2_RET_BAT, PS2_RET_NAK, Ps2Device
from pyvmm.input.codes import BTN_EXTRA, BTN_LEFT, BTN_MIDDLE, BTN_RIGHT, BTN_SIDE
from pyvmm.trace import OFF, Channel

PSMOUSE_CMD_SETSCALE11: Final = 0xE6
PSMOUSE_CMD_SETSCALE21: Final = 0xE7
PSMOUSE_CMD_SETRES: Final = 0xE8
PSMOUSE_CMD_GETINFO: Final = 0xE9
PSMOUSE_CMD_SETSTREAM: Final = 0xEA
PSMOUSE_CMD_POLL: Final = 0xEB
PSMOUSE_CMD_RESET_WRAP: Final = 0xEC
PSMOUSE_CMD_SET_WRAP: Final = 0xEE
PSMOUSE_CMD_SETPOLL: Final = 0xF0
PSMOUSE_CMD_GETID: Final = 0xF2
PSMOUSE_CMD_SETRATE: Final = 0xF3
PSMOUSE_CMD_ENABLE: Final = 0xF4
PSMOUSE_CMD_DISABLE: Final = 0xF5
PSMOUSE_CMD_RESET_DIS: Final = 0xF6
PSMOUSE_CMD_RESEND: Final = 0xFE
PSMOUSE_CMD_RESET_BAT: Final = 0xFF

ID_STANDARD: Final = 0
ID_INTELLIMOUSE: Final = 3
ID_EXPLORER: Final = 4
_KNOCKS: Final[dict[tuple[int, ...], int]] = {(200, 100, 80): ID_INTELLIMOUSE, (200, 200, 80): ID_EXPLORER}
MAX_RATE: Final = 200
"""Packets a second. A greater number after SETRATE is no option but the next command."""

PACKET_ALWAYS_1: Final = 0x08
PACKET_X_SIGN: Final = 0x10
PACKET_Y_SIGN: Final = 0x20
PACKET_X_OVERFLOW: Final = 0x40
PACKET_Y_OVERFLOW: Final = 0x80
STATUS_SCALING_2_1: Final = 0x10
STATUS_ENABLED: Final = 0x20
STATUS_REMOTE: Final = 0x40

BUTTONS: Final = {BTN_LEFT: 1, BTN_RIGHT: 2, BTN_MIDDLE: 4, BTN_SIDE: 8, BTN_EXTRA: 16}
"""Input code -> bit in `buttons`."""
ACCUMULATED_LIMIT: Final = 4095
"""Counts of movement that are kept on each axis while the host does not read."""
CHANGES_LIMIT: Final = 16
"""Changes of buttons that are kept while the host does not read; after that only the last state is."""


class _Sample:
    """What one packet tells (or several, where the way is long): movement, then at most one change of buttons."""

    __slots__ = ("buttons", "changed", "over", "x", "y", "z")

    def __init__(self, buttons: int) -> None:
        self.x = self.y = self.z = 0  # as the packet has them: right, up, towards the user
        self.over = 0
        self.buttons = buttons
        self.changed = False


def _clamp(value: int, limit: int) -> int:
    return -limit if value < -limit else min(value, limit)


def _double(value: int) -> int:
    """Scaling 2:1: 0 1 1 3 6 9, then twice the count."""
    size = abs(value)
    scaled = (0, 1, 1, 3, 6, 9)[size] if size < 6 else 2 * size
    return scaled if value > 0 else -scaled


class Ps2Mouse(Ps2Device):
    """A mouse on a PS/2 cable. Movement and wheel count as Linux's REL_X, REL_Y and REL_WHEEL do: right, down, up."""

    # fmt: off
    STATE = (
        "buttons", "identity", "rate", "resolution", "_rates", "_wrap", "_command", "_remote", "_scale21", "_enabled",
        "_told", "_waiting", "_sample_timer", "_movement",
    )
    # fmt: on

    def __init__(self, clock: Clock, trace: Channel = OFF) -> None:
        super().__init__()
        self._clock = clock
        self._trace = trace
        self._sample_timer = clock.timer(self._sample_due)
        self.buttons = 0
        self._power_on()

    def _power_on(self) -> None:
        self.identity = ID_STANDARD
        self._rates: tuple[int, ...] = ()
        self._wrap = False
        self._last_sent = PS2_RET_BAT
        self._defaults()

    def _defaults(self) -> None:
        self._command = 0
        self._remote = False
        self.rate = 100
        self.resolution = 2
        self._scale21 = False
        self._enabled = False
        self._forget()

    def _forget(self) -> None:
        """Clear the counters and what waits to be sent; the buttons stay as they are."""
        self._reports.clear()
        self._samples: deque[_Sample] = deque()
        self._told = self.buttons  # the buttons of the last packet
        self._sample_timer.cancel()
        self._waiting = False  # until the next sample is due

    def reset(self) -> None:
        """Power-on state. No AA 0 is sent: it is the firmware that fetches it, before the guest runs."""
        self._answers.clear()
        self._taken_report = False
        self.buttons = 0
        self._power_on()

    @property
    def _movement(self) -> list[tuple[int, int, int, int, int, bool]]:
        """The samples, as a snapshot keeps them."""
        return [(s.x, s.y, s.z, s.over, s.buttons, s.changed) for s in self._samples]

    @_movement.setter
    def _movement(self, saved: list[tuple[int, int, int, int, int, bool]]) -> None:
        self._samples.clear()
        for x, y, z, over, buttons, changed in saved:
            sample = _Sample(buttons)
            sample.x, sample.y, sample.z, sample.over, sample.changed = x, y, z, over, changed
            self._samples.append(sample)

    # The hand

    def motion(self, dx: int, dy: int) -> None:
        """Move by *dx* counts to the right and *dy* down."""
        if not (dx or dy):
            return
        sample = self._sample()
        for_x, for_y = sample.x + dx, sample.y - dy
        sample.x, sample.y = _clamp(for_x, ACCUMULATED_LIMIT), _clamp(for_y, ACCUMULATED_LIMIT)
        if sample.x != for_x:
            sample.over |= PACKET_X_OVERFLOW
        if sample.y != for_y:
            sample.over |= PACKET_Y_OVERFLOW
        self._report()

    def wheel(self, dz: int) -> None:
        """Turn the wheel by *dz* clicks away from the user; a standard mouse has none."""
        if dz and self.identity != ID_STANDARD:
            sample = self._sample()
            sample.z = _clamp(sample.z - dz, ACCUMULATED_LIMIT)
            self._report()

    def button(self, code: int, pressed: bool) -> None:
        """Press or let go the button *code* (BTN_LEFT, RIGHT, MIDDLE, SIDE, EXTRA); another code is ignored."""
        bit = BUTTONS.get(code, 0)
        buttons = self.buttons | bit if pressed else self.buttons & ~bit
        if buttons == self.buttons:
            return
        self.buttons = buttons
        if bit & 0x18 and self.identity != ID_EXPLORER:
            return  # no packet of this mouse shows it
        sample = self._sample()
        sample.buttons = buttons
        sample.changed = True
        self._report()

    def release_all(self) -> None:
        """Let go all buttons: the host's mouse has gone away, or belongs to another window."""
        for code in BUTTONS:
            self.button(code, False)

    @property
    def _streaming(self) -> bool:
        return self._enabled and not self._remote and not self._wrap

    def _sample(self) -> _Sample:
        """The sample that the next movement or change belongs to."""
        samples = self._samples
        if not samples or (samples[-1].changed and self._streaming and len(samples) < CHANGES_LIMIT):
            samples.append(_Sample(self.buttons))
        return samples[-1]

    # The packets

    def _report(self) -> None:
        """Send the next packet, if the host wants packets, has read the last one, and a sample is due."""
        if self._samples and self._streaming and not (self._waiting or self._reports or self._taken_report):
            self._waiting = True
            self._sample_timer.arm(self._clock.now() + NS_PER_SECOND // self.rate)
            packet = self._packet(scaled=self._scale21)
            self._reports.extend(packet)
            self.data_ready()

    def _sample_due(self) -> None:
        self._waiting = False
        self._report()

    def _report_taken(self) -> None:
        if not self._reports:
            self._report()

    def _packet(self, scaled: bool) -> bytes:
        sample = self._samples[0] if self._samples else _Sample(self.buttons)
        limit = 127 if scaled else 255
        x, y, z = _clamp(sample.x, limit), _clamp(sample.y, limit), _clamp(sample.z, 7)
        sample.x -= x
        sample.y -= y
        sample.z -= z
        if not (sample.x or sample.y or sample.z):  # else the button changes after the rest of the way
            self._told = sample.buttons
            if self._samples:
                self._samples.popleft()
        if scaled:
            x, y = _double(x), _double(y)
        head = PACKET_ALWAYS_1 | sample.over | self._told & 7
        sample.over = 0
        if x < 0:
            head |= PACKET_X_SIGN
        if y < 0:
            head |= PACKET_Y_SIGN
        packet = bytes((head, x & 0xFF, y & 0xFF))
        if self.identity == ID_INTELLIMOUSE:
            packet += bytes((z & 0xFF,))
        elif self.identity == ID_EXPLORER:
            packet += bytes((z & 0x0F | (self._told & 0x18) << 1,))
        if self._trace.enabled:
            self._trace(f"mouse: packet {packet.hex(' ')}")
        return packet

    # The host's side

    def write(self, value: int) -> None:
        """A command, or the option of the command before. It cuts off the packet that is being sent."""
        if self._trace.enabled:
            self._trace(f"mouse: host sends {value:#04x}")
        untold = self._streaming and bool(self._reports or self._samples)
        self._reports.clear()
        command = self._command
        self._command = 0
        if self._wrap and value not in (PSMOUSE_CMD_RESET_WRAP, PSMOUSE_CMD_RESET_BAT):
            self._answer(value)
        elif command and value <= MAX_RATE:
            self._option(command, value)
        else:
            self._execute(value)
        if untold and self._streaming and not self._samples:
            self._sample().changed = True  # tell the buttons again, they may have changed in what was dropped
        self._report()

    def _option(self, command: int, value: int) -> None:
        if command == PSMOUSE_CMD_SETRATE and value:
            self.rate = value
            self._rates = (*self._rates, value)[-3:]
            self.identity = _KNOCKS.get(self._rates, self.identity)
        elif command == PSMOUSE_CMD_SETRES and value <= 3:
            self.resolution = value
        else:
            self._answer(PS2_RET_NAK)
            return
        self._forget()
        self._answer(PS2_RET_ACK)

    def _execute(self, command: int) -> None:
        if command in (PSMOUSE_CMD_SETRATE, PSMOUSE_CMD_SETRES):
            self._command = command
            self._answer(PS2_RET_ACK)
        elif command in (PSMOUSE_CMD_SETSCALE11, PSMOUSE_CMD_SETSCALE21):
            self._scale21 = command == PSMOUSE_CMD_SETSCALE21
            self._answer(PS2_RET_ACK)
        elif command == PSMOUSE_CMD_GETINFO:
            self._answer(PS2_RET_ACK, self._status, self.resolution, self.rate)
        elif command == PSMOUSE_CMD_POLL:
            self._answer(PS2_RET_ACK, *self._packet(scaled=False))
        elif command == PSMOUSE_CMD_GETID:
            self._answer(PS2_RET_ACK, self.identity)
        elif command in (PSMOUSE_CMD_SETSTREAM, PSMOUSE_CMD_SETPOLL):
            self._remote = command == PSMOUSE_CMD_SETPOLL
            self._forget()
            self._answer(PS2_RET_ACK)
        elif command in (PSMOUSE_CMD_SET_WRAP, PSMOUSE_CMD_RESET_WRAP):
            self._wrap = command == PSMOUSE_CMD_SET_WRAP
            self._forget()
            self._answer(PS2_RET_ACK)
        elif command in (PSMOUSE_CMD_ENABLE, PSMOUSE_CMD_DISABLE):
            self._enabled = command == PSMOUSE_CMD_ENABLE
            self._forget()
            self._answer(PS2_RET_ACK)
        elif command == PSMOUSE_CMD_RESET_DIS:
            self._defaults()
            self._answer(PS2_RET_ACK)
        elif command == PSMOUSE_CMD_RESEND:
            self._resend()
        elif command == PSMOUSE_CMD_RESET_BAT:
            self._answers.clear()
            self._power_on()
            self._answer(PS2_RET_ACK, PS2_RET_BAT, ID_STANDARD)
        else:
            self._answer(PS2_RET_NAK)

    @property
    def _status(self) -> int:
        """First byte of the answer to GETINFO: 0, remote, enabled, scaling 2:1, 0, left, middle, right."""
        left, right, middle = self.buttons & 1, self.buttons >> 1 & 1, self.buttons >> 2 & 1
        return (
            (STATUS_REMOTE if self._remote else 0)
            | (STATUS_ENABLED if self._enabled else 0)
            | (STATUS_SCALING_2_1 if self._scale21 else 0)
            | left << 2
            | middle << 1
            | right
        )
