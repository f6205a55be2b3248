"""Every part of the board: saved and loaded into a twin it goes on as the original, nothing that changes is forgotten,
and reset() is power-on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pyvmm import state
from tests.rig.chips import CHIPS
from tests.rig.functions import FUNCTIONS
from tests.rig.twins import Access, Twin, random_accesses, undeclared

PARTS: dict[str, Callable[[int], Twin]] = {**CHIPS, **FUNCTIONS}
START = 1_000_000_000_000

RING = {"SplitRing", "PackedRing", "OffloadedRing", "RingFiller", "Chain"}
NOT_STATE = {
    **dict.fromkeys(("FwCfg._files", "FwCfg._names"), "made again of what is on the board"),
    "VgaText._generation": "says that the picture has changed; a load makes another",
    "VirtQueue._ring": "made again of registers and progress",
    "VirtQueue._held": "still in the ring for a snapshot, see progress",
    "VirtQueue._deferred": "a call that the loop has",
    "Turn.left": "a load is followed by a kick, with which a turn begins",
    "_Vector.pending": "kept as Messages.pending",
    **dict.fromkeys(
        (f"_Vector.{name}" for name in ("_open", "_message", "_interrupts", "_routed")),
        "what the registers say, by sync()",
    ),
    **dict.fromkeys(
        (f"FakeWire.{name}" for name in ("sent", "received", "dropped", "out", "more", "waiting")),
        "frames, which may be lost",
    ),
    "PortTap._waiting": "of a time that is no more after a load",
    "OffloadedQueue._ring": "made again of registers and progress",
    "OffloadedQueue._paused": "kept as paused",
    "Offload.serving": "whether all queues run",
    "Offload._features": "those of the driver",
    "Offload.server": "another after a load",
    "VirtioVsock._server": "another after a load",
    "VirtioVsock._used": "the server is to be another after a load",
    **dict.fromkeys(("FakeWire.receive", "FakeWire.caught_up"), "who listens, as driver_ok says"),
    "FixedPorts.decoded": "what the registers say, by place_bars()",
    "Bar.claim": "BARs are placed as configuration space says",
    "PciTestdev.current": "kept as _running",
    "Ps2Mouse._samples": "kept as _movement",
    **dict.fromkeys((f"_Sample.{name}" for name in ("x", "y", "z", "over", "buttons", "changed")), "kept as _movement"),
}
"""What may change under accesses and is kept by no snapshot, and why."""

LEFT_BY_RESET = {
    "cmos_rtc": {"_ram", "offset", "_last_second", "_periodic_start", "_periodic_seen", "_timer"},  # a battery
    "cpu_hotplug": {"present"},  # the sockets
    "pc_testdev": {"_store"},  # RAM
    "virtio_console": {"closing"},  # the other end
    "uart16550": {"_modem", "_lines", "_dl", "_scr", "_rbr"},  # the cable; data sheet, table I
}
"""What a RESET pin does not touch."""

accesses = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 16),
        st.integers(0, 3),
        st.one_of(st.integers(0, 255), st.integers(0, 0xFFFFFFFF), st.integers(0xE0, 0xFF)),
    ),
    max_size=120,
)
every_part = pytest.mark.parametrize("name", PARTS)
# What fails is long enough to read; to shrink it takes minutes.
some = settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def run(twin: Twin, steps: list[Access]) -> list[object]:
    return [(twin.access(step), twin.seen) for step in steps]


@every_part
@some
@given(before=accesses, elsewhere=accesses, seed=st.integers(0, 1 << 32))
def test_a_twin_goes_on_as_the_original(name: str, before: list[Access], elsewhere: list[Access], seed: int) -> None:
    original, twin = PARTS[name](START), PARTS[name](START + 12345)
    original.firmware()
    twin.firmware()
    run(original, before)
    run(twin, elsewhere)
    twin.become(original)
    assert state.save(twin.part) == state.save(original.part)
    assert twin.seen == original.seen
    original.told.clear()
    twin.told.clear()
    steps = random_accesses(seed, 200)
    assert run(twin, steps) == run(original, steps)
    assert twin.told == original.told


@every_part
@some
@given(steps=accesses)
def test_nothing_that_changes_is_forgotten(name: str, steps: list[Access]) -> None:
    twin = PARTS[name](START)
    twin.firmware()
    before = list(undeclared(twin.part))
    run(twin, steps)
    changed = {what for what, _ in set(map(repr_pair, undeclared(twin.part))) ^ set(map(repr_pair, before))}
    assert {what for what in changed if what.partition(".")[0] not in RING} <= NOT_STATE.keys()


def repr_pair(found: tuple[str, object]) -> tuple[str, str]:
    return found[0], repr(found[1])


@every_part
@some
@given(steps=accesses)
def test_reset_is_power_on(name: str, steps: list[Access]) -> None:
    twin = PARTS[name](START)
    twin.firmware()
    run(twin, steps)
    twin.let_go()
    twin.part.reset()
    fresh = PARTS[name](twin.clock.now())
    assert _without(state.save(twin.part), name) == _without(state.save(fresh.part), name)


def _without(saved: state.Plain, name: str) -> object:
    assert isinstance(saved, dict)
    return {key: value for key, value in saved.items() if key not in LEFT_BY_RESET.get(name, ())}
