"""Message-signalled interrupts: MSI and MSI-X as a function's capabilities, and the router that delivers the messages.

PCI Local Bus Specification 3.0, section 6.8. A message is a 32-bit write of `data` to `address`; on x86 the address is
0xFEExxxxx, all 64 bits of it (Intel SDM volume 3, "Message Signalled Interrupts"); to elsewhere it is a write as any
other, into RAM if some is there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar, Final, Protocol

from pyvmm.pci.config_space import ConfigSpace
from pyvmm.pci.regs import (
    PCI_CAP_ID_MSI,
    PCI_CAP_ID_MSIX,
    PCI_MSI_FLAGS,
    PCI_MSI_FLAGS_64BIT,
    PCI_MSI_FLAGS_ENABLE,
    PCI_MSI_FLAGS_MASKBIT,
    PCI_MSI_FLAGS_QSIZE,
    PCI_MSIX_ENTRY_CTRL_MASKBIT,
    PCI_MSIX_ENTRY_SIZE,
    PCI_MSIX_ENTRY_VECTOR_CTRL,
    PCI_MSIX_FLAGS,
    PCI_MSIX_FLAGS_ENABLE,
    PCI_MSIX_FLAGS_MASKALL,
    PCI_MSIX_FLAGS_QSIZE,
)

LOCAL_APICS: Final = 0xFEE
"""Bits 63:20 of the address of a message that interrupts."""


class MsiIrq(Protocol):
    """One interrupt message. It starts masked and without an address."""

    @property
    def fd(self) -> int | None:
        """An eventfd that sends the message when written, None where the router has none. Whoever asks may write to it
        from now on, masked or not."""

    def update(self, address: int, data: int) -> None:
        """The message to send from now on."""

    def mask(self) -> None:
        """Hold what others signal on `fd` until unmask()."""

    def unmask(self) -> None:
        """Let signals through, one at once if some were held."""

    def pulse(self) -> None:
        """Send the message; called only while unmasked."""

    def close(self) -> None:
        """Give the route and the fd back."""


class MsiRouter(Protocol):
    """What a machine offers to its message-signalled interrupts."""

    def allocate(self) -> MsiIrq: ...


class FakeMsiIrq:
    def __init__(self, router: FakeMsiRouter) -> None:
        self._router = router
        self.fd: int | None = None
        self.message = (0, 0)
        self.masked = True
        self.closed = False

    def update(self, address: int, data: int) -> None:
        self.message = (address, data)

    def mask(self) -> None:
        self.masked = True

    def unmask(self) -> None:
        self.masked = False

    def pulse(self) -> None:
        assert not self.masked and not self.closed
        self._router.sent.append(self.message)

    def close(self) -> None:
        self.closed = True


class FakeMsiRouter:
    """The router of the unit tests: `sent` lists the (address, data) of each message."""

    def __init__(self) -> None:
        self.irqs: list[FakeMsiIrq] = []
        self.sent: list[tuple[int, int]] = []

    def allocate(self) -> FakeMsiIrq:
        irq = FakeMsiIrq(self)
        self.irqs.append(irq)
        return irq


_ENTRY: Final = struct.Struct("<QII")
"""Message address, message data, vector control."""

WriteMessage = Callable[[int, int], None]
"""Takes the address and data of a message that is no interrupt."""


class _Vector:
    """One vector of a function: its message, whether it may go out now, and whether one waits."""

    def __init__(self, write: WriteMessage) -> None:
        self.irq: MsiIrq | None = None
        self.pending = False
        self._write = write
        self._open = False
        self._message = (0, 0)
        self._interrupts = False
        self._routed: tuple[int, int] | None = None

    def forget(self) -> None:
        """It has no router any more; another one knows nothing of its message yet."""
        self.irq = self._routed = None
        self._open = self._interrupts = False

    @property
    def message(self) -> tuple[int, int, bool]:
        """Address and data, and whether it may go out now."""
        return *self._message, self._open and self.irq is not None

    def pulse(self) -> None:
        if not self._open or self.irq is None:
            self.pending = True
        elif self._interrupts:
            self.irq.pulse()
        else:
            self._write(*self._message)

    def sync(self, opened: bool, address: int, data: int) -> None:
        """Follow the guest's registers; a pending message goes out when the vector opens."""
        irq = self.irq
        if irq is None or not (opened or self._open):
            return
        self._message = (address, data)
        interrupts = opened and address >> 20 == LOCAL_APICS
        if interrupts and self._routed != self._message:
            self._routed = self._message
            irq.update(address, data)
        if interrupts and not self._interrupts:
            irq.unmask()
        elif self._interrupts and not interrupts:
            irq.mask()
        self._open, self._interrupts = opened, interrupts
        if opened and self.pending:
            self.pending = False
            self.pulse()


class Messages:
    """What MSI and MSI-X have in common: vectors that a router delivers once the function is on a bus."""

    STATE: ClassVar[tuple[str, ...]] = ("pending",)
    name: ClassVar[str]

    def __init__(self, config: ConfigSpace, count: int, bus_master: Callable[[], bool], write: WriteMessage) -> None:
        self._config = config
        self._bus_master = bus_master
        self._vectors = tuple(_Vector(write) for _ in range(count))
        self.offset = 0

    @property
    def count(self) -> int:
        """How many vectors the function has."""
        return len(self._vectors)

    def connect(self, router: MsiRouter) -> None:
        for vector in self._vectors:
            vector.irq = router.allocate()

    def disconnect(self) -> None:
        for vector in self._vectors:
            if vector.irq is not None:
                vector.irq.close()
                vector.forget()

    def fds(self, count: int | None = None) -> tuple[int | None, ...]:
        """The eventfd of each vector, or of the first *count*, for an external source of interrupts such as VFIO."""
        return tuple(v.irq.fd if v.irq is not None else None for v in self._vectors[:count])

    def fd(self, vector: int) -> int | None:
        """The eventfd of one vector; None where there is no such vector."""
        irq = self._vectors[vector].irq if 0 <= vector < self.count else None
        return None if irq is None else irq.fd

    @property
    def enabled(self) -> bool:
        raise NotImplementedError

    def pulse(self, vector: int = 0) -> None:
        raise NotImplementedError

    def _sent_as(self, vector: int) -> int:
        """Which vector is sent for *vector*."""
        return vector

    def describe(self, vector: int) -> str:
        """What is sent for *vector*, as a line of the trace."""
        name = f"{self.name} {vector}"
        sent = self._sent_as(vector)
        if not 0 <= sent < self.count:
            return f"{name}: there is no such vector"
        address, data, is_open = self._vectors[sent].message
        return f"{name}: {data:#x} to {address:#x}" if is_open else f"{name}: masked, it waits"

    @property
    def pending(self) -> int:
        """Which vectors wait to be sent: bit n for vector n."""
        return sum(1 << n for n, vector in enumerate(self._vectors) if vector.pending)

    @pending.setter
    def pending(self, bits: int) -> None:
        for n, vector in enumerate(self._vectors):
            vector.pending = bool(bits >> n & 1)

    def drop_pending(self) -> None:
        """Forget the messages that wait: the function is no longer in the state that they told of."""
        for vector in self._vectors:
            vector.pending = False


class Msi(Messages):
    """The MSI capability: 1 to 32 vectors, one address, data that differs in its low bits."""

    STATE = ()
    name = "MSI"

    def __init__(
        self,
        config: ConfigSpace,
        count: int,
        bits64: bool,
        maskable: bool,
        bus_master: Callable[[], bool],
        write: WriteMessage,
        at: int | None = None,
    ) -> None:
        """*at* is where configuration space has the capability already, if it has."""
        if count not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"MSI has 1, 2, 4, 8, 16 or 32 vectors, not {count}")
        super().__init__(config, count, bus_master, write)
        flags = (count.bit_length() - 1) << 1
        flags |= PCI_MSI_FLAGS_64BIT if bits64 else 0
        flags |= PCI_MSI_FLAGS_MASKBIT if maskable else 0
        upper = b"\xff\xff\xff\xff" if bits64 else b""
        writable = (PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE).to_bytes(2, "little") + b"\xfc\xff\xff\xff"
        writable += upper + b"\xff\xff\x00\x00"
        self._bits64 = bits64
        self._data = 12 if bits64 else 8
        self._mask = self._data + 4 if maskable else 0
        if maskable:
            writable += ((1 << count) - 1).to_bytes(4, "little") + bytes(4)
        self.length = len(writable) + 2
        body = flags.to_bytes(2, "little") + bytes(self.length - 4)
        if at is None:
            self.offset = config.add_capability(PCI_CAP_ID_MSI, body, writable)
        else:
            self.offset = config.put_capability(at, body, writable)

    @property
    def enabled(self) -> bool:
        return bool(self._config.get(self.offset + PCI_MSI_FLAGS, 2) & PCI_MSI_FLAGS_ENABLE)

    def pulse(self, vector: int = 0) -> None:
        """Send (or hold) vector *vector*; where the guest granted fewer vectors, several share one."""
        if self.enabled:
            self._vectors[vector & (self.granted - 1)].pulse()
            self._show_pending()

    def _sent_as(self, vector: int) -> int:
        return vector & (self.granted - 1)

    @property
    def granted(self) -> int:
        """How many vectors the guest lets the function use."""
        flags = self._config.get(self.offset + PCI_MSI_FLAGS, 2)
        return min(1 << ((flags & PCI_MSI_FLAGS_QSIZE) >> 4), self.count)

    def sync(self) -> None:
        """Read the registers again: after a configuration write, and when bus mastering changes."""
        enabled, config, at = self.enabled, self._config, self.offset
        address = config.get(at + 4, 8 if self._bits64 else 4)
        data = config.get(at + self._data, 2)
        masks = config.get(at + self._mask, 4) if self._mask else 0
        granted = self.granted
        opened = enabled and self._bus_master()
        if not enabled:
            self.drop_pending()
        for n, vector in enumerate(self._vectors):
            live = opened and n < granted and not masks >> n & 1
            vector.sync(live, address, (data & ~(granted - 1)) | (n & (granted - 1)))
        self._show_pending()

    @property
    def pending_at(self) -> int:
        """Where configuration space has the pending bits; 0 where the capability has none."""
        return self.offset + self._mask + 4 if self._mask else 0

    def _show_pending(self) -> None:
        if self._mask:
            self._config.set(self.pending_at, 4, self.pending)


class Msix(Messages):
    """The MSI-X capability; as a Device, the vector table and the pending bit array in its BAR.

    The table is at offset 0 of the BAR, the pending bits at *pba*; 1 to 2048 vectors.
    """

    STATE = ("_table",)
    name = "MSI-X"

    def __init__(
        self,
        config: ConfigSpace,
        count: int,
        bar: int,
        pba: int,
        bus_master: Callable[[], bool],
        write: WriteMessage,
        at: int | None = None,
    ) -> None:
        """*at* is where configuration space has the capability already, if it has; where that says its table and its
        pending bits are is then the owner's business."""
        if not 1 <= count <= PCI_MSIX_FLAGS_QSIZE + 1:
            raise ValueError(f"MSI-X has 1 to 2048 vectors, not {count}")
        super().__init__(config, count, bus_master, write)
        self._pba = pba
        self._table = bytearray(count * PCI_MSIX_ENTRY_SIZE)
        body = (count - 1).to_bytes(2, "little") + bar.to_bytes(4, "little") + (pba | bar).to_bytes(4, "little")
        control = PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL
        self.length = 12
        writable = control.to_bytes(2, "little")
        if at is None:
            self.offset = config.add_capability(PCI_CAP_ID_MSIX, body, writable)
        else:
            self.offset = config.put_capability(at, body[:2] + bytes(config.data[at + 4 : at + 12]), writable)
        self.reset()

    def reset(self) -> None:
        """All vectors masked, nothing pending."""
        self._table[:] = (bytes(PCI_MSIX_ENTRY_VECTOR_CTRL) + b"\x01\x00\x00\x00") * self.count
        self.sync()

    @property
    def enabled(self) -> bool:
        return bool(self._config.get(self.offset + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_ENABLE)

    @property
    def masked_all(self) -> bool:
        """The guest holds all vectors back, by the control register."""
        return bool(self._config.get(self.offset + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_MASKALL)

    @property
    def programmed(self) -> int:
        """How many vectors the guest has in use: one more than the last that has an address, or is unmasked."""
        entries = list(_ENTRY.iter_unpack(self._table))
        return next(
            (
                n + 1
                for n in reversed(range(self.count))
                if entries[n][0] or not entries[n][2] & PCI_MSIX_ENTRY_CTRL_MASKBIT
            ),
            0,
        )

    def pulse(self, vector: int = 0) -> None:
        """Send vector *vector*, or hold it in the pending bits while it is masked; no such vector is silence."""
        if vector < self.count and self.enabled:
            self._vectors[vector].pulse()

    def sync(self) -> None:
        """Read the control register again: after a configuration write, and when bus mastering changes."""
        if not self.enabled:
            self.drop_pending()
        self._sync_vectors(0, self.count)

    def _sync_vectors(self, first: int, end: int) -> None:
        control = self._config.get(self.offset + PCI_MSIX_FLAGS, 2)
        opened = control & (PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL) == PCI_MSIX_FLAGS_ENABLE
        opened = opened and self._bus_master()
        entries = _ENTRY.iter_unpack(self._table[first * PCI_MSIX_ENTRY_SIZE : end * PCI_MSIX_ENTRY_SIZE])
        for vector, (address, data, mask) in zip(self._vectors[first:end], entries, strict=True):
            vector.sync(opened and not mask & PCI_MSIX_ENTRY_CTRL_MASKBIT, address, data)

    def read(self, offset: int, size: int) -> int:
        """The guest reads table or pending bits, at any width."""
        if offset < self._pba:
            data = bytes(self._table[offset : offset + size])
        else:
            first = 8 * (offset - self._pba)
            shown = self._vectors[first : first + 8 * size]
            return sum(1 << n for n, vector in enumerate(shown) if vector.pending)
        return int.from_bytes(data, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """The guest writes the table; the pending bits are read-only."""
        if offset >= len(self._table):
            return
        for i, byte in enumerate(value.to_bytes(size, "little"), offset):
            if i < len(self._table):
                field = i % PCI_MSIX_ENTRY_SIZE
                if field == PCI_MSIX_ENTRY_VECTOR_CTRL:
                    self._table[i] = byte & PCI_MSIX_ENTRY_CTRL_MASKBIT
                elif field < PCI_MSIX_ENTRY_VECTOR_CTRL:
                    self._table[i] = byte & 0xFC if field == 0 else byte
        last = min(offset + size, len(self._table)) - 1
        self._sync_vectors(offset // PCI_MSIX_ENTRY_SIZE, last // PCI_MSIX_ENTRY_SIZE + 1)
