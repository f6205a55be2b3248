"""What a TAB finds: by pyvmm itself, and through bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm import guests
from pyvmm.cli.arguments import main
from pyvmm.cli.completion import SCRIPTS, candidates
from pyvmm.cli.parser import make_parser
from pyvmm.errors import UserError


def found(*words: str) -> list[str]:
    return candidates(make_parser(), list(words))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["gu"], ["guests"]),
        (["--v"], ["--version"]),
        (["unpl"], ["unplug"]),
        (["run", "kb"], ["kbd-inb60"]),
        (["run", "--sc"], ["--scale", "--screenshot"]),
        (["run", "--irqchip", ""], ["kernel", "split", "user"]),
        (["run", "--irqchip=s"], ["--irqchip=split"]),
        (["run", "--irqchip", "=", "s"], ["split"]),
        (["run", "--irqchip", "="], ["kernel", "split", "user"]),
        (["run", "--scale", ""], ["1", "2", "3", "4"]),
        (["run", "--rng", "timer", "--set", "c"], ["count="]),
        (["run", "--device", "virtio-r"], ["virtio-rng"]),
        (["run", "--device", "pci-testdev,m"], ["pci-testdev,membar="]),
        (["run", "--device", "my.py:Mine,"], [f"my.py:Mine,{key}" for key in ("help", "id=", "port=", "slot=")]),
        (["run", "--trace", "ex"], ["exits"]),
        (["acpi", "--trace", "exits,com"], ["exits,com1"]),
        (["run", "--trace", "com1,com"], []),
        (["run", "--device", "my.py:Mine,id=extra", "--trace", "ex"], ["exits", "extra"]),
        (["run", "--trace", "irq=/tm"], []),
        (["snapshot", ""], ["check"]),
        (["completion", "z"], ["zsh"]),
        (["run", "-k", ""], []),
        (["nonsense", ""], found("")),
        ([], found("")),
    ],
)
def test_candidates(words: list[str], wanted: list[str]) -> None:
    assert found(*words) == wanted


def test_every_guest_option_and_command() -> None:
    assert found("run", "") == guests.names()
    assert {"run", "acpi", "snapshot", "guests", "doctor", "completion"} <= set(found(""))
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert {"-k", "--kernel", "--send-after", "--help"} <= set(found("run", "-"))


words = st.one_of(st.sampled_from(["run", "--device", "--trace", "--set", "=", "", "hello", "--irqchip"]), st.text())


@settings(max_examples=50)
@given(st.lists(words, max_size=6))
def test_any_words_are_candidates_or_a_users_mistake(typed: list[str]) -> None:
    try:
        assert all("\n" not in word or "\n" in typed[-1] for word in candidates(make_parser(), typed))
    except UserError:
        pass


@pytest.mark.parametrize("shell", list(SCRIPTS))
def test_what_goes_into_the_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]


def test_a_mistake_that_stands_before_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "candidates", "run", "--device", "nope,"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [("run kb", ["kbd-inb60"]), ("run --device=virtio-r", ["virtio-rng"]), ("run --trace exits,com", ["exits,com1"])],
)
def test_in_bash(line: str, wanted: list[str], tmp_path: Path) -> None:
    """As bash calls it: its words are cut at "=" too."""
    pyvmm = tmp_path / "pyvmm"
    pyvmm.write_text(f'#!/bin/sh\nexec {sys.executable} -m pyvmm "$@"\n')
    pyvmm.chmod(0o755)
    cut = [str(pyvmm), *(word for part in line.replace("=", " = ").split() for word in [part])]
    script = (
        f'{SCRIPTS["bash"]}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pyvmm; printf \'%s\\n\' "${{COMPREPLY[@]}}"'
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    ran = subprocess.run(["bash", "-c", script, "bash", *cut], capture_output=True, text=True, env=environment)
    assert ran.stdout.splitlines() == wanted, ran.stderr
