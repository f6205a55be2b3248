"""`pyvmm plug SOCKET SPEC` and `pyvmm unplug SOCKET ID`: devices of a machine that runs elsewhere, by QMP."""

from __future__ import annotations

import os
import re
from typing import Final

from pyvmm.cli.machine_socket import connected
from pyvmm.cli.stdio import complain
from pyvmm.device_spec import DeviceSpec
from pyvmm.errors import UserError, printable

_OF_WHAT: Final = re.compile("^(device|disk|floppy|net) .*?: ")
"""How an error begins: as `pyvmm run`, which has other flags, shows it."""


def plug(path: str, device: str) -> int:
    """Ask the machine behind socket *path* for *device*, written as `--device` has it, or cpu; the exit status. A
    file of the user's own is that of this directory. Raises UserError."""
    try:
        spec = DeviceSpec.parse(device)
    except UserError as error:
        raise _of(device, error) from None
    name = spec.name if spec.file is None else f"{os.path.abspath(spec.file)}:{spec.kind}"
    places = {key: getattr(spec, key) for key in ("id", "port", "slot") if getattr(spec, key) is not None}
    with connected(path) as client:
        try:
            client.execute("device_add", driver=name, **dict(spec.arguments), **places)
        except UserError as error:
            raise _of(device, error) from None
    return 0


def _of(device: str, error: UserError) -> UserError:
    return UserError(f"{device}: {_OF_WHAT.sub('', str(error), count=1)}")


def unplug(path: str, name: str, force: bool) -> int:
    """Ask it to do without device *name*, and wait until its guest has let go of that; the exit status. Raises
    UserError, and where the guest does not."""
    with connected(path) as client:
        client.execute("device_del", id=name, **({"force": True} if force else {}))
        if not force:
            complain(f"pyvmm: waiting for the guest to let go of {name} (Ctrl-C: do not wait)")
        event = client.wait_for("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", device=name)
    if event["event"] != "DEVICE_DELETED":
        raise UserError(f"{name}: {printable(str(event['data'].get('reason')))}")
    return 0
