"""A VM with RAM and one vCPU, straight on kvm_cffi: where the tests of exits and of KVM's calls start their guests."""

from __future__ import annotations

import mmap
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal

from kvm_cffi import Exit, System, Vcpu
from kvm_cffi.exits import MmioRead, PioIn, PioOut
from pyvmm import guests
from pyvmm.board.layout import DEBUG_EXIT, DEBUGCON, IDENTITY_MAP, TSS
from pyvmm.boot.entry import CpuState, long_mode, protected_mode, real_mode
from pyvmm.memory import GuestMemory
from pyvmm.units import MIB
from pyvmm.vcpu.cpuid import guest_cpuid, with_apic_id
from pyvmm.vcpu.registers import set_cpu_state

CPUINFO = Path("/proc/cpuinfo").read_text()
HARDWARE = " vmx" in CPUINFO or " svm" in CPUINFO
"""A processor runs the guests, a real one or QEMU's; else KVM is software-backed."""
SVM = " svm" in CPUINFO
EMULATED = "QEMU TCG" in CPUINFO
"""It is QEMU's, whose SVM does not trap INT3, and neither takes the debug registers from a guest nor gives them back:
hardware break-points come to nothing and leave QEMU's own half set, so no guest is run with any there."""

RSP = 0x80000
Irqchip = Literal["none", "kernel", "split"]


class Rig:
    """RAM of *size* bytes at 0, one vCPU that is set to start *guest*; a context manager."""

    def __init__(
        self,
        guest: guests.Guest | str | None = None,
        *,
        irqchip: Irqchip = "none",
        pit: bool = False,
        size: int = 16 * MIB,
    ) -> None:
        self.system = System()
        self.vm = self.system.create_vm()
        self.vm.set_identity_map_addr(IDENTITY_MAP)
        self.vm.set_tss_addr(TSS)
        self.ram = mmap.mmap(-1, size)
        self.vm.set_user_memory_region(0, 0, self.ram)
        self.memory = GuestMemory([(0, memoryview(self.ram))])
        if irqchip == "kernel":
            self.vm.create_irqchip()
        elif irqchip == "split":
            self.vm.enable_split_irqchip()
        if pit:
            self.vm.create_pit2()
        self.vcpus: list[Vcpu] = []
        self.vcpu = self.create_vcpu(local_apic=irqchip != "none")
        self.guest = guests.load(guest) if isinstance(guest, str) else guest
        if self.guest is not None:
            self.load(self.guest)

    def create_vcpu(self, *, local_apic: bool) -> Vcpu:
        """Another vCPU, with the CPUID of a single CPU."""
        vcpu = self.vm.create_vcpu(len(self.vcpus))
        self.vcpus.append(vcpu)
        supported = self.system.get_supported_cpuid()
        vcpu.set_cpuid(with_apic_id(guest_cpuid(supported, 1, local_apic=local_apic, tsc_deadline=False), vcpu.id))
        return vcpu

    def load(self, guest: guests.Guest) -> None:
        """Put *guest* into RAM, and the vCPU at its entry."""
        self.memory.write(guest.address, guest.image)
        self.start_at(self.state(guest.mode, guest.entry))

    def state(self, mode: str, entry: int) -> CpuState:
        """How a CPU starts at *entry* in *mode*, as guest.toml names it."""
        if mode == "real":
            return real_mode(0, entry, sp=0x7000)
        if mode == "protected":
            return protected_mode(self.memory, entry, esp=RSP)
        return long_mode(self.memory, entry, rsp=RSP)

    def start_at(self, state: CpuState) -> None:
        set_cpu_state(self.vcpu, state)

    def code(self, hexadecimal: str, *, mode: str = "real", at: int = 0x1000) -> None:
        """Start at a few bytes of code, written as an assembler's listing has them."""
        self.memory.write(at, bytes.fromhex(hexadecimal))
        self.start_at(self.state(mode, at))

    def symbol(self, name: str) -> int:
        """The address of one of the guest's symbols."""
        assert self.guest is not None
        return self.guest.symbols[name]

    def value(self, name: str) -> int:
        """What the guest left at one of its symbols."""
        return self.memory.read_int(self.symbol(name), 8)

    def exits(self, answer: Callable[[PioIn | MmioRead], int] | None = None) -> Iterator[Exit]:
        """Each exit until the guest ends, that one included; a read gets what *answer* says, else all ones."""
        result = 0
        while True:
            exit = self.vcpu.run(result)
            yield exit
            if isinstance(exit, PioIn | MmioRead):
                result = answer(exit) if answer is not None else (1 << 8 * exit.size) - 1
            if isinstance(exit, PioOut) and exit.port == DEBUG_EXIT:
                return

    def run(self, answer: Callable[[PioIn | MmioRead], int] | None = None) -> tuple[list[Exit], int]:
        """All exits before the end, and the value that the guest ended with."""
        *exits, last = self.exits(answer)
        assert isinstance(last, PioOut)
        return exits, last.value

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()
        self.system.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def said(exit: Exit, letter: str) -> bool:
    """The guest wrote *letter* to the debug console."""
    return exit == PioOut(DEBUGCON, 1, ord(letter))


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """A signal every *seconds*: KVM_RUN comes back with Intr, however deep the guest sleeps."""

    def nothing(number: int, frame: FrameType | None) -> None:
        pass

    old = signal.signal(signal.SIGALRM, nothing)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
