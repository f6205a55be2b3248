"""Who answers an address when BARs move: claims on a Bus, the lower in priority hidden where they overlap.

A guest may put a BAR anywhere: over RAM, over another device, half over another BAR. Each claim shows on the bus where
nothing of higher priority answers (what was mapped on the bus by others, reserved ranges, then claims in the order they
were made), piece by piece, and comes back when the overlap ends. Doorbells (ioeventfds) and windows (memory slots) move
with their claim.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.bus import Bus, Device
from pyvmm.memory import Region
from pyvmm.pci.bar import Span
from pyvmm.pci.doorbell import Doorbell, Doorbells, WatchedDoorbell
from pyvmm.pci.window import OpenWindow, Windows
from pyvmm.units import PAGE_SIZE


class _ClaimDoorbell:
    """A doorbell of a claim, and where it is watched now."""

    def __init__(self, offset: int, doorbell: Doorbell) -> None:
        self.offset = offset
        self.doorbell = doorbell
        self.address: int | None = None
        self.watched: WatchedDoorbell | None = None

    def withdraw(self) -> None:
        self.address = None
        watched, self.watched = self.watched, None
        if watched is not None:
            watched.remove()


class AddressClaim:
    """A device's wish to answer some addresses: `base` is where its offset 0 is, `spans` which of them reach it.

    See pci.bar.Claim."""

    def __init__(self, decoder: AddressDecoder, device: Device) -> None:
        self._decoder = decoder
        self.device = device
        self.base = 0
        self.spans: tuple[Span, ...] = ()
        self.visible: tuple[Span, ...] = ()
        self.doorbells: list[_ClaimDoorbell] = []
        self.backing: list[tuple[int, memoryview]] = []

    def place(self, base: int, spans: Iterable[Span]) -> bool:
        """Move; it takes effect at the decoder's next apply()."""
        before = self.base, self.spans
        self.base, self.spans = base, tuple(spans)
        return before != (self.base, self.spans)

    def add_doorbell(self, offset: int, doorbell: Doorbell) -> None:
        """A doorbell at *offset*; it follows the claim from the next apply() on."""
        self.doorbells.append(_ClaimDoorbell(offset, doorbell))

    def back(self, offset: int, buffer: memoryview) -> None:
        """Memory at *offset*, whole pages; it follows the claim from the next apply() on."""
        self.backing.append((offset, buffer))

    def release(self) -> None:
        self._decoder.release(self)


class AddressDecoder:
    """The claims on one Bus."""

    def __init__(
        self, bus: Bus, limit: int, doorbells: Doorbells | None = None, windows: Windows | None = None
    ) -> None:
        """*limit* is the end of the address space."""
        self.bus = bus
        self._limit = limit
        self._doorbells = doorbells
        self._reserved: list[Span] = []  # guest memory, which the processor reaches before it reaches the bus
        self._claims: list[AddressClaim] = []
        self._mapped: dict[Span, tuple[Device, int]] = {}
        self._windows = windows
        self._opened: dict[tuple[int, int, int], OpenWindow | None] = {}
        self._stale = self._applying = False

    def added(self, region: Region) -> None:
        """Guest memory is there now: no claim is visible in it."""
        self._reserved.append((region.gpa, region.gpa + len(region.buffer)))
        self.apply()

    def removed(self, region: Region) -> None:
        """It is gone: claims show again."""
        self._reserved.remove((region.gpa, region.gpa + len(region.buffer)))
        self.apply()

    def claim(self, device: Device) -> AddressClaim:
        """A new claim, nowhere yet, of lower priority than those before."""
        claim = AddressClaim(self, device)
        self._claims.append(claim)
        return claim

    def release(self, claim: AddressClaim) -> None:
        """Take a claim away."""
        self._claims.remove(claim)
        claim.visible = ()
        applying, self._applying = self._applying, True  # no other comes where one of these is still to go
        try:
            for doorbell in list(claim.doorbells):
                doorbell.withdraw()
        finally:
            self._applying = applying
        self.apply()

    def apply(self) -> None:
        """Bring the bus to what the claims now say.

        A doorbell that is withdrawn may ring once more, and whoever hears it may move, add or release claims: then
        this goes on from the new state when the call has come back.
        """
        self._stale = True
        if self._applying:
            return
        self._applying = True
        try:
            while self._stale:
                self._stale = False
                self._map()
                self._move_windows()
                self._move_doorbells()
        finally:
            self._applying = False

    def _map(self) -> None:
        taken = [*self._reserved]
        taken += [(r[0], r[1]) for r in self.bus.ranges if (r[0], r[1]) not in self._mapped]
        wanted: dict[Span, tuple[Device, int]] = {}
        for claim in self._claims:
            pieces: list[Span] = []
            for start, end in claim.spans:
                for piece in _subtract(max(start, 0), min(end, self._limit), taken):
                    pieces.append(piece)
                    taken.append(piece)
                    wanted[piece] = (claim.device, piece[0] - claim.base)
            claim.visible = tuple(pieces)
        mapped, self._mapped = self._mapped, wanted
        for span, target in mapped.items():
            if not _same(wanted.get(span), target):
                self.bus.unmap(span[0], span[1] - span[0])
        for span, target in wanted.items():
            if not _same(mapped.get(span), target):
                self.bus.map(span[0], span[1] - span[0], *target)

    def _move_windows(self) -> None:
        """Those that leave go first, so that no two are ever at one address; between, accesses reach the device."""
        windows = self._windows
        if windows is None:
            return
        wanted: dict[tuple[int, int, int], memoryview] = {}
        for claim in self._claims:
            for offset, buffer in claim.backing:
                at = claim.base + offset
                for start, end in claim.visible:
                    first = -(-max(start, at) // PAGE_SIZE) * PAGE_SIZE
                    last = min(end, at + len(buffer)) // PAGE_SIZE * PAGE_SIZE
                    if first < last and at % PAGE_SIZE == 0:
                        wanted[first, last, id(buffer)] = buffer[first - at : last - at]
        for key in [key for key in self._opened if key not in wanted]:
            window = self._opened.pop(key)
            if window is not None:
                window.remove()
        for key, buffer in wanted.items():
            if key not in self._opened:
                self._opened[key] = windows.open(key[0], buffer)

    def _move_doorbells(self) -> None:
        doorbells = self._doorbells
        if doorbells is None:
            return
        arriving: list[tuple[_ClaimDoorbell, int]] = []
        for claim in list(self._claims):
            for doorbell in list(claim.doorbells):
                address = claim.base + doorbell.offset
                end = address + max(doorbell.doorbell.size, 1)
                here = any(start <= address and end <= stop for start, stop in claim.visible)
                if doorbell.address != (address if here else None):
                    doorbell.withdraw()
                    if here:
                        arriving.append((doorbell, address))
        if self._stale:
            return
        # Those that leave have left by now, so no address is ever taken twice.
        for doorbell, address in arriving:
            doorbell.address = address
            doorbell.watched = doorbells.add(self.bus, address, doorbell.doorbell)


def _same(one: tuple[Device, int] | None, other: tuple[Device, int]) -> bool:
    """Whether two places lead to one device, which is more than that the devices are equal."""
    return one is not None and one[0] is other[0] and one[1] == other[1]


def _subtract(start: int, end: int, taken: Iterable[Span]) -> list[Span]:
    """What is left of [start, end) outside *taken*."""
    free = [(start, end)] if start < end else []
    for low, high in taken:
        rest: list[Span] = []
        for s, e in free:
            if high <= s or e <= low:
                rest.append((s, e))
            else:
                if s < low:
                    rest.append((s, low))
                if high < e:
                    rest.append((high, e))
        free = rest
    return free
