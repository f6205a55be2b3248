"""Which messages of the trace are of one event: a key press, a doorbell, a request, from the host to the guest's read.

    key         router -> PS/2 keyboard -> i8042's output buffer -> IRQ 1 -> the guest's read of port 0x60
                router -> virtio-input's event, used -> interrupt -> the guest's read of the ISR status
    ATA         command -> (INTRQ -> IRQ 14 or 15) -> the read of the last data, or of the status once there are none
    NE2000      a frame in the ring -> interrupt -> the end of the remote DMA that reads it
                transmit command, frame sent -> interrupt -> the write of the ISR that clears PTX
    doorbell    kick -> chain -> (a disk's request) -> used -> interrupt -> the guest's read of the ISR status

Each channel says what it does in steps (trace.Step). Keys and scan codes are matched by their values, in order; what
was lost on the way ends nowhere. With MSI-X the guest reads no ISR status, and the flow ends with
the message; where the driver wants no interrupt, it ends with the used ring, which it reads without us.

The guest chooses how much is under way: of each kind the newest are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final, NamedTuple, TypeVar

from pyvmm.board.layout import IRQ_IDE, PCI_GSIS, PCI_IRQS
from pyvmm.devices.scancodes import BREAK, BREAK_BIT, TRANSLATION
from pyvmm.trace import Step

K = TypeVar("K")
V = TypeVar("V")
KEYS: Final = 64
"""Keys under way: the router holds more, for a guest that does not read them."""
CHAINS: Final = 4096
QUEUES: Final = 256
DRIVES: Final = 256
PAGES: Final = 4096
"""Pages of rings that a frame begins in and that the driver has not read yet; one chip has 64."""
PCI_LINES: Final = frozenset((*PCI_GSIS, *PCI_IRQS))
WAITING: Final = 64
"""Chains that were used and that the driver is not told of yet, a queue; frames sent, a chip."""
EV_KEY: Final = 1
VIRTIO_PCI_ISR_QUEUE: Final = 1


class Links(NamedTuple):
    """The flows that go through a message, and those that end in it."""

    through: tuple[int, ...] = ()
    ending: tuple[int, ...] = ()


NO_LINKS: Final = Links()


class _Key:
    """A key on its way."""

    def __init__(self, flow: int, code: int, value: int) -> None:
        self.flow = flow
        self.code = code
        self.value = value
        self.codes: list[deque[int]] = []
        """What the guest reads, without and with the controller's translation."""

    def sent(self, codes: tuple[int, ...]) -> None:
        """The keyboard has put *codes* on its cable."""
        translated, up = deque[int](), 0
        for code in codes:
            if code == BREAK:
                up = BREAK_BIT
            else:
                translated.append(TRANSLATION[code] | up)
                up = 0
        self.codes = [deque(codes), translated]

    def next(self, data: int) -> bool:
        """Whether *data* is what the guest reads next of it."""
        return any(codes and codes[0] == data for codes in self.codes)

    def read(self, data: int) -> bool:
        """The guest has read *data*; whether that was all."""
        self.codes = [codes for codes in self.codes if codes and codes[0] == data]
        for codes in self.codes:
            codes.popleft()
        return not all(self.codes)


class Flows:
    """Gives each message its Links; called in their order."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._pressed: deque[_Key] = deque(maxlen=KEYS)
        self._typed: deque[_Key] = deque(maxlen=KEYS)
        self._kicked: dict[tuple[str, int], int] = {}
        self._chains: dict[tuple[str, int, int], int] = {}
        self._used: dict[tuple[str, int], deque[int]] = {}
        self._told: dict[str, tuple[int, ...]] = {}
        self._shown: tuple[int, ...] = ()
        """Keys that are in buffers of virtio-input, whose interrupt is next."""
        self._irq: dict[int, int] = {}
        """What raises an ISA IRQ next."""
        self._commands: dict[str, int] = {}
        self._received: dict[tuple[str, int], int] = {}
        self._sent: dict[str, deque[int]] = {}
        self._frame: tuple[int, ...] = ()
        """The frame whose interrupt is next, by a line."""
        self._teller = ""
        """Whose interrupt is next, and"""
        self._message: tuple[int, ...] = ()
        """the flows of it, by a line or a message."""

    def links(self, channel: str, step: Step | None) -> Links:
        """Those of a message of *channel* that says *step*."""
        if step is None:
            return NO_LINKS
        message, self._message = self._message, ()
        frame, self._frame = self._frame, ()
        word, *numbers = step
        match word, numbers:
            case "key", (code, value):
                return self._press(code, value)
            case "codes", (code, value, *codes):
                return self._type(code, value, tuple(codes))
            case "output", (data, line):
                return self._output(data, line)
            case "read", (data,):
                return self._read(data)
            case "irq", (irq, level):
                return self._raise(irq, level, message, frame)
            case "msi", ():
                if message:
                    self._told.pop(self._teller, None)
                return Links(ending=message)
            case "command", ():
                return self._command(channel)
            case "intrq", (number,):
                return self._intrq(channel, number)
            case "answer", (last,):
                return self._answer(channel, last)
            case "received", (page,):
                return self._receive(channel, page)
            case "fetched", (page, beyond):
                return self._fetch(channel, page, beyond)
            case "sent", ():
                return self._send(channel)
            case "acknowledged", ():
                return Links(ending=tuple(self._sent.pop(channel, ())))
            case "event", (kind, code, value):
                return self._event(kind, code, value)
            case "kick", (queue,):
                return self._kick(channel, queue)
            case "chain", (queue, chain):
                return self._take(channel, queue, chain)
            case "request", (queue, chain):
                return self._of(self._chains.get((channel, queue, chain)))
            case "used", (queue, chain):
                return self._use(channel, queue, chain)
            case "interrupt", (queue,):
                return self._tell(channel, queue)
            case "isr", (status,) if status & VIRTIO_PCI_ISR_QUEUE:  # else that of another function on the line
                return Links(ending=self._told.pop(channel, ()))
        return NO_LINKS

    @staticmethod
    def _of(flow: int | None) -> Links:
        return NO_LINKS if flow is None else Links((flow,))

    # Keys

    def _press(self, code: int, value: int) -> Links:
        key = _Key(next(self._numbers), code, value)
        self._pressed.append(key)
        return self._of(key.flow)

    def _pressed_key(self, code: int, value: int) -> _Key | None:
        """The oldest that is not yet at a device; those before it went nowhere."""
        return _find(self._pressed, lambda key: key.code == code and key.value == value)

    def _type(self, code: int, value: int, codes: tuple[int, ...]) -> Links:
        key = self._pressed_key(code, value) or _Key(next(self._numbers), code, value)  # else the keyboard repeats it
        key.sent(codes)
        self._typed.append(key)
        return self._of(key.flow)

    def _output(self, data: int, line: int) -> Links:
        key = next((key for key in self._typed if key.next(data)), None) if line == 1 else None
        if key is None:
            self._irq.pop(line, None)
            return NO_LINKS
        self._irq[line] = key.flow
        return self._of(key.flow)

    def _read(self, data: int) -> Links:
        key = _find(self._typed, lambda key: key.next(data))
        if key is None:
            return NO_LINKS
        if key.read(data):
            return Links(ending=(key.flow,))
        self._typed.appendleft(key)
        return self._of(key.flow)

    def _event(self, kind: int, code: int, value: int) -> Links:
        key = self._pressed_key(code, value) if kind == EV_KEY else None
        if key is None:
            return NO_LINKS
        self._shown = (*self._shown, key.flow)[-WAITING:]
        return self._of(key.flow)

    # Interrupts

    def _raise(self, irq: int, level: int, message: tuple[int, ...], frame: tuple[int, ...]) -> Links:
        if not level:
            return NO_LINKS
        if (message or frame) and irq in PCI_LINES:
            self._message, self._frame = message, frame  # a line of a PCI function has two ends, each of which is told
            return Links(message + frame)
        return self._of(self._irq.pop(irq, None))

    # ATA

    def _command(self, channel: str) -> Links:
        flow = next(self._numbers)
        _keep(self._commands, channel, flow, DRIVES)  # the last command has ended, or was given up
        return self._of(flow)

    def _intrq(self, channel: str, number: int) -> Links:
        flow, irq = self._commands.get(channel), IRQ_IDE[0] + number
        self._irq.pop(irq, None)
        if flow is not None:
            _keep(self._irq, irq, flow, QUEUES)
        return self._of(flow)

    def _answer(self, channel: str, last: int) -> Links:
        if not last:
            return self._of(self._commands.get(channel))
        flow = self._commands.pop(channel, None)
        if flow is None:
            return NO_LINKS
        for irq in [irq for irq, raises in self._irq.items() if raises == flow]:
            del self._irq[irq]  # the driver has not waited for it
        return Links(ending=(flow,))

    # NE2000

    def _receive(self, channel: str, page: int) -> Links:
        flow = next(self._numbers)
        _keep(self._received, (channel, page), flow, PAGES)
        self._frame = (flow,)
        return self._of(flow)

    def _fetch(self, channel: str, page: int, beyond: int) -> Links:
        """*beyond* its header, which the driver reads first, or with the frame."""
        if not beyond:
            return self._of(self._received.get((channel, page)))
        flow = self._received.pop((channel, page), None)
        return NO_LINKS if flow is None else Links(ending=(flow,))

    def _send(self, channel: str) -> Links:
        flow = next(self._numbers)
        sent = self._sent.get(channel)
        if sent is None:
            sent = deque(maxlen=WAITING)
            _keep(self._sent, channel, sent, DRIVES)
        sent.append(flow)
        self._frame = (flow,)
        return self._of(flow)

    # Queues

    def _kick(self, channel: str, queue: int) -> Links:
        flow = next(self._numbers)
        self._shown = ()
        self._used.pop((channel, queue), None)  # of those that were used before the driver wanted to hear nothing
        _keep(self._kicked, (channel, queue), flow, QUEUES)
        return self._of(flow)

    def _take(self, channel: str, queue: int, chain: int) -> Links:
        flow = self._kicked.pop((channel, queue), None) or next(self._numbers)  # the first that a kick was for
        _keep(self._chains, (channel, queue, chain), flow, CHAINS)
        return self._of(flow)

    def _use(self, channel: str, queue: int, chain: int) -> Links:
        flow = self._chains.pop((channel, queue, chain), None)
        if flow is not None:
            self._wait(channel, queue, flow)
        return self._of(flow)

    def _wait(self, channel: str, queue: int, flow: int) -> None:
        waiting = self._used.get((channel, queue))
        if waiting is None:
            waiting = deque(maxlen=WAITING)
            _keep(self._used, (channel, queue), waiting, QUEUES)
        waiting.append(flow)

    def _tell(self, channel: str, queue: int) -> Links:
        flows = (*self._shown, *self._used.pop((channel, queue), ()))
        self._shown = ()
        told = (*self._told.get(channel, ()), *flows)[-WAITING:]  # one read of the status may be for several interrupts
        _keep(self._told, channel, told, QUEUES)
        self._teller, self._message = channel, flows
        return Links(flows)


def _find(keys: deque[_Key], wanted: Callable[[_Key], bool]) -> _Key | None:
    """Take out the first that is *wanted*, and those before it; nothing where none is."""
    for number, key in enumerate(keys):
        if wanted(key):
            for _ in range(number + 1):
                keys.popleft()
            return key
    return None


def _keep(kept: dict[K, V], key: K, value: V, most: int) -> None:
    """Put it in, and let the oldest go where there are too many."""
    kept.pop(key, None)
    while len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value
