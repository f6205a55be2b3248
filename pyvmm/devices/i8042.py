"""The 8042 keyboard controller of a PC with its PS/2 keyboard and mouse (AUX) ports.

    offset 0 (port 0x60)   data: read the output buffer; write to the keyboard, or the option of the last command
    offset 4 (port 0x64)   read: status; write: command
    IRQ 1                  the output buffer holds a byte from the keyboard or the controller (enabled by CTR_KBDINT)
    IRQ 12                 the output buffer holds a byte from the mouse (enabled by CTR_AUXINT)

Commands: 20–3F/60–7F read/write RAM (20/60 the command byte), A7/A8 AUX off/on, A9 test AUX, AA self test, AB test the
keyboard port, AD/AE keyboard off/on, C0 read the input port, D0/D1 read/write the output port (bit 0 CPU reset, bit 1
A20), D2/D3 put a byte in the output buffer as from keyboard/mouse, D4 send to the mouse, DD/DF A20 off/on, E0 read the
test inputs, F0–FF pulse the output port's low bits (FE resets the CPU).

The output buffer is one byte. What waits behind it waits in the keyboard and in the mouse, whose clock lines are held;
a read lets the next byte in. Each line goes low with the read and high with the next byte, so every byte is an edge.
The controller is never busy: IBF is always clear.

State at power-on is what a BIOS leaves, because there is none: translation on, IRQ 1 on, AUX off, A20 open, self test
passed. (Linux takes a command byte without CTR_XLATE for a wish for untranslated set 2.)

Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller"; names as in Linux's
include/linux/i8042.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.devices.ps2_device import Ps2Device
from pyvmm.devices.scancodes import BREAK, BREAK_BIT, TRANSLATION
from pyvmm.irq import Irq
from pyvmm.trace import OFF, Channel

DATA: Final = 0
COMMAND: Final = 4

I8042_STR_OBF: Final = 0x01
I8042_STR_SYS: Final = 0x04
I8042_STR_CMDDAT: Final = 0x08
I8042_STR_KEYLOCK: Final = 0x10
I8042_STR_AUXDATA: Final = 0x20
I8042_STR_TIMEOUT: Final = 0x40

I8042_CTR_KBDINT: Final = 0x01
I8042_CTR_AUXINT: Final = 0x02
I8042_CTR_SYS: Final = 0x04
I8042_CTR_KBDDIS: Final = 0x10
I8042_CTR_AUXDIS: Final = 0x20
I8042_CTR_XLATE: Final = 0x40

I8042_CMD_CTL_RCTR: Final = 0x20
I8042_CMD_CTL_WCTR: Final = 0x60
I8042_CMD_AUX_DISABLE: Final = 0xA7
I8042_CMD_AUX_ENABLE: Final = 0xA8
I8042_CMD_AUX_TEST: Final = 0xA9
I8042_CMD_CTL_TEST: Final = 0xAA
I8042_CMD_KBD_TEST: Final = 0xAB
I8042_CMD_KBD_DISABLE: Final = 0xAD
I8042_CMD_KBD_ENABLE: Final = 0xAE
I8042_CMD_READ_INPORT: Final = 0xC0
I8042_CMD_READ_OUTPORT: Final = 0xD0
I8042_CMD_WRITE_OUTPORT: Final = 0xD1
I8042_CMD_KBD_LOOP: Final = 0xD2
I8042_CMD_AUX_LOOP: Final = 0xD3
I8042_CMD_AUX_SEND: Final = 0xD4
I8042_CMD_A20_OFF: Final = 0xDD
I8042_CMD_A20_ON: Final = 0xDF
I8042_CMD_READ_TEST: Final = 0xE0
I8042_CMD_PULSE: Final = 0xF0

I8042_RET_CTL_TEST: Final = 0x55
I8042_RET_TEST_PASSED: Final = 0x00
NO_ANSWER: Final = 0xFE
"""Put in the output buffer, with STR_TIMEOUT, when a byte is sent to a port with no device."""

INPORT_NOT_LOCKED: Final = 0x80
OUTPORT_RESET: Final = 0x01
OUTPORT_A20: Final = 0x02
OUTPORT_AUX_DATA: Final = 0x04
OUTPORT_AUX_CLOCK: Final = 0x08
OUTPORT_OBF: Final = 0x10
OUTPORT_AUX_OBF: Final = 0x20
OUTPORT_KBD_CLOCK: Final = 0x40
OUTPORT_KBD_DATA: Final = 0x80

CTR_AFTER_FIRMWARE: Final = I8042_CTR_KBDINT | I8042_CTR_SYS | I8042_CTR_AUXDIS | I8042_CTR_XLATE
RAM_SIZE: Final = 32

CONTROLLER, KEYBOARD, MOUSE = 0, 1, 2
"""Where a byte in the output buffer came from."""


class I8042:
    """The controller. *reset* resets the CPU; *a20* is called when the guest moves the A20 gate, with True for open.

    *keyboard* and *mouse* are the devices on the two ports; None is an empty port, on which a send times out.
    """

    STATE = ("_ctr", "_ram", "_command", "_cmddat", "_a20", "_break", "_data", "_full", "_source", "_held")

    def __init__(
        self,
        irq1: Irq,
        irq12: Irq,
        reset: Callable[[], None],
        a20: Callable[[bool], None] | None = None,
        keyboard: Ps2Device | None = None,
        mouse: Ps2Device | None = None,
        trace: Channel = OFF,
    ) -> None:
        self._irq1 = irq1
        self._irq12 = irq12
        self._reset_cpu = reset
        self._move_a20 = a20
        self._keyboard = keyboard
        self._mouse = mouse
        self._ports = (None, keyboard, mouse)  # by the number of the port, which KEYBOARD and MOUSE are
        self._trace = trace
        self._power_on()
        for device in (keyboard, mouse):
            if device is not None:
                device.data_ready = self._load

    def _power_on(self) -> None:
        self._ctr = CTR_AFTER_FIRMWARE
        self._ram = bytearray(RAM_SIZE)
        self._command = 0  # the command whose option is the next write to the data port
        self._cmddat = 0
        self._a20 = True
        self._break = 0  # BREAK_BIT after the keyboard's break prefix
        self._data = 0  # the output buffer; it keeps its value when read
        self._full = 0  # its bits in the status register, 0 while empty
        self._source = CONTROLLER  # where its byte came from
        # data, full and source of a device's byte that made way for one of the controller's
        self._held: tuple[int, int, int] | None = None

    def reset(self) -> None:
        """Power-on state; keyboard and mouse have a reset of their own."""
        self._power_on()
        self._irq1.set_level(False)
        self._irq12.set_level(False)

    # The bus

    def read(self, offset: int, size: int) -> int:
        if offset == DATA:
            full = self._full
            data = self._data
            if full:
                if self._trace.enabled:
                    self._trace(f"read of port 0x60 returns {data:#04x}, OBF clear", ("read", data))
                self._full = 0
                (self._irq12 if full & I8042_STR_AUXDATA else self._irq1).set_level(False)
                source = self._ports[self._source]
                if source is not None:
                    source.taken()
                self._load()
            return data
        if offset == COMMAND:
            return self._full | self._cmddat | I8042_STR_KEYLOCK | (self._ctr & I8042_CTR_SYS)
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if offset == COMMAND:
            self._cmddat = I8042_STR_CMDDAT
            self._command = 0
            if self._trace.enabled:
                self._trace(f"command {value:#04x}")
            self._execute(value)
        elif offset == DATA:
            self._cmddat = 0
            command = self._command
            self._command = 0
            if command:
                if self._trace.enabled:
                    self._trace(f"option {value:#04x} of command {command:#04x}")
                self._option(command, value)
            else:
                self._ctr &= ~I8042_CTR_KBDDIS  # a byte for the keyboard opens its port
                self._send(self._keyboard, value, 0)

    # The output buffer

    def _load(self) -> None:
        """Fill the output buffer if it is empty and something waits: a byte set aside, the keyboard, the mouse."""
        if self._full:
            return
        if self._held is not None:
            self._data, self._full, self._source = self._held
            self._held = None
        elif not (self._load_keyboard() or self._load_mouse()):
            return
        self._announce()

    def _load_keyboard(self) -> bool:
        keyboard = self._keyboard
        if keyboard is None or self._ctr & I8042_CTR_KBDDIS:
            return False
        data = keyboard.take()
        if data < 0:
            return False
        self._full = I8042_STR_OBF
        self._source = KEYBOARD
        if self._ctr & I8042_CTR_XLATE:
            while data == BREAK:
                self._break = BREAK_BIT
                keyboard.taken()
                data = keyboard.take()
                if data < 0:
                    self._full = 0
                    return False
            translated = TRANSLATION[data] | self._break
            if self._trace.enabled:
                self._trace(f"translation {'f0 ' if self._break else ''}{data:02x} -> {translated:02x}")
            data = translated
        self._break = 0
        self._data = data
        return True

    def _load_mouse(self) -> bool:
        mouse = self._mouse
        if mouse is None or self._ctr & I8042_CTR_AUXDIS:
            return False
        data = mouse.take()
        if data < 0:
            return False
        self._full = I8042_STR_OBF | I8042_STR_AUXDATA
        self._source = MOUSE
        self._data = data
        return True

    def _put(self, value: int, status: int = I8042_STR_OBF) -> None:
        """The controller's own byte goes before the devices': one of theirs that is in the buffer is set aside."""
        if self._full and self._source != CONTROLLER:
            self._held = self._data, self._full, self._source
        self._data = value
        self._full = status
        self._source = CONTROLLER
        self._announce()

    def _announce(self) -> None:
        """The output buffer has a new byte: raise the line that belongs to it."""
        if self._trace.enabled:
            aux = self._full & I8042_STR_AUXDATA
            line, enable = (12, I8042_CTR_AUXINT) if aux else (1, I8042_CTR_KBDINT)
            message = f"output buffer = {self._data:#04x}, OBF{' AUXDATA' if aux else ''}"
            self._trace(message, ("output", self._data, line))
            self._trace(f"IRQ {line} up" if self._ctr & enable else f"IRQ {line} is off")
        self._drive()

    def _drive(self) -> None:
        """Set both lines to what output buffer and command byte make them."""
        full = self._full
        aux = full & I8042_STR_AUXDATA
        irq1 = full != 0 and not aux and self._ctr & I8042_CTR_KBDINT != 0
        irq12 = aux != 0 and self._ctr & I8042_CTR_AUXINT != 0
        self._irq1.set_level(irq1)
        self._irq12.set_level(irq12)

    # Commands

    def _execute(self, command: int) -> None:
        if 0x20 <= command < 0x40:
            index = command - I8042_CMD_CTL_RCTR
            self._put(self._ram[index] if index else self._ctr)
        elif 0x60 <= command < 0x80 or I8042_CMD_WRITE_OUTPORT <= command <= I8042_CMD_AUX_SEND:
            self._command = command
        elif command == I8042_CMD_AUX_DISABLE:
            self._write_ctr(self._ctr | I8042_CTR_AUXDIS)
        elif command == I8042_CMD_AUX_ENABLE:
            self._write_ctr(self._ctr & ~I8042_CTR_AUXDIS)
        elif command == I8042_CMD_KBD_DISABLE:
            self._write_ctr(self._ctr | I8042_CTR_KBDDIS)
        elif command == I8042_CMD_KBD_ENABLE:
            self._write_ctr(self._ctr & ~I8042_CTR_KBDDIS)
        elif command == I8042_CMD_CTL_TEST:
            self._ctr |= I8042_CTR_SYS
            self._put(I8042_RET_CTL_TEST)
        elif command in (I8042_CMD_AUX_TEST, I8042_CMD_KBD_TEST):
            self._put(I8042_RET_TEST_PASSED)
        elif command == I8042_CMD_READ_INPORT:
            self._put(INPORT_NOT_LOCKED)
        elif command == I8042_CMD_READ_OUTPORT:
            self._put(self._outport)
        elif command in (I8042_CMD_A20_OFF, I8042_CMD_A20_ON):
            self._gate_a20(command == I8042_CMD_A20_ON)
        elif command == I8042_CMD_READ_TEST:
            self._put((not self._ctr & I8042_CTR_KBDDIS) | (not self._ctr & I8042_CTR_AUXDIS) << 1)
        elif command >= I8042_CMD_PULSE:
            if not command & OUTPORT_RESET:
                self._reset("pulse of the output port")
        elif self._trace.enabled:
            self._trace(f"command {command:#04x} is none: ignored")

    def _option(self, command: int, value: int) -> None:
        if command == I8042_CMD_CTL_WCTR:
            self._write_ctr(value)
        elif command < 0x80:
            self._ram[command - I8042_CMD_CTL_WCTR] = value
        elif command == I8042_CMD_WRITE_OUTPORT:
            self._gate_a20(value & OUTPORT_A20 != 0)
            if not value & OUTPORT_RESET:
                self._reset("write of the output port")
        elif command == I8042_CMD_KBD_LOOP:
            self._put(value)
        elif command == I8042_CMD_AUX_LOOP:
            self._put(value, I8042_STR_OBF | I8042_STR_AUXDATA)
        else:  # what is left is I8042_CMD_AUX_SEND, which opens the port as a write to the keyboard does
            self._ctr &= ~I8042_CTR_AUXDIS
            self._send(self._mouse, value, I8042_STR_AUXDATA)

    def _write_ctr(self, value: int) -> None:
        self._ctr = value
        self._drive()
        self._load()

    def _send(self, device: Ps2Device | None, value: int, aux: int) -> None:
        if device is None:
            self._put(NO_ANSWER, I8042_STR_OBF | I8042_STR_TIMEOUT | aux)
        else:
            device.write(value)
        self._load()

    # The output port

    @property
    def _outport(self) -> int:
        value = OUTPORT_RESET | OUTPORT_AUX_DATA | OUTPORT_KBD_DATA
        if self._a20:
            value |= OUTPORT_A20
        if self._full:
            value |= OUTPORT_AUX_OBF if self._full & I8042_STR_AUXDATA else OUTPORT_OBF
        if not self._ctr & I8042_CTR_KBDDIS:
            value |= OUTPORT_KBD_CLOCK
        if not self._ctr & I8042_CTR_AUXDIS:
            value |= OUTPORT_AUX_CLOCK
        return value

    def _gate_a20(self, is_open: bool) -> None:
        if is_open != self._a20:
            self._a20 = is_open
            if self._trace.enabled:
                self._trace(f"A20 {'open' if is_open else 'closed'}")
            if self._move_a20 is not None:
                self._move_a20(is_open)

    def _reset(self, why: str) -> None:
        if self._trace.enabled:
            self._trace(f"CPU reset by {why}")
        self._reset_cpu()
