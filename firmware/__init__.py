"""Firmware that comes with pyvmm: one folder each, source and the bytes built from it (README.md there).

scripts/build-firmware rebuilds the bytes from the sources.
"""

from __future__ import annotations

from pyvmm.errors import UserError


def load(name: str) -> bytes:
    """The image of firmware *name*: what is at the end of the first 4 GiB. Raises UserError where it was not built."""
    from pkgutil import get_data  # importlib.resources alone would take as long as all the rest

    try:
        image = get_data(__name__, f"{name}/{name}.bin")
    except OSError:
        image = None
    if image is None:
        raise UserError(f"firmware {name}: its bytes are missing: scripts/build-firmware makes them")
    return image
