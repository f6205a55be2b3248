"""A machine's life: built, running, paused, ended; its loop is a thread of its own.

Whatever changes the life of the whole machine (pause, resume, reset, the end) is done by the loop's thread between two
callbacks, and without the machine lock, which the vCPUs need to finish their last exits. From other threads those calls
wait until it is done; from inside a callback, which has the lock, reset() and end() are queued, and what would have to
wait is refused.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from pyvmm import threads
from pyvmm.clock import GuestClock
from pyvmm.errors import UserError, one_line
from pyvmm.loop import Loop
from pyvmm.machine.event import Kind, MachineEvent, State
from pyvmm.machine.outcome import End, Outcome
from pyvmm.tap import Tap

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pyvmm.vcpu.group import VcpuGroup
    from pyvmm.vcpu.kernel_time import KernelTime

T = TypeVar("T")
LOOK_S: Final = 0.01
"""How often wait() looks again when nothing happens, in seconds."""
SIGNAL_LOOK_S: Final = 0.25
"""How often a thread that waits for the end looks up: a signal that comes as it is about to sleep, or that a thread of
the user's takes, wakes nobody; Python runs their handlers in the main thread when it next runs."""
REPORTED: Final = (End.PANIC, End.TRIPLE_FAULT, End.INTERNAL_ERROR, End.TIMEOUT)
"""The ends after which somebody will want to see the vCPUs' registers."""


class Standing(Protocol):
    """What stands still with the machine beside its vCPUs; called under the machine lock."""

    def stand_still(self) -> None:
        """Raises UserError where it cannot, and goes on."""

    def go_on(self) -> None: ...


class Life:
    """The states and the threads. The machine says with adopt() what lives."""

    cpus: VcpuGroup
    _time: KernelTime
    _restart: Callable[[], None]
    _board: Standing
    _report: Callable[[], str]
    _on_error: Callable[[BaseException], None]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.typed: set[int] = set()
        """Threads that run what is typed at a prompt."""
        self.loop = Loop(self._lock)
        self.clock = GuestClock(self.loop)
        self.events: Tap[MachineEvent] = Tap()
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        """What a device or callback of ours raised; run() raises it again."""
        self.timed_out: Callable[[Outcome], None] = self.end
        """What run() does with its outcome when the time is over, in the loop."""
        self._reasons: dict[str, None] = {}
        self._changes: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._main, name="machine", daemon=True)
        self._started = False
        self._gone = threading.Event()
        """The loop's thread does nothing more, or has not begun. Not is_alive(): in CPython 3.11 an exception that
        lands inside that or join(), as of a signal handler, makes both take a thread that runs for one that ended."""
        self._gone.set()
        # One starts it, one ends it; a signal handler may end it in the middle of either.
        self._gate = threading.RLock()
        self._ended = threading.Event()
        self._standing = False
        self._restored = False
        self._reset_asked = False
        self._reset_how = ""
        self._before: deque[Callable[[], object]] = deque()
        """What before_going_on() was given and nobody has done yet."""
        self._instead: threading.Thread | None = None
        """Who calls parts of the machine while its loop does not run."""
        self.wrap: dict[threading.Thread, Callable[[Callable[[], Any]], Callable[[], Any]]] = {}
        """What the functions that a thread gives to call() are put into, for who must be able to interrupt them."""

    def adopt(
        self,
        cpus: VcpuGroup,
        time: KernelTime,
        restart: Callable[[], None],
        board: Standing,
        report: Callable[[], str],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """*restart* puts board, RAM and vCPUs back to a start while all stand still; *board* has back ends
        that stand still too, or raises UserError; *report* describes the vCPUs;
        *on_error* ends the machine for what came out of the loop."""
        self.cpus, self._time, self._restart, self._board = cpus, time, restart, board
        self._report, self._on_error = report, on_error

    @property
    def lock(self) -> threading.Lock:
        """The machine lock. UserError for what is typed at a prompt, which would keep it while somebody thinks."""
        if self.typed and threading.get_ident() in self.typed:
            asks = str(sys._getframe(1).f_globals.get("__name__"))
            if asks.partition(".")[0] not in ("pyvmm", "kvm_cffi"):
                raise UserError("the machine lock is not for a prompt: machine.call(function) runs one under it")
        return self._lock

    @property
    def state(self) -> State:
        if self.outcome is not None:
            return "ended"
        if self._reasons:
            return "paused"
        return "running" if self._started else "built"

    @property
    def begun(self) -> bool:
        """Whether there is a guest that has found what it runs on: since the start, or before, in another machine."""
        return self._started or self._restored

    # Who calls

    @property
    def inside(self) -> bool:
        """Called by the loop or by a vCPU, which have the machine lock while they call anybody; or, where there is no
        loop, by who does its work."""
        current = threading.current_thread()
        return current in (self._thread, self._instead, self.loop.lent_to) or any(
            thread.is_current for thread in self.cpus.threads
        )

    def outside(self, what: str) -> None:
        """Raises UserError where *what*, which waits for the machine, is called inside it."""
        if self.inside:
            raise UserError(f"{what} waits for the machine, so a device or callback of the machine cannot call it")

    def call(self, function: Callable[[], T], timeout: float | None = None) -> T:
        """Run *function* in the loop under the machine lock and return what it returns, or raise what it raises.

        From inside a callback it runs at once. TimeoutError where a device keeps the lock for *timeout* seconds.
        """
        if self.inside:
            return function()
        if self._gone.is_set():
            with self.lock:
                self._instead = threading.current_thread()
                try:
                    return function()
                finally:
                    self._instead = None
        wrap = self.wrap.get(threading.current_thread())
        wrapped = function if wrap is None else wrap(function)
        future: Future[T] = _future()
        self.loop.post(lambda: _settle(future, wrapped))
        return self._result(future, timeout, lambda: self.call(function))

    def change(self, function: Callable[[], T]) -> T:
        """Run *function* in the loop's thread between two callbacks, without the lock, and wait for it."""
        if self._gone.is_set():
            return function()
        future: Future[T] = _future()
        self.queue(lambda: _settle(future, function))
        return self._result(future, None, function)

    def queue(self, function: Callable[[], object]) -> None:
        """As change(), and nobody waits."""
        self._changes.append(function)  # type: ignore[arg-type]
        self.loop.post(_nothing)

    def _result(self, future: Future[T], timeout: float | None, instead: Callable[[], T]) -> T:
        """Of what the loop was asked to do; of *instead*, where that came after the last that it did."""
        while not future.done():
            try:
                return future.result(LOOK_S * 50 if timeout is None else timeout)
            except TimeoutError:
                if future.done():
                    break
                if timeout is not None:
                    future.cancel()  # or it would run later, when nobody waits
                    raise
                if self._gone.is_set() and future.cancel():
                    return instead()
            except BaseException:
                future.cancel()  # of what was asked for, or of who asks: then nobody waits for it
                raise
        return future.result()

    # From start to end

    def start(self) -> None:
        """Start the vCPUs and the loop, once."""
        with self._gate:
            if self._started or self.outcome is not None:
                return
            self._started = True
            if self._reasons:  # paused before it began: the vCPUs stand before their first instruction
                self.cpus.hold()
            try:
                self.cpus.start()
                self._gone.clear()
                threads.start(self._thread)
                return
            except BaseException as error:  # no memory for one of them: those that run must not outlive the machine
                self.cpus.stop()
                if isinstance(error, Exception):  # else a signal handler's, and the loop's thread may run
                    self._gone.set()
                failed = error
        self.cpus.join()  # outside: one of them may be about to end() the machine
        raise failed

    def run(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends or end() is called; *timeout* in seconds. Raises what a device of ours raised."""
        self.outside("run()")
        expired = self.loop.timer(lambda: self.timed_out(Outcome(End.TIMEOUT, message=f"after {timeout:g} s")))
        self.start()
        if timeout is not None:
            deadline = self.loop.now() + int(timeout * 1e9)
            self.loop.post(lambda: expired.arm(deadline))
        if self._started:
            while not self._ended.wait(SIGNAL_LOOK_S):
                pass
            self.join()  # it does what was posted last; whoever undoes the machine's ties now must be alone with them
        elif not self._ended.is_set():  # ended before it began
            self._conclude()
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome

    def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Until *condition*, asked under the machine lock, is true; False if *timeout* seconds pass or the guest ends
        before."""
        self.outside("wait()")
        self.start()
        deadline = self.loop.now() + int(timeout * 1e9)
        while True:
            left = (deadline - self.loop.now()) / 1e9
            ended = self._ended.is_set()
            try:
                if self.call(condition, max(left, LOOK_S)):
                    return True
            except TimeoutError:
                return False
            if ended or left <= 0 or (not self._started and self.outcome is not None):
                return False
            self._ended.wait(min(LOOK_S, left))

    def end(self, outcome: Outcome) -> None:
        """End the machine, once: the first outcome stands. From any thread or signal handler, lock held or not."""
        with self._gate:
            if self.outcome is not None:
                return
            self.outcome = outcome
        self.cpus.stop()
        self.loop.stop()

    def fail(self, error: BaseException) -> None:
        """A bug of ours, or a user's mistake that shows now: run() raises it."""
        if self.error is None and self.outcome is None:
            self.error = error
        self.end(Outcome(End.INTERNAL_ERROR, message=one_line(error)))

    def wait_for_the_end(self, timeout: float) -> bool:
        """Whether the machine has ended, its report made and its threads gone, within *timeout* seconds."""
        return self._ended.wait(timeout)

    def join(self) -> None:
        """Wait until the threads have ended; the machine lock must not be held."""
        self._gone.wait()
        if self._thread.ident is not None:
            self._thread.join()  # the little that is left of it

    def _main(self) -> None:
        try:
            self._emit("started")
            self.loop.lends = not self._standing
            if self._reasons and not self._standing:
                self._stand_still()
            elif self._standing and not self._reasons:
                self._go_on()
            while self.outcome is None:
                self.loop.run_once()
                while self._changes:
                    self._changes.popleft()()
        except BaseException as error:
            try:
                self._on_error(error)
            finally:
                self.fail(error)  # nothing, where the machine has its outcome
        finally:
            self.cpus.stop()
            self.cpus.join()
            try:
                with self.lock:
                    self.loop.lends = False
                self._conclude()
            finally:
                self._gone.set()

    def _conclude(self) -> None:
        outcome = self.outcome
        assert outcome is not None
        try:
            if outcome.end in REPORTED and not outcome.report:
                self.outcome = replace(outcome, report=self._report())
            self._emit("ended", str(outcome))
        except BaseException as error:
            self.error = self.error or error
        finally:
            self._ended.set()
        while self._changes:  # those who wait for one must hear of it
            self._changes.popleft()()
        self.loop.run_posted()

    def _emit(self, kind: Kind, message: str = "") -> None:
        with self.lock:
            self.events(MachineEvent(kind, message))

    # Pause and resume

    def pause(self, reason: str = "user", wait: bool = True) -> None:
        """Let the machine stand still: vCPUs, timers, the guest's clocks. It goes on when each reason is taken away.

        With *wait* false it is only asked for, which a callback may do too. Where a device does not return, that is a
        UserError, or the event "pause-failed".
        """
        if not wait:
            self.queue(lambda: self._pause_asked_for(reason))
            return
        self.outside("pause()")
        self.change(lambda: self._pause(reason))

    def resume(self, reason: str = "user", wait: bool = True) -> None:
        """Take *reason* away, if it is one."""
        if not wait:
            self.queue(lambda: self._resume(reason))
            return
        self.outside("resume()")
        self.change(lambda: self._resume(reason))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the machine stands still, the oldest first; empty while it does not."""
        return tuple(self._reasons)

    def _pause_asked_for(self, reason: str) -> None:
        try:
            self._pause(reason)
        except UserError as error:  # nobody waits for it, and the machine runs on
            self._emit("pause-failed", str(error))

    def _pause(self, reason: str) -> None:
        if self.outcome is not None:
            return
        first = not self._reasons
        if self._started and first and self.outcome is None:
            self._stand_still()
        self._reasons[reason] = None
        if self._started and first:
            self._emit("paused", reason)

    def _resume(self, reason: str) -> None:
        if reason in self._reasons:
            del self._reasons[reason]
            if not self._reasons and self._started and self.outcome is None:
                self._go_on()
                self._emit("resumed", reason)

    def _stand_still(self) -> None:
        self.cpus.hold()
        try:
            self.cpus.wait_until_standing()
            with self.lock:
                self._board.stand_still()
                self.loop.lends = False  # only the loop does anything now, and it may be copying RAM
        except UserError:
            self.cpus.release()
            raise
        with self.lock:
            self.clock.stop()
            self._time.stop()
        self._standing = True

    def _go_on(self) -> None:
        self.do_what_was_asked()
        with self.lock:
            self._time.go()
            self.clock.go()
            self._board.go_on()
            self.loop.lends = not self._gone.is_set()
        self._standing = False
        self.cpus.release()

    def while_standing(self, what: str, function: Callable[[], T]) -> T:
        """Run *function* in the loop's thread while everything stands still; then all goes on, if it went on before.
        *what* is the call that wants it."""
        self.outside(what)
        return self.change(lambda: self._stand_for(what, function))

    def when_standing(self, what: str, function: Callable[[], object], failed: Callable[[UserError], None]) -> None:
        """The same soon, for a callback; nobody waits; *failed* is told under the lock why it did not come about."""

        def run() -> None:
            try:
                self._stand_for(what, function)
            except UserError as error:
                with self.lock:
                    failed(error)

        self.queue(run)

    def before_going_on(self, function: Callable[[], object]) -> None:
        """For a callback: run *function* in the loop's thread while everything stands still, before the guest executes
        anything more. What it raises ends the machine; where that does not stand still, "pause-failed" is told."""

        def run() -> None:
            if not self._before:
                return  # who stood still first has done it
            try:
                self._stand_for("it", self.do_what_was_asked)
            except UserError as error:
                if self.outcome is None:
                    self._emit("pause-failed", str(error))

        self._before.append(function)
        self.cpus.hold()
        self.queue(run)

    def do_what_was_asked(self) -> None:
        """In the loop's thread, while everything stands still, without the lock: what callbacks have asked for by
        before_going_on() and by reset(). A vCPU may have asked as it came to stand still for somebody else, who must
        not let it go on without that. Raises nothing: an error ends the machine."""
        try:
            while self._before and self.outcome is None:
                self._before.popleft()()
            self._reset_if_asked()
        except BaseException as error:
            self._on_error(error)

    def forget_reset(self) -> None:
        """The guest that has asked for one is not the guest any more: the state became another."""
        self._reset_asked = False

    def stand_until_started(self, function: Callable[[], object]) -> None:
        """Run *function*, which gives a machine that was not started the state of another; its clocks stand from there
        until it is started."""
        self._stand_still()
        function()
        self._restored = True

    def _stand_for(self, what: str, function: Callable[[], T]) -> T:
        if self.outcome is not None:
            raise UserError(f"the machine has ended: {what} needs one that lives")
        if self._standing:
            return function()
        self._stand_still()
        try:
            return function()
        finally:
            self._go_on()

    # Reset

    def reset(self, how: str = "reset()") -> None:
        """Reset the machine in place; from a callback it is queued, and the guest executes nothing more before it."""
        if self.inside:
            if not self._reset_asked:  # each vCPU that is out of KVM_RUN may ask
                self._reset_how, self._reset_asked = how, True
                self.cpus.hold()
                self.queue(self._reset_if_asked)
        else:
            self.change(lambda: self._reset(how))

    def _reset_if_asked(self) -> None:
        if self._reset_asked:  # else it has been done, or forgotten
            self._reset(self._reset_how)

    def _reset(self, how: str) -> None:
        if self.outcome is not None:
            return
        paused = self._standing
        try:
            if self._started:
                self.cpus.hold()
                self.cpus.wait_until_standing()
            if self.outcome is not None:
                return
            self._restart()
            self._reset_asked = False
            self._emit("reset", how)
        except BaseException as error:  # half a machine does not go on
            self._on_error(error)
            raise
        if paused:
            with self.lock:
                self._time.stop()  # what stands still from now on is the time of the new start
        elif self._started:
            self.cpus.release()


def _future() -> Future[Any]:
    from concurrent.futures import Future  # with `logging`, and only scripts and commands wait for the loop

    return Future()


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


def _nothing() -> None:
    """Wakes the loop."""
