"""A prompt's parts without a machine: the wire, the interrupt, whose output is whose, and statements."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.host.repl.interrupt import Interruptible
from pyvmm.host.repl.statements import FIRST, MORE, Statements
from pyvmm.host.repl.streams import ByThread, printing_to
from pyvmm.host.repl.wire import LONGEST, Message, MessageReader, WireError, packed
from pyvmm.machine.machine import Machine

LETTERS = st.sampled_from("LCIQORcB")


@given(st.lists(st.tuples(LETTERS, st.text(st.characters(codec="utf-8"), max_size=20)), max_size=8), st.data())
def test_messages_arrive_in_any_pieces(said: list[tuple[str, str]], data: st.DataObject) -> None:
    wire = b"".join(packed(*one) for one in said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    reader, got = MessageReader(), list[Message]()
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        got += reader.feed(wire[start:end])
    assert got == [Message(*one) for one in said]


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_or_messages(data: bytes) -> None:
    reader = MessageReader()
    try:
        for message in reader.feed(data):
            assert message.kind.isalpha() and len(message.text) <= LONGEST
    except WireError:
        pass


def test_a_message_that_claims_to_be_too_long() -> None:
    with pytest.raises(WireError):
        list(MessageReader().feed(b"L" + (LONGEST + 1).to_bytes(4, "little")))
    assert len(packed("O", "x" * (2 * LONGEST))) == 5 + LONGEST


# Interrupts


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_an_endless_loop_is_interrupted_and_nothing_after_it() -> None:
    for _ in range(200):
        code, raised, after = Interruptible(), list[str](), list[int]()
        running = threading.Event()

        def endless(running: threading.Event = running) -> None:
            running.set()
            while True:
                pass

        def run(code: Interruptible = code, raised: list[str] = raised, after: list[int] = after) -> None:
            try:
                code.run(endless)
            except KeyboardInterrupt as error:
                raised.append(type(error).__name__)
            for number in range(1000):
                after.append(number)

        thread = in_thread(run)
        assert running.wait(30) and code.interrupt()
        thread.join(30)
        assert raised == ["KeyboardInterrupt"] and after == list(range(1000))
        assert not code.interrupt(), "nothing runs"


def test_one_that_comes_as_the_function_ends_harms_nobody() -> None:
    """However the two meet: the value or KeyboardInterrupt, and the thread goes on."""
    done: list[object] = []
    for delay in range(300):
        code, go = Interruptible(), threading.Event()

        def run(code: Interruptible = code, go: threading.Event = go, delay: int = delay) -> None:
            def short() -> int:
                go.set()
                for _ in range(delay):
                    pass
                return delay

            try:
                done.append(code.run(short))
            except KeyboardInterrupt:
                done.append(None)
            sum(range(100))

        thread = in_thread(run)
        go.wait(30)
        code.interrupt()
        thread.join(30)
        assert not thread.is_alive() and len(done) == delay + 1
    assert all(one in (None, number) for number, one in enumerate(done))


# Whose output


def test_each_thread_prints_where_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    before, mine = sys.stdout, list[str]()
    inside, go = threading.Event(), threading.Event()

    def statement() -> None:
        with printing_to(mine.append):
            inside.set()
            go.wait(30)
            print("of the prompt")
            assert not sys.stdout.isatty()

    thread = in_thread(statement)
    assert inside.wait(30)
    assert isinstance(sys.stdout, ByThread)
    print("of the process")
    go.set()
    thread.join(30)
    assert sys.stdout is before
    assert "".join(mine) == "of the prompt\n" and capsys.readouterr().out == "of the process\n"


# Statements


class Prompt:
    """What a user sees of Statements."""

    def __init__(self) -> None:
        self.said: queue.Queue[tuple[str, str | None]] = queue.Queue()
        self.life = SimpleNamespace(wrap={}, typed=set())
        machine = cast(Machine, SimpleNamespace(life=self.life, state="running"))
        self.statements = Statements(machine, lambda text: self.said.put(("", text)), lambda p: self.said.put(("r", p)))

    def answer(self) -> tuple[str, str | None]:
        """What is printed until the next prompt, and that."""
        text = ""
        while True:
            kind, what = self.said.get(timeout=60)
            if kind == "r":
                return text, what
            text += what or ""

    def __call__(self, line: str) -> tuple[str, str | None]:
        self.statements.push(line)
        return self.answer()


def test_a_session() -> None:
    prompt = Prompt()
    assert prompt("machine.state") == ("'running'\n", FIRST)
    assert prompt("_ + '!'") == ("'running!'\n", FIRST)
    assert prompt("def f(x):") == ("", MORE)
    assert prompt("    print(x)") == ("", MORE)
    assert prompt("") == ("", FIRST)
    assert prompt("f(3)") == ("3\n", FIRST)
    assert prompt("1 +")[0].endswith("SyntaxError: invalid syntax\n")
    said, _ = prompt("1 / 0")
    assert said.endswith("ZeroDivisionError: division by zero\n") and "statements.py" not in said
    assert "left" not in prompt("exit")[0] and prompt("exit()") == ("", None)
    assert not prompt.life.wrap and not prompt.life.typed


@pytest.mark.parametrize("line", ["quit()", "raise SystemExit", "import sys; sys.exit(3)"])
def test_what_would_end_python_leaves_the_prompt(line: str) -> None:
    assert Prompt()(line) == ("", None)


def test_ctrl_c_at_a_statement_that_is_not_whole_forgets_it() -> None:
    prompt = Prompt()
    prompt("def f():")
    prompt.statements.interrupt()
    assert prompt.answer() == ("\nKeyboardInterrupt\n", FIRST)
    assert prompt("2") == ("2\n", FIRST)


ENDLESS = ("while True: pass", "any(iter(lambda: 0, 1))", "while True:\n  try: f()\n  except Exception: pass")


@pytest.mark.parametrize("line", ENDLESS)
def test_ctrl_c_ends_what_is_endless(line: str) -> None:
    prompt = Prompt()
    prompt("f = lambda: None")
    prompt.statements.push(f"exec({line!r})")
    time.sleep(0.05)
    assert prompt.statements.busy
    prompt.statements.interrupt()
    said, ready = prompt.answer()
    assert said.endswith("KeyboardInterrupt\n") and ready == FIRST


def test_what_does_not_hear_it_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm.host.repl.statements.DEAF", 0.05)
    prompt = Prompt()
    gate = prompt.statements.names["gate"] = threading.Event()
    prompt.statements.push("import time; [gate.wait(), print('late')]")
    while not prompt.life.typed:
        pass
    prompt.statements.interrupt()
    assert prompt.answer() == ("it does not hear KeyboardInterrupt: it is left to itself\n", FIRST)
    assert prompt("5") == ("5\n", FIRST)
    gate.set()
    while prompt.life.typed:
        time.sleep(0.01)
    assert prompt("6") == ("6\n", FIRST), "and it prints nothing any more"


def test_completion() -> None:
    prompt, found = Prompt(), list[Any]()
    prompt.statements.names["alpha"] = SimpleNamespace(one=1, only=2, two=3)
    for text in ("alp", "alpha.o", "nothing.x", "(1/0)."):
        prompt.statements.complete(text, found.append)
        assert prompt.answer() == ("", FIRST)
    assert found == [["alpha"], ["alpha.one", "alpha.only"], [], []]
