"""benchmarks/virtio.py: the ramdisk that it makes, the keys that it writes, and what it makes of times."""

from __future__ import annotations

import gzip
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import virtio
from benchmarks.latency import Latency
from benchmarks.programs import BenchError
from benchmarks.virtio import INPUT_EVENT, STEPS, WARM_UP, Answers, UinputKeyboard, key, report, with_file
from pyvmm.input.codes import EV_KEY, EV_SYN, KEY_A


def test_key_is_two_input_events() -> None:
    events = [event[2:] for event in INPUT_EVENT.iter_unpack(key(down=True))]
    assert events == [(EV_KEY, KEY_A, 1), (EV_SYN, 0, 0)]
    assert INPUT_EVENT.size == 24


def test_ramdisk_has_the_file(tmp_path: Path) -> None:
    """cpio, asked for the archive that follows the first, finds what was put in."""
    first = gzip.compress(b"stands for another archive")
    whole = with_file(first, b"\x7fELF program", "answer-keys")
    assert whole.startswith(first)
    at = len(first) + -len(first) % 4
    assert whole[at : at + 6] == b"070701" and not whole[len(first) : at].strip(b"\0")
    subprocess.run(["cpio", "-i", "--quiet"], input=whole[at:], cwd=tmp_path, check=True)
    file = tmp_path / "answer-keys"
    assert file.read_bytes() == b"\x7fELF program"
    assert os.access(file, os.X_OK)
    assert [path.name for path in tmp_path.iterdir()] == ["answer-keys"]


@contextmanager
def guest(answers: dict[int, bytes]) -> Iterator[UinputKeyboard]:
    """A keyboard whose every key is answered, by value, as *answers* says."""
    keys, written = os.pipe()
    output, answer = os.pipe()

    def run() -> None:
        while data := os.read(keys, len(key(down=True))):
            os.write(answer, answers[INPUT_EVENT.unpack_from(data)[4]])
        os.close(answer)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield UinputKeyboard(written, Answers(output))
    finally:
        os.close(written)
        thread.join()
        os.close(keys)
        os.close(output)


def test_keyboard_checks_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtio, "GAP", 0.0)
    with guest({1: b"d", 0: b"u"}) as keyboard:
        keyboard.one_by_one(5)
        assert len(keyboard.written) == len(keyboard.answered) == 5
        assert all(start <= end for start, end in zip(keyboard.written, keyboard.answered, strict=True))
    with guest({1: b"u", 0: b"u"}) as keyboard, pytest.raises(BenchError, match="b'u', not b'd'"):
        keyboard.one_by_one(1)


def test_burst_is_a_rate() -> None:
    with guest({1: b"d", 0: b"u"}) as keyboard:
        assert keyboard.burst(40) > 0
    with guest({1: b"d", 0: b""}) as keyboard, pytest.raises(BenchError, match="answered b'd', not b'u'"):
        keyboard.burst(40)


def test_answers_that_do_not_come() -> None:
    output, answer = os.pipe()
    answers = Answers(output)
    with pytest.raises(BenchError, match="did not answer"):
        answers.next(timeout=0.01)
    os.close(answer)
    with pytest.raises(BenchError, match="ended early"):
        answers.next()
    os.close(output)


def test_report_compares_round_by_round() -> None:
    seen = {f"pyvmm {step}": [Latency(1, 2)] for step in STEPS.values()}
    seen |= {"pyvmm": [Latency(300, 400), Latency(500, 900)], "QEMU": [Latency(200, 250), Latency(250, 300)]}
    text = report(seen, {"pyvmm": [900, 1000], "QEMU": [1800, 2000]})
    assert "| pyvmm | 400, 650 | 1.00 | 950 (900–1000) | 1.00 |" in text
    assert "| QEMU | 225, 275 | 1.75 | 1900 (1800–2000) | 0.50 |" in text
    assert WARM_UP < virtio.EVENTS
