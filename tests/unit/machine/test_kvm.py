"""/dev/kvm that this user may not open: whose it is, and what to do."""

from __future__ import annotations

import os
import re

import pytest

from pyvmm.cli.doctor import kvm_findings
from pyvmm.errors import UserError
from pyvmm.machine import kvm

KVM_GROUP, ROOT, ME = 104, 0, 1000


@pytest.mark.parametrize(
    ("group", "mode", "mine", "permitted", "says"),
    [
        (
            KVM_GROUP,
            0o660,
            [ME],
            False,
            r"\(root:kvm, mode 0660\): add yourself to group kvm \(usermod -aG kvm \$USER\) and",
        ),
        (KVM_GROUP, 0o660, [ME, KVM_GROUP], False, r": you are in group kvm since you logged in: log in again$"),
        (
            ROOT,
            0o600,
            [ME],
            False,
            r"\(root:root, mode 0600\): as root, give it to group kvm \(chgrp kvm /dev/kvm; chmod 660 ",
        ),
        (ROOT, 0o660, [ME], False, r"\(root:root, mode 0660\): as root, give it to group kvm"),
        (KVM_GROUP, 0o600, [ME, KVM_GROUP], False, r"\(root:kvm, mode 0600\): as root, give it to group kvm"),
        (KVM_GROUP, 0o640, [ME], False, r"\(root:kvm, mode 0640\): as root, give it to group kvm"),
        (4711, 0o660, [ME], False, r"\(root:4711, mode 0660\): add yourself to group 4711"),
        (ROOT, 0o666, [ME], True, r"\(root:root, mode 0666\), though owner and mode permit it: a container wants"),
    ],
)
def test_no_permission(
    group: int, mode: int, mine: list[int], permitted: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(kvm, "System", refuse)
    monkeypatch.setattr(kvm, "_group", lambda gid: {ROOT: "root", KVM_GROUP: "kvm"}.get(gid, str(gid)))
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result((0o020000 | mode, 0, 0, 1, ROOT, group, 0, 0, 0, 0)))
    monkeypatch.setattr(os, "access", lambda path, wanted, effective_ids: permitted)
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: mine)
    with pytest.raises(UserError) as caught:
        kvm.open_kvm()
    assert re.search(says, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    (finding,) = kvm_findings()
    assert (finding.hint, finding.ok) == (str(caught.value), False), "doctor says the same"


def test_a_folder_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(kvm, "System", refuse)
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(UserError, match=r"^no permission for /dev/kvm, nor for its folder"):
        kvm.open_kvm()


def test_names() -> None:
    assert (kvm._user(0), kvm._group(0)) == ("root", "root")
    assert (kvm._user((1 << 32) - 3), kvm._group((1 << 32) - 3)) == ("4294967293", "4294967293")
