"""A guest that was booted once, for many tests: each finds it as it was when it was ready."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pyvmm.agent import AgentError
from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.machine.snapshot import Snapshot
from pyvmm.screen.screen import Screen
from pyvmm.testing.guest_agent import GuestAgent, find_tap
from pyvmm.testing.patience import LOOK_S, PATIENCE
from pyvmm.testing.serial import Serial
from pyvmm.testing.shell import Ran

if TYPE_CHECKING:
    from drgn import Program

    from pyvmm.virtio.console_ports import PortTap

HELD = "between tests"
"""The reason of the pause between two tests."""


class GuestVm:
    """A guest in the hands of a test: the fixture `vm`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.serial = Serial(machine)

    # For the plugin

    @property
    def lives(self) -> bool:
        """It has not ended."""
        return self.machine.outcome is None

    def last_words(self) -> dict[str, str]:
        """What a person wants to see of it when a test has failed, by headline."""
        outcome = self.machine.outcome
        words = {"guest, serial port": self.serial.output[-3000:]}
        if outcome is not None:
            words["guest, outcome"] = f"{outcome}\n{outcome.report}"
            return words
        from pyvmm.report.page import vcpu_report

        with self.machine.paused():
            reports = (vcpu_report(vcpu, self.machine.memory) for vcpu in self.machine.vcpus)
            words["guest, vCPUs"] = "\n".join(reports)
        return words

    def close(self) -> None:
        self.machine.close()

    # For tests

    def run(self, command: str, timeout: float = PATIENCE) -> Ran:
        """What *command*, a line for the shell, printed, and its exit status: by the guest's agent, where there is one,
        both outputs apart; else by the shell on the serial port."""
        agent = self.agent
        if agent is None:
            return self.serial.run(command, timeout)
        status, pieces = agent.run_in_order(["sh", "-c", command], b"", timeout)
        output = b"".join(data for _, data in pieces).decode(errors="replace")
        return Ran(output, status, *(b"".join(data for number, data in pieces if number == n) for n in (1, 2)))

    @property
    def agent(self) -> GuestAgent | None:
        """Its agent: run(words, stdin), put(data, path), get(path); None where it has none."""
        tap = self.agent_port
        return GuestAgent(self.machine, tap) if tap is not None and tap.guest_open else None

    @property
    def agent_port(self) -> PortTap | None:
        """The agent's port, where the machine has one: virtio-console,port.pyvmm.agent"""
        devices = self.machine.board.devices
        return find_tap(devices) if devices else None

    def put(self, data: bytes | Path, path: str, mode: int = 0o644) -> None:
        """Make file *path* in the guest of *data*, or of what is in a file of this host; by its agent."""
        self._need_agent().put(data, path, mode)

    def get(self, path: str) -> bytes:
        """What is in file *path* of the guest; by its agent."""
        return self._need_agent().get(path)

    def _need_agent(self) -> GuestAgent:
        agent = self.agent
        if agent is None:
            raise AgentError(
                "this guest has no agent: devices=['virtio-console,port.pyvmm.agent'], see docs/consoles.md"
            )
        return agent

    def send(self, text: str | bytes) -> None:
        """Type *text* on the serial port."""
        self.serial.send(text)

    def expect(self, what: str | re.Pattern[str], timeout: float = PATIENCE) -> str:
        """Wait until the serial port has shown *what*; what came up to there."""
        return self.serial.expect(what, timeout)

    def type(self, text: str) -> None:
        """Type *text* on the guest's keyboard: \\n, <enter>, <ctrl-c> …"""
        self.machine.keyboard.type(text)

    @cached_property
    def drgn(self) -> Program:
        """drgn on its memory, as machine_program() makes it; docs/drgn.md."""
        from pyvmm.control.drgn.program import machine_program

        return machine_program(self.machine)

    @property
    def screen(self) -> Screen:
        """The guest's screen as it is now."""
        return self.machine.screen

    @property
    def parts(self) -> Mapping[str, Any]:
        """The devices that were asked for, by id or kind."""
        return self.machine.board.devices


class BootedVm(GuestVm):
    """A machine of *config*, ready when it has shown *ready*, on its serial port or its screen."""

    def __init__(self, config: MachineConfig, ready: str) -> None:
        super().__init__(Machine(config))
        self._directory = ExitStack()
        self._file: Path | None = None
        try:
            self._boot(ready)
            self.ready: Snapshot = self.machine.snapshot()
            self.machine.pause(HELD)
        except BaseException:
            self.machine.close()
            raise

    def _boot(self, ready: str) -> None:
        patience = self.serial.patience()
        while not self.machine.wait(lambda: ready in self.serial.output or ready in self.machine.screen, LOOK_S):
            if self.machine.outcome is not None or patience.is_over:
                raise self.serial.error(f"the guest was to show {ready!r}, and {self.machine.outcome or 'did not'}")
        port = self.agent_port
        while port is not None and not self.machine.wait(lambda: port.guest_open, LOOK_S):
            if self.machine.outcome is not None or patience.is_over:
                raise self.serial.error("the machine has a port for an agent, and none in the guest has opened it")

    def begin(self) -> None:
        """As it was when it was ready; it runs."""
        self.machine.restore(self.ready)
        self.serial.begin_again()
        self.machine.resume(HELD)

    def end(self) -> None:
        """It stands until the next test."""
        if self.lives:
            self.machine.pause(HELD)

    def another(self) -> GuestVm:
        """Another machine, made from its configuration and what the snapshot has written to a file; it runs."""
        if self._file is None:
            self._file = Path(self._directory.enter_context(TemporaryDirectory())) / "ready.pyvmm"
            self.ready.save(self._file)
        vm = GuestVm(Machine.restored(self._file))
        try:
            vm.machine.start()
        except BaseException:
            vm.close()
            raise
        return vm

    def close(self) -> None:
        super().close()
        self._directory.close()
