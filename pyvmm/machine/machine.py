"""The machine: what a script, a console, a debugger or a test holds. Its surface is closed: all else is its parts'.

    with Machine(MachineConfig(guest="keyboard")) as machine:
        machine.wait(lambda: "> " in machine.screen)
        machine.keyboard.type("echo Hello\\n")

Every method may be called from any thread. A condition, a callback of a tap and a function given to call() run under
the machine lock; what waits for the machine cannot be called from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kvm_cffi import Vcpu
from pyvmm.config import MachineConfig
from pyvmm.input.typist import Typist
from pyvmm.machine.build import Built, build
from pyvmm.machine.event import MachineEvent, State
from pyvmm.machine.inject import Hands, Keyboard, Mouse, Tablet
from pyvmm.machine.life import Life
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.snapshot import Progress, Snapshot, Snapshots
from pyvmm.memory import GuestMemory
from pyvmm.tap import Tap
from pyvmm.trace import Sink

if TYPE_CHECKING:
    from pyvmm.board.pc import Pc
    from pyvmm.device_spec import DeviceSpec
    from pyvmm.machine.replacing import Replacer
    from pyvmm.machine.saved import Saved
    from pyvmm.machine.translation import Translated
    from pyvmm.screen.screen import Screen

T = TypeVar("T")
_numbers = count(1)


class Machine:
    """A PC as *config* says, built and ready to start; a context manager, which closes it. Raises UserError for what
    the user got wrong or this host lacks.

    *trace_sink* gets the lines of the trace as (nanoseconds of CLOCK_MONOTONIC, channel, message); without it they go
    to standard error.

    What it has beside its methods:

      config      the MachineConfig, every default chosen
      serial      add(callback) -> handle: bytes that the guest sends on COM1 and the debug console; handle.remove()
      events      the same for MachineEvent(kind, message): started, paused, resumed, reset, snapshot, ended …
      keyboard    type(text), press(*names), key(code, value): 1 down, 0 up, codes as Linux's KEY_*
      mouse       move(dx, dy) in counts, button(code, value), wheel(vertical, horizontal) in clicks
      tablet      move(x, y), each 0 to 32767
      memory      guest RAM by guest physical address, lengths in bytes: read(gpa, length), write(gpa, data), read_int,
                  view; GuestMemoryError where there is none
      vcpus       kvm_cffi.Vcpu by number: get_regs(), get_sregs() …, while they stand still: paused, or ended
      trace       on(*names), off(*names), names, enabled; UserError for a channel that there is not
      typist      what keyboard types with: stop(), waiting
      parts       what was plugged in, by id or kind, and the board's own by name: parts["vfio0"], parts["com1"]
      board       all of it: board.devices, board.parts; under the lock, by call()
    """

    def __init__(self, config: MachineConfig, trace_sink: Sink | None = None, saved: Saved | None = None) -> None:
        """*saved* is what restored() read: the machine goes on from there."""
        self.config = config = config.complete()
        self.serial: Tap[bytes] = Tap()
        """What the guest sends on COM1 and the debug console."""
        self._built: Built = build(config, self.serial, trace_sink, saved)
        life = self._built.life
        self.events: Tap[MachineEvent] = life.events
        self.trace = self._built.trace
        self.memory: GuestMemory = self._built.board.memory
        self.vcpus: list[Vcpu] = life.cpus.vcpus
        """Their registers may be asked for while they stand still: in a paused machine, or one that has ended."""
        self.typist = Typist(self.board.router)
        post = life.loop.post
        hands = Hands(self.board.router, post)
        self.keyboard = Keyboard(hands, post, self.typist, self.board.router)
        self.mouse = Mouse(hands)
        self.tablet = Tablet(hands)

    @classmethod
    def restored(cls, path: str | os.PathLike[str], devices: Sequence[object] | None = None) -> Self:
        """The machine that Snapshot.save() wrote, to go on where it was; docs/snapshots.md. *devices* are those of its
        configuration, in their order, where their files are elsewhere now. Raises UserError."""
        from pyvmm.machine.saved import Saved

        saved = Saved(os.fspath(path), devices)
        return cls(saved.config, saved=saved)

    @property
    def board(self) -> Pc:
        """The chips, buses and devices; they are touched under the machine lock only, by call()."""
        return self._built.board

    @property
    def parts(self) -> Mapping[str, Any]:
        """The devices that were asked for, by id or kind, and the parts of the board by name; what runs beside the
        machine is asked under the lock, by call()."""
        board = self.board
        own = {placement.name: placement.part for placement in board.parts if placement.part is not None}
        return own | board.devices

    @property
    def life(self) -> Life:
        """The loop, the threads and the states; what waits for the machine is better asked for by the methods here."""
        return self._built.life

    @property
    def snapshots(self) -> Snapshots:
        """What snapshot() and restore() do, for who is in the loop's thread already."""
        return self._built.snapshots

    @property
    def replacer(self) -> Replacer:
        """What replace() does, for who is in the loop's thread already."""
        return self._built.replacer

    # Its life

    @property
    def state(self) -> State:
        """built, running, paused or ended."""
        return self.life.state

    @property
    def outcome(self) -> Outcome | None:
        """How it ended: its end, value, message and report; None while it lives."""
        return self.life.outcome

    def start(self) -> None:
        """Start the guest, once, and return at once; run() and wait() do it by themselves. Raises RuntimeError where
        this host has no memory for a thread."""
        self.life.start()

    def run(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends, end() is called or *timeout* seconds have passed, which is an outcome too.

        Raises DeviceFault for a device of the user's that raises, UserError for a mistake that shows only now (a kernel
        that is gone at a reset) and inside a callback of the machine."""
        return self.life.run(timeout)

    def wait(self, condition: Callable[[], bool], timeout: float = 10.0) -> bool:
        """Whether *condition*, asked again and again under the machine lock, comes true before *timeout* seconds pass
        or the guest ends; the machine runs on. Raises UserError inside a callback of the machine, and what *condition*
        raises."""
        return self.life.wait(condition, timeout)

    def pause(self, reason: str = "user") -> None:
        """Let everything stand still, the guest's clocks too, until resume() of the same reason. Raises UserError where
        a device does not return within ten seconds (the machine runs on), and inside a callback of the machine."""
        self.life.pause(reason)

    def resume(self, reason: str = "user") -> None:
        """Go on, if no other reason is left; nothing where *reason* is none. Raises UserError inside a callback of the
        machine."""
        self.life.resume(reason)

    @contextmanager
    def paused(self, reason: str = "script") -> Iterator[None]:
        """`with machine.paused():` the machine stands still inside. Raises UserError as pause() does."""
        reason = f"{reason} {next(_numbers)}"  # its own: another's that ends first does not let this one go on
        self.life.pause(reason)
        try:
            yield
        finally:
            self.life.resume(reason)

    def reset(self) -> None:
        """Press the reset button: RAM stays, windows and scripts stay, the guest starts again, its files read anew.

        Inside a callback of the machine it is queued, and the guest executes nothing more before it. Raises UserError
        where what it boots is gone; that ends the machine."""
        self.life.reset()

    def snapshot(self, progress: Progress | None = None) -> Snapshot:
        """The machine as it is now, to go back to with restore(); it runs on. It takes the memory that the guest has
        touched (*progress* is told bytes done, of how many); a further one what was written since. Raises UserError
        where a device does not say what is to be kept of it, for want of memory, and inside a callback of the
        machine."""
        return self.life.while_standing("snapshot()", lambda: self.snapshots.take(progress))

    def restore(self, snapshot: Snapshot) -> None:
        """Make the machine what it was, any number of times and in any order; it runs on if it ran. Raises UserError
        for a snapshot of another machine, for a machine that has ended, and inside a callback of the machine."""
        self.life.while_standing("restore()", lambda: self.snapshots.go_back(snapshot))

    def replace(self, name: str, new: object | None = None) -> list[str]:
        """Put *new*, or the device made again of its file as it is now, in the place of device *name*; docs/devices.md.
        What of STATE did not go over is returned. Raises UserError, and the old one goes on."""
        return self.life.while_standing("replace()", lambda: self.replacer.replace(name, new))

    def plug(self, device: str | DeviceSpec | object) -> Any:
        """Plug in what `--device` would ("virtio-net,to=user,id=n1"), or a device that you have made, and return
        it; the guest is told. A "cpu" comes back by its name. docs/hotplug.md. Raises UserError, and nothing has
        changed."""
        return self.life.while_standing("plug()", lambda: self._built.plugger.plug(device))

    def unplug(self, name: str, force: bool = False) -> bool:
        """Ask the guest to let go of device *name*: false, and the event "unplugged" comes when it has. True where it
        is gone at once: by *force* from behind a root port, or before the machine has started. Raises UserError where
        the guest could not let go of it."""
        return self.life.while_standing("unplug()", lambda: self._built.plugger.unplug(name, force))

    def end(self, outcome: Outcome | None = None) -> None:
        """End it, with QUIT where no *outcome* is given; the first outcome stands. From a signal handler and inside a
        callback too."""
        self.life.end(outcome or Outcome(End.QUIT))

    def call(self, function: Callable[[], T]) -> T:
        """Run *function* under the machine lock, between two callbacks, and return what it returns: the one way to the
        board's parts from outside. Raises what it raises, and UserError where the machine ends meanwhile."""
        return self.life.call(function)

    # What a person does and sees

    def power_button(self) -> None:
        """Press the power button: a guest with an ACPI driver shuts down, another one takes no notice; one that sleeps
        wakes."""

        def press() -> None:
            self.events(MachineEvent("power-button"))
            self.board.acpi_pm.power_button()

        self.life.loop.post(press)

    def sleep_button(self) -> None:
        """Press the sleep button: a guest with an ACPI driver goes to sleep if it wants to; one that sleeps wakes."""

        def press() -> None:
            self.events(MachineEvent("sleep-button"))
            self.board.acpi_pm.sleep_button()

        self.life.loop.post(press)

    def nmi(self) -> None:
        """The NMI button: every vCPU gets one, unless the guest has masked NMIs through port 0x70."""

        def press() -> None:
            self.life.cpus.catch_up()  # port 0x70 is one of those whose writes are gathered
            if not self.board.nmi_masked:
                self.life.cpus.nmi()

        self.life.call(press)

    @property
    def screen(self) -> Screen:
        """The guest's screen as it is now, 80 by 25 characters as a rule: "> " in it, text() by rows, png(path)."""
        from pyvmm.screen.screen import Screen

        def take() -> Screen:
            self.life.cpus.catch_up()
            return Screen.of(self.board.vga)

        return self.life.call(take)

    def translate(self, address: int, vcpu: int = 0) -> Translated:
        """Where linear *address* is in guest physical memory by the page tables of vCPU number *vcpu*, and where that
        is in this host's; str() of it shows the way, docs/passthrough.md. It stands still meanwhile: raises UserError
        as pause() does, IndexError for no such vCPU."""
        from pyvmm.machine.translation import translate

        with self.paused("translate"):
            return translate(self.board, self.vcpus[vcpu], address)

    def close(self) -> None:
        """End it if it has not ended, and give everything back: threads, descriptors, memory. Once is enough; `with`
        does it. Raises DeviceFault for a device of the user's whose close() raises, UserError inside a callback of the
        machine."""
        self.life.outside("close()")
        self.end()
        self._built.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
