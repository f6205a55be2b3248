"""benchmarks/keys.py and latency.py: what they make of times and traces."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest

from benchmarks import keys
from benchmarks.keys import WARM_UP, Driver, event, firmware, report, traced
from benchmarks.latency import Latency, elapsed, latency, microseconds, over_rounds, percentile
from benchmarks.pio import bios
from benchmarks.programs import BenchError


def test_percentile_is_one_of_the_values() -> None:
    assert percentile(range(1, 101), 99) == 99
    assert percentile(range(1, 102), 99) == 100
    assert percentile([7.0], 99) == 7.0
    assert percentile([3, 1, 2], 50) == 2
    with pytest.raises(ValueError, match="no values"):
        percentile([], 99)


def test_latency_of_a_round_and_of_rounds() -> None:
    assert latency([5.0, 1.0, 3.0]) == Latency(3.0, 5.0)
    assert over_rounds([Latency(1, 9), Latency(3, 7), Latency(2, 8)]) == Latency(2, 8)
    assert microseconds(Latency(81.26, 1200.4)) == "81.3, 1200"


def test_event_is_one_line_of_qmp() -> None:
    line = event(down=True)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    message = json.loads(line)
    assert message["execute"] == "input-send-event"
    assert message["arguments"]["events"][0]["data"] == {"down": True, "key": {"type": "qcode", "data": "a"}}


def test_firmware_goes_on_in_the_other_firmware() -> None:
    image = bytes(range(256)) * 2
    rom, plain = firmware(image), bios(image)
    assert rom[:512] == image and rom[0xFF00:0xFFF0] == plain[0xFF00:0xFFF0]
    start = 0xFFF3 + int.from_bytes(rom[0xFFF1:0xFFF3], "little", signed=True)
    assert rom[0xFFF0] == 0xE9 and rom[start] == 0xFA
    gdt = int.from_bytes(rom[start + 6 : start + 8], "little")
    assert rom[gdt : gdt + 2] == b"\x0f\0"
    assert int.from_bytes(rom[gdt + 2 : gdt + 6], "little") == 0xFFFF0000 + gdt - 16
    end = rom.index(b"\xe9", start + 0x3E)
    assert end + 3 + int.from_bytes(rom[end + 1 : end + 3], "little", signed=True) == 0xFF00


def test_elapsed_leaves_the_warm_up_out() -> None:
    starts = [1000 * n for n in range(WARM_UP + 2)]
    ends = [start + 5000 for start in starts]
    assert elapsed(starts, ends, WARM_UP) == [5.0, 5.0]
    with pytest.raises(BenchError, match="ended"):
        elapsed(starts, ends[1:], WARM_UP)
    with pytest.raises(BenchError, match="ended"):
        elapsed(starts[:WARM_UP], ends[:WARM_UP], WARM_UP)


def test_trace_of_qemu() -> None:
    log = (
        "7@1795174860.000001:pckbd_kbd_read_data 0xfa\n"
        "qemu-system-x86_64: warning: something\n"
        "7@1795174860.000010:input_event_key_qcode con -1, key qcode a, down 1\n"
        "9@1795174860.000070:pckbd_kbd_read_data 0x1e\n"
        "7@1795174861.000000:input_event_key_qcode con -1, key qcode a, down 0\n"
        "9@1795174861.000055:pckbd_kbd_read_data 0x9e\n"
    )
    arrived, read = traced(log, 2)
    assert [end - start for start, end in zip(arrived, read, strict=True)] == [60_000, 55_000]
    with pytest.raises(BenchError, match="2 keys and 3 reads of 3"):
        traced(log, 3)


def test_driver_waits_for_byte_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "GAP", (0.0, 0.0))
    ours, theirs = socket.socketpair()
    output, guest = os.pipe()
    lines: list[bytes] = []

    def monitor() -> None:
        theirs.sendall(b'{"QMP": {}}\r\n')
        with theirs.makefile("rb") as commands:
            lines.append(commands.readline())
            theirs.sendall(b'{"return": {}}\r\n')
            os.write(guest, b"K")
            for _ in range(3):
                lines.append(commands.readline())
                os.write(guest, b"x")
                theirs.sendall(b'{"event": "RESUME"}\r\n{"return": {}}\r\n')

    thread = threading.Thread(target=monitor)
    thread.start()
    driver = Driver(ours, output)
    driver.press(3)
    thread.join()
    assert lines[1:] == [event(True), event(False), event(True)]
    assert len(driver.sent) == len(driver.byte) == 3
    assert all(sent <= byte for sent, byte in zip(driver.sent, driver.byte, strict=True))
    theirs.close()
    driver._answer()  # the last one's, for which press() does not wait
    with pytest.raises(BenchError, match="ended early"):
        driver._answer()
    for fd in (output, guest):
        os.close(fd)
    ours.close()


def test_report_judges_the_way_from_the_command_to_the_read() -> None:
    names = [*(f"pyvmm {step}" for step in keys.STEPS.values()), "pyvmm, inject_key()"]
    seen = {name: [Latency(1, 2)] for name in names}
    for way in keys.WAYS.values():
        seen[f"pyvmm {way}"] = [Latency(50, 60), Latency(60, 90)]
        seen[f"QEMU {way}"] = [Latency(100, 200), Latency(100, 300)]
    text = report(seen)
    assert "| 55.0, 75.0 | 100, 250 | 0.55 (goal: at most 1; met) |" in text
    assert text.count("goal") == 1
