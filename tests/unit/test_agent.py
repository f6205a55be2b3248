"""The agent and its host's side: commands by the program itself, whose port is a pseudo-terminal; and what neither
expects."""

from __future__ import annotations

import os
import random
import select
import subprocess
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.agent import LONGEST, MOST, MOST_WORDS, ROOM, WORDS, AgentError, CommandEnded, Conversation, frame
from pyvmm.boot.initramfs import AGENT

ROOT = Path(__file__).resolve().parents[2]
BIG = random.Random(13).randbytes(1 << 20)
PATIENCE = 120.0


class Agent:
    """The program at the other end of *wire*."""

    def __init__(self) -> None:
        self.wire, port = os.openpty()
        tty.setraw(port)
        self.process = subprocess.Popen([AGENT, os.ttyname(port)], stdin=subprocess.DEVNULL)
        os.set_blocking(self.wire, False)
        self.port = port

    def run(self, *words: str | bytes, stdin: bytes = b"") -> CommandEnded:
        return self.carry_on(Conversation(words, stdin))

    def carry_on(self, conversation: Conversation, most: int = 1 << 30) -> CommandEnded:
        """Until the command has ended, or *most* bytes have come."""
        out: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        send = bytearray()
        while conversation.status is None and len(out[1]) < most:
            send += conversation.take()
            readable, writable, _ = select.select([self.wire], [self.wire] if send else [], [], PATIENCE)
            assert readable or writable, "the agent says nothing"
            if writable:
                del send[: os.write(self.wire, send)]
            if readable:
                for number, text in conversation.feed(os.read(self.wire, 1 << 16)):
                    out[number] += text
        return CommandEnded(-1 if conversation.status is None else conversation.status, bytes(out[1]), bytes(out[2]))

    def say(self, data: bytes) -> None:
        """As a stranger would; what comes meanwhile is lost."""
        while data:
            readable, writable, _ = select.select([self.wire], [self.wire], [], PATIENCE)
            if readable:
                os.read(self.wire, 1 << 16)
            if writable:
                data = data[os.write(self.wire, data) :]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.wire)
        os.close(self.port)


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    assert agent.process.poll() is None
    agent.close()


def test_its_bytes_are_what_its_source_builds() -> None:
    built = subprocess.run([ROOT / "scripts" / "build-agent", "--check"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


def test_status_and_both_outputs_apart(agent: Agent) -> None:
    assert agent.run("sh", "-c", "echo out; echo err >&2; exit 42") == CommandEnded(42, b"out\n", b"err\n")
    assert agent.run("/bin/true") == CommandEnded(0, b"", b"")
    assert agent.run("sh", "-c", "kill -9 $$") == CommandEnded(137, b"", b"")
    assert agent.run("printf", "%s|", "a b", "", "ü\n") == CommandEnded(0, "a b||ü\n|".encode(), b"")
    ended = agent.run("no-such-program")
    assert ended == CommandEnded(127, b"", b"no-such-program: cannot be executed\n")
    assert agent.run("/no/such") == CommandEnded(127, b"", b"/no/such: cannot be executed\n")


def test_a_command_has_a_session_of_its_own_and_no_signal_blocked(agent: Agent) -> None:
    ended = agent.run("sh", "-c", "grep -E '^(SigBlk|NSsid)' /proc/self/status; echo $$; ls /proc/self/fd | wc -l")
    session, blocked, own, fds = ended.stdout.split(b"\n")[:4]
    assert blocked.endswith(b"\t0000000000000000") and session.split()[-1] == own and int(fds) == 4


def test_much_in_both_directions(agent: Agent) -> None:
    assert agent.run("cat", stdin=BIG) == CommandEnded(0, BIG, b"")
    assert agent.run("sh", "-c", "cat >&2", stdin=BIG) == CommandEnded(0, b"", BIG)


def test_a_command_that_reads_nothing(agent: Agent) -> None:
    assert agent.run("true", stdin=BIG).status == 0
    assert agent.run("sh", "-c", "exec <&-; echo still; sleep 0.1", stdin=BIG) == CommandEnded(0, b"still\n", b"")
    assert agent.run("head", "-c", "3", stdin=BIG) == CommandEnded(0, BIG[:3], b"")
    assert agent.run("cat", stdin=b"next") == CommandEnded(0, b"next", b"")


def test_what_runs_on_does_not_hold_the_end_up(agent: Agent) -> None:
    ended = agent.run("sh", "-c", "(sleep 1000; echo late) & echo $!")
    assert ended.status == 0
    pid = int(ended.stdout)
    os.kill(pid, 9)
    ended = agent.run("sh", "-c", "yes & echo $! >&2")  # it writes without end
    assert ended.status == 0
    os.kill(int(ended.stderr.split()[0]), 9)
    assert agent.run("echo", "after").stdout == b"after\n"


def test_long_and_many_words(agent: Agent) -> None:
    words = [f"word {number}" for number in range(1000)]
    assert agent.run("printf", "%s\n", *words).stdout == "".join(f"{word}\n" for word in words).encode()
    long = b"x" * 100_000
    assert agent.run("printf", "%s", long).stdout == long


@pytest.mark.parametrize("cut", [1, 5, 100, 4103, 4104, 4110, 4113, 4120, 20000])
def test_who_comes_after_somebody_that_left_in_the_middle(agent: Agent, cut: int) -> None:
    left = Conversation(["sh", "-c", "cat; sleep 1000"], bytes(range(256)) * 1000)
    agent.say(left.take()[:cut])
    assert agent.run("echo", "next") == CommandEnded(0, b"next\n", b"")


def test_who_leaves_while_his_command_runs_ends_it(agent: Agent, tmp_path: Path) -> None:
    left = Conversation(["sh", "-c", f"trap '' HUP TERM; echo $$ >{tmp_path}/pid; echo x; sleep 1000"])
    agent.carry_on(left, most=1)
    assert agent.run("sh", "-c", f"kill -0 $(cat {tmp_path}/pid)").status == 1
    with pytest.raises(AgentError, match="begun anew"):
        left.feed(frame(b"H", b"12345678"))


FRAMES = st.builds(
    lambda kind, data, lie: kind + (len(data) + lie).to_bytes(3, "little") + data,
    st.sampled_from([b"B", b"A", b"I", b"E", b"Z", b"\xff"]),
    st.binary(max_size=200),
    st.sampled_from([0, 0, 0, 1, 70000]),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=300), FRAMES), max_size=40))
def test_the_agent_outlives_whatever_comes(said: list[bytes]) -> None:
    agent = shared()
    agent.say(b"".join(said))
    assert agent.run("echo", "there") == CommandEnded(0, b"there\n", b"")


_shared: list[Agent] = []


def shared() -> Agent:
    if not _shared:
        _shared.append(Agent())
    return _shared[0]


def teardown_module() -> None:
    for agent in _shared:
        agent.close()


# The host's side alone


def begun(*words: str, stdin: bytes | None = b"") -> Conversation:
    """One that an agent has answered."""
    conversation = Conversation(words or ("true",), stdin)
    sent = conversation.take()
    assert sent.startswith(bytes(LONGEST + 4) + b"B\x08\0\0")
    nonce = sent[LONGEST + 8 : LONGEST + 16]
    assert conversation.feed(b"what was before" + frame(b"H", b"another.") + frame(b"H", nonce)) == []
    assert conversation.answered
    return conversation


def test_no_more_input_than_there_is_room_for() -> None:
    conversation = begun("cat", stdin=None)
    conversation.give(bytes(3 * ROOM))
    assert not conversation.hungry
    assert len(conversation.take()) == ROOM + 4 * ROOM // LONGEST
    assert conversation.take() == b""
    conversation.feed(frame(b"C", (10).to_bytes(4, "little")))
    assert conversation.take() == frame(b"I", bytes(10))
    conversation.finish()
    while (taken := conversation.take()) or conversation._input:
        assert not taken.endswith(frame(b"E")) or not conversation._input
        conversation.feed(frame(b"C", ROOM.to_bytes(4, "little")))
    assert not conversation.hungry


@pytest.mark.parametrize("words", [(), ("a\0b",), ("x" * WORDS,), ("x",) * (MOST_WORDS + 1)])
def test_words_that_no_command_has(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="a command"):
        Conversation(words)


@pytest.mark.parametrize("data", [b"Z\0\0\0", b"\0\0\0\0", frame(b"O", bytes(MOST + 1)), b"O\xff\xff\xff"])
def test_what_no_agent_says(data: bytes) -> None:
    with pytest.raises(AgentError, match="no agent's"):
        begun().feed(data)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=100)), st.integers(1, 50))
def test_whatever_comes_is_an_error_or_not_enough(pieces: list[bytes], size: int) -> None:
    conversation = begun()
    data = b"".join(pieces)
    try:
        for at in range(0, len(data), size):
            conversation.feed(data[at : at + size])
    except AgentError:
        pass
    assert len(conversation._came) <= MOST + 4 + size
    before = Conversation(["true"])
    for piece in pieces:
        assert before.feed(piece) == []
    assert len(before._came) < 12 + 100


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([b"O", b"X"]), st.binary(min_size=1, max_size=50)), max_size=20),
    st.integers(0, 255),
    st.integers(1, 40),
)
def test_frames_cut_anywhere_are_the_same(frames: list[tuple[bytes, bytes]], status: int, size: int) -> None:
    conversation = begun()
    data = b"".join(frame(kind, text) for kind, text in frames) + frame(b"S", status.to_bytes(4, "little"))
    got: list[tuple[int, bytes]] = []
    for at in range(0, len(data), size):
        got += conversation.feed(data[at : at + size])
    assert got == [({b"O": 1, b"X": 2}[kind], text) for kind, text in frames]
    assert conversation.status == status
