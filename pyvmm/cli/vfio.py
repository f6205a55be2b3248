"""`pyvmm vfio list`, `bind BDF` and `unbind BDF`: which of the host's PCI devices a guest may have, and moving one."""

from __future__ import annotations

from pyvmm.vfio.sysfs import Pci


def vfio(what: str, place: str | None, pci: Pci | None = None) -> int:
    """Print what *what* says; UserError for a mistake."""
    pci = pci or Pci()
    if what == "list":
        for function in pci.all():
            print(
                f"{function.name}  {function.vendor:04x}:{function.device:04x}  class {function.class_code >> 8:04x}  "
                f"group {function.group or '-':<4} {function.driver or '-':<16} {pci.verdict(function)}"
            )
        return 0
    assert place is not None
    print(pci.bind(place) if what == "bind" else pci.unbind(place))
    return 0
