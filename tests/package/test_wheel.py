"""What a user installs: one wheel, built from a copy of the source without anything built before."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.package.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "-w", str(directory)]
    subprocess.run([*pip, str(source)], check=True)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the wheel installs, and nothing of this checkout."""
    directory = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def python(installed: Path, code: str) -> str:
    """What *code* prints where the wheel is installed and the checkout is not: -I keeps the checkout off the path."""
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd="/", check=True)
    return ran.stdout.strip()


def test_only_our_two_packages_at_the_top_level(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"kvm_cffi", "pyvmm"}


def test_the_binding_is_compiled(installed: Path) -> None:
    assert len(list((installed / "kvm_cffi").glob("_kvm*.so"))) == 1
    place = python(installed, "import kvm_cffi; print(kvm_cffi.__file__)")
    assert place.startswith(str(installed))


@pytest.mark.parametrize("folder", ["guests", "firmware"])
def test_every_built_guest_is_in(installed: Path, folder: str) -> None:
    in_source = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.bin")}
    in_wheel = {
        path.relative_to(installed / "pyvmm" / folder) for path in (installed / "pyvmm" / folder).rglob("*.bin")
    }
    assert in_wheel == in_source


def test_every_example_is_in(installed: Path) -> None:
    def files(folder: Path) -> set[Path]:
        return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}

    assert files(installed / "pyvmm" / "examples") == files(ROOT / "docs" / "examples")
    place = python(installed, "from pyvmm.examples import edu; print(edu.Edu.device_id, edu.__file__)")
    assert place == f"{0x11E8} {installed}/pyvmm/examples/edu.py"


def test_the_types_are_shipped(installed: Path) -> None:
    assert (installed / "pyvmm" / "py.typed").exists()
    assert (installed / "kvm_cffi" / "py.typed").exists()


def test_every_module_is_in(installed: Path) -> None:
    in_source = {path.relative_to(ROOT) for package in ("pyvmm", "kvm_cffi") for path in (ROOT / package).rglob("*.py")}
    in_wheel = {path.relative_to(installed) for path in installed.rglob("*.py")}
    assert in_source <= in_wheel


def test_the_command_runs(installed: Path) -> None:
    said = python(installed, "from pyvmm.cli.arguments import main; sys.argv = ['pyvmm', '--help']; main()")
    assert "usage: pyvmm" in said


def test_the_init_of_a_linux_guest_is_in(installed: Path) -> None:
    assert (installed / "pyvmm/boot/init").read_bytes() == (ROOT / "pyvmm/boot/init").read_bytes()
    assert (installed / "pyvmm/boot/agent").read_bytes() == (ROOT / "pyvmm/boot/agent").read_bytes()
