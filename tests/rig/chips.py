"""Every chip as a Twin: alone, with fakes around it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Final

from pyvmm.clock import FakeClock
from pyvmm.devices.acpi_pm import APM_LENGTH, PM1_CNT, PM1_EN, PM1_STS, PM_LENGTH, AcpiPm
from pyvmm.devices.bios_port import CALL_RETURNS, BiosCalls, BiosLog
from pyvmm.devices.cmos_rtc import CmosRtc
from pyvmm.devices.cpu_hotplug import CPU_HOTPLUG_LENGTH, CPUHP_COMMAND, CPUHP_DATA, CPUHP_SELECTOR, CpuHotplug
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.devices.debugcon import Debugcon
from pyvmm.devices.fw_cfg import FW_CFG_DMA, FW_CFG_LENGTH, PIECE, FwCfg
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.i8254 import I8254
from pyvmm.devices.i8259 import I8259Pair
from pyvmm.devices.ioapic import IOAPIC_PINS, IoApic
from pyvmm.devices.memory_hotplug import MEMORY_HOTPLUG_LENGTH, MemoryHotplug
from pyvmm.devices.pc_testdev import PcTestdev
from pyvmm.devices.pci_hotplug import PCI_HOTPLUG_LENGTH, PciHotplug
from pyvmm.devices.post_port import PostPort
from pyvmm.devices.ps2_keyboard import Ps2Keyboard
from pyvmm.devices.ps2_mouse import BUTTONS, Ps2Mouse
from pyvmm.devices.reset_control import ResetControl
from pyvmm.devices.scancodes import KEYS
from pyvmm.devices.system_control import SystemControlA, SystemControlB
from pyvmm.devices.uart16550 import Uart16550
from pyvmm.devices.vga_frame import VGA_FRAME_SIZE
from pyvmm.devices.vga_text import VGA_PORT_COUNT, VGA_TEXT_SIZE, VgaText
from pyvmm.irq import FakeIrq
from pyvmm.memory import GuestMemory
from pyvmm.trace import Channel
from tests.rig.twins import Door, Twin

WALL = 1_800_000_000_000_000_000
NS_A_DAY = 86_400_000_000_000


def acpi_pm(now: int) -> Twin:
    clock, sci, told = FakeClock(now), FakeIrq(), list[object]()

    def sleep() -> bool:
        told.append("sleep")
        return True

    part = AcpiPm(sci, clock, lambda: told.append("off"), smi=told.append, sleep=sleep, wake=told.append)
    hands = [
        lambda n: part.power_button(),
        lambda n: part.sleep_button(),
        lambda n: part.rtc_alarm(),
        lambda n: part.key(),
        lambda n: part.woken() if part.asleep else None,
        lambda n: part.write(PM1_CNT, 2, 0x2400),
        lambda n: part.raise_gpe(n % 16),
        lambda n: part.write(PM1_EN, 2, n & 0x521),
        lambda n: part.write(PM1_STS, 2, n & 0x121),
        lambda n: part.write(PM1_CNT, 2, n & 1),
        lambda n: part.reset() if n % 8 == 0 else None,
    ]
    doors: list[Door] = [(part, PM_LENGTH), (part, 4), (part.apm, APM_LENGTH)]
    return Twin(part, clock, doors, hands, [sci], told, longest=1_000_000_000_000)


def bios_log(now: int) -> Twin:
    told = list[object]()
    part = BiosLog(Channel("bios", lambda ns, name, line: told.append(line)))
    return Twin(part, FakeClock(now), [(part, 1)], told=told)


def bios_calls(now: int) -> Twin:
    """The guest's memory is all of it frames of calls of INT 13h."""
    told = list[object]()
    memory = GuestMemory.of_size(0x10000)
    memory.write(0, (bytes(38) + b"\x13").ljust(46, b"\0") * 1000)
    part = BiosCalls(memory, Channel("bios", lambda ns, name, line: told.append(line)))
    hands = [lambda n: part.write(0, 4, n % 1000 * 46), lambda n: part.write(0, 4, n % 1000 * 46 | CALL_RETURNS)]
    return Twin(part, FakeClock(now), [(part, 4)], hands, told=told)


def cmos_rtc(now: int) -> Twin:
    clock, irq, told = FakeClock(now), FakeIrq(), list[object]()
    part = CmosRtc(irq, clock, lambda: WALL + clock.now(), 64 << 20, nmi_mask=told.append)

    def register(n: int) -> int:
        part.write(0, 1, n % 14)
        if n >> 8 & 1:
            part.write(1, 1, n >> 9 & 0xFF)
        return part.read(1, 1)

    return Twin(part, clock, [(part, 2)], [register, register], [irq], told, longest=10_000_000_000)


def cpu_hotplug(now: int) -> Twin:
    told = list[object]()
    part = CpuHotplug(32, 2, lambda: told.append("event"), told.append, lambda *what: told.append(what))

    def answer(n: int) -> None:
        part.write(CPUHP_SELECTOR, 4, n & 31)
        for command, data in ((1, (1, 3)[n >> 5 & 1]), (2, n >> 6 & 0xFF)):
            part.write(CPUHP_COMMAND, 1, command)
            part.write(CPUHP_DATA, 4, data)

    hands = [
        lambda n: part.plugged(n & 31),
        lambda n: part.unplugged(n % 31 + 1),  # the first stays
        lambda n: part.ask_to_eject(n % 31 + 1),
        lambda n: part.write(CPUHP_SELECTOR, 4, n & 31),
        answer,
    ]
    return Twin(part, FakeClock(now), [(part, CPU_HOTPLUG_LENGTH)], hands, told=told)


def debug_exit(now: int) -> Twin:
    told = list[object]()
    part = DebugExit(told.append)
    return Twin(part, FakeClock(now), [(part, 4)], told=told)


def debugcon(now: int) -> Twin:
    told = list[object]()
    part = Debugcon(told.append)
    return Twin(part, FakeClock(now), [(part, 1)], told=told)


def fw_cfg(now: int) -> Twin:
    memory, later = GuestMemory.of_size(3 * PIECE), list[Callable[[], None]]()
    files = {"etc/e820": bytes(range(40)), "opt/large": bytes(range(256)) * (PIECE // 100)}
    part = FwCfg(memory, 64 << 20, 2, lambda: files, later.append)

    def dma(n: int) -> None:
        """An access of any kind to any item, long or short, from anywhere to anywhere."""
        random = Random(n)
        control = random.randrange(0x24) << 16 | random.randrange(0x20)
        length, address = random.choice((0, 1, 16, 99, PIECE, 2 * PIECE + 7)), random.choice((0, 64, PIECE, 1 << 40))
        memory.write(32, struct.pack(">IIQ", control, length, address))
        part.write(FW_CFG_DMA, 4, 0)
        part.write(FW_CFG_DMA + 4, 4, int.from_bytes((32).to_bytes(4, "big"), "little"))

    hands = [lambda n: part.write(0, 2, n % 0x24), dma, lambda n: later.pop(0)() if later else None]
    return Twin(part, FakeClock(now), [(part, FW_CFG_LENGTH)], hands, memory=memory, later=later)


def i8254(now: int) -> Twin:
    clock, irq = FakeClock(now), FakeIrq()
    part = I8254(irq, clock)

    def periodic(n: int) -> None:
        part.write(3, 1, 0x34)
        part.write(0, 1, n & 0xFF)
        part.write(0, 1, 1 + (n >> 8 & 7))

    hands = [
        lambda n: part.set_gate2(bool(n & 1)),
        lambda n: part.acknowledged(),
        lambda n: part.out2(),
        lambda n: part.write(3, 1, n & 0xFF),
        periodic,
        lambda n: clock.advance(1_000_000),
    ]
    return Twin(part, clock, [(part, 4)], hands, [irq])


def i8259(now: int) -> Twin:
    told = list[object]()
    part = I8259Pair(told.append, told.append, told.append)
    inputs = [irq for irq in range(16) if irq != 2]
    hands = [
        lambda n: part.line(inputs[n % 15]).set_level(bool(n >> 4 & 1)),
        lambda n: part.acknowledge(),
        lambda n: part.master.write(0, 1, (0x0B, 0x0A, 0x0C, 0x20, 0x80, 0x00, 0x68)[n % 7]),
        lambda n: part.slave.write(0, 1, (0x0B, 0x0A, 0x0C, 0x20, 0x80, 0x00, 0x68)[n % 7]),
    ]

    def let_go() -> None:
        for irq in inputs:
            part.line(irq).set_level(False)

    doors: list[Door] = [(part.master, 2), (part.slave, 2), (part.elcr, 2)]
    return Twin(part, FakeClock(now), doors, hands, told=told, let_go=let_go)


def ioapic(now: int) -> Twin:
    told = list[object]()
    part = IoApic(lambda address, data: told.append((address, data)), ended=told.append)

    def entry(n: int) -> None:
        part.write(0, 4, 0x10 + n % (2 * IOAPIC_PINS))
        part.write(0x10, 4, n >> 8 & 0x1FFFF)

    hands = [
        entry,
        lambda n: part.write(0x10, 4, n),
        lambda n: part.line(n % IOAPIC_PINS).set_level(bool(n >> 5 & 1)),
        lambda n: part.eoi(n & 0xFF),
    ]

    def let_go() -> None:
        for pin in range(IOAPIC_PINS):
            part.line(pin).set_level(False)

    return Twin(part, FakeClock(now), [(part, 0x44)], hands, told=told, let_go=let_go)


def pc_testdev(now: int) -> Twin:
    told, lines = list[object](), [FakeIrq() for _ in range(16)]
    part = PcTestdev(lines, told.append)
    doors = [(device, length) for _, length, device in (*part.ports, *part.memory)]
    return Twin(part, FakeClock(now), doors, lines=lines, told=told)


def post_port(now: int) -> Twin:
    part = PostPort()
    return Twin(part, FakeClock(now), [(part, 1)])


def reset_control(now: int) -> Twin:
    told = list[object]()
    part = ResetControl(lambda: told.append("hard"), lambda: told.append("soft"))
    return Twin(part, FakeClock(now), [(part, 1)], told=told)


def port_92(now: int) -> Twin:
    told = list[object]()
    part = SystemControlA(lambda: told.append("reset"), told.append)
    return Twin(part, FakeClock(now), [(part, 1)], told=told)


def port_61(now: int) -> Twin:
    clock, told = FakeClock(now), list[object]()
    part = SystemControlB(told.append, lambda: bool(clock.now() >> 12 & 1), clock, told.append)
    return Twin(part, clock, [(part, 1)], [lambda n: part.assert_nmi(n & 0xC0)], told=told)


class Ps2Ports:
    """The 8042 with what hangs on it, of which each is a part."""

    STATE = ("controller", "keyboard", "mouse")

    def __init__(self, clock: FakeClock, lines: list[FakeIrq], told: list[object]) -> None:
        self.keyboard = Ps2Keyboard(clock, told.append)
        self.mouse = Ps2Mouse(clock)
        reset = lambda: told.append("reset")  # noqa: E731
        self.controller = I8042(lines[0], lines[1], reset, told.append, self.keyboard, self.mouse)

    def reset(self) -> None:
        self.controller.reset()
        self.keyboard.reset()
        self.mouse.reset()


def i8042(now: int) -> Twin:
    clock, lines, told = FakeClock(now), [FakeIrq(), FakeIrq()], list[object]()
    part = Ps2Ports(clock, lines, told)
    chip, keyboard, mouse = part.controller, part.keyboard, part.mouse
    keys, buttons = sorted(KEYS), sorted(BUTTONS)

    def to_mouse(n: int) -> None:
        chip.write(4, 1, 0xD4)
        chip.write(0, 1, n & 0xFF)

    def to_keyboard(n: int) -> None:
        chip.write(0, 1, 0xED + n % 7)
        chip.write(0, 1, n >> 8 & 7)

    def many_keys(n: int) -> None:
        for key in keys[:12]:
            keyboard.key(key, n & 1)

    def resolution(n: int) -> None:
        to_mouse(0xE6 + n % 4)
        to_mouse(n >> 8 & 3)

    def explorer(n: int) -> None:
        for byte in (0xF3, 200, 0xF3, 200, 0xF3, 80, 0xF4):
            to_mouse(byte)

    hands = [
        lambda n: keyboard.key(keys[n % 8], n >> 8 & 1),
        lambda n: keyboard.key(keys[n % len(keys)], n >> 8 & 1),
        lambda n: mouse.motion(n % 300 - 150, (n >> 9) % 300 - 150),
        lambda n: mouse.button(buttons[n % 5], bool(n >> 3 & 1)),
        lambda n: mouse.wheel(n % 16 - 8),
        lambda n: chip.write(4, 1, (0xAE, 0xA8, 0x60, 0xAD, 0xA7)[n % 5]),
        lambda n: chip.read(0, 1),
        lambda n: chip.write(0, 1, 0xED + n % 19),
        to_keyboard,
        many_keys,
        many_keys,
        lambda n: chip.write(4, 1, 0x60 + n % 3),
        lambda n: to_mouse((0xF0, 0xEE, 0xEA, 0xEC, 0xF3)[n % 5]),
        lambda n: chip.write(4, 1, (0xD1, 0xD4, 0x60, 0xAA, 0xDD, 0xDF, 0xD2)[n % 7]),
        resolution,
        lambda n: [chip.read(0, 1) for _ in range(20)],
        to_mouse,
        to_mouse,
        explorer,
    ]
    return Twin(part, clock, [(chip, 5)], hands, lines, told, longest=200_000_000)


def memory_hotplug(now: int) -> Twin:
    told = list[object]()

    def refused(*what: object) -> None:
        told.append(what)

    def place(slot: int) -> tuple[int, int] | None:
        return (slot << 33, (slot + 1) << 27) if slot % 3 else None

    part = MemoryHotplug(place, lambda: told.append("event"), told.append, refused)
    hands = [lambda n: part.plugged(n & 31), lambda n: part.unplugged(n & 31), lambda n: part.ask_to_eject(n & 31)]
    return Twin(part, FakeClock(now), [(part, MEMORY_HOTPLUG_LENGTH)], hands, told=told)


def pci_hotplug(now: int) -> Twin:
    told = list[object]()
    part = PciHotplug(lambda: 0x1234, lambda: told.append("event"), told.append, told.append)
    part.slots = 0x1FFE
    calls = (part.plugged, part.unplugged, part.ask_to_eject, part.found_empty)
    hands = [lambda n, call=call: call(n & 31) for call in calls]
    return Twin(part, FakeClock(now), [(part, PCI_HOTPLUG_LENGTH)], hands, told=told)


def uart16550(now: int) -> Twin:
    clock, irq, told = FakeClock(now), FakeIrq(), list[object]()
    part = Uart16550(irq, told.append, clock)
    part.on_room = lambda: told.append("room")

    def burst(n: int) -> None:
        for _ in range(n % 140):
            part.write(0, 1, n & 0xFF)
            part.read(2, 1)

    hands = [
        lambda n: part.receive(bytes(range(n % 20))),
        lambda n: part.receive_break(),
        lambda n: part.set_modem_lines(n & 0xF0),
        lambda n: part.write(1, 1, n & 0x0F),
        lambda n: part.write(2, 1, n & 0xC7 | 1),
        lambda n: [part.read(5, 1) for _ in range(n % 70)],
        burst,
    ]
    return Twin(part, clock, [(part, 8)], hands, [irq], told, longest=2_000_000)


def vga_text(now: int) -> Twin:
    clock, memory, frame = FakeClock(now), memoryview(bytearray(VGA_TEXT_SIZE)), memoryview(bytearray(VGA_FRAME_SIZE))
    part = VgaText(memory, clock, frame=frame)

    def poke(n: int) -> None:
        memory[n % VGA_TEXT_SIZE] = frame[n % VGA_FRAME_SIZE] = n >> 16 & 0xFF

    hands = [
        poke,
        lambda n: part.cells(),
        lambda n: part.frame(),
        lambda n: (part.cursor(), part.palette(), part.blank),
    ]
    return Twin(part, clock, [(part, VGA_PORT_COUNT)], hands)


CHIPS: Final[dict[str, Callable[[int], Twin]]] = {
    make.__name__: make
    for make in (
        acpi_pm,
        bios_calls,
        bios_log,
        cmos_rtc,
        cpu_hotplug,
        debug_exit,
        debugcon,
        fw_cfg,
        i8042,
        i8254,
        i8259,
        ioapic,
        memory_hotplug,
        pc_testdev,
        pci_hotplug,
        port_61,
        port_92,
        post_port,
        reset_control,
        uart16550,
        vga_text,
    )
}
