"""Every PCI function and virtio device as a Twin: on a bus, with a driver that keeps its state in RAM."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from docs.examples.doubler import Doubler
from docs.examples.idio16 import Idio16
from docs.examples.pvpanic import PvPanic
from pyvmm import state
from pyvmm.backends.disks import Disk, Disks, Request
from pyvmm.backends.sockets import Sockets
from pyvmm.bus import Bus
from pyvmm.irq import FakeIrq
from pyvmm.memory import GuestMemory
from pyvmm.pci.ata_disk import AtaDisk
from pyvmm.pci.device import PciDevice
from pyvmm.pci.host_bridge import HostBridge
from pyvmm.pci.i440fx import I440fx
from pyvmm.pci.ne2000 import Ne2000
from pyvmm.pci.piix_ide import PiixIde
from pyvmm.pci.regs import PCI_COMMAND
from pyvmm.pci.root_port import RootPort
from pyvmm.pci.testdev import PciTestdev
from pyvmm.testing.pci import Board
from pyvmm.virtio.blk import VirtioBlk
from pyvmm.virtio.console import VirtioConsole
from pyvmm.virtio.console_ports import ConsolePorts
from pyvmm.virtio.input import VirtioInput, VirtioKeyboard, VirtioMouse, VirtioTablet
from pyvmm.virtio.net import VirtioNet
from pyvmm.virtio.pci import VirtioPci
from pyvmm.virtio.rng import VirtioRng
from pyvmm.virtio.vsock import VirtioVsock
from tests.rig.net_driver import FakeWire, OneWire
from tests.rig.twins import Door, Hand, Twin
from tests.rig.vhost import FakeVhost

MEMORY_START, IO_START = 0xC0000000, 0xC000
RING_SIZE = 8
NEXT, WRITE = 1, 2
INDIRECT_DESC, EVENT_IDX, VERSION_1, PACKED = 1 << 28, 1 << 29, 1 << 32, 1 << 34
MESSAGE = 0xFEE00000


class Functions:
    """A PCI host and all that is plugged in there, as the board's list has them."""

    STATE = ("host", "functions", "reset_control")

    def __init__(self, board: Board) -> None:
        self.host = board.host
        self.functions = dict(board.host.parts())
        self.reset_control = board.reset_control

    def reset(self) -> None:
        self.host.reset()
        self.reset_control.reset()


class BusDoor:
    """Addresses of a bus, wherever the guest has put what."""

    def __init__(self, bus: Bus, base: int) -> None:
        self._bus, self._base = bus, base

    def read(self, offset: int, size: int) -> int:
        return self._bus.read(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._bus.write(self._base + offset, size, value)


class ConfigDoor:
    """Configuration space of a function, seldom beyond what every function has."""

    def __init__(self, function: PciDevice) -> None:
        self._function = function

    def read(self, offset: int, size: int) -> int:
        return self._function.config_read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._function.config_write(offset, size, value)


def _told(call: Callable[[], None], _n: int) -> None:
    call()


def plugged(now: int, *functions: PciDevice, behind: PciDevice | None = None) -> Twin:
    """Functions in slots 3, 4 …, their BARs placed and on; *behind* the first, which is a bridge, another."""
    board = Board(doorbells=False, ram=GuestMemory.of_size(1 << 21))
    board.clock.set(now)
    for number, function in enumerate(functions):
        board.host.root.add(function, 3 + number)
    if behind is not None and isinstance(functions[0], RootPort):
        functions[0].child.add(behind, 0)
    doors: list[Door] = [(board.host.config_ports, 8)]
    hands: list[Hand] = []
    for port in functions:
        if isinstance(port, RootPort):
            hands += [partial(_told, port.tell), partial(_told, port.ask_to_eject)]
    firmware: list[Hand] = []
    memory, io = MEMORY_START, IO_START
    for function in (*functions, *([behind] if behind is not None else [])):
        doors.append((ConfigDoor(function), 0x100))
        places = []
        for bar in function.bars.values():
            place = io if bar.io else memory
            places.append((bar.offset, place))
            window = min(bar.size, 0x40) if not bar.io else bar.size
            doors.append((BusDoor(board.io_bus if bar.io else board.memory_bus, place), window))
            io, memory = (io + 0x100, memory) if bar.io else (io, memory + 0x100000)
        place_bars = partial(_place, function, places)
        firmware.append(place_bars)
        hands += [place_bars, partial(_messages, board, function)]
    if behind is not None:
        firmware.append(lambda n: _open_bridge(functions[0]))
        hands.append(lambda n: _open_bridge(functions[0]))
    return Twin(
        Functions(board),
        board.clock,
        doors,
        hands,
        board.lines,
        board.msi.sent,  # type: ignore[arg-type]
        memory=board.ram,
        later=board.later,
        firmware=lambda: [place(7) for place in firmware],
    )


def _place(function: PciDevice, places: list[tuple[int, int]], n: int) -> None:
    for offset, place in places:
        function.config_write(offset, 4, place)
    function.config_write(PCI_COMMAND, 2, n & 7 | 6)


def _open_bridge(bridge: PciDevice) -> None:
    """Buses 1 behind it, its windows around the BARs there."""
    bridge.config_write(0x18, 4, 0x010100)
    bridge.config_write(0x1C, 2, 0xF0C0)
    bridge.config_write(0x20, 4, 0xCFF0C000)
    bridge.config_write(PCI_COMMAND, 2, 7)


def _messages(board: Board, function: PciDevice, n: int) -> None:
    """Turn MSI-X on or off, mask or unmask a vector; send one."""
    msix = function.msix
    if msix is not None:
        vector = n % msix.count
        for at, value in ((0, MESSAGE), (8, 0x40 + vector), (12, n >> 8 & 1)):
            msix.write(16 * vector + at, 4, value)
        function.config_write(msix.offset + 2, 2, (0x8000, 0xC000, 0, 0)[n >> 9 & 3])
        msix.pulse((n >> 4) % msix.count)
    elif function.msi is not None:
        function.config_write(function.msi.offset + 2, 2, n & 0x71)
        function.config_write(function.msi.offset + 4, 4, MESSAGE)
        function.msi.pulse()
    else:
        function.interrupt.set_level(bool(n & 1))


class RamDriver:
    """A driver of a virtio function, all of whose state is in guest RAM: one of a twin finds it there."""

    def __init__(self, memory: GuestMemory, function: VirtioPci) -> None:
        self.memory, self.function = memory, function

    def start(self, n: int) -> None:
        """Status 0 to DRIVER_OK; *n* says what is negotiated."""
        features = VERSION_1 | INDIRECT_DESC | (EVENT_IDX if n & 1 else 0) | (PACKED if n & 2 else 0)
        features &= self.function.device.features
        write = self.function.write
        for status in (0, 1, 3):
            write(20, 1, status)
        for select in (0, 1):
            write(8, 4, select)
            write(12, 4, features >> 32 * select & 0xFFFFFFFF)
        write(20, 1, 11)
        for queue in self.function.device.queues:
            base = self._base(queue.index)
            self.memory.write(base, bytes(0x1000))
            self.memory.write_int(base + 0xF00, 4, 1 << 31 | (features >> 34 & 1))  # wrap counter; packed or not
            write(22, 2, queue.index)
            write(24, 2, RING_SIZE)
            for at, part in ((32, 0), (40, 0x400), (48, 0x800)):
                write(at, 4, base + part)
                write(at + 4, 4, 0)
            write(26, 2, queue.index)
            write(28, 2, 1)
        write(20, 1, 15)

    def _base(self, queue: int) -> int:
        return 0x10000 + 0x1000 * queue

    def offer(self, n: int) -> None:
        """Make some buffers available in one of the queues and, mostly, kick it."""
        index = n % len(self.function.device.queues)
        base, memory = self._base(index), self.memory
        packed = memory.read_int(base + 0xF00, 1)
        for _ in range(n >> 4 & 3):
            flags = 0 if index % 2 else WRITE
            length = 16 - index % 2 * 8
            if packed:
                at, wrap = memory.read_int(base + 0xF01, 2), memory.read_int(base + 0xF03, 1) >> 7
                flags |= 1 << 7 if wrap else 1 << 15
                descriptor = struct.pack("<QIHH", 0x100000 + 64 * at, length, at, flags)
                memory.write(base + 16 * at, descriptor)
                at += 1
                wrap ^= at == RING_SIZE
                memory.write_int(base + 0xF01, 2, at % RING_SIZE)
                memory.write_int(base + 0xF03, 1, wrap << 7)
            else:
                count = memory.read_int(base + 0x402, 2)
                at = count % RING_SIZE
                memory.write(base + 16 * at, struct.pack("<QIHH", 0x100000 + 64 * at, length, flags, 0))
                memory.write_int(base + 0x404 + 2 * at, 2, at)
                memory.write_int(base + 0x402, 2, count + 1 & 0xFFFF)
        if n >> 6 & 3:
            self.function.write(0x1000 + 4 * index, 2, index)

    def isr(self, n: int) -> int:
        return self.function.read(0x2000, 1)


def virtio(now: int, make: Callable[[], VirtioPci], *more: Callable[[VirtioPci], Hand]) -> Twin:
    function = make()
    twin = plugged(now, function)
    assert twin.memory is not None
    driver = RamDriver(twin.memory, function)
    start = lambda n: driver.start(n) if n % 4 == 0 else driver.offer(n >> 2)  # noqa: E731
    read_config = lambda n: function.read(0x3000 + n % 140, 1)  # noqa: E731
    select_config = lambda n: function.write(0x3000, 2, n & 3 | 0x10 | n & 0x300)  # noqa: E731
    hands = [start, driver.offer, driver.offer, driver.offer, driver.isr, read_config, select_config]
    twin.hands = [*twin.hands, *hands, *(hand(function) for hand in more)]
    return twin


def _events(function: VirtioPci) -> Hand:
    device = function.device
    assert isinstance(device, VirtioInput)

    def send(n: int) -> None:
        if isinstance(device, VirtioKeyboard):
            device.key(1 + n % 8, n >> 4 & 1)
        elif isinstance(device, VirtioTablet):
            device.absolute(n % 30000, n >> 8 & 0xFFF)
        elif isinstance(device, VirtioMouse) and n & 1:
            device.button(0x110, bool(n >> 4 & 1))
        elif isinstance(device, VirtioMouse):
            device.motion(n % 9, n % 5)

    return send


def _input(kind: Callable[..., VirtioInput], identity: str) -> Callable[[int], Twin]:
    def make() -> VirtioPci:
        device = kind(identity)
        return VirtioPci(device, subsystem_id=device.subsystem_id)

    return lambda now: virtio(now, make, _events, _events)


def _port_control(memory: GuestMemory) -> Callable[[int], None]:
    """What the driver says: eight bytes that are a control message, in every buffer that it sends."""

    def control(n: int) -> None:
        message = struct.pack("<IHH", n & 1, (0, 3, 6, 6)[n >> 1 & 3], n >> 3 & 1)
        for number in range(RING_SIZE):
            memory.write(0x100000 + 64 * number, message)

    return control


def _console(now: int) -> Twin:
    device = VirtioConsole(("in", "out"))
    port = device.ports[0]
    twin = virtio(now, lambda: VirtioPci(device), lambda function: lambda n: port.receive(bytes(n % 40)))
    memory = twin.memory
    assert memory is not None

    control = _port_control(memory)

    def end(n: int) -> None:
        if n % 8 == 0:
            port.hang_up()

    def begin_again() -> None:
        """Somebody takes up the host's end, which stays closed over a reset."""
        port.closing, port.host_open = False, True

    twin.hands, twin.let_go = [*twin.hands, control, control, end], begin_again
    return twin


def _console_ports(now: int) -> Twin:
    """hvc0, and a port in Python's hands."""
    later: list[Callable[[], None]] = []
    device = ConsolePorts(StillSockets(later.append), console="terminal", port={"tap": ""})
    tap, terminal = device["tap"], device.ports[0]
    twin = virtio(now, lambda: VirtioPci(device), lambda function: lambda n: terminal.receive(bytes(n % 40)))
    memory = twin.memory
    assert memory is not None

    control = _port_control(memory)

    def other_end(n: int) -> None:
        (tap.connect, tap.hang_up, lambda: tap.write(bytes(n % 200)))[n % 3]()
        while later:
            later.pop(0)()

    def begin_again() -> None:
        """Somebody takes up the host's ends, on a terminal of the usual size; both stay over a reset."""
        device.resize(80, 25)
        for port in device.ports:
            port.closing, port.host_open = False, True

    twin.hands, twin.let_go = [*twin.hands, control, control, other_end, other_end], begin_again
    twin.hands.append(lambda n: device.resize(n & 0xFF, n >> 8 & 0xFF))
    twin.loses = True
    return twin


class StillSockets(Sockets):
    """Nobody connects."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._later = post

    def post(self, call: Callable[[], None]) -> None:
        self._later(call)


def _vsock(now: int) -> Twin:
    vhost = FakeVhost(GuestMemory())
    device = VirtioVsock(3, vhost)
    twin = virtio(now, lambda: VirtioPci(device), lambda function: lambda n: vhost.run())
    assert twin.memory is not None
    vhost.memory = vhost.server.memory = twin.memory
    twin.loses = True
    weakref.finalize(twin, vhost.close)
    return twin


class StillDisk(Disk):
    """All zero, and done with each request at once."""

    STATE = ()

    def __init__(self) -> None:
        self.readonly = False

    size, block, busy = 1 << 20, 512, False

    def submit(self, *requests: Request) -> None:
        if requests:
            self.completed(list(requests))

    def doorbell(self, look: Callable[[], None]) -> None:
        return None

    def give_up(self) -> list[Request]:
        return []

    def drain(self) -> None: ...

    def save(self) -> state.Plain:
        return None

    def load(self, saved: state.Plain) -> None: ...

    def close(self) -> None: ...


class StillDisks(Disks):
    def __init__(self) -> None: ...

    def open(self, path: Path, **words: object) -> Disk:
        return StillDisk()


def _writeback(function: VirtioPci) -> Hand:
    return lambda n: function.write(0x3020, 1, n & 1)


def _net(now: int) -> Twin:
    wire = FakeWire()
    device = VirtioNet("user", OneWire(wire), FakeVhost(GuestMemory.of_size(0x1000)), mac="52:54:00:12:34:56")
    wires = lambda function: lambda n: wire.give(bytes(6) + bytes(14 + n % 50))  # noqa: E731
    link = lambda function: lambda n: device.set_link(n % 4 != 0)  # noqa: E731
    twin = virtio(now, lambda: VirtioPci(device), wires, link)
    memory = twin.memory
    assert memory is not None

    def control(n: int) -> None:
        """What the driver says: eight bytes that are a command, in every buffer that it sends."""
        command = bytes((n & 1, n >> 1 & 3)) + bytes((n >> 3 & 1, 0, 0, 0, n >> 4 & 1, 9))
        for number in range(RING_SIZE):
            memory.write(0x100000 + 64 * number, command)

    def begin_again() -> None:
        """Somebody puts the cable in, which stays pulled over a reset."""
        device.set_link(True)
        wire.waiting.clear()

    twin.hands, twin.let_go = [*twin.hands, control, control], begin_again
    return twin


def _ne2k(now: int) -> Twin:
    wire = FakeWire()
    card = Ne2000("user", OneWire(wire), mac="52:54:00:12:34:56")
    twin = plugged(now, card)
    chip = card.chip

    def start(n: int) -> None:
        """As a driver does: stop, ring, filter, start."""
        ring = ((1, 0x46), (2, 0x80), (3, 0x46), (4, 0x40))
        modes = ((0x0C, n >> 1 & 0x3F), (0x0D, n >> 7 & 2), (0x0E, n & 1), (0x0F, n >> 8 & 0x7F))
        for offset, value in ((0, 0x21), *ring, *modes, (0, 0x61), (7, 0x47), (0, 0x22)):
            chip.write(offset, 1, value)

    def receive(n: int) -> None:
        to = (b"\xff" * 6, b"\x52\x54\x00\x12\x34\x56", b"\x01\x00\x5e\x00\x00\x01")[n % 3]
        wire.give(to + bytes(n % 1600))
        wire.waiting.clear()  # what it does not take is no state of the card's

    def remote(n: int) -> None:
        for offset, value in ((0x0A, n & 0xFF), (0x0B, n >> 8 & 3), (8, 0), (9, 0x40 + (n >> 10 & 0x3F)), (0, 0x0A)):
            chip.write(offset, 1, value + (8 * (n >> 16 & 1) if offset == 0 else 0))
        for _ in range(n & 0x3F):
            chip.read(0x10, 2) if n >> 16 & 1 else chip.write(0x10, 2, n & 0xFFFF)

    def send(n: int) -> None:
        for offset, value in ((4, 0x40), (5, n & 0xFF), (6, n >> 8 & 7), (0, 0x26)):
            chip.write(offset, 1, value)

    twin.hands = [*twin.hands, start, receive, receive, remote, send]
    twin.told = wire.out  # type: ignore[assignment]
    return twin


def _ide(now: int) -> Twin:
    """With three disks, and hands that do what chance seldom does: choose a command, start the bus master."""
    lines = [FakeIrq(), FakeIrq()]
    ide = PiixIde(lines)
    for _ in range(3):
        ide.attach(AtaDisk(Path("still"), StillDisks()))
    twin = plugged(now, ide)
    memory = twin.memory
    assert memory is not None
    doors: list[Door] = [*twin.doors, *((ports.device, ports.size) for ports in ide.fixed_ports)]

    def command(n: int) -> None:
        channel = ide.channels[n & 1]
        codes = (0x20, 0x25, 0x30, 0x35, 0xC4, 0xC5, 0xC8, 0xCA, 0xEC, 0xE7, 0x40, 0xEF, 0xC6, 0x90)
        channel.write(7, codes[(n >> 1) % len(codes)])

    def table(n: int) -> None:
        """A table of three regions, and the bus master started on it."""
        for entry in range(3):
            end = 0x80000000 if entry == 2 else 0
            memory.write(0x1000 + 8 * entry, struct.pack("<II", 0x2000 + 2 * (n & 0xFF), (n >> entry & 0x3FE) | end))
        ide.write(8 * (n & 1) + 4, 4, 0x1000)
        ide.write(8 * (n & 1), 1, n >> 1 & 9)

    def data(n: int) -> None:
        channel = ide.channels[n & 1]
        for _ in range(n >> 1 & 0x3FF):
            channel.command_block.read(0, 4)
            channel.command_block.write(0, 4, n)

    twin.doors, twin.lines = doors, [*twin.lines, *lines]
    twin.hands = [*twin.hands, command, command, command, table, data, data]
    return twin


class MsiFunction(PciDevice):
    """One that has MSI with several vectors, masked one by one."""

    vendor_id, device_id, class_code, interrupt_pin = 0x1234, 0x0002, 0x088000, 1
    STATE = ()

    def __init__(self) -> None:
        super().__init__()
        self.add_msi(4)


FUNCTIONS: Final[dict[str, Callable[[int], Twin]]] = {
    "host_bridge": lambda now: plugged(now, HostBridge(0xE0000000)),
    "i440fx": lambda now: plugged(now, I440fx()),
    "root_port": lambda now: plugged(now, RootPort(1), behind=Idio16()),
    "pci_testdev": lambda now: plugged(now, PciTestdev(0x10000)),
    "doubler": lambda now: plugged(now, Doubler()),
    "idio16": lambda now: plugged(now, Idio16()),
    "pvpanic": lambda now: plugged(now, PvPanic()),
    "piix_ide": _ide,
    "ne2k": _ne2k,
    "msi": lambda now: plugged(now, MsiFunction()),
    "virtio_rng": lambda now: virtio(now, lambda: VirtioPci(VirtioRng(lambda n: b"\x5a" * n))),
    "virtio_console": _console,
    "virtio_console_ports": _console_ports,
    "virtio_vsock": _vsock,
    "virtio_blk": lambda now: virtio(
        now, lambda: VirtioPci(VirtioBlk(Path("still"), StillDisks(), queues=2)), _writeback
    ),
    "virtio_net": _net,
    "virtio_keyboard_aero": _input(VirtioKeyboard, "aero"),
    "virtio_keyboard": _input(VirtioKeyboard, "standard"),
    "virtio_mouse": _input(VirtioMouse, "standard"),
    "virtio_tablet": _input(VirtioTablet, "standard"),
}
