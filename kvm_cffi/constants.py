"""The constants of <linux/kvm.h>, vfio.h and vhost.h, with the values of the headers this package was compiled with."""

from __future__ import annotations

from kvm_cffi._kvm import lib


def __getattr__(name: str) -> int:
    if name.startswith(("KVM_", "VFIO_", "VHOST_")):
        value: int = getattr(lib, name)
        return value
    raise AttributeError(name)


def exit_name(reason: int) -> str:
    """ "KVM_EXIT_HLT" for 5, and so on; the number itself for an exit the header does not name."""
    for name in dir(lib):
        if name.startswith("KVM_EXIT_") and not name.startswith("KVM_EXIT_IO_") and getattr(lib, name) == reason:
            return name
    return f"KVM_EXIT {reason}"
