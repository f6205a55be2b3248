"""Which signals a thread of ours takes."""

from __future__ import annotations

import io
import signal
import threading
from typing import cast

import pytest

from kvm_cffi import Vcpu
from kvm_cffi.exits import Exit, Intr
from pyvmm import threads
from pyvmm.bus import Bus
from pyvmm.host.trace_file import TraceWriter
from pyvmm.vcpu.exits import ExitHandler
from pyvmm.vcpu.thread import KICK, VcpuThread

FATAL = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT}


def blocked() -> set[int]:
    """By the thread that asks."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_it_takes_none_that_is_meant_for_the_process() -> None:
    before, seen = blocked(), []
    thread = threading.Thread(target=lambda: seen.append(blocked()))
    threads.start(thread)
    thread.join()
    assert blocked() == before, "its creator's own mask is as it was"
    process = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT, signal.SIGALRM}
    assert process <= seen[0] and not FATAL & seen[0]
    assert not {signal.SIGTTIN, signal.SIGTTOU} & seen[0], "else it would write where `stty tostop` forbids it"


def test_a_thread_that_cannot_be_started_leaves_the_mask_as_it_was() -> None:
    before = blocked()
    thread = threading.Thread(target=lambda: None)
    thread.start()
    with pytest.raises(RuntimeError):
        threads.start(thread)
    assert blocked() == before


def test_a_vcpu_hears_its_kick_alone_whatever_its_creator_blocks() -> None:
    class OneRun:
        id = 0
        immediate_exit = False
        thread: VcpuThread
        seen: set[int]

        def run_io(self, lock: threading.Lock, pio: Bus, mmio: Bus) -> Exit:
            self.seen = blocked()
            self.thread.stopping = True
            return Intr()

    vcpu = OneRun()
    vcpu.thread = VcpuThread(
        cast(Vcpu, vcpu),
        threading.Lock(),
        Bus("PIO", 1 << 16),
        Bus("MMIO", 1 << 52),
        cast(ExitHandler, None),
        lambda thread, error: None,
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
    try:
        vcpu.thread.start()
        vcpu.thread.join()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {KICK})
    assert KICK not in vcpu.seen and {signal.SIGTERM, signal.SIGCONT} <= vcpu.seen


def test_the_trace_takes_none() -> None:
    class Stream(io.StringIO):
        seen: set[int]

        def write(self, text: str) -> int:
            self.seen = blocked()
            return super().write(text)

    stream = Stream()
    writer = TraceWriter(stream)
    writer(0, "irq", "a line")
    writer.close()
    assert {signal.SIGTERM, signal.SIGCONT} <= stream.seen


def test_a_wakeup_that_comes_before_the_sleep_ends_it() -> None:
    wakeup = threads.Wakeup()
    wakeup.set()
    wakeup.set()  # twice is once
    wakeup.wait()
    wakeup.set()
    wakeup.clear()
    wakeup.clear()
    woken: list[int] = []

    def sleep() -> None:
        wakeup.wait()
        woken.append(1)

    thread = threading.Thread(target=sleep)
    thread.start()
    assert woken == [], "what was taken back wakes nobody"
    wakeup.set()
    thread.join()
    assert woken == [1]
