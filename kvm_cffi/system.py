"""/dev/kvm: the system's file descriptor."""

from __future__ import annotations

import errno
import os
from types import TracebackType

from kvm_cffi._call import KvmError, ioctl, ioctl_value
from kvm_cffi._kvm import ffi, lib
from kvm_cffi.state import CpuidEntry
from kvm_cffi.vm import Vm

MAX_CPUID_ENTRIES = 256


class System:
    """An open /dev/kvm; a context manager. Raises OSError from the open, KvmError from the ioctls."""

    def __init__(self, path: str = "/dev/kvm") -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            version = ioctl_value(self.fd, "KVM_GET_API_VERSION")
            if version != lib.KVM_API_VERSION:
                raise KvmError(0, f"{path} speaks KVM API version {version}, not {lib.KVM_API_VERSION}")
            self.vcpu_mmap_size = ioctl_value(self.fd, "KVM_GET_VCPU_MMAP_SIZE")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> System:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def check_extension(self, capability: str) -> int:
        """KVM_CHECK_EXTENSION: 0 where the capability (KVM_CAP_*) is absent, else 1 or its value."""
        return ioctl_value(self.fd, "KVM_CHECK_EXTENSION", getattr(lib, capability))

    def create_vm(self, machine_type: int = 0) -> Vm:
        """KVM_CREATE_VM."""
        while True:
            try:
                fd = ioctl_value(self.fd, "KVM_CREATE_VM", machine_type)
            except KvmError as error:
                if error.errno == errno.EINTR:  # a signal arrived while the kernel set the VM up
                    continue
                raise
            return Vm(fd, self.vcpu_mmap_size)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: what this host lets a guest see."""
        cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": MAX_CPUID_ENTRIES})
        cpuid.nent = MAX_CPUID_ENTRIES
        ioctl(self.fd, "KVM_GET_SUPPORTED_CPUID", cpuid)
        return [
            CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in cpuid.entries[0 : cpuid.nent]
        ]

    def get_msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs that get_msrs and set_msrs know on this host."""
        count = 1024
        msrs = ffi.new("struct kvm_msr_list *", {"indices": count})
        msrs.nmsrs = count
        ioctl(self.fd, "KVM_GET_MSR_INDEX_LIST", msrs)
        return list(msrs.indices[0 : msrs.nmsrs])
