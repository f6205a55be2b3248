"""Pair of 8259A interrupt controllers, as a PC has them: sixteen IRQs, the second chip behind IR2 of the first.

    0x20, 0xA0    write ICW1, OCW2 (EOI, rotation), OCW3 (poll, special mask, what to read); read IRR, ISR or the poll
    0x21, 0xA1    write ICW2-ICW4 after an ICW1, OCW1 (the mask, IMR) otherwise; read IMR
    0x4D0, 0x4D1  ELCR: a line with its bit set is level-triggered; IRQ 0, 1, 2, 8 and 13 are always edges

INT of the first chip goes to the processor, which answers with INTA and gets the vector.

Source: Intel 8259A data sheet (231468); ELCR from the Intel 82371SB (PIIX3) data sheet. As on every chipset with an
ELCR, LTIM of ICW1 is ignored. An edge that found its way into IRR stays there when the line falls before INTA, as with
KVM's PIC: PC devices that pulse their line depend on it. The 8080 mode (ICW4 bit 0 clear) is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvmm.irq import LevelIrq
from pyvmm.trace import OFF, Channel

ICW1: Final = 0x10
ICW1_IC4: Final = 0x01
ICW1_SNGL: Final = 0x02
ICW4_AEOI: Final = 0x02
ICW4_SFNM: Final = 0x10

OCW3: Final = 0x08
OCW3_RIS: Final = 0x01
OCW3_RR: Final = 0x02
OCW3_P: Final = 0x04
OCW3_SMM: Final = 0x20
OCW3_ESMM: Final = 0x40

OCW2_LEVEL: Final = 0x07
ROTATE_IN_AEOI_CLEAR: Final = 0
NON_SPECIFIC_EOI: Final = 1
SPECIFIC_EOI: Final = 3
ROTATE_IN_AEOI_SET: Final = 4
ROTATE_ON_NON_SPECIFIC_EOI: Final = 5
SET_PRIORITY: Final = 6
ROTATE_ON_SPECIFIC_EOI: Final = 7

POLL_INTERRUPT: Final = 0x80

CASCADE: Final = 2
SPURIOUS: Final = 7
ELCR_MASKS: Final = (0xF8, 0xDE)


class I8259:
    """One of the two chips, a device of two ports.

    *changed* is called when its INT may have changed, *eoi* with each IR whose ISR bit is cleared.
    """

    # fmt: off
    STATE = (
        "elcr", "lines", "irr", "isr", "imr", "vector_base", "single", "_highest", "_special_mask",
        "_special_fully_nested", "_auto_eoi", "_rotate_in_auto_eoi", "_read_isr", "_poll", "_icw4_comes", "_next_icw",
    )
    # fmt: on

    def __init__(self, changed: Callable[[], None], eoi: Callable[[int], None], elcr_mask: int) -> None:
        self._changed = changed
        self._eoi = eoi
        self._elcr_mask = elcr_mask
        self.elcr = 0
        self.lines = 0  # the IR inputs
        self.irr = 0
        self.isr = 0
        self.imr = 0
        self.vector_base = 0
        self.single = False
        self._highest = 0  # the IR of the highest priority
        self._special_mask = False
        self._special_fully_nested = False
        self._auto_eoi = False
        self._rotate_in_auto_eoi = False
        self._read_isr = False
        self._poll = False
        self._icw4_comes = False
        self._next_icw = 0  # which ICW the odd port expects; 0: none, it is OCW1

    def reset(self) -> None:
        """Power-up, as ICW1 leaves it; edge-triggered everywhere."""
        self.elcr = 0
        self._initialize(0)
        self._next_icw = 0
        self.vector_base = 0

    # Priorities

    def _rank(self, bits: int) -> int:
        """The priority of the highest of *bits*, 0 being the highest of all. *bits* must not be 0."""
        rotated = (bits | bits << 8) >> self._highest & 0xFF
        return (rotated & -rotated).bit_length() - 1

    def request(self) -> int:
        """The IR that INT is up for; -1 where INT is down."""
        waiting = self.irr & ~self.imr
        if not waiting:
            return -1
        rank = self._rank(waiting)
        ir = rank + self._highest & 7
        in_service = self.isr & ~self.imr if self._special_mask else self.isr
        if in_service:
            served = self._rank(in_service)
            # Special fully nested: a slave in service may be interrupted by a higher request of the same slave.
            if rank > served or (rank == served and not (self._special_fully_nested and ir == CASCADE)):
                return -1
        return ir

    # Inputs and acknowledge

    def set_line(self, ir: int, level: bool) -> None:
        bit = 1 << ir
        if level:
            if self.elcr & bit or not self.lines & bit:
                self.irr |= bit
            self.lines |= bit
        else:
            self.lines &= ~bit
            if self.elcr & bit:
                self.irr &= ~bit

    def set_elcr(self, value: int) -> None:
        self.elcr = value & self._elcr_mask
        self.irr = self.irr & ~self.elcr | self.lines & self.elcr
        self._changed()

    def take(self, ir: int) -> None:
        """INTA for *ir*: from requested to in service."""
        bit = 1 << ir
        if not self.elcr & bit:
            self.irr &= ~bit
        self.isr |= bit
        if self._auto_eoi:
            if self._rotate_in_auto_eoi:
                self._highest = ir + 1 & 7
            self.isr &= ~bit
            self._eoi(ir)

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        if size != 1:
            return sum(self.read(offset + i, 1) << (8 * i) for i in range(size))
        if offset > 1:
            return 0xFF
        if self._poll:
            self._poll = False
            ir = self.request()
            if ir < 0:
                return 0
            self.take(ir)
            self._changed()
            return POLL_INTERRUPT | ir
        if offset == 1:
            return self.imr
        return self.isr if self._read_isr else self.irr

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            for i in range(size):
                self.write(offset + i, 1, (value >> (8 * i)) & 0xFF)
        elif offset == 1:
            self._write_odd(value)
        elif offset == 0:
            if value & ICW1:
                self._initialize(value)
            elif value & OCW3:
                self._write_ocw3(value)
            else:
                self._write_ocw2(value >> 5, value & OCW2_LEVEL)
            self._changed()

    def _initialize(self, icw1: int) -> None:
        # The edges are forgotten: a line that is up must fall and rise to interrupt again.
        self.irr = self.lines & self.elcr
        self.isr = 0
        self.imr = 0
        self.single = bool(icw1 & ICW1_SNGL)
        self._highest = 0
        self._special_mask = False
        self._rotate_in_auto_eoi = False
        self._read_isr = False
        self._poll = False
        self._icw4_comes = bool(icw1 & ICW1_IC4)
        self._special_fully_nested = False
        self._auto_eoi = False
        self._next_icw = 2

    def _write_odd(self, value: int) -> None:
        if self._next_icw == 0:
            self.imr = value
            self._changed()
        elif self._next_icw == 2:
            self.vector_base = value & 0xF8
            self._next_icw = 3
            if self.single:
                self._next_icw = 4 if self._icw4_comes else 0
        elif self._next_icw == 3:  # the wiring of the cascade; a PC has only this one
            self._next_icw = 4 if self._icw4_comes else 0
        else:
            self._special_fully_nested = bool(value & ICW4_SFNM)
            self._auto_eoi = bool(value & ICW4_AEOI)
            self._next_icw = 0

    def _write_ocw3(self, value: int) -> None:
        if value & OCW3_ESMM:
            self._special_mask = bool(value & OCW3_SMM)
        if value & OCW3_P:
            self._poll = True
        elif value & OCW3_RR:
            self._read_isr = bool(value & OCW3_RIS)

    def _write_ocw2(self, command: int, level: int) -> None:
        if command in (NON_SPECIFIC_EOI, ROTATE_ON_NON_SPECIFIC_EOI):
            # In special mask mode it leaves alone what is masked.
            in_service = self.isr & ~self.imr if self._special_mask else self.isr
            if in_service:
                ir = self._rank(in_service) + self._highest & 7
                self._end(ir, command == ROTATE_ON_NON_SPECIFIC_EOI)
        elif command in (SPECIFIC_EOI, ROTATE_ON_SPECIFIC_EOI):
            self._end(level, command == ROTATE_ON_SPECIFIC_EOI)
        elif command == SET_PRIORITY:
            self._highest = level + 1 & 7
        elif command in (ROTATE_IN_AEOI_CLEAR, ROTATE_IN_AEOI_SET):
            self._rotate_in_auto_eoi = command == ROTATE_IN_AEOI_SET

    def _end(self, ir: int, rotate: bool) -> None:
        was = self.isr
        self.isr &= ~(1 << ir)
        if rotate:
            self._highest = ir + 1 & 7
        if was != self.isr:
            self._eoi(ir)


class Elcr:
    """The edge/level control registers: a device of two ports."""

    def __init__(self, chips: tuple[I8259, I8259]) -> None:
        self._chips = chips

    def read(self, offset: int, size: int) -> int:
        value = 0
        for i in range(size):
            value |= (self._chips[offset + i].elcr if offset + i < 2 else 0xFF) << (8 * i)
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            if offset + i < 2:
                self._chips[offset + i].set_elcr(value >> (8 * i) & 0xFF)


class I8259Pair:
    """Both chips and the wires between them. *intr* is told each time the INTR pin of the processor changes.

    *acknowledged* and *eoi*, if given, are called with the IRQ number (0-15) when the processor takes it and when its
    in-service bit is cleared; they may drive lines. `master` and `slave` are devices for ports 0x20 and 0xA0, `elcr`
    is one for 0x4D0; two ports each.
    """

    STATE = ("intr", "master", "slave", "_lines")

    def __init__(
        self,
        intr: Callable[[bool], None],
        acknowledged: Callable[[int], None] | None = None,
        eoi: Callable[[int], None] | None = None,
        trace: Channel = OFF,
    ) -> None:
        self._drive = intr
        self._acknowledged = acknowledged
        self._tell_eoi = eoi
        self._trace = trace
        self.intr = False
        """The level of INTR."""
        self.master = I8259(self._update, self._master_eoi, ELCR_MASKS[0])
        self.slave = I8259(self._update, self._slave_eoi, ELCR_MASKS[1])
        self.elcr = Elcr((self.master, self.slave))
        self._lines = tuple(self._make_line(irq) for irq in range(16))

    def _make_line(self, irq: int) -> LevelIrq:
        chip = self.slave if irq >= 8 else self.master

        def drive(level: bool) -> None:
            chip.set_line(irq & 7, level)
            self._update()

        return LevelIrq(drive)

    def line(self, irq: int) -> LevelIrq:
        """The input of IRQ *irq*; raises ValueError for IRQ 2, which is the cascade."""
        if irq == CASCADE:
            raise ValueError("IRQ 2 is where the second 8259A is connected")
        return self._lines[irq]

    def reset(self) -> None:
        """Power-up: uninitialized, nothing masked, all edges."""
        self.master.reset()
        self.slave.reset()
        self._update()

    def acknowledge(self) -> int:
        """The INTA cycle: the vector of the highest request. Where there is none any more, the spurious IRQ 7 or 15."""
        irq = ir = self.master.request()
        spurious = ir < 0
        if spurious:
            irq = SPURIOUS
            vector = self.master.vector_base + SPURIOUS
        else:
            self.master.take(ir)
            vector = self.master.vector_base + ir
        if ir == CASCADE and not self.master.single:
            ir = self.slave.request()
            spurious = ir < 0
            if spurious:
                ir = SPURIOUS
            else:
                self.slave.take(ir)
            irq = 8 + ir
            vector = self.slave.vector_base + ir
            # INT of the slave falls with INTA, and rises again for the next request.
            self.master.set_line(CASCADE, False)
        if self._trace.enabled:
            message = f"INTA: {'spurious ' if spurious else ''}IRQ {irq}, vector {vector:#04x}"
            self._trace(message, ("irq", irq, 1))
        self._update()
        if self._acknowledged is not None and not spurious:
            self._acknowledged(irq)
        return vector

    def _update(self) -> None:
        self.master.set_line(CASCADE, self.slave.request() >= 0)
        level = self.master.request() >= 0
        if level != self.intr:
            self.intr = level
            self._drive(level)

    def _master_eoi(self, ir: int) -> None:
        if ir != CASCADE:
            self._ended(ir)

    def _slave_eoi(self, ir: int) -> None:
        self._ended(8 + ir)

    def _ended(self, irq: int) -> None:
        if self._trace.enabled:
            self._trace(f"EOI: IRQ {irq}")
        if self._tell_eoi is not None:
            self._tell_eoi(irq)
