"""ACPICA's own compiler and interpreter, which the tables must satisfy (Debian: acpica-tools)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyvmm.acpi.platform import PowerManagement, Window

Acpiexec = Callable[[Sequence[tuple[dict[str, bytes], str]]], list[str]]


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, text=True, timeout=60, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except FileNotFoundError:
        pytest.fail(f"{command[0]} is missing: install acpica-tools")
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def compile_asl(tmp_path: Path) -> Callable[[str], bytes]:
    """The table that iasl makes of ASL source or of a data table's template, optimizer off."""

    def compile_source(source: str) -> bytes:
        (tmp_path / "source.asl").write_text(source)
        output = _run("iasl", "-oa", "-p", "compiled", "source.asl", cwd=tmp_path)
        assert "0 Errors" in output, output
        return (tmp_path / "compiled.aml").read_bytes()

    return compile_source


@pytest.fixture
def recompile(tmp_path: Path) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Disassemble tables (by name) and compile the result: no error, warning or remark, or the test fails."""

    def disassemble_and_compile(tables: dict[str, bytes]) -> dict[str, bytes]:
        for name, data in tables.items():
            (tmp_path / f"{name}.dat").write_bytes(data)
        output = _run("iasl", "-d", *(f"{name}.dat" for name in tables), cwd=tmp_path)
        assert not re.search(r"warning|error|invalid|unknown|bad ", output, re.IGNORECASE), output
        for source in tmp_path.glob("*.dsl"):
            assert not re.search(r"warning|\*{4}|invalid|incorrect", source.read_text(), re.IGNORECASE), source
        output = _run("iasl", "-oa", *(f"{name}.dsl" for name in tables), cwd=tmp_path)
        assert "Compilation successful. 0 Errors, 0 Warnings, 0 Remarks" in output, output
        assert not re.search(r"(Error|Warning|Remark) +[0-9]{4}", output), output
        return {name: (tmp_path / f"{name}.aml").read_bytes() for name in tables}

    return disassemble_and_compile


@pytest.fixture
def acpiexec(tmp_path: Path) -> Acpiexec:
    """What ACPICA's interpreter prints when it loads definition blocks (by name) and runs commands, a job each.

    The jobs run at the same time, as each sleeps for a second at its start.
    """

    def execute(number: int, blocks: dict[str, bytes], commands: str) -> str:
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, data in blocks.items():
            (directory / f"{name}.aml").write_bytes(data)
        output = _run("acpiexec", "-b", commands, *(f"{name}.aml" for name in blocks), cwd=directory)
        assert not re.search(r"AE_|Exception|Warning|Firmware|[Cc]ould not", output), output
        return output

    def execute_all(jobs: Sequence[tuple[dict[str, bytes], str]]) -> list[str]:
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(lambda job: execute(job[0], *job[1]), enumerate(jobs)))

    return execute_all


@pytest.fixture
def pm() -> PowerManagement:
    return PowerManagement(
        io=Window(0x600, 0x63F),
        pm1a_event=0x600,
        pm1a_control=0x604,
        timer=0x608,
        gpe0=0x620,
        gpe0_length=4,
        smi_command=0xB2,
        acpi_enable=2,
        acpi_disable=3,
        s5=7,
        s3=1,
        power_button_gpe=2,
        reset_port=0xCF9,
        reset_value=6,
    )
