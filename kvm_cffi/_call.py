"""One ioctl, and the error it ends with."""

from __future__ import annotations

import os

from kvm_cffi._kvm import ffi, lib


class KvmError(OSError):
    """An ioctl on a descriptor of KVM, VFIO or vhost failed; errno and strerror are the kernel's."""

    def __init__(self, errno: int, request: str) -> None:
        super().__init__(errno, os.strerror(errno), request)
        self.request = request

    def __str__(self) -> str:
        return f"{self.request}: {self.strerror}"


def ioctl(fd: int, request: str, argument: object = ffi.NULL) -> int:
    """ioctl(fd, request, pointer); raises KvmError."""
    result: int = lib.kvm_cffi_ioctl(fd, getattr(lib, request), argument)
    if result < 0:
        raise KvmError(ffi.errno, request)
    return result


def ioctl_value(fd: int, request: str, value: int = 0) -> int:
    """ioctl(fd, request, integer); raises KvmError."""
    result: int = lib.kvm_cffi_ioctl_value(fd, getattr(lib, request), value)
    if result < 0:
        raise KvmError(ffi.errno, request)
    return result
