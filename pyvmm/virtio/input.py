"""virtio-input: keyboard, mouse and tablet as the guest's evdev devices (virtio 1.2, section 5.8).

    eventq 0   device to driver: one struct virtio_input_event {le16 type, code; le32 value} a buffer
    statusq 1  driver to device: LEDs, in the same structure; every buffer is completed

Configuration: {select, subsel, size, reserved[5], payload[128]}; the driver writes the selectors and reads the rest.
One PCI device of two or three functions: 0 keyboard, 1 mouse, 2 tablet.

Two identities. "aero" is the contract AERO-W7-VIRTIO 1.0: its names, subsystem IDs 0x0010–0x0012, split rings without
EVENT_IDX. "standard" is what QEMU's virtio-keyboard-pci, virtio-mouse-pci and virtio-tablet-pci show, names and IDs
included, because guests' quirk tables know those; rings also with EVENT_IDX and packed, and EV_REP, so that the guest
repeats held keys itself.

What is lost when the guest does not take its events. A batch goes whole or not at all: all its events become visible to
the driver with one store. Batches that find too few buffers wait in order, BACKLOG_EVENTS events at most; a batch that
finds no room there is dropped whole. Once the backlog has drained, one batch sets right what the dropped ones left
wrong: keys and buttons that the guest believes down and are up, or the reverse, and where an absolute pointer is now.
So no key sticks; what can be lost is a tap that fell wholly into the gap, and relative motion.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final, Literal, NamedTuple

from pyvmm.input.codes import (
    ABS_X,
    ABS_Y,
    BTN_BACK,
    BTN_EXTRA,
    BTN_FORWARD,
    BTN_GEAR_DOWN,
    BTN_GEAR_UP,
    BTN_LEFT,
    BTN_MIDDLE,
    BTN_RIGHT,
    BTN_SIDE,
    BTN_TASK,
    BTN_TOUCH,
    EV_ABS,
    EV_KEY,
    EV_LED,
    EV_REL,
    EV_REP,
    EV_SYN,
    KEY_ESC,
    KEY_MICMUTE,
    LED_CAPSL,
    LED_COMPOSE,
    LED_KANA,
    LED_NUML,
    LED_SCROLLL,
    REL_HWHEEL,
    REL_WHEEL,
    REL_X,
    REL_Y,
    SYN_REPORT,
)
from pyvmm.trace import OFF, Channel
from pyvmm.virtio.abi import VIRTIO_ID_INPUT
from pyvmm.virtio.device import RING_FEATURES, SPLIT_RING_FEATURES, VirtioDevice
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.queue import VirtQueue

VIRTIO_INPUT_CFG_ID_NAME: Final = 0x01
VIRTIO_INPUT_CFG_ID_SERIAL: Final = 0x02
VIRTIO_INPUT_CFG_ID_DEVIDS: Final = 0x03
VIRTIO_INPUT_CFG_PROP_BITS: Final = 0x10
VIRTIO_INPUT_CFG_EV_BITS: Final = 0x11
VIRTIO_INPUT_CFG_ABS_INFO: Final = 0x12

BUS_VIRTUAL: Final = 0x06
EVENT: Final = struct.Struct("<HHi")
"""struct virtio_input_event; value is signed as evdev has it."""
ABS_INFO: Final = struct.Struct("<iiiii")
"""struct virtio_input_absinfo: min, max, fuzz, flat, res."""
ABS_MAX_VALUE: Final = 32767
PAYLOAD: Final = 8
PAYLOAD_SIZE: Final = 128

EVENTQ, STATUSQ = 0, 1
QUEUE_SIZE: Final = 64
BACKLOG_EVENTS: Final = 512
RESYNC_EVENTS: Final = 32
"""Events of one batch that sets things right, its SYN_REPORT not counted."""

Identity = Literal["aero", "standard"]
Event = tuple[int, int, int]
"""(type, code, value) in the codes of linux/input-event-codes.h."""


class Ids(NamedTuple):
    """struct virtio_input_devids."""

    bustype: int
    vendor: int
    product: int
    version: int


class VirtioInput(VirtioDevice):
    """One input device.

    *on_led* is told (LED_*, on) when the guest switches one, *on_driver_ok* when its driver has set DRIVER_OK (True) or
    has gone. `on_room` is called when what waited has been sent.
    """

    device_id = VIRTIO_ID_INPUT
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)
    names: ClassVar[Mapping[str, str]]
    product: ClassVar[int]
    subsystem_ids: ClassVar[Mapping[str, int]]
    standard_version: ClassVar[int] = 1
    # fmt: off
    STATE: ClassVar[tuple[str, ...]] = (
        "_select", "_subsel", "_leds", "_state", "_shown", "_backlog", "_backlog_bytes", "_dirty",
    )
    # fmt: on

    def __init__(
        self,
        identity: Identity = "aero",
        *,
        on_led: Callable[[int, bool], None] = lambda led, on: None,
        on_driver_ok: Callable[[bool], None] = lambda ok: None,
        trace: Channel = OFF,
    ) -> None:
        super().__init__(trace)
        aero = identity == "aero"
        self.identity: Identity = identity
        self.features = SPLIT_RING_FEATURES if aero else RING_FEATURES
        self.subsystem_id = self.subsystem_ids[identity]
        self.on_led = on_led
        self.on_driver_ok = on_driver_ok
        self.on_room: Callable[[], None] | None = None
        self._bits = {kind: frozenset(codes) for kind, codes in self._capabilities(aero).items()}
        self._config = self._make_config(aero)
        self._select = 0
        self._subsel = 0
        self._leds: dict[int, bool] = {}
        self._state: dict[tuple[int, int], int] = {}  # keys, buttons and axes: as they are
        self._shown: dict[tuple[int, int], int] = {}  # and as the guest has been told
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._dirty = False

    def _capabilities(self, aero: bool) -> dict[int, Iterable[int]]:
        """The codes of each event type that the device can send or, for EV_LED, take."""
        raise NotImplementedError

    def _make_config(self, aero: bool) -> dict[tuple[int, int], bytes]:
        """(select, subsel) -> payload; every other selection has size 0."""
        name = self.names[self.identity].encode()
        if aero:
            ids, serial = Ids(BUS_VIRTUAL, 0x1AF4, self.product, 1), b"0"
        else:
            ids, serial = Ids(BUS_VIRTUAL, 0x0627, self.product, self.standard_version), b""
        config = {
            (VIRTIO_INPUT_CFG_ID_NAME, 0): name,
            (VIRTIO_INPUT_CFG_ID_SERIAL, 0): serial,
            (VIRTIO_INPUT_CFG_ID_DEVIDS, 0): struct.pack("<HHHH", *ids),
            (VIRTIO_INPUT_CFG_EV_BITS, 0): _bitmap({EV_SYN, *self._bits}),
        }
        for kind, codes in self._bits.items():
            config[VIRTIO_INPUT_CFG_EV_BITS, kind] = _bitmap(codes) or b"\0"
        for axis in self._bits.get(EV_ABS, ()):
            config[VIRTIO_INPUT_CFG_ABS_INFO, axis] = ABS_INFO.pack(0, ABS_MAX_VALUE, 0, 0, 0)
        return config

    # Configuration

    def config_read(self, offset: int, size: int) -> int:
        payload = self._config.get((self._select, self._subsel), b"")
        image = bytes((self._select, self._subsel, len(payload))) + bytes(5) + payload.ljust(PAYLOAD_SIZE, b"\0")
        return int.from_bytes(image[offset : offset + size], "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._select = value & 0xFF
            if size > 1:
                self._subsel = value >> 8 & 0xFF
        elif offset == 1:
            self._subsel = value & 0xFF

    # Life

    def reset(self) -> None:
        self._select = self._subsel = 0

    def driver_ok_changed(self, ok: bool) -> None:
        """A new driver knows of no key that is down and has set no LED; an old one is owed nothing."""
        self._leds.clear()
        self._state.clear()
        self._shown.clear()
        self._backlog.clear()
        self._backlog_bytes = 0
        self._dirty = False
        if self.trace.enabled:
            self.trace(f"{self.names[self.identity]}: the driver is {'ready' if ok else 'gone'}")
        self.on_driver_ok(ok)

    # Events to the guest

    @property
    def ready(self) -> bool:
        """Whether a batch would not have to wait behind others."""
        return self.driver_ok and not self._backlog and not self._dirty

    def send(self, events: Sequence[Event]) -> bool:
        """Send a batch and a SYN_REPORT after it. False if nothing of it will get there.

        Left out are events that the guest has not been told of, auto-repeat (value 2), and SYN_REPORTs of the caller.
        """
        if not self.driver_ok:
            return False
        batch = bytearray()
        for kind, code, value in events:
            if code not in self._bits.get(kind, ()) or kind == EV_LED or (kind == EV_KEY and value not in (0, 1)):
                continue
            value = _signed(value)
            batch += EVENT.pack(kind, code, value)
            if kind != EV_REL:
                self._state[kind, code] = value
        if not batch:
            return False
        batch += EVENT.pack(EV_SYN, SYN_REPORT, 0)
        if self.ready and self._deliver(batch):
            return True
        if not self.driver_ok:
            return False  # its ring was broken, which we have just found
        queue = self.queues[EVENTQ]
        fits = len(batch) <= queue.size * EVENT.size and self._backlog_bytes + len(batch) <= BACKLOG_EVENTS * EVENT.size
        if fits:
            self._backlog.append(bytes(batch))
            self._backlog_bytes += len(batch)
        else:
            self._dirty = True
            if self.trace.enabled:
                self.trace(f"{self.names[self.identity]}: a batch of {len(batch) // EVENT.size} events is dropped")
        self._drain(queue)
        return fits and self.driver_ok

    def _deliver(self, batch: bytes | bytearray) -> bool:
        """Put a batch into the driver's buffers, all of it or none."""
        queue = self.queues[EVENTQ]
        chains = queue.pop_exactly(len(batch) // EVENT.size)
        if chains is None:
            return False
        for at, chain in zip(range(0, len(batch), EVENT.size), chains, strict=True):
            event = batch[at : at + EVENT.size]
            if chain.write(bytes(event)) < EVENT.size:
                queue.fail(f"an event buffer of {chain.writable_size} bytes")
                return False
            queue.push(chain, EVENT.size)
            kind, code, value = EVENT.unpack(event)
            self._shown[kind, code] = value
            if self.trace.enabled:
                message = f"{self.names[self.identity]}: event type {kind:#x} code {code:#x} value {value}"
                self.trace(message, ("event", kind, code, value))
        queue.notify()
        return True

    def _drain(self, queue: VirtQueue) -> None:
        """Send what waits, as far as there are buffers; ask for a kick only while something waits."""
        waited = not self.ready
        self._send_waiting(queue)
        if not self.ready:
            queue.set_kicks(True)
            self._send_waiting(queue)
        if self.ready:
            queue.set_kicks(False)
            if waited and self.on_room is not None:
                self.on_room()

    def _send_waiting(self, queue: VirtQueue) -> None:
        while self._backlog and self._deliver(self._backlog[0]):
            self._backlog_bytes -= len(self._backlog.popleft())
        while self._dirty and not self._backlog:
            wrong = [key for key, value in self._state.items() if self._shown.get(key, 0) != value]
            if not wrong:
                self._dirty = False
                return
            part = wrong[: max(1, min(RESYNC_EVENTS, queue.size - 1))]
            batch = b"".join(EVENT.pack(*key, self._state[key]) for key in part)
            if not self._deliver(batch + EVENT.pack(EV_SYN, SYN_REPORT, 0)):
                return

    # Kicks from the guest

    def handle_queue(self, queue: VirtQueue) -> None:
        if queue.index == EVENTQ:
            self._drain(queue)
            return
        for chain in queue:
            status = chain.read(EVENT.size)
            if len(status) == EVENT.size:
                kind, code, value = EVENT.unpack(status)
                if kind == EV_LED and code in self._bits.get(EV_LED, ()) and self._leds.get(code) != bool(value):
                    self._leds[code] = bool(value)
                    self.on_led(code, bool(value))
            queue.push(chain, 0)


class VirtioKeyboard(VirtioInput):
    """A keyboard with every key that evdev numbers up to KEY_MICMUTE, and its LEDs. A KeyboardTarget of the router."""

    names: ClassVar = {"aero": "Aero Virtio Keyboard", "standard": "QEMU Virtio Keyboard"}
    product = 1
    subsystem_ids: ClassVar = {"aero": 0x0010, "standard": 0x1100}
    class_code = 0x090000
    STATE = ()

    def _capabilities(self, aero: bool) -> dict[int, Iterable[int]]:
        leds = (LED_NUML, LED_CAPSL, LED_SCROLLL)
        keys = range(KEY_ESC, KEY_MICMUTE + 1)
        if aero:
            return {EV_KEY: keys, EV_LED: (*leds, LED_COMPOSE, LED_KANA)}
        return {EV_KEY: keys, EV_LED: leds, EV_REP: ()}

    def key(self, code: int, value: int) -> None:
        """Press (1) or release (0) the key *code*, KEY_*."""
        self.send(((EV_KEY, code, value),))


class VirtioMouse(VirtioInput):
    """A relative mouse with wheels. A PointerTarget of the router."""

    names: ClassVar = {"aero": "Aero Virtio Mouse", "standard": "QEMU Virtio Mouse"}
    product = 2
    subsystem_ids: ClassVar = {"aero": 0x0011, "standard": 0x1100}
    standard_version = 2
    class_code = 0x090200
    STATE = ()

    def _capabilities(self, aero: bool) -> dict[int, Iterable[int]]:
        buttons = {BTN_LEFT, BTN_RIGHT, BTN_MIDDLE, BTN_SIDE, BTN_EXTRA}
        more = {BTN_FORWARD, BTN_BACK, BTN_TASK} if aero else {BTN_GEAR_UP, BTN_GEAR_DOWN, BTN_TOUCH}
        wheels = {REL_WHEEL, REL_HWHEEL} if aero else {REL_WHEEL}
        return {EV_KEY: buttons | more, EV_REL: {REL_X, REL_Y} | wheels}

    def motion(self, dx: int, dy: int) -> None:
        """Move by *dx* counts right and *dy* down."""
        self.send([(EV_REL, axis, delta) for axis, delta in ((REL_X, dx), (REL_Y, dy)) if delta])

    def button(self, code: int, pressed: bool) -> None:
        """Press or release BTN_LEFT, BTN_RIGHT …"""
        self.send(((EV_KEY, code, int(pressed)),))

    def wheel(self, clicks: int) -> None:
        """Turn the wheel away from the user."""
        self.send(((EV_REL, REL_WHEEL, clicks),) if clicks else ())

    def hwheel(self, clicks: int) -> None:
        """Turn the wheel to the right; only the aero identity has that."""
        self.send(((EV_REL, REL_HWHEEL, clicks),) if clicks else ())


class VirtioTablet(VirtioInput):
    """A pointer that is told where to be, 0 to 32767 on both axes. A TabletTarget of the router."""

    names: ClassVar = {"aero": "Aero Virtio Tablet", "standard": "QEMU Virtio Tablet"}
    product = 3
    subsystem_ids: ClassVar = {"aero": 0x0012, "standard": 0x1100}
    standard_version = 2
    class_code = 0x098000
    STATE = ()

    def _capabilities(self, aero: bool) -> dict[int, Iterable[int]]:
        buttons = {BTN_LEFT, BTN_RIGHT, BTN_MIDDLE, BTN_SIDE, BTN_EXTRA}
        if aero:
            return {EV_KEY: buttons, EV_ABS: {ABS_X, ABS_Y}}
        more = {BTN_GEAR_UP, BTN_GEAR_DOWN, BTN_TOUCH}
        return {EV_KEY: buttons | more, EV_ABS: {ABS_X, ABS_Y}, EV_REL: {REL_WHEEL}}

    @property
    def has_wheel(self) -> bool:
        """Only the standard identity has one."""
        return EV_REL in self._bits

    def absolute(self, x: int, y: int) -> None:
        """Put the pointer at (*x*, *y*)."""
        self.send(((EV_ABS, ABS_X, x), (EV_ABS, ABS_Y, y)))

    def button(self, code: int, pressed: bool) -> None:
        """Press or release BTN_LEFT, BTN_RIGHT …"""
        self.send(((EV_KEY, code, int(pressed)),))

    def wheel(self, clicks: int) -> None:
        """Turn the wheel away from the user; only the standard identity has one."""
        self.send(((EV_REL, REL_WHEEL, clicks),) if clicks else ())

    def hwheel(self, clicks: int) -> None:
        """Neither identity has a wheel that turns to the right."""


def virtio_input_functions(devices: Sequence[VirtioInput]) -> list[VirtioPci]:
    """The PCI function of each device, to be added in this order as functions 0, 1, 2 of one slot."""
    return [VirtioPci(device, subsystem_id=device.subsystem_id) for device in devices]


def _bitmap(codes: Iterable[int]) -> bytes:
    """Bit n of the stream of bytes is code n; no longer than it must be."""
    bits = sum(1 << code for code in set(codes))
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _signed(value: int) -> int:
    """A value as the 32 bits on the wire hold it."""
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000
