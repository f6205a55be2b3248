"""Running what is typed at a prompt: outside the machine lock, each statement in a thread of its own.

A statement that never ends keeps nobody else from anything. What it calls by machine.call() runs in the machine's loop
and under the lock; an interrupt reaches it there too. Nothing that is typed takes the lock by hand: it would keep it.
One that sleeps in C is left to itself when it does not hear an interrupt, and the prompt comes back.
"""

from __future__ import annotations

import code
import rlcompleter
import threading
from collections.abc import Callable
from itertools import count
from typing import Any, Final, TypeVar

from pyvmm import threads
from pyvmm.errors import UserError
from pyvmm.host.repl.interrupt import Interruptible
from pyvmm.host.repl.streams import printing_to
from pyvmm.machine.machine import Machine

T = TypeVar("T")
FIRST: Final = ">>> "
MORE: Final = "... "
DEAF: Final = 2.0
"""Seconds that a statement gets to end after an interrupt."""
COMPLETIONS: Final = 200
KEPT: Final = 1 << 16
"""Characters that what runs in the loop may print."""
_numbers = count(1)


class Left(Exception):
    """exit() was typed."""


class Leave:
    """`exit` and `quit` of a prompt: those of Python would close the standard input that the guest reads."""

    def __repr__(self) -> str:
        return "exit() or Ctrl-D leaves the prompt; machine.end() ends the machine"

    def __call__(self, status: object = None) -> None:
        raise Left


class _Console(code.InteractiveConsole):
    """What is typed, as Python's own prompt takes it."""

    def __init__(self, names: dict[str, Any], write: Callable[[str], None]) -> None:
        super().__init__(names, "<prompt>")
        self._write = write

    def write(self, data: str) -> None:
        self._write(data)

    def runcode(self, code: Any) -> None:
        try:
            exec(code, self.locals)
        except (SystemExit, Left):
            raise Left from None
        except UserError as error:
            self.write(f"{error}\n")
        except BaseException:
            self.showtraceback()


class _Statement:
    """One thing that was typed, in a thread of its own."""

    def __init__(
        self,
        machine: Machine,
        do: Callable[[], None],
        write: Callable[[str], None],
        ended: Callable[[_Statement], None],
    ) -> None:
        self._machine = machine
        self._write = write
        self._do = do
        self._ended = ended
        self._here, self._in_loop = Interruptible(), Interruptible()
        self._printed = ""
        """In the loop, which does not wait for who reads it."""
        self._thread = threading.Thread(target=self._main, name=f"prompt {next(_numbers)}", daemon=True)

    def start(self) -> None:
        threads.start(self._thread)

    def _main(self) -> None:
        life = self._machine.life
        life.wrap[self._thread] = self._called
        try:
            with printing_to(self._write):
                self._typed(lambda: self._here.run(self._do))
        except KeyboardInterrupt:  # as it ended
            pass
        finally:
            del life.wrap[self._thread]
            self._in_loop.interrupt()  # what nobody waits for any more
            if self._printed:
                self._write(self._printed)
            self._ended(self)

    def _called(self, function: Callable[[], T]) -> Callable[[], T]:
        """What the loop runs for it."""

        def run() -> T:
            with printing_to(self._keep):
                return self._typed(lambda: self._in_loop.run(function))

        return run

    def _keep(self, text: str) -> None:
        self._printed = (self._printed + text)[:KEPT]

    def _typed(self, function: Callable[[], T]) -> T:
        """Where the machine lock is not to be had by hand."""
        typed, ident = self._machine.life.typed, threading.get_ident()
        typed.add(ident)
        try:
            return function()
        finally:
            typed.discard(ident)

    def interrupt(self) -> None:
        """Ctrl-C: where it is now, itself or what it waits for."""
        if not self._in_loop.interrupt():
            self._here.interrupt()

    @property
    def is_current(self) -> bool:
        """Called from inside it."""
        return threading.current_thread() is self._thread

    def join(self, timeout: float) -> bool:
        """Whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


class Statements:
    """The prompt of one user of *machine*. *write* gets what is printed, from any thread; *ready* the prompt when the
    next line may come, None when the user has left."""

    def __init__(self, machine: Machine, write: Callable[[str], None], ready: Callable[[str | None], None]) -> None:
        self._machine = machine
        self._write = write
        self._ready = ready
        self.names: dict[str, Any] = {"__name__": "__console__", "__doc__": None, "machine": machine}
        self.names |= {"exit": Leave(), "quit": Leave()}
        self._console = _Console(self.names, self._print)
        self._now: _Statement | None = None
        self._gate = threading.RLock()
        self._left = False

    @property
    def busy(self) -> bool:
        """A statement runs."""
        return self._now is not None

    def _print(self, text: str) -> None:
        """Of the statement that runs; one that was left alone prints nothing more."""
        now = self._now
        if now is not None and now.is_current:
            self._write(text)

    def push(self, line: str) -> None:
        """A line that was typed; ready() follows."""

        def run() -> None:
            try:
                self._console.push(line)
            except Left:
                self._left = True

        self._run(run)

    def complete(self, text: str, told: Callable[[list[str]], None]) -> None:
        """What *text* may become; told before ready()."""

        def run() -> None:
            completer = rlcompleter.Completer(self.names)
            found: list[str] = []
            try:
                while len(found) < COMPLETIONS and (one := completer.complete(text, len(found))) is not None:
                    found.append(one)
            except Exception:  # of something that was evaluated for it
                found.clear()
            told(found)

        self._run(run)

    def _run(self, do: Callable[[], None]) -> None:
        with self._gate:
            if self._now is None:
                self._now = _Statement(self._machine, do, self._print, self._ended)
                self._now.start()

    def _ended(self, statement: _Statement) -> None:
        with self._gate:
            if self._now is not statement:
                return
            self._now = None
        self._ready(None if self._left else MORE if self._console.buffer else FIRST)

    def interrupt(self) -> None:
        """Ctrl-C: end the statement, or forget the lines of one that is not whole; ready() follows. It may take DEAF
        seconds."""
        with self._gate:
            now = self._now
        if now is None:
            self._console.resetbuffer()
            self._write("\nKeyboardInterrupt\n")
            self._ready(FIRST)
            return
        now.interrupt()
        if now.join(DEAF):
            return
        with self._gate:
            if self._now is not now:
                return
            self._now = None
            self._console = _Console(self.names, self._print)
        self._write("it does not hear KeyboardInterrupt: it is left to itself\n")
        self._ready(FIRST)

    def close(self) -> None:
        """The user is gone: what runs for him is interrupted."""
        with self._gate:
            now, self._now = self._now, None
        if now is not None:
            now.interrupt()
