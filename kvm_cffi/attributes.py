"""Device attributes (KVM_SET_DEVICE_ATTR and its kin), of devices, VMs and vCPUs alike."""

from __future__ import annotations

from typing import Any

from kvm_cffi._call import ioctl
from kvm_cffi._kvm import ffi


def _device_attr(fd: int, request: str, group: int, attr: int, buffer: Any) -> None:
    argument = ffi.new("struct kvm_device_attr *")
    argument.group, argument.attr, argument.addr = group, attr, int(ffi.cast("uintptr_t", buffer))
    ioctl(fd, request, argument)


def set_device_attr(fd: int, group: int, attr: int, value: bytes) -> None:
    """KVM_SET_DEVICE_ATTR with *value* as the attribute's structure."""
    _device_attr(fd, "KVM_SET_DEVICE_ATTR", group, attr, ffi.new("char[]", value))


def get_device_attr(fd: int, group: int, attr: int, size: int) -> bytes:
    """KVM_GET_DEVICE_ATTR, *size* bytes."""
    buffer = ffi.new("char[]", size)
    _device_attr(fd, "KVM_GET_DEVICE_ATTR", group, attr, buffer)
    return bytes(ffi.buffer(buffer, size))


def has_device_attr(fd: int, group: int, attr: int) -> bool:
    """KVM_HAS_DEVICE_ATTR."""
    try:
        _device_attr(fd, "KVM_HAS_DEVICE_ATTR", group, attr, ffi.NULL)
    except OSError:
        return False
    return True
