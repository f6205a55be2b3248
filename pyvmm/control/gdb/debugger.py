"""What gdb does to a machine: stops it, lets it go on, steps a vCPU, looks where it stopped.

While gdb has it stopped the machine is paused, so that its clocks stand. A step runs one vCPU alone in the paused
machine, with its interrupts held: no timer goes off meanwhile, as under QEMU. Where other threads are to go on too, or
the vCPU has halted and an interrupt must come, all of it goes on, and that vCPU stops after its instruction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from kvm_cffi import KvmError, System, Vcpu, constants, exits
from kvm_cffi.exits import Debug
from pyvmm.control.gdb.points import Point, Points
from pyvmm.control.gdb.port_trap import OUT, PortTrap, may_stand
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.machine import Machine
from pyvmm.memory import GuestMemoryError
from pyvmm.report.cpu import Cpu
from pyvmm.units import PAGE_SIZE
from pyvmm.vcpu.debugging import BP, DR6_BS, debug_registers, inject, probe
from pyvmm.vcpu.sample import linear_rip

SIGINT, SIGTRAP = 2, 5
"""Signals by gdb's own numbers (the gdb manual, E.15)."""
REASON: Final = "gdb"
HLT: Final = b"\xf4"
PATIENCE: Final = 10.0
"""Seconds that a vCPU gets to stand still after its step."""


@dataclass(frozen=True)
class Stop:
    """vCPU number *vcpu* has stopped; *detail* goes into the stop reply, as `hwbreak:;`."""

    vcpu: int
    signal: int = SIGTRAP
    detail: str = ""
    address: int | None = None
    """Of the instruction breakpoint that it is."""


class Debugger:
    """One client's hold on *machine*. *wake* is called, from any thread, when take_stop() may have something.

    Its methods are the server's, called by its own thread.
    """

    def __init__(self, machine: Machine, wake: Callable[[], None]) -> None:
        self.machine = machine
        self._wake = wake
        self._group = machine.life.cpus
        with System() as system:
            self.abilities = probe(system)
        self.current = 0
        """The vCPU that g, p, m and the like are about."""
        self._port = PortTrap(machine.board.pio, self._at_port)
        self._at_out: set[int] = set()
        """The vCPUs that have executed one, and are to go back to it."""
        self.points = Points(
            self.abilities, machine.memory, lambda linear: self._physical(self.cpu_now, linear), self._port_trap
        )
        self.running = False
        self._registers = debug_registers(())
        self._alone: int | None = None
        """The vCPU that steps in a machine that stands still."""
        self._steps: frozenset[int] = frozenset()
        self._woken: frozenset[int] = frozenset()
        """Those of them that have halted: an interrupt has to come, and all of the machine goes on for that."""
        self._stops: deque[Stop] = deque()
        self._watch = machine.events.add(self._event)

    # The machine

    def attach(self) -> Stop:
        """Stop it, as it is. Raises UserError."""
        self.machine.pause(REASON)
        self._group.debugger = self._debugged
        return Stop(0)

    def detach(self) -> None:
        """Leave nothing behind, and let it go on. Raises UserError where it does not stand still for that."""
        self._watch.remove()
        if self.running:
            self.interrupt()
        self.points.clear()
        self._steps = frozenset()
        self._arm()
        self._group.debugger = None
        self.machine.resume(REASON)
        self.machine.call(self._port.unmap)

    def go(self, steps: Iterable[int], everyone: bool) -> None:
        """Let vCPUs *steps* execute one instruction each, and with *everyone* all the others run."""
        self.running = True
        self._steps = frozenset(steps)
        everyone = everyone or not self._steps
        # Another vCPU may have stopped at the same moment: it is told, if its breakpoint is there still, when that one
        # is to go on.
        self._stops = deque(stop for stop in self._stops if self.points.has(stop.address))
        if self._stops and everyone:
            self._wake()
            return
        for number in self._steps:
            if self._halts(number):
                self._alone = number
                self._stops.append(Stop(number))
                self._wake()
                return
        self._woken = frozenset(number for number in self._steps if self._cpu(number).halted)
        self._arm()
        if everyone or self._woken:
            self._alone = None
            if self.machine.state == "built":
                self.machine.start()
            self.machine.resume(REASON)
        else:
            self._alone = min(self._steps)
            self._step_alone(self._alone)

    def _cpu(self, number: int) -> Cpu:
        thread = self._group.threads[number]
        return Cpu.of(thread.vcpu, self.machine.memory, thread.halted)

    def _halts(self, number: int) -> bool:
        """Whether it was at HLT, and has executed that: not by KVM, of which some leave the processor halted in the
        handler of the interrupt that comes next."""
        cpu = self._cpu(number)
        if cpu.halted or cpu.cpl or cpu.read(cpu.rip, 1) != HLT:
            return False
        thread = self._group.threads[number]
        vcpu = thread.vcpu
        vcpu.set_regs(replace(cpu.regs, rip=cpu.regs.rip + 1))
        vcpu.set_vcpu_events(replace(vcpu.get_vcpu_events(), interrupt_shadow=0))
        try:
            vcpu.set_mp_state(constants.KVM_MP_STATE_HALTED)
        except KvmError:  # without an in-kernel local APIC it sleeps in user space
            thread.halted = True
        return True

    def _step_alone(self, number: int) -> None:
        if self.machine.state == "built" or not self._group.threads[number].wait_until_standing(0):
            self.machine.start()
            self.machine.pause(REASON)
        thread = self._group.threads[number]
        thread.wait_until_standing(PATIENCE)
        thread.interrupts_held = True
        thread.release()

    def interrupt(self) -> Stop:
        """Ctrl-C: stop now. Raises UserError."""
        self._stand()
        self._stops.clear()
        return Stop(self.current, SIGINT)

    def take_stop(self) -> Stop | None:
        """Where it has stopped meanwhile: all of it stands still then. None where it runs on. Raises UserError."""
        stop = next((stop for stop in self._stops if self._alone in (None, stop.vcpu)), None)
        if not self.running or stop is None:
            return None
        self._stops.remove(stop)
        self._stand()
        self.current = stop.vcpu
        return stop

    def _stand(self) -> None:
        if self._alone is not None:
            thread = self._group.threads[self._alone]
            thread.hold()
            thread.wait_until_standing(PATIENCE)
            thread.interrupts_held = False
            self._alone = None
        else:
            self.machine.pause(REASON)
        self.running = False
        self._go_back()

    # KVM's side

    def _port_trap(self, linear: int) -> bool:
        """Under the machine lock."""
        try:
            return may_stand(self.cpu(), linear) and self._port.map()
        except KvmError:
            return False

    def _at_port(self) -> None:
        thread = next((thread for thread in self._group.threads if thread.is_current), None)
        if thread is None:
            return
        vcpu = thread.vcpu
        pc = linear_rip(vcpu.get_regs(), vcpu.get_sregs())
        # Some KVMs go on behind it when the exit is complete only.
        if any(self.points.is_patch(self._physical(vcpu, at), OUT) for at in (pc, pc - len(OUT))):
            self._at_out.add(vcpu.id)
            self._stopped(Stop(vcpu.id, detail="swbreak:;"))

    def _go_back(self) -> None:
        """All stand still, and are behind the OUT that they have executed: to where the instruction is."""
        for number in self._at_out:
            vcpu = self._group.vcpus[number]
            regs = vcpu.get_regs()
            at = linear_rip(regs, vcpu.get_sregs()) - len(OUT)
            if self.points.is_patch(self._physical(vcpu, at), OUT):
                vcpu.set_regs(replace(regs, rip=regs.rip - len(OUT)))
                # For go(), where it waits to be told.
                self._stops = deque(replace(s, address=at) if s.vcpu == number else s for s in self._stops)
        self._at_out.clear()

    def _control_of(self, number: int) -> int:
        control: int = constants.KVM_GUESTDBG_ENABLE
        if self.points.patched:
            control |= constants.KVM_GUESTDBG_USE_SW_BP
        if self.points.hardware:
            control |= constants.KVM_GUESTDBG_USE_HW_BP
        if self.points.stepped:
            control |= constants.KVM_GUESTDBG_SINGLESTEP
        if number in self._steps:
            control |= constants.KVM_GUESTDBG_SINGLESTEP
            if self.abilities.block_irq and number not in self._woken:
                control |= constants.KVM_GUESTDBG_BLOCKIRQ
        return 0 if control == constants.KVM_GUESTDBG_ENABLE else control

    def _arm(self) -> None:
        """While all stand still."""
        self._registers = debug_registers(self.points.hardware)
        for vcpu in self._group.vcpus:
            vcpu.set_guest_debug(self._control_of(vcpu.id), self._registers)

    def _debugged(self, vcpu: Vcpu, exit: Debug | exits.Hlt) -> None:
        """KVM_EXIT_DEBUG, in the vCPU's thread and under the machine lock; or KVM_EXIT_HLT, which takes the place of a
        step's."""
        if isinstance(exit, exits.Hlt):
            stop = Stop(vcpu.id) if vcpu.id in self._steps else None
        else:
            stop = self._meaning(vcpu, exit)
        if stop is not None:
            self._stopped(stop)

    def _stopped(self, stop: Stop) -> None:
        self._stops.append(stop)
        self._group.hold()
        self._wake()

    def _meaning(self, vcpu: Vcpu, exit: Debug) -> Stop | None:
        """None where the guest goes on: after an instruction that nobody waits for, or with an exception of its own."""
        number, points = vcpu.id, self.points
        if exit.exception == BP:
            if points.is_patch(self._physical(vcpu, exit.pc)):
                return Stop(number, detail="swbreak:;", address=exit.pc)
            inject(vcpu, self._control_of(number), BP)
            return None
        hits = exit.dr6 & 0xF
        for i, point in enumerate(points.hardware):
            if hits >> i & 1:
                if point.kind == "execute":
                    return Stop(number, detail="hwbreak:;", address=exit.pc)
                return Stop(number, detail=f"{'watch' if point.kind == 'write' else 'awatch'}:{point.address:x};")
        if number in self._steps:
            return Stop(number)
        if points.stepped and exit.dr6 & DR6_BS:
            if exit.pc in points.stepped:
                return Stop(number, detail="hwbreak:;", address=exit.pc)
            found = vcpu.translate(exit.pc)  # a quick look, for it is done after each instruction
            if found.valid and self._byte(found.physical_address) == HLT:
                self._halts(number)
            vcpu.set_guest_debug(self._control_of(number), self._registers)  # a POPF or IRET may have cleared TF
            return None
        inject(vcpu, self._control_of(number), exit.exception)
        return None

    def _byte(self, gpa: int) -> bytes:
        try:
            return self.machine.memory.read(gpa, 1)
        except GuestMemoryError:
            return b""

    def _event(self, event: MachineEvent) -> None:
        """In the loop, under the machine lock. After a reset and a restore the vCPUs still stand."""
        if event.kind in ("reset", "restored"):
            self.points.put_again()
            self._arm()  # other registers are in, and with them no TF
        elif event.kind == "ended":
            self._wake()

    # What the client looks at

    @property
    def count(self) -> int:
        """How many vCPUs there are."""
        return len(self._group.vcpus)

    def check(self, number: int | None) -> None:
        """ValueError where there is no such vCPU; None is any."""
        if number is not None and not 0 <= number < self.count:
            raise ValueError("no such vCPU")

    def select(self, number: int) -> None:
        """Make it the current one."""
        self.check(number)
        self.current = number

    def describe(self, number: int) -> str:
        """A vCPU in words."""
        cpu = self._cpu(number)
        return f"vCPU {number}, {'not started' if not cpu.started else 'halted' if cpu.halted else 'running'}"

    def insert(self, point: Point) -> None:
        """ValueError, Unsupported: see Points.add()."""
        self.machine.call(lambda: self.points.add(point))

    def remove(self, point: Point) -> None:
        self.machine.call(lambda: self.points.remove(point))

    @property
    def cpu_now(self) -> Vcpu:
        """The current one."""
        return self._group.vcpus[self.current]

    def cpu(self) -> Cpu:
        """The current vCPU, which stands still, as a report looks at it. Raises KvmError."""
        return self._cpu(self.current)

    def _physical(self, vcpu: Vcpu, linear: int) -> int | None:
        try:
            return Cpu.of(vcpu, self.machine.memory).walk(linear).physical
        except KvmError:
            return None

    def read(self, address: int, length: int, physical: bool = False) -> bytes:
        """What is at linear *address* by the current vCPU's page tables, or at guest *physical* address; fewer bytes
        where RAM ends or a page is not mapped. No device is read."""
        cpu, out = self.cpu(), bytearray()
        for gpa, size in _pieces(cpu, address, length, physical):
            if gpa is None:
                break
            try:
                out += self.points.hide(gpa, self.machine.memory.read(gpa, size))
            except GuestMemoryError:
                break
        return bytes(out)

    def write(self, address: int, data: bytes, physical: bool = False) -> None:
        """Write it there, into read-only pages too. ValueError where not all of it is RAM: nothing is written then."""
        pieces = list(_pieces(self.cpu(), address, len(data), physical))
        try:
            for gpa, size in pieces:
                if gpa is None:
                    raise ValueError("a page is not mapped")
                self.machine.memory.read(gpa, size)
            for gpa, size in pieces:
                assert gpa is not None
                self.points.write(gpa, data[:size])
                data = data[size:]
        except GuestMemoryError as error:
            raise ValueError(str(error)) from None


def _pieces(cpu: Cpu, address: int, length: int, physical: bool) -> Iterable[tuple[int | None, int]]:
    """Guest physical address and length of each piece that is in one page."""
    while length > 0:
        size = min(length, PAGE_SIZE - address % PAGE_SIZE)
        yield (address if physical else cpu.walk(address).physical), size
        address, length = address + size, length - size
