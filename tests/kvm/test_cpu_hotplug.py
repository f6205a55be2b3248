"""CPUs that come and go in a machine that runs, by a guest of ours that does what an OS would: guests/cpus."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvm_cffi import System
from pyvmm import Machine, MachineConfig
from pyvmm.board import layout
from pyvmm.cli.arguments import main
from pyvmm.control.qmp.server import QmpServer
from pyvmm.devices.cpu_hotplug import CPUHP_EJECT, CPUHP_SELECTOR, CPUHP_STATUS
from pyvmm.errors import UserError
from pyvmm.machine.outcome import End, Outcome
from pyvmm.vcpu.state import MSR_IA32_TSC
from tests.rig.board import LONGEST, Board, board
from tests.rig.cpuid import cpuid

FOREVER = 1 << 32
KVM_MP_STATE_UNINITIALIZED = 1


class Running:
    """A machine with guests/cpus, which has started the CPUs that there were."""

    def __init__(self, machine: Board) -> None:
        self.machine = machine
        self.events: list[tuple[str, str]] = []
        machine.events.add(lambda event: self.events.append((event.kind, event.message)))

    @property
    def present(self) -> tuple[int, ...]:
        return self.machine.board.sockets.present

    def until(self, condition: Callable[[], bool]) -> None:
        assert self.machine.wait(condition, LONGEST), (self.machine.outcome, bytes(self.machine.output))

    def says(self, text: str) -> None:
        """Wait for it, and forget it and all before; what comes behind is for the next."""
        wanted, output = text.encode(), self.machine.output
        self.until(lambda: wanted in output)

        def forget() -> None:
            del output[: output.index(wanted) + len(wanted)]

        self.machine.call(forget)

    def alive(self, cpu: int) -> int:
        assert self.machine.guest is not None
        return self.machine.memory.read_int(self.machine.guest.symbols["alive"] + 8 * cpu, 8)

    def runs(self, cpu: int) -> None:
        """Wait until it goes on counting."""
        before = self.alive(cpu)
        self.until(lambda: self.alive(cpu) > before)

    def plug(self, wanted: str = "cpu") -> int:
        """The number of the CPU that came, which the guest has started."""
        name = self.machine.plug(wanted)
        self.says(f"+{name[3:]}\n")
        cpu = int(name[3:])
        self.runs(cpu)
        return cpu

    def unplug(self, cpu: int) -> None:
        """And wait until the guest has let go of it."""
        assert self.machine.unplug(f"cpu{cpu}") is False
        self.says(f"-{cpu}\n")
        self.until(lambda: self.machine.life.cpus.threads[cpu].parked)
        assert cpu not in self.present

    def write(self, register: int, size: int, value: int) -> None:
        self.machine.call(lambda: self.machine.board.pio.write(layout.CPU_HOTPLUG + register, size, value))


@contextmanager
def running(cpus: int = 1, max_cpus: int = 4, keep: int = 0, **more: object) -> Iterator[Running]:
    with board("cpus", parameters={"rounds": FOREVER, "keep": keep}, cpus=cpus, max_cpus=max_cpus, **more) as machine:
        now = Running(machine)
        machine.start()
        now.until(lambda: machine.board.acpi_pm.acpi_enabled)
        for cpu in range(1, cpus):
            now.says(f"+{cpu}\n")
            now.runs(cpu)
        yield now


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_cpu_comes_runs_goes_and_comes_again(irqchip: str) -> None:
    with running(irqchip=irqchip) as now:
        for _ in range(3):
            assert (now.plug(), now.plug()) == (1, 2), "the first that are free"
            assert now.present == (0, 1, 2)
            now.unplug(1)
            now.runs(2)
            stood = now.alive(1)
            assert now.plug("cpu,id=cpu3") == 3
            now.runs(2)
            assert now.alive(1) == stood, "one that is ejected stands"
            now.unplug(3)
            now.unplug(2)
        assert [event for event in now.events if "plug" in event[0]] == 3 * [
            ("plugged", "cpu1"),
            ("plugged", "cpu2"),
            ("unplugged", "cpu1"),
            ("plugged", "cpu3"),
            ("unplugged", "cpu3"),
            ("unplugged", "cpu2"),
        ]


def test_the_guest_ends_by_itself_when_enough_have_gone() -> None:
    with board("cpus", cpus=2, max_cpus=2) as machine:
        now = Running(machine)
        machine.start()
        now.says("+1\n")
        machine.unplug("cpu1")
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 0)
        assert (machine.value("came"), machine.value("went")) == (1, 1)


def test_where_no_more_may_come_there_is_nothing() -> None:
    with board("cpus", cpus=2) as machine:
        assert "cpu-hotplug" not in machine.parts
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 1)
        assert len(machine.vcpus) == 2


def test_where_no_more_may_come_who_plugs_one_hears_how_they_may() -> None:
    """Of a guest without ACPI too."""
    with board("keyboard") as machine:
        for _ in range(2):
            with pytest.raises(UserError, match="stay what they are: start it with -c CPUS,max=MOST"):
                machine.plug("cpu")
            machine.start()


def test_a_cpu_that_comes_is_as_after_power_on() -> None:
    """Whatever it was before, and whatever was sent to it while it was in no socket; but its TSC is the others'."""
    with running(cpus=2) as now:
        machine = now.machine
        now.unplug(1)
        with machine.paused():
            parked = machine.vcpus[1]
            parked.nmi()
            apic = parked.get_lapic()
            assert parked.get_mp_state() == KVM_MP_STATE_UNINITIALIZED
            assert not apic[0xF1] & 1, "its local APIC is off: no interrupt finds it"
            regs = parked.get_regs()
            regs.rbx = 0x1234
            parked.set_regs(regs)
            assert machine.plug("cpu") == "cpu1"
            assert parked.get_regs().rbx != 0x1234
            assert not parked.get_vcpu_events().nmi_pending
            tscs = [vcpu.get_msrs([MSR_IA32_TSC])[MSR_IA32_TSC] for vcpu in machine.vcpus[:2]]
        assert abs(tscs[0] - tscs[1]) < machine.vcpus[0].get_tsc_khz() * 1000, "less than a second apart"
        now.says("+1\n")
        now.runs(1)


def test_nothing_is_left_behind() -> None:
    """Descriptors and threads after the first and after the ninth time."""

    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with running(max_cpus=2) as now:
        now.plug()
        now.unplug(1)
        before = held()
        for _ in range(8):
            now.plug()
            now.unplug(1)
        assert held() == before


def test_one_that_never_came_has_no_thread() -> None:
    with running(max_cpus=8) as now:
        threads = {thread.name for thread in threading.enumerate()}
        assert "vcpu0" in threads and "vcpu1" not in threads
        now.plug()
        assert "vcpu1" in {thread.name for thread in threading.enumerate()}
        assert len(now.machine.vcpus) == 8


def test_the_topology_has_room_for_all() -> None:
    with board("cpus", max_cpus=6) as machine:
        for vcpu in machine.vcpus:
            leaf = cpuid(machine, vcpu, 1)
            assert (leaf.ebx >> 24, leaf.ebx >> 16 & 0xFF) == (vcpu.id, 8)


def test_a_guest_may_eject_what_nobody_asked_for_but_not_the_first() -> None:
    with running(cpus=3) as now:
        for cpu in (0, 2, 2, 3, 4, 0xFFFFFFFF):
            now.write(CPUHP_SELECTOR, 4, cpu)
            now.write(CPUHP_STATUS, 1, CPUHP_EJECT)
        now.until(lambda: ("unplugged", "cpu2") in now.events)
        assert now.present == (0, 1)
        now.runs(1)
        assert [event for event in now.events if event[0] == "unplugged"] == [("unplugged", "cpu2")]
        now.write(CPUHP_SELECTOR, 4, 0)
        assert now.plug() == 2


def test_a_guest_that_does_not_let_go_says_why() -> None:
    with running(cpus=2, keep=1 << 1) as now:
        assert now.machine.unplug("cpu1") is False
        now.says("!1\n")
        why = "cpu1: the guest does not let go of it: an application uses it (_OST status 0x81)"
        assert now.events[-1] == ("unplug-refused", why)
        now.runs(1)
        now.machine.reset()
        now.says("+1\n")
        assert now.present == (0, 1), "what was refused is not asked for any more"


def test_a_reset_keeps_them_and_ends_what_was_asked_for() -> None:
    with running(cpus=3) as now:
        now.plug()
        with now.machine.paused():
            assert now.machine.unplug("cpu1") is False
        now.machine.call(now.machine.output.clear)
        now.machine.reset()
        assert 1 not in now.present or now.events[-1][0] == "reset"
        now.until(lambda: {2, 3} <= set(now.present) and b"+3\n" in now.machine.output)
        assert now.present == (0, 2, 3)
        for cpu in (2, 3):
            now.runs(cpu)
        now.machine.call(now.machine.output.clear)
        assert now.plug() == 1


def test_a_snapshot_has_the_cpus_that_there_were(tmp_path: Path) -> None:
    """Going back puts them in and takes them out; in a file they are there too."""
    with running(cpus=2) as now:
        machine = now.machine
        two = machine.snapshot()
        now.plug("cpu,id=cpu3")
        three = machine.snapshot()
        three.save(tmp_path / "saved")
        now.unplug(1)
        for snapshot, there, told in (
            (two, (0, 1), [("plugged", "cpu1"), ("unplugged", "cpu3")]),
            (three, (0, 1, 3), [("plugged", "cpu3")]),
            (three, (0, 1, 3), []),
        ):
            now.events.clear()
            machine.restore(snapshot)
            assert [event for event in now.events if "plug" in event[0]] == told
            assert now.present == there
            assert [thread.vcpu.id for thread in machine.life.cpus.seated] == list(there)
            for cpu in there[1:]:
                now.runs(cpu)
    with Board.restored(tmp_path / "saved") as machine:
        other = Running(machine)
        assert other.present == (0, 1, 3)
        machine.start()
        for cpu in (1, 3):
            other.runs(cpu)
        other.unplug(3)
        assert other.plug() == 2
        machine.reset()
        other.says("+2\n")
        assert other.present == (0, 1, 2)


def test_before_the_start_a_machine_is_only_made_otherwise() -> None:
    with board("smp", cpus=2, max_cpus=4) as machine:
        assert machine.plug("cpu,id=cpu3") == "cpu3"
        assert machine.unplug("cpu1") is True
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 2)
        assert machine.value("apic_ids") == 1 | 1 << 3


def test_from_another_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "qmp")
    with running(keep=1 << 2) as now, QmpServer(now.machine, path):
        assert main(["plug", path, "cpu"]) == main(["plug", path, "cpu,id=cpu2"]) == 0
        now.until(lambda: now.machine.value("came") == 2)
        assert main(["unplug", path, "cpu1"]) == 0
        assert now.present == (0, 2)
        assert capsys.readouterr().err == "pyvmm: waiting for the guest to let go of cpu1 (Ctrl-C: do not wait)\n"
        for words, why in (
            (["unplug", path, "cpu2"], "cpu2: the guest does not let go of it: an application uses it"),
            (["unplug", path, "cpu1"], "Device 'cpu1' not found: did you mean cpu2?"),
            (["unplug", path, "cpu0"], "cpu0 is the one that the guest started on"),
            (["plug", path, "cpu,id=cpu2"], "no CPU that could come is called so, but cpu1, cpu3"),
        ):
            assert main(words) == 2
            *_, said = capsys.readouterr().err.splitlines()
            assert why in said
        assert now.present == (0, 2)


def test_without_memory_for_its_thread_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread, hears: object = ()) -> None:
        raise RuntimeError("can't start new thread")

    with running() as now:
        with monkeypatch.context() as patched:
            patched.setattr("pyvmm.threads.start", refuse)
            with pytest.raises(UserError, match=r"cpu1: this host has no memory for its thread \(can't start"):
                now.machine.plug("cpu")
        assert now.present == (0,) and "plugged" not in dict(now.events)
        assert now.plug() == 1


def test_without_memory_for_its_thread_nobody_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a snapshot with a CPU whose thread has not begun: it was taken out before the start."""

    def refuse(thread: threading.Thread, hears: object = ()) -> None:
        raise RuntimeError("can't start new thread")

    with board("cpus", cpus=1, max_cpus=2) as machine:
        machine.plug("cpu")
        snapshot = machine.snapshot()
        assert machine.unplug("cpu1") is True
        now = Running(machine)
        machine.start()
        now.until(lambda: machine.board.acpi_pm.acpi_enabled)
        with monkeypatch.context() as patched:
            patched.setattr("pyvmm.threads.start", refuse)
            with pytest.raises(UserError, match="this host has no memory for the thread of a CPU"):
                machine.restore(snapshot)
        assert now.present == (0,) and machine.board.acpi_pm.acpi_enabled and now.events == [("started", "")]
        machine.restore(snapshot)
        assert set(now.present) == {0, 1} and ("plugged", "cpu1") in now.events


def test_a_guest_without_acpi_gets_none() -> None:
    with board("keyboard", max_cpus=2) as machine:
        machine.start()
        with pytest.raises(
            UserError, match=r"device cpu: its guest has not turned on ACPI \(SCI_EN\), which would tell"
        ):
            machine.plug("cpu")
        assert machine.board.sockets.present == (0,) and machine.life.cpus.threads[1].parked


def test_more_than_this_kvm_runs_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = System.check_extension
    for capability in ("KVM_CAP_MAX_VCPUS", "KVM_CAP_MAX_VCPU_ID"):
        with monkeypatch.context() as patched:
            fewer = lambda self, name, few=capability: 3 if name == few else ask(self, name)  # noqa: E731
            patched.setattr(System, "check_extension", fewer)
            with pytest.raises(UserError, match=r"max_cpus=4\): this host's KVM runs at most 3 vCPUs: ask for fewer"):
                Machine(MachineConfig(max_cpus=4))
            with pytest.raises(UserError, match=r"cpus=4\): this host's KVM runs at most 3 vCPUs: ask for fewer"):
                Machine(MachineConfig(cpus=4))


def test_what_cannot_come_or_go_is_said_in_a_line() -> None:
    with running(cpus=1, max_cpus=3) as now:
        machine = now.machine
        now.plug("cpu,id=cpu2")

        def refused(call: Callable[[], object]) -> str:
            with pytest.raises(UserError) as error:
                call()
            assert "\n" not in str(error.value)
            return str(error.value)

        assert "no CPU that could come is called so, but cpu1" in refused(lambda: machine.plug("cpu,id=cpu2"))
        assert "no CPU that could come is called so, but cpu1" in refused(lambda: machine.plug("cpu,id=cpu9"))
        taken = "device virtio-rng,id=cpu1: cpu1 is what a CPU is called: give it another id"
        assert refused(lambda: machine.plug("virtio-rng,id=cpu1")) == taken
        assert "a CPU takes an id, cpu1 and up, and no other key" in refused(lambda: machine.plug("cpu,slot=1"))
        now.plug()
        assert "all CPUs that there may be, 3, are there: unplug one first" in refused(lambda: machine.plug("cpu"))
        assert "cpu0 is the one that the guest started on" in refused(lambda: machine.unplug("cpu0"))
        assert "no CPU cpu3" in refused(lambda: machine.unplug("cpu3"))
        assert "of which only the guest can let go" in refused(lambda: machine.unplug("cpu1", force=True))
        assert "no device cp1" in refused(lambda: machine.unplug("cp1"))
        assert "plug() waits for the machine" in refused(lambda: machine.call(lambda: machine.plug("cpu")))
        assert now.present == (0, 1, 2)
    with Machine(MachineConfig(cpus=2)) as other:
        for call in (lambda: other.plug("cpu"), lambda: other.unplug("cpu1")):
            assert refused(call) == "the CPUs of this machine stay what they are: start it with -c CPUS,max=MOST"
    with Machine(MachineConfig(cpus=2, max_cpus=3)) as other:
        assert other.wait(lambda: "> " in other.screen, LONGEST)
        assert "its guest does not use ACPI, and would not hear of it" in refused(lambda: other.unplug("cpu1"))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"cpus": 3, "max_cpus": 2}, "there may be as many as there are from the start, to 255"),
        ({"max_cpus": 256}, "there may be as many as there are from the start, to 255"),
        ({"max_cpus": 2, "irqchip": "user"}, "a PIC serves one CPU: ask for one"),
        ({"max_cpus": "2"}, "max_cpus is an int or None"),
    ],
)
def test_what_no_machine_has(config: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        MachineConfig(**config).complete()  # type: ignore[arg-type]
