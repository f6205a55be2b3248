"""What is told of a machine that has ended badly: the cause in words, and the page of the vCPU that it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvm_cffi import Exit, KvmError, Vcpu
from kvm_cffi.exits import FailEntry, InternalError, Shutdown, SystemEvent
from pyvmm.board.layout import COM1, DEBUGCON
from pyvmm.machine.outcome import End
from pyvmm.report import cures
from pyvmm.report.activity import activities, sample_line, silent
from pyvmm.report.cause import triple_fault
from pyvmm.report.cpu import Cpu
from pyvmm.report.kaslr import find_shift
from pyvmm.report.page import Context, fit, page, wrap

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory
    from pyvmm.report.symbols import Symbols
    from pyvmm.vcpu.sample import Sample
    from pyvmm.vcpu.thread import VcpuThread

PANIC_LINES: Final = 24
"""Of the kernel's own text."""


@dataclass(frozen=True)
class Death:
    """Who died of what: the vCPU, and its last exit or what KVM_RUN raised."""

    vcpu: Vcpu
    reason: Exit | KvmError


def report(
    end: End,
    death: Death | None,
    threads: Sequence[VcpuThread],
    memory: GuestMemory,
    symbols: Symbols | None,
    samples: Mapping[int, Sequence[Sample]],
    panic: Sequence[str],
) -> str:
    """All of it, while no vCPU runs. *panic* is what a kernel has said of its end on its console."""
    cpus = []
    for thread in threads:
        try:
            cpus.append(Cpu.of(thread.vcpu, memory, thread.halted))
        except KvmError as error:  # KVM refuses every call to a VM that it has given up
            if death is None or thread.vcpu is death.vcpu:
                cause = f"{cures.run_error(death.reason)}\n" if death and isinstance(death.reason, KvmError) else ""
                return f"{cause}vCPU {thread.vcpu.id}: {error}"
    if symbols is not None:
        find_shift(cpus, memory, symbols)
    if death is not None:
        cpu = next(cpu for cpu in cpus if cpu.number == death.vcpu.id)
        return "\n".join([*wrap(_cause(death.reason, cpu, symbols)), *page(cpu, _context(death.reason, symbols))])
    doing = wrap(activities(cpus, samples, symbols))
    if end is End.PANIC and panic:
        return "\n".join([*doing, *fit(panic)])
    cpu = _most_active(cpus)
    looks = silent(samples.get(cpu.number, ())) if cpu.started and not cpu.halted else ()
    seen = wrap(sample_line(looks, symbols)) if looks else []
    return "\n".join([*doing, *seen, *page(cpu, _context(None, symbols))])


def _most_active(cpus: Sequence[Cpu]) -> Cpu:
    return next((cpu for cpu in cpus if cpu.started and not cpu.halted), cpus[0])


def _cause(reason: Exit | KvmError, cpu: Cpu, symbols: Symbols | None) -> str:
    match reason:
        case Shutdown():
            return triple_fault(cpu, symbols)
        case FailEntry():
            return cures.failed_entry(reason, cpu)
        case InternalError():
            return cures.internal_error(reason, cpu)
        case KvmError():
            return cures.run_error(reason)
        case SystemEvent():
            return "the guest has told KVM that it crashed"
        case _:
            return f"pyvmm does not know what this exit of KVM's asks for: {reason}"


def _context(reason: Exit | KvmError | None, symbols: Symbols | None) -> Context:
    insn = reason.insn_bytes if isinstance(reason, InternalError) else b""
    return Context(symbols, insn, faulted=reason is not None, uarts=(COM1,), consoles=(DEBUGCON,))


def shortened(lines: Sequence[str]) -> list[str]:
    """A panic that fits the screen: its beginning and its end."""
    if len(lines) <= PANIC_LINES:
        return list(lines)
    head = PANIC_LINES // 2
    tail = PANIC_LINES - head - 1
    return [*lines[:head], f"… {len(lines) - head - tail} lines …", *lines[-tail:]]
