"""`from pyvmm import Machine …`: the public names, imported when asked for, and what help() says of them."""

from __future__ import annotations

import ast
import inspect
import pydoc
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pyvmm
from pyvmm import Machine

ROOT = Path(__file__).parents[2]
SURFACE = {
    *("start", "run", "wait", "pause", "resume", "paused", "reset", "end", "outcome", "state", "config", "close"),
    *("snapshot", "restore", "restored", "keyboard", "mouse", "tablet", "screen", "serial", "power_button", "nmi"),
    *("vcpus", "memory", "translate", "trace", "events", "call"),
    *("plug", "unplug", "replace"),
}


def test_each_public_name_is_there() -> None:
    assert {"Machine", "MachineConfig", "PciDevice", "VirtioDevice", "UserError", "Outcome", "End"} <= set(
        pyvmm.__all__
    )
    for name in pyvmm.__all__:
        assert getattr(pyvmm, name).__name__ == name and name in dir(pyvmm)
    with pytest.raises(AttributeError, match="no attribute 'Machin'; there are: End, GdbServer, Machine"):
        pyvmm.Machin  # noqa: B018


def test_type_checkers_see_them_too() -> None:
    """By imports that never run: `import pyvmm` imports none of them."""
    tree = ast.parse((ROOT / "pyvmm" / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (name.asname, node.module) for node in checked.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert seen == set(pyvmm._PUBLIC.items())
    code = "import pyvmm, sys; print([name for name in sys.modules if name.startswith(('pyvmm.', 'kvm_cffi'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def public_methods() -> dict[str, object]:
    return {name: value for name, value in vars(Machine).items() if not name.startswith("_")}


def test_help_of_the_machine_is_complete() -> None:
    """Each method, property and attribute, and of those that wait for the machine, what they raise."""
    shown = pydoc.plain(pydoc.render_doc(Machine))
    for name, value in public_methods().items():
        doc = inspect.getdoc(value)
        assert doc and doc.splitlines()[0] in shown, name
    tree = ast.parse(textwrap.dedent(inspect.getsource(Machine.__init__)))
    attributes = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    for name in sorted(attributes):
        assert name.startswith("_") or f"\n      {name} " in (Machine.__doc__ or ""), name
    assert {*public_methods(), *attributes} >= SURFACE
    waiting = ("run", "wait", "pause", "resume", "paused", "snapshot", "restore", "restored", "translate", "close")
    for name in (*waiting, "plug", "unplug", "call", "reset", "start"):
        assert "aises" in (inspect.getdoc(getattr(Machine, name)) or ""), name
    for name in ("run", "wait"):
        assert "seconds" in (inspect.getdoc(getattr(Machine, name)) or ""), name
