"""A few looks at where the vCPUs are, right before a machine ends that says nothing: does one spin, and where?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from kvm_cffi import KvmError
from pyvmm.machine.outcome import Outcome
from pyvmm.vcpu.sample import Sample, take_sample

if TYPE_CHECKING:
    from pyvmm.machine.life import Life
    from pyvmm.vcpu.thread import VcpuThread

LOOKS: Final = 5
BETWEEN_NS: Final = 20_000_000


class Sampler:
    """Ends the machine after LOOKS looks, BETWEEN_NS apart; a vCPU that is not to be had then is not waited for."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.samples: dict[int, list[Sample]] = {}
        """By the vCPU's number."""

    def look_and_end(self, outcome: Outcome, looks: int = LOOKS) -> None:
        """In the loop, under the machine lock."""
        if looks == 0:
            self._life.end(outcome)
            return
        for thread in self._life.cpus.seated:
            thread.call(partial(self._take, thread))
        loop = self._life.loop
        loop.timer(partial(self.look_and_end, outcome, looks - 1)).arm(loop.now() + BETWEEN_NS)

    def _take(self, thread: VcpuThread) -> None:
        try:
            self.samples.setdefault(thread.vcpu.id, []).append(take_sample(thread.vcpu))
        except KvmError:  # of a VM that KVM has given up
            pass
