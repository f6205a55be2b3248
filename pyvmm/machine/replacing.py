"""A device in the place of another, in a machine that runs on: by hand, or because its file has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyvmm.board.pc import Pc
from pyvmm.errors import UserError, there_are
from pyvmm.machine.life import Life
from pyvmm.machine.loading import blaming, load_anew
from pyvmm.machine.registry import as_function, inner
from pyvmm.machine.slots import Slots, name_of
from pyvmm.pci import replacing
from pyvmm.pci.bridge import PciBridge
from pyvmm.pci.device import PciDevice
from pyvmm.virtio.input import VirtioInput


class Replacer:
    """Of the devices that *slots* has plugged into *board*; in the loop's thread, while all stands still."""

    def __init__(self, life: Life, board: Pc, slots: Slots | None) -> None:
        self._life = life
        self._board = board
        self._slots = slots

    @property
    def files(self) -> dict[str, Path]:
        """The devices that come from files of the user's own."""
        specs = {} if self._slots is None else self._slots.specs
        return {name: spec.file for name, spec in specs.items() if spec.file is not None}

    def replace(self, name: str, new: object | None) -> list[str]:
        """See Machine.replace()."""
        self._life.loop.run_once(0)  # doorbells that have rung are the old device's
        with self._life.lock:
            self._life.cpus.catch_up()
            old = self._find(name)
            there = name_of(self._board, new)
            if there is not None:
                raise UserError(f"device {name}: the new one is in the machine already, as {there}: make another")
            if new is None:
                made = self._made_again(name)
            elif isinstance(function := as_function(new), PciDevice):
                made = function
            else:
                raise UserError(f"device {name} is a PCI function: the new one must be one")
            with self._blaming(name):
                return self._exchange(name, old, made)

    def _made_again(self, name: str) -> PciDevice:
        if self._slots is None or name not in self.files:
            raise UserError(f"device {name} has no file of its own: give the new one")
        with self._blaming(name):
            load_anew(self.files[name])
        made = self._slots.make_again(name)
        assert isinstance(made, PciDevice)
        return made

    @contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """What a device of the user's raises is told with its file and line."""
        if name in self.files:
            with blaming(f"device {name}", self.files[name]):
                yield
        else:
            try:
                yield
            except UserError as error:
                raise UserError(f"device {name}: {error}") from None

    def _find(self, name: str) -> PciDevice:
        devices = self._board.devices
        if name not in devices:
            raise UserError(f"no device {name}: {there_are(name, sorted(devices))}")
        for function in self._board.pci.all_functions():
            device = inner(function)
            if device is devices[name] and not isinstance(device, (VirtioInput, PciBridge)):
                return function
        raise UserError(
            f"device {name} cannot be replaced: only PCI functions can, but for root ports and what gives input"
        )

    def _exchange(self, name: str, old: PciDevice, new: PciDevice) -> list[str]:
        bus = self._board.pci.bus_of(old)
        assert bus is not None
        try:
            left = replacing.replace(bus, old, new)
        except ValueError as error:
            with suppress(Exception):
                new.close()
            raise UserError(f"it stays what it was, for its driver would find another: {error}") from None
        newer = self._board.parts.newer
        newer[:] = [part for part in newer if part is not old] + [new]
        assert self._slots is not None
        self._slots.replaced(name, new)
        old.close()
        return left
