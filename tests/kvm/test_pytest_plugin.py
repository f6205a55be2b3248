"""The pytest plugin as a user has it: pytest in a folder of its own, on small guests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EDU = Path(__file__).resolve().parents[2] / "docs" / "examples" / "edu.py"


def pytest_in(folder: Path, text: str, *options: str) -> tuple[int, str]:
    """The exit status and output of pytest for a file with *text*."""
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    ran = subprocess.run([*command, *options, "test_it.py"], cwd=folder, capture_output=True, text=True, timeout=600)
    return ran.returncode, ran.stdout + ran.stderr


def test_each_test_has_the_guest_as_it_was(tmp_path: Path) -> None:
    """Booted once for each configuration; one that has ended is booted anew."""
    status, output = pytest_in(
        tmp_path,
        """
import pytest

BOOTED = []

def test_one(vm):
    BOOTED.append(vm)
    vm.machine.memory.write(0x9000, b"left behind")
    vm.send("abc")
    vm.expect("abc")

def test_another(vm):
    assert BOOTED == [vm]
    assert vm.machine.memory.read(0x9000, 11) == bytes(11)
    vm.send("q")
    assert vm.machine.wait(lambda: False) is False and str(vm.machine.outcome) == "power-off"

def test_a_new_one(vm):
    assert BOOTED != [vm]
    vm.send("xyz")
    vm.expect("xyz")

@pytest.mark.pyvmm(guest="keyboard", ready="> ", memory=16 << 20)
@pytest.mark.parametrize("word", ["echo one", "echo two"])
def test_screen_and_keyboard(vm, word):
    assert "echo" not in vm.screen
    vm.type(word + "\\n")
    assert vm.machine.wait(lambda: "\\n" + word[5:] in vm.screen, 60)

def test_a_machine_of_its_own(machine_factory):
    machine = machine_factory(guest="hello")
    assert machine.wait(lambda: machine.state == "running", 60)
""",
        "-q",
    )
    assert status == 0 and "6 passed" in output, output


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    """By its name in vm.parts; what it keeps is as it was for each test."""
    status, output = pytest_in(
        tmp_path,
        f"""
import pytest

pytestmark = pytest.mark.pyvmm(guest="hello", ready="powers off.", devices=["{EDU}:Edu,dma_ms=1,id=edu"])

@pytest.mark.parametrize("n", range(20))
def test_it(vm, n):
    edu = vm.parts["edu"]
    assert edu.regs[0x04] == 0 and edu.vendor_id == 0x1234
    edu.write(0x04, 4, n + 1)
""",
        "-q",
    )
    assert status == 0 and "20 passed" in output, output


def test_a_failure_shows_the_guest(tmp_path: Path) -> None:
    """Serial port, registers and last exits; a picture and a snapshot that pyvmm run --restore goes on with."""
    status, output = pytest_in(
        tmp_path,
        """
def test_it(vm):
    vm.send("abc")
    vm.expect("abc")
    assert False
""",
        "--pyvmm-artifacts=kept",
    )
    assert status == 1
    for headline in ("guest, serial port", "guest, vCPUs", "guest, artifacts"):
        assert re.search(f"-+ {headline} -+", output), output
    assert "Type, and it comes back; q powers off." in output and "last exits of" in output and "RIP" in output
    picture, saved = sorted((tmp_path / "kept").iterdir())
    assert picture.read_bytes().startswith(b"\x89PNG") and saved.suffix == ".pyvmm"
    command = [sys.executable, "-m", "pyvmm", "run", "--restore", str(saved), "--timeout", "250"]
    assert subprocess.run(command, input=b"q", capture_output=True, timeout=300).returncode == 0


def test_on_the_booted_and_on_a_restored_machine(tmp_path: Path) -> None:
    """--pyvmm-lifecycle: two tests of each that has a vm. The restored machine is another, made anew for each test."""
    status, output = pytest_in(
        tmp_path,
        """
import pytest

SEEN = []

def test_without_a_vm():
    pass

@pytest.mark.parametrize("n", [0, 1])
def test_one(vm, n):
    assert vm.machine.memory.read(0x9000, 4) == bytes(4)
    vm.machine.memory.write(0x9000, b"left")
    vm.send("abc")
    vm.expect("abc")
    SEEN.append(vm)
    assert len(set(map(id, SEEN))) == (1 if len(SEEN) <= 2 else len(SEEN) - 1)

def test_a_guest_that_ends(vm):
    vm.send("q")
    vm.machine.wait(lambda: False, 60)
    assert str(vm.machine.outcome) == "power-off"

def test_the_next(vm):
    vm.send("xyz")
    vm.expect("xyz")
""",
        "-v",
        "--pyvmm-lifecycle",
    )
    assert status == 0 and "9 passed" in output, output
    tests = ["without_a_vm", "one[booted-0]", "one[booted-1]", "one[restored-0]", "one[restored-1]"]
    tests += [f"{name}[{life}]" for name in ("a_guest_that_ends", "the_next") for life in ("booted", "restored")]
    assert re.findall(r"::test_(\S+) PASSED", output) == tests


def test_a_failure_on_the_restored_machine_shows_it(tmp_path: Path) -> None:
    status, output = pytest_in(
        tmp_path,
        """
def test_it(vm, pyvmm_life):
    vm.send(pyvmm_life)
    vm.expect(pyvmm_life)
    assert pyvmm_life == "booted"
""",
        "--pyvmm-lifecycle",
        "--pyvmm-artifacts=kept",
    )
    assert status == 1 and "1 failed, 1 passed" in output, output
    shown = output[output.index("guest, serial port") :]
    assert "restored" in shown and "guest, vCPUs" in shown
    assert {file.name for file in (tmp_path / "kept").iterdir()} == {
        f"test_it.py__test_it_restored_{end}" for end in (".png", ".pyvmm")
    }


def test_under_xdist(tmp_path: Path) -> None:
    """Each worker boots its own, and no more."""
    status, output = pytest_in(
        tmp_path,
        """
import os, pytest

BOOTED = []

@pytest.mark.parametrize("n", range(12))
def test_it(vm, n):
    BOOTED.append(vm)
    assert len(set(map(id, BOOTED))) == 1
    assert vm.machine.memory.read(0x9000, 4) == bytes(4)
    vm.machine.memory.write(0x9000, b"left")
    vm.send("abc")
    vm.expect("abc")
    with open(os.environ["PYTEST_XDIST_WORKER"], "a") as file:
        file.write("x")
""",
        *("-q", "-n", "2", "--dist", "each"),
    )
    assert status == 0 and "24 passed" in output, output
    assert [(tmp_path / worker).read_text() for worker in ("gw0", "gw1")] == [12 * "x", 12 * "x"]


def test_mistakes(tmp_path: Path) -> None:
    status, output = pytest_in(
        tmp_path,
        """
import pytest

@pytest.mark.pyvmm(guest="hello")
def test_not_ready(vm): ...

@pytest.mark.pyvmm(guest="nobody", ready="x")
def test_nobody(vm): ...

@pytest.mark.pyvmm(gast="hello", ready="x")
def test_a_word(vm): ...

@pytest.mark.pyvmm(guest="string-io", ready="never")
def test_ends(vm): ...
""",
        "-q",
    )
    assert status == 1, output
    assert "pyvmm(ready=...) names the text that the guest shows when it is ready" in output
    assert "there is no guest 'nobody'" in output
    assert "unexpected keyword argument 'gast'" in output
    assert "the guest was to show 'never', and " in output
