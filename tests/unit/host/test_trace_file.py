"""The trace never makes the machine wait, whatever its reader does."""

from __future__ import annotations

import io
import os
import threading

from pyvmm.host.trace_file import LINES, TraceWriter


def test_lines_keep_their_order_and_none_is_lost_at_the_end() -> None:
    stream = io.StringIO()
    writer = TraceWriter(stream)
    for n in range(5000):
        writer(n, "irq", f"line {n}")
    writer.close()
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == [str(n) for n in range(5000)]


def test_a_reader_that_stops_costs_lines_and_not_time() -> None:
    read_end, write_end = os.pipe()
    reader = os.fdopen(read_end)
    writer = TraceWriter(os.fdopen(write_end, "w"))
    for n in range(2 * LINES):  # far more than a pipe holds: nobody reads yet
        writer(n, "irq", f"line {n}")
    lines: list[str] = []

    def read() -> None:
        lines.extend(iter(reader.readline, ""))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    while writer._lines:
        pass
    writer(0, "irq", "the last")
    writer.close()
    del writer
    thread.join(10)
    assert "left out: the reader is too slow" in lines[-2]
    assert lines[-1].endswith("the last\n")
    assert len(lines) < 2 * LINES
