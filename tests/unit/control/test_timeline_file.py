"""A timeline's file: what is written is read back, and no file makes the reader do more than say one line."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

from pyvmm.cli.arguments import main
from pyvmm.control.timeline.reader import TraceEvent, events
from pyvmm.control.timeline.record import NO_VALUE, POINT, Record
from pyvmm.control.timeline.spool import Spool
from pyvmm.control.timeline.summary import duration, summarize
from pyvmm.control.timeline.writer import NAMES, PerfettoWriter, framed
from pyvmm.errors import UserError

IN_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
FLOWS = st.lists(st.integers(1, 1 << 63), max_size=3).map(tuple)
NAME = st.text(st.characters(codec="utf-8"), max_size=12)


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    """Slices of two vCPUs, a thread, and what parts say, in an order that a machine may bring forth."""
    made: list[Record] = []
    now = 1 << 40
    for _ in range(draw(st.integers(0, 30))):
        now += draw(st.integers(0, 1 << 34))
        track = draw(st.sampled_from(["vCPU 0", "vCPU 1", "thread machine", "i8042", "interrupts"]))
        took = draw(st.integers(0, 1 << 30)) if track[0] in "vt" else POINT
        value = draw(st.sampled_from([NO_VALUE, 0, 0x1E, (1 << 64) - 1]))
        made.append((track, now, now if took == POINT else now + took, draw(NAME), value, draw(FLOWS), draw(FLOWS)))
        if took == POINT:
            made[-1] = (track, now, POINT, *made[-1][3:])
        now += max(took, 0)
    return made


def written(made: list[Record]) -> bytes:
    file = io.BytesIO()
    PerfettoWriter(file, "pyvmm test", 1234, 5).write(made)
    return file.getvalue()


def categories(track: str) -> str:
    return {"v": "exit", "t": "call"}.get(track[0], "part")


@IN_TMP
@given(records())
def test_what_is_written_is_read_back(tmp_path: Path, made: list[Record]) -> None:
    path = tmp_path / "timeline"
    path.write_bytes(written(made))
    assert list(events(path)) == [
        TraceEvent(track, categories(track), name, began, None if ended == POINT else ended, through, ending)
        for track, began, ended, name, _, through, ending in made
    ]


def test_a_pipe(tmp_path: Path) -> None:
    """As `zcat timeline.gz | pyvmm timeline /dev/stdin` has it."""
    made: list[Record] = [("vCPU 0", 1 << 40, (1 << 40) + 5, "KVM_EXIT_HLT", NO_VALUE, (), ()) for _ in range(3)]
    file, pipe = tmp_path / "timeline", tmp_path / "pipe"
    file.write_bytes(written(made))
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(file.read_bytes(),))
    writer.start()
    assert list(events(pipe)) == list(events(file)) != []
    writer.join()


def test_it_is_a_trace_as_perfetto_reads_it() -> None:
    made: list[Record] = [
        ("vCPU 0", 1000, 3000, "i8042: in 0x60", 0x1E, (7,), ()),
        ("i8042", 2000, POINT, "read of port 0x60 returns 0x1e", NO_VALUE, (), (7,)),
        ("vCPU 0", 4000, 4500, "i8042: in 0x60", 0x9E, (), ()),
    ]
    trace = pb.Trace.FromString(written(made))
    first = trace.packet[0]
    assert first.sequence_flags == first.SEQ_INCREMENTAL_STATE_CLEARED
    assert first.trace_packet_defaults.timestamp_clock_id == first.clock_snapshot.primary_trace_clock == 3
    assert [(clock.clock_id, clock.timestamp) for clock in first.clock_snapshot.clocks] == [(3, 5)]
    assert {packet.trusted_packet_sequence_id for packet in trace.packet} == {1}
    tracks = {packet.track_descriptor.uuid: packet.track_descriptor for packet in trace.packet}
    process = tracks[1].process
    assert (process.pid, process.process_name) == (1234, "pyvmm test")
    above = {track.name: tracks[track.parent_uuid].name for track in tracks.values() if track.parent_uuid}
    assert above == {"parts": "", "vCPU 0": "", "i8042": "parts"}
    names = [name for packet in trace.packet for name in packet.interned_data.event_names]
    assert [(name.iid, name.name) for name in names] == [(1, "i8042: in 0x60")], "once"
    said = [packet for packet in trace.packet if packet.HasField("track_event")]
    assert [(packet.timestamp, packet.track_event.type) for packet in said] == [
        (1000, pb.TrackEvent.TYPE_SLICE_BEGIN),
        (3000, pb.TrackEvent.TYPE_SLICE_END),
        (2000, pb.TrackEvent.TYPE_INSTANT),
        (4000, pb.TrackEvent.TYPE_SLICE_BEGIN),
        (4500, pb.TrackEvent.TYPE_SLICE_END),
    ]
    begun = said[0].track_event
    assert list(begun.flow_ids) == list(said[2].track_event.terminating_flow_ids) == [7]
    (annotation,) = begun.debug_annotations
    assert annotation.uint_value == 0x1E
    assert [name.name for name in first.interned_data.debug_annotation_names if name.iid == annotation.name_iid] == [
        "value"
    ]


def test_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    path.write_bytes(
        written([("thread disk \udcff", 1, 2, "é\udcfe", 0, (), ()), ("i8042", 3, POINT, "\udcfd", 0, (), ())])
    )
    assert [(event.track, event.name) for event in events(path)] == [
        ("thread disk \\udcff", "é\\udcfe"),
        ("i8042", "\\udcfd"),
    ]


def test_a_guest_that_is_everywhere_takes_no_memory(tmp_path: Path) -> None:
    made: list[Record] = [("vCPU 0", n, n + 1, f"nobody: read {n:#x}", 0, (), ()) for n in range(2 * NAMES)]
    file = io.BytesIO()
    writer = PerfettoWriter(file, "", 1, 1)
    writer.write(made)
    assert len(writer._names) == NAMES
    path = tmp_path / "timeline"
    path.write_bytes(file.getvalue())
    assert [event.name for event in events(path)] == [record[3] for record in made]


@given(st.lists(st.lists(records(), max_size=3), max_size=4))
def test_the_spool_gives_back_what_it_got(steps: list[list[list[Record]]]) -> None:
    spool = Spool(Path("/tmp/timeline"))
    for step in steps:
        for made in step:
            spool.put(made)
        assert bool(spool.waiting) == bool(step)
        assert [spool.take() for _ in step] == step
        assert spool.take() == [] and not spool.waiting and not spool._file.tell(), "and is as small as at first"
    spool.close()


# What a file may hold

WHOLE = written([("vCPU 0", n * 10, n * 10 + 5, f"com1: out {n:#x}", n, (n,), (n,)) for n in range(40)])


def said_of(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["timeline", str(path)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("end", [1, 2, 3, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_file_that_is_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str], end: int) -> None:
    path = tmp_path / "timeline"
    path.write_bytes(WHOLE[:end])
    status, out, err = said_of(path, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"pyvmm: {path}: it is cut off at byte ")


@pytest.mark.parametrize(
    "data", [b"\x7fELF", b"\x0a\xff\xff\xff\x7f", b"\x0a\x02\x0a\x7f", b"\x0a\x80\x80\x80\x80\x80"]
)
def test_what_is_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    path = tmp_path / "timeline"
    path.write_bytes(data)
    status, out, err = said_of(path, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1) and "Perfetto trace" in err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nothing"
    assert said_of(path, capsys) == (2, "", f"pyvmm: {path}: No such file or directory\n")


def test_without_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    line = "pyvmm: a timeline needs the package perfetto: pip install 'pyvmm-kvm[timeline]'\n"
    assert said_of(tmp_path, capsys) == (2, "", line)
    assert main(["run", "pio", "--timeline", str(tmp_path / "timeline")]) == 2
    assert capsys.readouterr().err == line


def summed_up(path: Path) -> None:
    """A summary, or one line."""
    try:
        text = summarize(path)
    except UserError as error:
        text = str(error)
        assert "\n" not in text
    assert text.replace("\n", "").isprintable()


@IN_TMP
@given(st.binary(max_size=300))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "timeline"
    path.write_bytes(data)
    summed_up(path)


@IN_TMP
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_random_packets(tmp_path: Path, packets: list[bytes]) -> None:
    path = tmp_path / "timeline"
    path.write_bytes(b"".join(map(framed, packets)))
    summed_up(path)


@IN_TMP
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6))
def test_damaged_bytes(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in damage:
        data[at] = value
    path = tmp_path / "timeline"
    path.write_bytes(data)
    summed_up(path)


U64 = st.integers(0, (1 << 64) - 1)


@IN_TMP
@given(st.lists(st.tuples(U64, st.integers(0, 3), U64, st.lists(U64, max_size=2), st.text(max_size=3)), max_size=20))
def test_events_in_any_order_at_any_time(tmp_path: Path, said: list[tuple[int, int, int, list[int], str]]) -> None:
    data = written([("vCPU 0", 1, 2, "KVM_EXIT_HLT", NO_VALUE, (), ())])
    for time, kind, track, flows, name in said:
        packet = pb.TracePacket(timestamp=time)
        event = packet.track_event
        event.type, event.track_uuid, event.name = kind, track % 20, name.encode("utf-8", "replace").decode()
        event.category_iids.append(1)
        event.flow_ids.extend(flows[:1])
        event.terminating_flow_ids.extend(flows[1:])
        data += framed(packet.SerializeToString())
    path = tmp_path / "timeline"
    path.write_bytes(data)
    summed_up(path)


# In words


def test_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    made: list[Record] = [("vCPU 0", 0, 1_000_000, "KVM_EXIT_HLT", NO_VALUE, (), ())]
    made += [("vCPU 0", n * 100_000, n * 100_000 + 900 * n, "com1: out 0x3f8", n, (), ()) for n in range(11, 14)]
    made += [("vCPU 1", 2_000_000, 2_000_500, "i8042: in 0x60", 0x1E, (1,), ())]
    made += [("input", 1_600_000, POINT, "script: KEY_A pressed", NO_VALUE, (1,), ())]
    made += [("i8042", 2_000_100, POINT, "read of port 0x60", NO_VALUE, (), (1,))]
    path.write_bytes(written(made))
    assert summarize(path).split("\n") == [
        "2 ms, 5 exits of 2 vCPUs",
        "",
        "exits by device                                        exits      time      mean   longest",
        "  KVM_EXIT_HLT                                             1      1 ms      1 ms      1 ms",
        "  com1                                                     3   32.4 µs   10.8 µs   11.7 µs",
        "  i8042                                                    1    500 ns    500 ns    500 ns",
        "",
        "exits by device and port                               exits      time      mean   longest",
        "  KVM_EXIT_HLT                                             1      1 ms      1 ms      1 ms",
        "  com1: out 0x3f8                                          3   32.4 µs   10.8 µs   11.7 µs",
        "  i8042: in 0x60                                           1    500 ns    500 ns    500 ns",
        "",
        "the slowest 4, but for KVM_EXIT_HLT and KVM_EXIT_INTR",
        "    11.7 µs  com1: out 0x3f8                                  vCPU 0, 0.001300 s",
        "    10.8 µs  com1: out 0x3f8                                  vCPU 0, 0.001200 s",
        "     9.9 µs  com1: out 0x3f8                                  vCPU 0, 0.001100 s",
        "     500 ns  i8042: in 0x60                                   vCPU 1, 0.002000 s",
        "",
        "how long they take",
        "  less than      1 µs         1  ##############",
        "  less than      2 µs         0",
        "  less than      4 µs         0",
        "  less than      8 µs         0",
        "  less than     16 µs         3  ########################################",
        "",
        "1 flow came to the end: median 400 µs, longest 400 µs",
    ]


def test_more_places_than_a_table_has_lines(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    path.write_bytes(written([("vCPU 0", n, n + 100 - n, f"x{n}: in {n:#x}", 0, (), ()) for n in range(25)]))
    assert summarize(path).count("\n  and 5 more, 5 exits") == 2


def test_a_name_that_would_do_something_to_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "timeline"
    path.write_bytes(written([("vCPU 0", 0, 100, "\x1b[2J" + "x" * 100, 0, (), ())]))
    text = summarize(path)
    assert "\\x1b[2Jxxx" in text and "\x1b" not in text and max(map(len, text.split("\n"))) < 100


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1 µs"), (12_345, "12.3 µs"), (123_456, "123 µs"), (5 * 10**9, "5 s")],
)
def test_durations(ns: int, text: str) -> None:
    assert duration(ns) == text
