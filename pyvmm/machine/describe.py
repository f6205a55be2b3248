"""What a machine would be, without a KVM: the same board on a VM that runs nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyvmm.acpi.build import build, write
from pyvmm.board.fake_vm import FakeVm
from pyvmm.board.memslots import Ram
from pyvmm.board.pc import Pc
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.loop import Loop
from pyvmm.machine.build import check_channels, furnish
from pyvmm.machine.kvm import open_kvm
from pyvmm.machine.payload import Payload
from pyvmm.trace import Trace
from pyvmm.vcpu.cpuid import DEFAULT_PHYS_BITS, phys_bits
from pyvmm.vcpu.model import CpuModel


class _NoSignals:
    """Nothing runs, so nobody pulls on anything."""

    def transmit(self, data: bytes) -> None: ...

    def reset_requested(self, how: str) -> None: ...

    def power_off(self) -> None: ...

    def debug_exit(self, value: int) -> None: ...

    def smi(self, command: int) -> None: ...

    def sleep(self) -> bool:
        return False

    def wake(self, reason: str) -> None: ...

    def wake_boot_cpu(self) -> None: ...

    def io_error(self, line: str) -> None: ...

    def catch_up(self) -> None: ...


def _unseen(ns: int, channel: str, message: str) -> None:
    """A trace that nobody reads."""


def host_phys_bits() -> int:
    """How many physical address bits a guest has on this host: what its KVM says or, where that cannot be asked, its
    processor."""
    try:
        with open_kvm() as system:
            return phys_bits(system.get_supported_cpuid())
    except UserError:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("address sizes"):
                return int(line.partition(":")[2].split()[0])
        return DEFAULT_PHYS_BITS


@contextmanager
def described(config: MachineConfig) -> Iterator[Pc]:
    """The board of *config* with all that is plugged in and what it boots in its RAM; raises the UserError that running
    it would raise, but for what this host's KVM limits."""
    config = config.complete()
    with ExitStack() as resources:
        ram = Ram(config.ram_size, shared=config.memory_shared, hugetlb=config.memory_hugetlb)
        resources.callback(ram.close)
        loop = Loop(threading.Lock())
        trace = Trace(config.trace, _unseen)
        resources.callback(loop.close)
        bits = CpuModel.parse(config.cpu).address_bits(host_phys_bits())
        board = Pc(config, FakeVm(), ram, bits, loop, loop, trace, _NoSignals())
        resources.callback(board.close)
        furnish(board)
        Payload(config).load(board, fresh=True)
        check_channels(trace, board)
        yield board


def write_tables(config: MachineConfig, out: Path, trace_file: Path | None = None) -> tuple[Path, ...]:
    """Write the ACPI tables of such a machine to the directory *out*; raises UserError."""
    if trace_file is not None:
        place = trace_file if trace_file.exists() else trace_file.parent
        if trace_file.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"--trace: cannot write {trace_file}: name a file where you may write one")
    with described(config) as board:
        try:
            return write(build(board.platform()), out)
        except OSError as error:
            raise UserError(f"--out {out}: {error.strerror}") from None
