"""Opening /dev/kvm, and what to do where that does not go."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from kvm_cffi import KvmError, System
from pyvmm.errors import UserError

_READ_WRITE: Final = os.R_OK | os.W_OK


def open_kvm(path: str = "/dev/kvm") -> System:
    """/dev/kvm; UserError says what to do where it cannot be opened."""
    try:
        return System(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: load kvm_intel or kvm_amd, enable virtualization in the firmware, "
            "or ask `pyvmm doctor`"
        ) from None
    except PermissionError:
        raise UserError(_no_permission(path)) from None
    except KvmError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # ours to mend, not KVM's
            raise
        raise UserError(f"{path}: {os.strerror(error.errno or 0)}: ask `pyvmm doctor`") from None


def _no_permission(path: str) -> str:
    """Whose the file is, and what lets this user open it."""
    try:
        status = os.stat(path)
    except OSError:
        return f"no permission for {path}, nor for its folder: ask whoever administers this host"
    mode, group = stat.S_IMODE(status.st_mode), _group(status.st_gid)
    what = f"no permission for {path} ({_user(status.st_uid)}:{group}, mode {mode:04o})"
    if os.access(path, _READ_WRITE, effective_ids=os.access in os.supports_effective_ids):
        return (
            f"{what}, though owner and mode permit it: a container wants docker run --device {path}, "
            "or a security module forbids it: see its log"
        )
    if status.st_gid == 0 or mode & 0o060 != 0o060:
        return (
            f"{what}: as root, give it to group kvm (chgrp kvm {path}; chmod 660 {path}), "
            "and add yourself to that (usermod -aG kvm $USER)"
        )
    if status.st_gid in os.getgrouplist(_user(os.geteuid()), os.getegid()):
        return f"{what}: you are in group {group} since you logged in: log in again"
    return f"{what}: add yourself to group {group} (usermod -aG {group} $USER) and log in again"


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
