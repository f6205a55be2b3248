"""What a vCPU was doing when the machine ended: spinning, polling, halted; on a line for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from kvm_cffi import constants
from pyvmm.report.cpu import RFLAGS_IF, Cpu
from pyvmm.report.symbols import Symbols
from pyvmm.units import PAGE_SIZE
from pyvmm.vcpu.sample import Sample

POLLS: Final = 8
"""So many of the last exits must be the same read."""
RECENT: Final = 6
"""So many of the looks tell what it does now, where there were exits between."""
SILENT: Final = 3
"""So many looks must have found no new exit."""


def activities(cpus: Sequence[Cpu], samples: Mapping[int, Sequence[Sample]], symbols: Symbols | None) -> str:
    """All of *cpus*, those that do the same together; *samples* by the vCPU's number."""
    by_text: dict[str, list[int]] = {}
    for cpu in cpus:
        by_text.setdefault(activity(cpu, samples.get(cpu.number, ()), symbols), []).append(cpu.number)
    return "; ".join(f"{_who(numbers)} {text}" for text, numbers in by_text.items())


def _who(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"vCPU {numbers[0]}"
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"vCPUs {numbers[0]}-{numbers[-1]}"
    return f"vCPUs {', '.join(map(str, numbers))}"


def activity(cpu: Cpu, samples: Sequence[Sample], symbols: Symbols | None) -> str:
    """In words, without its number."""
    if not cpu.started:
        return "waits to be started"
    if cpu.halted:
        return f"halted with interrupts {'on' if cpu.regs.rflags & RFLAGS_IF else 'off'}"
    polled = _polled(cpu)
    if polled:
        return f"polls {polled} at {_place(cpu.rip, symbols)}"
    still = silent(samples)
    if still:
        return _spinning(still, symbols)
    name = _function(samples[-RECENT:], symbols)
    if name:
        return f"runs in {name}"
    return f"runs at {_place(cpu.rip, symbols)}"


def silent(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The latest of them between which there was no exit; none where those are fewer than SILENT."""
    count = sum(1 for sample in samples if sample.exits == samples[-1].exits)
    return samples[-count:] if count >= SILENT else ()


def sample_line(samples: Sequence[Sample], symbols: Symbols | None) -> str:
    """Where RIP was, look by look."""
    places = [(symbols.describe(s.rip) if symbols is not None else "") or f"{s.rip:#x}" for s in samples]
    return f"RIP {len(samples)} times, no exit between: {' '.join(places)}"


def _polled(cpu: Cpu) -> str:
    last = cpu.records[-POLLS:]
    if len(last) < POLLS or len({(r.reason, r.address, r.is_write) for r in last}) > 1 or last[0].is_write:
        return ""
    if last[0].reason == constants.KVM_EXIT_IO:
        return f"port {last[0].address:#x}"
    return f"MMIO {last[0].address:#x}" if last[0].reason == constants.KVM_EXIT_MMIO else ""


def _function(samples: Sequence[Sample], symbols: Symbols | None) -> str:
    """Where most looks found it, for an interrupt may have come between; empty where that is in no one function."""
    if symbols is None or len(samples) < SILENT:
        return ""
    names = Counter(symbols.describe(sample.rip).partition("+")[0] for sample in samples)
    name, count = names.most_common(1)[0]
    return name if count > len(samples) // 2 else ""


def _spinning(samples: Sequence[Sample], symbols: Symbols | None) -> str:
    """In a function, or in a page's length."""
    name = _function(samples, symbols)
    if name:
        return f"spins in {name}"
    rips = [sample.rip for sample in samples]
    low, high = min(rips), max(rips)
    if high - low >= PAGE_SIZE:
        return "runs without an exit"
    return f"spins in {low:#x}-{high:#x}" if low != high else f"spins at {low:#x}"


def _place(address: int, symbols: Symbols | None) -> str:
    return (symbols.describe(address) if symbols is not None else "") or f"{address:#x}"
