"""scripts/bench without a measurement: what it reads, what it makes of the numbers, where it writes the tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import boot, document, host, pio, start, stats
from benchmarks.__main__ import HERE, IN_LAB, arguments, heading
from benchmarks.programs import BenchError
from pyvmm import guests
from pyvmm.board.memslots import Ram
from pyvmm.units import MIB

ROOT = Path(__file__).resolve().parents[2]

# --- statistics


def test_contenders_run_in_turn() -> None:
    order: list[str] = []

    def contender(name: str, value: float) -> float:
        order.append(name)
        return value

    said: list[str] = []
    runs = stats.in_turn({"a": lambda: contender("a", 1), "b": lambda: contender("b", 2)}, 3, said.append)
    assert order == ["a", "b"] * 3
    assert runs == {"a": [1, 1, 1], "b": [2, 2, 2]}
    assert len(said) == 6


def test_ratio_is_of_the_rounds_not_of_the_medians() -> None:
    # The machine was three times slower in the second and third round: the medians alone would say 3 / 2.
    assert stats.paired_ratio([1.2, 3.6, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(1.2)
    with pytest.raises(ValueError, match="zip"):
        stats.paired_ratio([1.0], [1.0, 2.0])


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1))
def test_ratio_lies_within_the_rounds(pairs: list[tuple[float, float]]) -> None:
    ratios = [a / b for a, b in pairs]
    assert min(ratios) <= stats.paired_ratio([a for a, _ in pairs], [b for _, b in pairs]) <= max(ratios)


def test_spread_and_verdict() -> None:
    assert stats.spread([9.0, 8.61, 8.4, 9.9, 8.5], 2) == "8.61 (8.40–9.90)"
    assert stats.verdict(1.35, 1.35) == "goal: at most 1.35; met"
    assert stats.verdict(1.36, 1.35) == "goal: at most 1.35; missed"


# --- the document


def test_table_replaces_what_is_between_its_markers_only() -> None:
    text = "words\n<!-- begin a -->\nold\n<!-- end a -->\nmore\n<!-- begin b -->\n<!-- end b -->\n"
    new = document.replace(text, "a", r"new \1 text")
    assert new == text.replace("old", r"new \1 text")
    assert document.replace(new, "a", "old") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- begin a -->",
        "<!-- end a --><!-- begin a -->",
        "<!-- begin a --><!-- end a --><!-- begin a --><!-- end a -->",
    ],
)
def test_document_without_the_markers(text: str) -> None:
    with pytest.raises(document.DocumentError, match="begin a"):
        document.replace(text, "a", "x")


def test_every_measurement_has_its_place_in_the_document() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for name in [*HERE, *IN_LAB]:
        document.replace(text, name, "x")
    assert re.findall("<!-- begin (.*) -->", text) == re.findall("<!-- end (.*) -->", text)
    assert set(re.findall("<!-- begin (.*) -->", text)) == {*HERE, *IN_LAB}


def test_table() -> None:
    assert document.table(["", "s"], [["a", "1"]]) == "|  | s |\n| --- | ---: |\n| a | 1 |"


def test_heading_says_the_command() -> None:
    assert heading("pio", 5, "a machine").startswith("`scripts/bench pio`, 2")


# --- arguments


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments(["pio", "--rounds", "7"]).rounds == 7
    assert arguments(["--rounds", "1", "--print"]).names == []
    for wrong in (["nothing"], ["--rounds", "4"], ["--rounds", "0", "--print"]):
        with pytest.raises(SystemExit) as end:
            arguments(wrong)
        assert end.value.code == 2
        assert "scripts/bench: error:" in capsys.readouterr().err


# --- port I/O


def test_cycles() -> None:
    assert pio.cycles("SeaBIOS\r\n000000009c62d692 0000000000000010\r\n") == (0x9C62D692, 16)
    for wrong in ("", "9c62d692 10", "000000009c62d692"):
        with pytest.raises(BenchError):
            pio.cycles(wrong)


def test_firmware_starts_at_the_reset_vector_and_copies_the_image() -> None:
    image = guests.load("pio-bench").image
    rom = pio.bios(image)
    assert len(rom) == 0x10000
    assert rom[: len(image)] == image
    assert rom[0xFFF0] == 0xE9  # jmp rel16, from the next instruction
    target = 0xFFF3 + int.from_bytes(rom[0xFFF1:0xFFF3], "little", signed=True)
    code = rom[target:0xFFF0].rstrip(b"\xf4")
    assert b"\xb9" + len(image).to_bytes(2, "little") + b"\xf3\x2e\xa4" in code  # cx = its length; rep movsb from cs
    assert code.endswith(b"\xea\x00\x7c\x00\x00")  # ljmp 0:7c00


def test_report_compares_with_the_c_loop() -> None:
    writes = {pio.C_LOOP: [2600.0, 2600.0], pio.OURS: [3900.0, 3900.0], pio.QEMU: [2600.0, 5200.0]}
    lines = pio.report(writes, {name: [2600.0] for name in writes}, 2_600_000_000, 1.35).splitlines()
    assert "| 1,000,000 | 1.00 (1.00–1.00) | 1.00 | 1.00 |" in lines[2]
    assert "| 666,667 | 1.50 (1.50–1.50) | 1.50 (goal: at most 1.35; missed) |" in lines[3]
    assert "| 1.50 |" in lines[4]


def test_what_each_layer_adds() -> None:
    lines = pio.added({"a": [2600.0], "b": [3900.0], "c": [3640.0]}, 2_600_000_000).splitlines()
    assert lines[2:] == ["| a | 1.00 |  |", "| b | 1.50 | +0.50 |", "| c | 1.40 | -0.10 |"]


# --- start


def test_kvm_calls() -> None:
    trace = start.calls("0xae00 92530781\n0xae03 92703898\n0xae80 103497355\n0xae80 200000000\n")
    assert start.at(trace, start.KVM_RUN) == pytest.approx(103.497355)
    with pytest.raises(BenchError, match="0xae41"):
        start.at(trace, start.KVM_CREATE_VCPU)


def test_import_times() -> None:
    text = """import time: self [us] | cumulative | imported package
import time:       128 |        128 |   _io
import time:      4910 |       4910 |           _cffi_backend
import time:       166 |      63393 | pyvmm.cli.run
import time:      1000 |       2000 |     pyvmm.devices.cmos_rtc
import time:       500 |       2000 |     pyvmm.devices
Traceback
"""
    modules = start.self_times(text)
    assert modules["pyvmm.devices.cmos_rtc"] == 1.0
    assert start.groups(modules) == pytest.approx(
        {"kvm_cffi": 4.91, "pyvmm.devices": 1.5, "pyvmm.cli": 0.166, "the standard library": 0.128}
    )


# --- boot


SMAPS = """\
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Size:             262144 kB
KernelPageSize:        4 kB
Rss:               50000 kB
VmFlags: rd wr mr mw me ac nr dc sd hg
7f1000000000-7f1000021000 rw-p 00000000 00:00 0
Size:                132 kB
Rss:                 100 kB
7f2000000000-7f2000021000 r-xp 00000000 08:01 1234                       /usr/lib/x86_64-linux-gnu/a b.so
Size:                132 kB
Rss:                  11 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Size:                  4 kB
Rss:                   0 kB
"""


def test_resident_memory_beside_and_in_guest_ram() -> None:
    assert boot.resident(SMAPS, 262144) == (111, 50000)
    assert boot.resident(SMAPS, 262140) == (50111, 0)


def test_resident_memory_of_this_process() -> None:
    ram = Ram(77 * MIB)
    try:
        ram.memory.write(16 * MIB, bytes(8 * MIB))
        beside, within = boot.resident(Path("/proc/self/smaps").read_text(), 77 << 10)
        assert 8 << 10 <= within < 20 << 10
        assert beside > 1 << 10
    finally:
        ram.close()


# --- the machine


def test_machine() -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu svm sse\n"
    assert host.cpu_model(cpuinfo) == "AMD EPYC"
    assert host.kvm_backend(cpuinfo) == "KVM in hardware (svm)"
    assert "software" in host.kvm_backend(cpuinfo.replace("svm", "svme"))
    assert host.cpu_model("") == "unknown processor"
    assert "shared" in host.python_build("7f00-7f01 r-xp 0 0:0 0 /usr/lib/libpython3.11.so.1.0\n")
    assert "shared" not in host.python_build("")
