"""From exec to the first KVM_RUN of the default guest, and where that time goes."""

from __future__ import annotations

import re
import subprocess
import time
from collections import defaultdict
from statistics import median
from typing import Final

from benchmarks.document import table
from benchmarks.programs import INSTALLED, PYVMM, BenchError, compiled, output_of, say
from benchmarks.stats import in_turn, spread

GOAL_MS: Final = 120
KVM_GET_API_VERSION, KVM_CREATE_VCPU, KVM_RUN = 0xAE00, 0xAE41, 0xAE80  # <linux/kvm.h>
IMPORT = re.compile(r"^import time: *(\d+) \| *(\d+) \| ( *)(\S+)$", re.MULTILINE)
STEPS = """
import time
marks = [time.monotonic_ns()]
from pyvmm.cli.arguments import make_config
from pyvmm.cli.parser import make_parser
marks.append(time.monotonic_ns())
config = make_config(make_parser().parse_args(["run"]))
marks.append(time.monotonic_ns())
import pyvmm.cli.run
marks.append(time.monotonic_ns())
with pyvmm.cli.run.Machine(config):
    marks.append(time.monotonic_ns())
print(*marks)
"""
"""What `pyvmm run` does until its vCPUs start, with the clock read between."""


def calls(output: str) -> list[tuple[int, float]]:
    """What kvm_calls prints: the requests and when each was made, in milliseconds."""
    return [(int(request, 16), int(at) / 1e6) for request, at in (line.split() for line in output.splitlines())]


def at(trace: list[tuple[int, float]], request: int) -> float:
    """When *request* was first made; BenchError if it never was."""
    for made, when in trace:
        if made == request:
            return when
    raise BenchError(f"pyvmm made no ioctl {request:#x}")


def self_times(text: str) -> dict[str, float]:
    """From what `-X importtime` says: milliseconds a module, without what it imports itself."""
    return {name: int(own) / 1000 for own, _, _, name in IMPORT.findall(text)}


def groups(modules: dict[str, float]) -> dict[str, float]:
    """The same by package: those of ours each, everything else as the standard library."""
    sums: dict[str, float] = defaultdict(float)
    packages = {".".join(name.split(".")[:2]) for name in modules if name.count(".") > 1}
    for name, own in modules.items():
        parts = name.split(".")
        if parts[0] == "pyvmm":
            package = ".".join(parts[:2])
            sums[package if package in packages else "pyvmm"] += own
        elif parts[0] in ("kvm_cffi", "_cffi_backend"):
            sums["kvm_cffi"] += own
        else:
            sums["the standard library"] += own
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def steps() -> list[float]:
    """One run of STEPS: milliseconds from just before the start of Python to each mark."""
    start = time.monotonic_ns()
    return [(int(mark) - start) / 1e6 for mark in output_of([INSTALLED / "python", "-P", "-c", STEPS], 0).split()]


def import_times() -> dict[str, float]:
    code = "from pyvmm.cli.arguments import *; make_config(make_parser().parse_args(['run'])); import pyvmm.cli.run"
    done = subprocess.run(
        [INSTALLED / "python", "-P", "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    return self_times(done.stderr)


def measure(rounds: int) -> str:
    tracer = compiled("kvm_calls")
    traces: list[list[tuple[int, float]]] = []
    marks: list[list[float]] = []
    imports: list[dict[str, float]] = []

    def traced() -> float:
        traces.append(calls(output_of([tracer, PYVMM, "run"], 0)))
        return at(traces[-1], KVM_RUN)

    def stepped() -> float:
        marks.append(steps())
        return marks[-1][-1]

    def imported() -> float:
        imports.append(import_times())
        return sum(imports[-1].values())

    traced()  # what is not in the page cache yet is not pyvmm's
    traces.clear()
    total = in_turn({"exec to KVM_RUN": traced, "steps": stepped, "imports": imported}, rounds, say)["exec to KVM_RUN"]
    first_call = [at(trace, KVM_GET_API_VERSION) for trace in traces]
    vcpu = [at(trace, KVM_CREATE_VCPU) for trace in traces]
    half = median(total)
    rows = [
        ["**exec to the first KVM_RUN**", f"**{spread(total, 0)}**"],
        ["exec to the first KVM ioctl: Python and imports", spread(first_call, 0)],
        ["from there to KVM_CREATE_VCPU: the VM, its irqchip, RAM and devices", between(first_call, vcpu)],
        ["from there to KVM_RUN: the vCPU, the guest's image, the thread", between(vcpu, total)],
    ]
    text = table(["", "ms (least–most)"], rows)
    text += f"\n\nGoal: at most {GOAL_MS} ms; {'met' if half <= GOAL_MS else 'missed'}.\n\n"
    text += "The same steps in a process that reads the clock between them:\n\n"
    names = ["Python itself, to its first line", "import pyvmm.cli.arguments", "arguments to MachineConfig"]
    names += ["import pyvmm.cli.run, and with it the machine", "Machine(config)"]
    columns = list(zip(*[[0.0, *run] for run in marks], strict=True))
    text += table(["", "ms"], [[n, between(a, b)] for n, a, b in zip(names, columns, columns[1:], strict=False)])
    text += (
        "\n\nThe imports, by package, without what each imports itself (`python -X importtime`, itself not free):\n\n"
    )
    mean = {name: median(group.get(name, 0.0) for group in map(groups, imports)) for name in groups(imports[0])}
    return text + table(["", "ms"], [[f"{name}", f"{own:.1f}"] for name, own in mean.items() if own >= 0.5])


def between(earlier: list[float] | tuple[float, ...], later: list[float] | tuple[float, ...]) -> str:
    """The spread of the differences, a round each."""
    return spread([end - start for start, end in zip(earlier, later, strict=True)], 1)
