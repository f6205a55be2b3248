"""What is told of a machine that ended badly: which vCPU, in which words, how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvm_cffi import ExitRecord, KvmError, Regs, Sregs, constants
from kvm_cffi.exits import ExceptionExit, InternalError, Shutdown, SystemEvent
from pyvmm.machine.autopsy import Death, report
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.sampling import LOOKS, Sampler
from pyvmm.vcpu.sample import Sample
from tests.rig.paged import CODE, Paged

RUNNABLE, HALTED, WAITS = (
    constants.KVM_MP_STATE_RUNNABLE,
    constants.KVM_MP_STATE_HALTED,
    constants.KVM_MP_STATE_UNINITIALIZED,
)


@dataclass
class FakeVcpu:
    id: int
    paged: Paged
    mp_state: int = RUNNABLE
    error: KvmError | None = None
    exits: int = 3

    def get_regs(self) -> Regs:
        if self.error is not None:
            raise self.error
        return self.paged.regs

    def get_sregs(self) -> Sregs:
        return self.paged.sregs

    def get_mp_state(self) -> int:
        return self.mp_state

    def last_exits(self) -> list[ExitRecord]:
        return [ExitRecord(2, constants.KVM_EXIT_HLT, 0, 0, 0, False, 0)]


@dataclass
class FakeThread:
    vcpu: FakeVcpu
    halted: bool = False

    def call(self, function: Any) -> None:
        function()


def machine(*states: int, errors: dict[int, KvmError] | None = None) -> list[FakeThread]:
    paged = Paged().code(b"\xeb\xfe")
    return [FakeThread(FakeVcpu(n, paged, state, (errors or {}).get(n))) for n, state in enumerate(states)]


def told(threads: list[FakeThread], end: End, death: Death | None = None, **more: Any) -> list[str]:
    fields = {"symbols": None, "samples": {}, "panic": (), **more}
    memory = threads[0].vcpu.paged.memory
    return report(end, death, threads, memory, **fields).split("\n")  # type: ignore[arg-type]


def test_a_timeout_is_about_the_vcpu_that_runs() -> None:
    samples = {1: [Sample(CODE, 3)] * 5}
    lines = told(machine(HALTED, RUNNABLE, WAITS), End.TIMEOUT, samples=samples)
    assert lines[0] == "vCPU 0 halted with interrupts off; vCPU 1 spins at 0x10000; vCPU 2 waits to be started"
    assert lines[1] == "RIP 5 times, no exit between: 0x10000 0x10000 0x10000 0x10000 0x10000"
    assert lines[2] == "vCPU 1: 64-bit long mode, paging on, CPL 0"


def test_a_timeout_where_all_have_halted() -> None:
    lines = told(machine(HALTED, HALTED), End.TIMEOUT, samples={0: [Sample(CODE, 3)] * 5})
    assert lines[:2] == ["vCPUs 0, 1 halted with interrupts off", "vCPU 0: 64-bit long mode, paging on, CPL 0"]


def test_who_died() -> None:
    threads = machine(RUNNABLE, RUNNABLE)
    for reason, cause in (
        (Shutdown(), "an exception at RIP 0x10000, no IDT: triple fault"),
        (InternalError(4, (0x4A,), b""), "KVM does not know exit reason 0x4a: "),
        (KvmError(12, "KVM_RUN"), "the host has no memory left for it: "),
        (SystemEvent(3, ()), "the guest has told KVM that it crashed"),
        (ExceptionExit(6, 0), "pyvmm does not know what this exit of KVM's asks for: ExceptionExit("),
    ):
        lines = told(threads, End.INTERNAL_ERROR, Death(threads[1].vcpu, reason))  # type: ignore[arg-type]
        assert lines[0].startswith(cause)
        assert "vCPU 1: 64-bit long mode, paging on, CPL 0" in lines[1:3]


def test_the_kernels_own_text() -> None:
    panic = ["Kernel panic - not syncing: x\x1b[2J", "y" * 200]
    lines = told(machine(RUNNABLE), End.PANIC, panic=panic, samples={0: [Sample(CODE, 3)] * 3})
    assert lines == ["vCPU 0 spins at 0x10000", "Kernel panic - not syncing: x\\x1b[2J", "y" * 99 + "…"]


def test_a_vm_that_kvm_has_given_up() -> None:
    error = KvmError(5, "KVM_GET_REGS")
    threads = machine(RUNNABLE, RUNNABLE, errors={0: error, 1: error})
    lines = told(threads, End.INTERNAL_ERROR, Death(threads[1].vcpu, KvmError(5, "KVM_RUN")))  # type: ignore[arg-type]
    assert lines[0].startswith("KVM has given this VM up") and lines[1] == "vCPU 1: KVM_GET_REGS: Input/output error"
    assert told(threads, End.TIMEOUT) == ["vCPU 0: KVM_GET_REGS: Input/output error"]


@dataclass
class FakeLoop:
    armed: list[Any] = field(default_factory=list)

    def timer(self, callback: Any) -> Any:
        self.armed.append(callback)
        return self

    def arm(self, deadline: int) -> None:
        pass

    def now(self) -> int:
        return 0


class FakeLife:
    def __init__(self, threads: list[FakeThread]) -> None:
        self.loop = FakeLoop()
        self.cpus = type("Cpus", (), {"seated": threads})()
        self.ended: list[object] = []
        self.end = self.ended.append


def test_five_looks_and_then_the_end() -> None:
    life = FakeLife(machine(RUNNABLE, RUNNABLE, errors={1: KvmError(5, "KVM_GET_REGS")}))
    sampler = Sampler(life)  # type: ignore[arg-type]
    sampler.look_and_end(Outcome(End.TIMEOUT))
    while life.loop.armed:
        assert not life.ended
        life.loop.armed.pop()()
    assert life.ended == [Outcome(End.TIMEOUT)]
    assert sampler.samples == {0: [Sample(CODE, 3)] * LOOKS, 1: []}
