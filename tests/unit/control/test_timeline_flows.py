"""Which messages are one key's or one request's: the chips and devices say the steps, and Flows puts them together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.clock import FakeClock
from pyvmm.control.timeline.flows import CHAINS, DRIVES, KEYS, NO_LINKS, PAGES, QUEUES, Flows, Links
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.ps2_keyboard import Ps2Keyboard
from pyvmm.input import codes as ic
from pyvmm.input.router import Router
from pyvmm.irq import LevelIrq
from pyvmm.trace import Step, Trace

XLATE, KBDINT = 0x40, 0x01


class Pc:
    """A router, a keyboard and its controller, and a guest that reads."""

    def __init__(self, ctr: int) -> None:
        self.flows = Flows()
        self.seen: list[tuple[str, str, Links]] = []
        trace = Trace()
        trace.listen(self._hear)
        self.clock = FakeClock()
        irq = trace.channel("irq")
        line = LevelIrq(lambda level: irq(f"IRQ 1 {level}", ("irq", 1, int(level))))
        router = Router("auto", trace.channel("input"))
        self.keyboard = Ps2Keyboard(self.clock, trace=trace.channel("ps2-keyboard"))
        other = LevelIrq(lambda level: None)
        self.chip = I8042(line, other, lambda: None, None, self.keyboard, None, trace.channel("i8042"))
        router.add_ps2_keyboard(self.keyboard)
        self.source = router.source("test")
        self.chip.write(4, 1, 0x60)
        self.chip.write(0, 1, ctr)
        self.seen.clear()

    def _hear(self, ns: int, channel: str, message: str, step: Step | None) -> None:
        self.seen.append((channel, message, self.flows.links(channel, step)))

    def read(self) -> list[Links]:
        """Read bytes until there are none; where each read belongs."""
        found = []
        while self.chip.read(4, 1) & 1:
            self.chip.read(0, 1)
            found += [place for _, message, place in self.seen if message.startswith("read of port 0x60")][-1:]
            self.clock.advance(20_000_000)
        return found


@pytest.mark.parametrize("ctr", [KBDINT | XLATE, KBDINT])
@pytest.mark.parametrize("key", [ic.KEY_A, ic.KEY_UP, ic.KEY_SYSRQ, ic.KEY_PAUSE])
def test_a_key_is_one_flow_from_the_router_to_its_last_byte(ctr: int, key: int) -> None:
    pc = Pc(ctr)
    pc.source.key(key, 1)
    ways = [channel for channel, _, place in pc.seen if place == Links((1,))]
    assert ways == ["input", "ps2-keyboard", "i8042", "irq"]
    *before, last = pc.read()
    assert before == [Links((1,))] * len(before) and last == Links(ending=(1,))
    pc.source.key(key, 0)
    pc.read()
    if key != ic.KEY_PAUSE:  # which says nothing when it goes up
        assert pc.seen[-2][2] == Links(ending=(2,)) or pc.seen[-1][2] == Links(ending=(2,))


def test_keys_that_wait_for_one_another() -> None:
    pc = Pc(KBDINT | XLATE)
    for key in (ic.KEY_A, ic.KEY_RIGHT, ic.KEY_B):
        pc.source.key(key, 1)
        pc.source.key(key, 0)
    assert [place.ending for place in pc.read() if place.ending] == [(number,) for number in range(1, 7)]


def test_a_repetition_is_a_flow_of_its_own() -> None:
    pc = Pc(KBDINT | XLATE)
    pc.source.key(ic.KEY_A, 1)
    pc.read()
    pc.clock.advance(600_000_000)
    assert pc.read()[0].ending[0] > 1


def test_an_answer_to_a_command_belongs_to_no_key() -> None:
    pc = Pc(KBDINT | XLATE)
    pc.chip.write(0, 1, 0xEE)
    assert pc.read() == [NO_LINKS]
    pc.source.key(ic.KEY_A, 1)
    assert pc.read() == [Links(ending=(1,))]


def test_a_key_that_gets_lost_leads_nobody_astray() -> None:
    pc = Pc(KBDINT | XLATE)
    pc.chip.write(0, 1, 0xF5)  # do not scan
    pc.read()
    pc.source.key(ic.KEY_A, 1)
    pc.source.key(ic.KEY_A, 0)
    pc.chip.write(0, 1, 0xF4)
    pc.read()
    pc.source.key(ic.KEY_B, 1)
    assert pc.read() == [Links(ending=(3,))]


def steps(flows: Flows, channel: str, *words: Step) -> list[Links]:
    return [flows.links(channel, word) for word in words]


def test_a_request_from_the_kick_to_the_status() -> None:
    flows = Flows()
    chain = steps(flows, "disk", ("kick", 0), ("chain", 0, 5), ("request", 0, 5), ("used", 0, 5), ("interrupt", 0))
    assert chain == [Links((1,))] * 5
    assert steps(flows, "irq", ("irq", 16, 1), ("irq", 11, 1)) == [Links((1,))] * 2
    assert steps(flows, "disk", ("isr", 0), ("isr", 1), ("isr", 1)) == [NO_LINKS, Links(ending=(1,)), NO_LINKS]


def test_requests_of_one_kick_that_end_in_another_order() -> None:
    flows = Flows()
    begun = steps(flows, "disk", ("kick", 0), ("chain", 0, 1), ("chain", 0, 2))
    assert begun == [Links((1,)), Links((1,)), Links((2,))]
    assert steps(flows, "disk", ("used", 0, 2), ("used", 0, 1), ("interrupt", 0))[-1] == Links((2, 1))
    assert steps(flows, "irq", ("msi",), ("msi",)) == [Links(ending=(2, 1)), NO_LINKS]


def test_an_event_of_virtio_input_is_on_the_keys_way() -> None:
    flows = Flows()
    flows.links("input", ("key", ic.KEY_A, 1))
    assert flows.links("input", ("event", 1, ic.KEY_A, 1)) == Links((1,))
    assert flows.links("input", ("event", 0, 0, 0)) == NO_LINKS
    assert steps(flows, "keyboard", ("interrupt", 0), ("isr", 1)) == [Links((1,)), Links(ending=(1,))]


def test_one_read_of_the_status_is_for_all_interrupts_before_it() -> None:
    flows = Flows()
    for chain in (1, 2):
        steps(flows, "disk", ("kick", 0), ("chain", 0, chain), ("used", 0, chain), ("interrupt", 0))
    assert flows.links("disk", ("isr", 1)) == Links(ending=(1, 2))


def test_an_interrupt_of_somebody_else_is_not_theirs() -> None:
    flows = Flows()
    steps(flows, "disk", ("kick", 0), ("chain", 0, 1), ("used", 0, 1), ("interrupt", 0))
    assert flows.links("irq", ("irq", 0, 1)) == NO_LINKS


@pytest.mark.parametrize("number", [0, 1])
def test_an_ata_command_from_its_write_to_the_last_data(number: int) -> None:
    flows = Flows()
    assert steps(flows, "ata", ("command",), ("intrq", number)) == [Links((1,))] * 2
    assert steps(flows, "irq", ("irq", 15 - number, 1), ("irq", 14 + number, 1)) == [NO_LINKS, Links((1,))]
    answers = steps(flows, "ata", ("answer", 0), ("answer", 0), ("answer", 1), ("answer", 1))
    assert answers == [Links((1,)), Links((1,)), Links(ending=(1,)), NO_LINKS]


def test_an_ata_command_that_is_polled_leaves_no_interrupt() -> None:
    flows = Flows()
    assert steps(flows, "ata", ("command",), ("intrq", 0), ("answer", 1))[-1] == Links(ending=(1,))
    assert flows.links("irq", ("irq", 14, 1)) == NO_LINKS


def test_an_ata_command_that_is_given_up_is_followed_by_another() -> None:
    flows = Flows()
    steps(flows, "ata", ("command",))
    assert steps(flows, "ata", ("command",), ("answer", 1)) == [Links((2,)), Links(ending=(2,))]


def test_a_frame_from_the_ring_to_its_remote_read() -> None:
    flows = Flows()
    assert flows.links("ne2k", ("received", 0x46)) == Links((1,))
    assert steps(flows, "irq", ("irq", 16, 1), ("irq", 11, 1)) == [Links((1,))] * 2
    assert flows.links("ne2k", ("received", 0x47)) == Links((2,))  # the line is up
    read = steps(flows, "ne2k", ("fetched", 0x46, 0), ("fetched", 0x46, 1), ("fetched", 0x46, 1), ("fetched", 0x47, 1))
    assert read == [Links((1,)), Links(ending=(1,)), NO_LINKS, Links(ending=(2,))]


def test_frames_that_are_sent_end_with_what_the_driver_clears() -> None:
    flows = Flows()
    assert steps(flows, "ne2k", ("sent",), ("sent",)) == [Links((1,)), Links((2,))]
    assert flows.links("irq", ("irq", 11, 1)) == Links((2,))
    assert steps(flows, "ne2k", ("acknowledged",), ("acknowledged",)) == [Links(ending=(1, 2)), NO_LINKS]


NUMBER = st.integers(0, 1 << 16)
STEP = st.one_of(
    st.tuples(st.just("key"), NUMBER, st.integers(0, 1)),
    st.lists(st.integers(0, 255), max_size=8).map(lambda codes: ("codes", 30, 1, *codes)),
    st.tuples(st.just("output"), st.integers(0, 255), st.sampled_from([1, 12])),
    st.tuples(st.just("read"), st.integers(0, 255)),
    st.tuples(st.just("irq"), st.integers(0, 23), st.integers(0, 1)),
    st.sampled_from([("msi",), ("command",), ("sent",), ("acknowledged",)]),
    st.tuples(st.just("intrq"), st.integers(0, 1)),
    st.tuples(st.just("answer"), st.integers(0, 1)),
    st.tuples(st.just("received"), st.integers(0x46, 0x48)),
    st.tuples(st.just("fetched"), st.integers(0x46, 0x48), st.integers(0, 1)),
    st.tuples(st.just("event"), st.integers(0, 4), NUMBER, NUMBER),
    st.tuples(st.sampled_from(["kick", "interrupt", "isr"]), NUMBER),
    st.tuples(st.sampled_from(["chain", "request", "used"]), NUMBER, NUMBER),
    st.tuples(st.text(max_size=4), NUMBER),
)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.none() | STEP), max_size=200))
def test_no_steps_in_any_order_raise(said: list[tuple[str, Step | None]]) -> None:
    flows, ended = Flows(), set[int]()
    for channel, step in said:
        place = flows.links(channel, step)
        assert not ended.intersection(place.through), "what has ended does not go on"
        assert not ended.intersection(place.ending), "nor does it end twice"
        ended.update(place.ending)


def test_a_guest_that_finishes_nothing_takes_no_memory() -> None:
    flows = Flows()
    for number in range(3 * CHAINS):
        steps(flows, "disk", ("kick", number), ("chain", number, number), ("interrupt", number))
        steps(flows, f"disk{number}", ("interrupt", 0), ("key", number, 1), ("command",), ("received", 7), ("sent",))
    assert len(flows._chains) == CHAINS
    assert len(flows._kicked) <= QUEUES and len(flows._told) <= QUEUES and len(flows._used) <= QUEUES
    assert len(flows._commands) == len(flows._sent) == DRIVES and len(flows._received) == PAGES
    assert len(flows._pressed) == KEYS
