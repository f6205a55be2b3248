"""The Linux KVM API as typed Python: System, Vm and Vcpu mirror KVM's file descriptors.

    with System() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        exit = vcpu.run()

Everything above this package sees decoded exits and plain values; ioctl numbers and C structures stay inside.
"""

from kvm_cffi import constants
from kvm_cffi._call import KvmError
from kvm_cffi.exits import Exit, ExitRecord
from kvm_cffi.mapping import address_of, drop_translations, map_memory
from kvm_cffi.state import CpuidEntry, Debugregs, Dtable, Fpu, Regs, Segment, Sregs, Translation, VcpuEvents
from kvm_cffi.system import System
from kvm_cffi.timerfd import TimerFd
from kvm_cffi.vcpu import Vcpu, catch_signal
from kvm_cffi.vm import DeviceFd, IrqchipRoute, MsiRoute, Vm

__all__ = [
    "CpuidEntry",
    "Debugregs",
    "DeviceFd",
    "Dtable",
    "Exit",
    "ExitRecord",
    "Fpu",
    "IrqchipRoute",
    "KvmError",
    "MsiRoute",
    "Regs",
    "Segment",
    "Sregs",
    "System",
    "TimerFd",
    "Translation",
    "Vcpu",
    "VcpuEvents",
    "Vm",
    "address_of",
    "catch_signal",
    "constants",
    "drop_translations",
    "map_memory",
]
