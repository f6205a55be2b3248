"""The pytest plugin with Linux, devices of the user's own and a driver, as docs/testing.md has it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.rig.lab import CLOUD_KERNEL, DRIVER, INITRAMFS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
MANUAL = (ROOT / "docs" / "drgn.md").read_text()
README = (ROOT / "README.md").read_text()


def readme_test() -> str:
    """The README's test of edu.py, without its marker: the guest is that of the others."""
    text = README[README.index("    def test_five_factorial(vm)") :]
    return textwrap.dedent(text[: text.index("\n\n")]) + "\n"


def manuals_test() -> str:
    """That of docs/drgn.md."""
    text = MANUAL[MANUAL.index("    from drgn.helpers.linux import for_each_module") :]
    return textwrap.dedent(text[: text.index("\n\n##")]) + "\n"


TESTS = f"""
import pytest

pytestmark = pytest.mark.pyvmm(
    kernel="{CLOUD_KERNEL}", initrd=["{INITRAMFS}", "{DRIVER}"],
    cmdline="console=ttyS0 quiet pyvmm.modules=none", memory=160 << 20,
    devices=["{EXAMPLES}/edu.py:Edu,dma_ms=1,id=edu", "{EXAMPLES}/doubler.py:Doubler,id=doubler"],
    ready="# ",
)
FUNCTION = "/sys/bus/pci/devices/0000:00:01.0"

@pytest.fixture
def bar(vm):
    assert vm.run(f"echo 1 >{{FUNCTION}}/enable").status == 0
    return int(vm.run(f"head -n 1 {{FUNCTION}}/resource").output.split()[0], 16)

@pytest.mark.parametrize("n, product", [(5, 120), (10, 3628800)])
def test_the_device_computes(vm, bar, n, product):
    assert vm.run("test -e /tmp/been-here").status == 1
    assert vm.run("touch /tmp/been-here").status == 0
    assert vm.parts["edu"].regs[0x08] == 0
    ran = vm.run(f"devmem {{bar + 8:#x}} 32 {{n}}; devmem {{bar + 8:#x}}; devmem {{bar + 8:#x}}")
    assert int(ran.output.split()[-1], 16) == product == vm.parts["edu"].regs[0x08]

def test_the_driver(vm):
    assert vm.run("insmod /doubler.ko").status == 0
    assert vm.run("echo 21 >/dev/doubler && cat /dev/doubler") == ("42\\n", 0)
    assert vm.parts["doubler"].number == 42
    assert vm.run("echo x >/dev/doubler").status == 1
    assert vm.run("rmmod doubler; test -e /dev/doubler").status == 1 and not vm.parts["doubler"].enabled

def test_the_driver_when_the_device_is_silent(vm, monkeypatch):
    assert vm.run("insmod /doubler.ko").status == 0
    monkeypatch.setattr(vm.parts["doubler"].interrupt, "set_level", lambda level: None)
    ran = vm.run("echo 21 >/dev/doubler")
    assert ran.status == 1 and "timed out" in ran.output

{readme_test()}
{manuals_test()}
def test_a_long_line_is_wrapped_and_does_no_harm(vm):
    assert vm.run("echo " + 150 * "x").output == 150 * "x" + "\\n"
    assert vm.run("false").status == 1

def test_a_guest_that_ends(vm):
    vm.send("poweroff -f\\n")
    vm.machine.wait(lambda: False, 60)
    assert str(vm.machine.outcome) == "power-off"

def test_the_next_one_is_booted_anew(vm):
    assert vm.run("cat /proc/uptime").status == 0
"""


def test_linux(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
    ]
    ran = subprocess.run(
        [*command, "test_it.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ran.returncode == 0 and "9 passed" in ran.stdout, ran.stdout
