"""Putting a machine together: KVM, RAM, the board, the vCPUs, and what it boots."""

from __future__ import annotations

import errno
import resource
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyvmm.board.memslots import Ram
from pyvmm.board.pc import Pc
from pyvmm.boot.entry import CpuState
from pyvmm.config import ConfigError, MachineConfig
from pyvmm.errors import UserError, there_are
from pyvmm.machine.cpus import CpuPlugger
from pyvmm.machine.identity import Identity
from pyvmm.machine.kvm import open_kvm
from pyvmm.machine.life import Life
from pyvmm.machine.outcome import DeviceFault
from pyvmm.machine.payload import Payload
from pyvmm.machine.plugging import Plugger
from pyvmm.machine.snapshot import Snapshots
from pyvmm.machine.verdicts import Verdicts
from pyvmm.tap import Tap
from pyvmm.trace import Sink, Trace
from pyvmm.vcpu.cpuid import guest_cpuid, phys_bits
from pyvmm.vcpu.group import VcpuGroup
from pyvmm.vcpu.kernel_time import KernelTime
from pyvmm.vcpu.model import CpuModel
from pyvmm.vcpu.observer import ExitTrace, Observer, RunTrace
from pyvmm.vcpu.registers import set_cpu_state, virtual_wire

if TYPE_CHECKING:
    from pyvmm.machine.replacing import Replacer
    from pyvmm.machine.saved import Saved
    from pyvmm.machine.slots import Slots

OTHER_CHANNELS: Final = ("evdev", "exits", "kvm-run", "x11")
"""Those that are not the board's: of what ties the machine to this host, later, and of the vCPUs."""


@dataclass
class Built:
    """The parts of a machine that is ready to start."""

    life: Life
    board: Pc
    verdicts: Verdicts
    snapshots: Snapshots
    trace: Trace
    plugger: Plugger
    resources: ExitStack

    @property
    def replacer(self) -> Replacer:
        from pyvmm.machine.replacing import Replacer

        return Replacer(self.life, self.board, self.plugger.slots)

    def close(self) -> None:
        """Everything back, after the end; once is enough. Raises DeviceFault for a device that raises."""
        self.life.join()
        try:
            self.resources.close()
        except BaseException as error:
            from pyvmm.machine import fault

            outcome = fault.outcome_of(error, self.board.pci)
            if outcome is None:
                raise
            raise DeviceFault(outcome) from error


def build(config: MachineConfig, serial: Tap[bytes], trace_sink: Sink | None, saved: Saved | None = None) -> Built:
    """A machine as *config* says, which *saved* has: it goes on where that stood. Raises UserError."""
    config = config.complete()
    try:
        with ExitStack() as resources:
            if saved is not None:
                resources.callback(saved.close)
            return _build(config, serial, trace_sink, saved, resources)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        fewer = ", or ask for fewer vCPUs, each of which takes one" if config.possible_cpus > 1 else ""
        raise UserError(
            f"the machine needs more than the {most} descriptors that this process may have: raise ulimit -n{fewer}"
        ) from None


def _build(
    config: MachineConfig, serial: Tap[bytes], trace_sink: Sink | None, saved: Saved | None, resources: ExitStack
) -> Built:
    keep = resources.callback
    life = Life()
    keep(life.loop.close)
    verdicts = Verdicts(config, life, serial)
    trace = Trace(config.trace, trace_sink)
    system = open_kvm()
    keep(system.close)
    image = None if saved is None else saved.image
    ram = Ram(config.ram_size, shared=config.memory_shared, hugetlb=config.memory_hugetlb, image=image)
    keep(ram.close)
    vm = system.create_vm()
    keep(vm.close)
    cpuid = guest_cpuid(
        system.get_supported_cpuid(),
        config.possible_cpus,
        local_apic=config.irqchip != "user",
        tsc_deadline=bool(system.check_extension("KVM_CAP_TSC_DEADLINE_TIMER")),
        model=CpuModel.parse(config.cpu),
    )
    if saved is not None:
        cpuid = saved.check_cpuid(cpuid)
        saved.fill(ram.regions)
    board = Pc(config, vm, ram, phys_bits(cpuid), life.loop, life.clock, trace, verdicts)
    whole = False

    def close_board() -> None:
        try:
            with life.lock:  # a device's close() is called as all else of it
                board.close()
        except BaseException:
            if whole:
                raise  # else what has kept the machine from being made is told

    keep(close_board)
    slots = furnish(board)
    if saved is not None and board.banks is not None:
        saved.fill_plugged(board.memory.ram, board.banks.file_offsets())
    cpus = VcpuGroup(
        system,
        vm,
        config.possible_cpus,
        cpuid,
        lock=life.lock,
        pio=board.pio,
        mmio=board.mmio,
        machine=verdicts,
        on_error=verdicts.on_vcpu_error,
        pic=board.irqchip.pic,
        local_apic=board.irqchip.local_apic,
        irq_trace=trace.channel("irq"),
        asked_by="cpus" if config.max_cpus is None else "max_cpus",
    )
    keep(cpus.close)
    if saved is not None:
        saved.set_tsc(cpus.vcpus, bool(system.check_extension("KVM_CAP_TSC_CONTROL")))
    cpus.made = cpus.save()
    payload = Payload(config)
    payload.map_rom(board.memory)
    if saved is None:
        _start_at(cpus, board, payload.load(board, fresh=True))

    def restart() -> None:
        with life.lock:
            cpus.drain_coalesced()
            plugger.finish()
            board.reset()
            cpus.asleep = False
            cpus.load(cpus.made)
            _start_at(cpus, board, payload.load(board, fresh=False))
            verdicts.restarted()

    check_channels(trace, board)
    observe_exits(cpus, board, trace)
    time = KernelTime(vm, cpus.vcpus, local_apic=board.irqchip.local_apic, pit=config.irqchip == "kernel")

    def begin_at(state: CpuState) -> None:
        cpus.load(cpus.made)
        _start_at(cpus, board, state)

    verdicts.adopt(cpus, board, begin_at)
    life.adopt(cpus, time, restart, board, verdicts.report, verdicts.on_error)
    plugger = Plugger(life, board, slots, CpuPlugger(life, board, time))
    whole = True
    identity = Identity(config, cpuid, cpus.vcpus[0].get_tsc_khz())
    snapshots = Snapshots(life, board, verdicts, time, identity, saved, plugger)
    if saved is not None:
        state = saved.state
        with saved.blaming():
            life.stand_until_started(lambda: snapshots.begin_with(state))
    return Built(life, board, verdicts, snapshots, trace, plugger, resources.pop_all())


def check_channels(trace: Trace, board: Pc) -> None:
    """Raises ConfigError for a channel that the user asked for and that a whole machine has not made."""
    for name in OTHER_CHANNELS:
        trace.channel(name)
    for name in board.channels:
        trace.channel(name)
    if trace.unknown:
        what = there_are(trace.unknown[0], ["all", *trace.names])
        raise ConfigError(f"there is no such channel; {what}", {"trace": frozenset(trace.unknown)})


def observe_exits(cpus: VcpuGroup, board: Pc, trace: Trace) -> None:
    """Let those channels see exits that tell of them, while they are on."""
    whole = RunTrace(trace.channel("kvm-run")), ExitTrace(trace.channel("exits"))
    accesses: Observer | None = None

    def follow() -> None:
        nonlocal accesses
        for observer in whole:
            (cpus.observe if observer.wanted else cpus.unobserve)(observer)
        wanted = not board.channels.isdisjoint(trace.enabled)
        if wanted and accesses is None:
            from pyvmm.board.access_trace import AccessTrace  # only who watches has to wait for it

            accesses = AccessTrace(board, trace)
        if accesses is not None:
            (cpus.observe if wanted else cpus.unobserve)(accesses)

    trace.watch(follow)


def furnish(board: Pc) -> Slots | None:
    """Add to *board* what the user adds, if anything, and place all BARs; raises UserError."""
    config, slots = board.config, None
    if config.root_ports or config.devices or config.rng:
        from pyvmm.machine.slots import plug_in

        slots = plug_in(config, board)
    board.hotplug.settle([] if slots is None else list(slots.functions.values()))
    board.assign_pci_resources()
    return slots


def _start_at(cpus: VcpuGroup, board: Pc, state: CpuState) -> None:
    boot_cpu = cpus.vcpus[0]
    set_cpu_state(boot_cpu, state)
    if board.irqchip.local_apic:
        boot_cpu.set_lapic(virtual_wire(boot_cpu.get_lapic()))
