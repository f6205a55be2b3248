"""scripts/draw-flow: the picture of a flow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pyvmm.control.timeline.record import NO_VALUE, POINT, Record
from pyvmm.control.timeline.writer import PerfettoWriter

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
MADE: list[Record] = [
    ("input", 1000, POINT, "script: KEY_A pressed <&>", NO_VALUE, (7,), ()),
    ("i8042", 2000, POINT, "output buffer = 0x1e", NO_VALUE, (7,), ()),
    ("com1", 2500, POINT, "another's", NO_VALUE, (8,), ()),
    ("vCPU 0", 5000, 9000, "i8042: in 0x60", 0x1E, (7,), ()),
    ("i8042", 6000, POINT, "read of port 0x60", NO_VALUE, (), (7,)),
]


@pytest.fixture
def timeline(tmp_path: Path) -> Path:
    path = tmp_path / "timeline"
    with open(path, "wb") as file:
        PerfettoWriter(file, "pyvmm", 1, 1).write(MADE)
    return path


def draw(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "draw-flow"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)


def test_a_flow_has_its_tracks_messages_and_way(timeline: Path) -> None:
    drawn = draw(timeline, "KEY_A")
    assert drawn.returncode == 0, drawn.stderr
    picture = ElementTree.fromstring(drawn.stdout)
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    assert [text for text in texts if text in ("input", "i8042", "vCPU 0", "com1")] == ["input", "i8042", "vCPU 0"]
    assert "script: KEY_A pressed <&>" in texts and "8 µs" in texts and "another's" not in texts
    (way,) = [element for element in picture.iter(f"{SVG}path") if element.get("class") == "way"]
    assert (way.get("d") or "").count("L") == 2
    (exit,) = [element for element in picture.iter(f"{SVG}rect") if element.get("class") == "slice"]
    assert float(exit.get("width") or 0) > 100


@pytest.mark.parametrize("text", ["KEY_B", "in 0x60"])
def test_no_such_flow_is_one_line(timeline: Path, text: str) -> None:
    drawn = draw(timeline, text)
    assert drawn.returncode == 2 and drawn.stderr.count("\n") == 1 and "has no flow" in drawn.stderr


@pytest.mark.parametrize("arguments", [(), ("/nowhere/timeline", "KEY_A")])
def test_a_mistake_is_one_line(arguments: tuple[str, ...]) -> None:
    drawn = draw(*arguments)
    assert (drawn.returncode, drawn.stdout, drawn.stderr.count("\n")) == (2, "", 1)
