"""Looking into a running Linux, without its debugging information: drgn on its memory, its core file."""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from drgn import Program
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.printk import get_dmesg

from pyvmm import GdbServer, MachineConfig, QmpServer, core_program, machine_program, vcpu_trace, write_core
from pyvmm.units import MIB
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.ide import Ide
from tests.rig.lab import CLOUD_KERNEL, DRIVER, INITRAMFS, ROOT

TASK_COMM_LEN = 15
"""Characters of a task's own name; /proc shows more of a kernel thread's."""
IDLE = ["do_idle", "cpu_startup_entry"]
"""Who has called what halts an idle CPU."""


@pytest.fixture(scope="module")
def linux() -> Iterator[Guest]:
    """At its shell, moved by KASLR, on two CPUs."""
    config = MachineConfig(
        kernel=CLOUD_KERNEL,
        initrd=(INITRAMFS, DRIVER),
        memory=192 * MIB,
        cpus=2,
        cmdline="console=ttyS0 quiet pyvmm.modules=none",
        devices=(f"{ROOT}/docs/examples/doubler.py:Doubler",),
    )
    with Guest(config) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        yield guest


@pytest.fixture(scope="module")
def program(linux: Guest) -> Program:
    return machine_program(linux.machine)


IDLE_HELD = "idle"


def names(trace: object) -> list[str]:
    """The functions of a stack trace, from the innermost on."""
    return [frame.name for frame in trace]  # type: ignore[attr-defined]


def both_idle(linux: Guest, program: Program) -> bool:
    """Whether the stacks of both vCPUs say so, from the idle loop to where each was started."""
    traces = [names(vcpu_trace(linux.machine, program, number)) for number in (0, 1)]
    started = [name in trace for name, trace in zip(("start_kernel", "start_secondary"), traces, strict=True)]
    return all(started) and all([name for name in trace if name in IDLE] == IDLE for trace in traces)


@contextmanager
def idle(linux: Guest, program: Program) -> Iterator[None]:
    """It stands where both are."""

    def holds() -> bool:
        linux.machine.pause(IDLE_HELD)
        if both_idle(linux, program):
            return True
        linux.machine.resume(IDLE_HELD)
        return False

    linux.until(holds, "both vCPUs' idle loops")
    try:
        yield
    finally:
        linux.machine.resume(IDLE_HELD)


def test_tasks_are_those_that_the_guest_shows(linux: Guest, program: Program) -> None:
    listed = linux.shell("for p in /proc/[0-9]*; do cat $p/comm; done").split("\n")
    with linux.machine.paused():
        seen = [task.comm.string_().decode() for task in for_each_task(program)]
    assert {"init", "kthreadd", "sh", "swapper/0"} <= {*seen, program["init_task"].comm.string_().decode()}
    steady = {name[:TASK_COMM_LEN] for name in listed if name and not name.startswith(("kworker", "cat"))}
    assert len(steady) > 15 and steady == {name for name in seen if not name.startswith("kworker")}


def test_jiffies_go_on_with_the_guest_and_stand_with_it(linux: Guest, program: Program) -> None:
    with linux.machine.paused():
        first = program["jiffies"].value_()
        assert program["jiffies"].value_() == first
    linux.until(lambda: program["jiffies"].value_() > first, "a tick")


def test_stacks_of_the_vcpus(linux: Guest, program: Program) -> None:
    assert list(for_each_online_cpu(program)) == [0, 1]

    with idle(linux, program):  # as they are once the shell waits for input
        assert "cpu_startup_entry+0x" in str(vcpu_trace(linux.machine, program, 1))


def test_the_stack_of_a_task_that_sleeps(linux: Guest, program: Program) -> None:
    """As the kernel's own unwinder shows it in /proc/PID/stack."""
    pid = int(linux.shell("sleep 10000 & echo $!").split()[-1])
    linux.until(lambda: "hrtimer_nanosleep" in linux.shell(f"cat /proc/{pid}/stack"), "its sleep")
    shown = linux.shell(f"cat /proc/{pid}/stack")
    with linux.machine.paused():
        task = find_task(program, pid)
        trace = names(program.stack_trace(task))
        assert task.comm.string_() == b"sleep" and task.parent.comm.string_() == b"sh"
    wanted = [line.split()[1].split("+")[0] for line in shown.splitlines() if line.startswith("[<0>]")]
    assert wanted and trace[trace.index(wanted[0]) :][: len(wanted)] == wanted, (trace, shown)
    linux.shell(f"kill {pid}")


def test_a_module_that_comes_later(linux: Guest, program: Program) -> None:
    before = {module.name.string_() for module in for_each_module(program)}
    linux.shell("insmod /doubler.ko")
    assert {module.name.string_() for module in for_each_module(program)} - before == {b"doubler"}
    address = int(linux.shell("grep ' doubler_probe.*doubler' /proc/kallsyms").split()[0], 16)
    assert program.symbol("doubler_probe").address == address
    assert program.symbol(address + 1).name == "doubler_probe"
    linux.shell("rmmod doubler")
    with pytest.raises(LookupError):
        program.symbol("doubler_probe")


def test_gdb_in_a_drivers_probe(linux: Guest, program: Program, tmp_path: Path) -> None:
    """A break, who called, steps, a variable that is watched; the driver then works as if nobody had been there."""
    driver = "/sys/bus/pci/drivers/doubler"
    log = "dmesg -r | grep '^<[0-4]>'"
    linux.shell("insmod /doubler.ko")
    known = linux.shell(log, status=None)
    place = linux.shell(f"cd {driver}; echo 0000:*").strip()
    text, data = linux.shell("cd /sys/module/doubler/sections; cat .text .data").split()
    linux.shell(f"echo {place} >{driver}/unbind")
    with DRIVER.open("rb") as archive:
        subprocess.run(["cpio", "-i", "--quiet", "doubler.ko"], stdin=archive, cwd=tmp_path, check=True)
    with GdbServer(linux.machine, str(tmp_path / "gdb")) as server, Ide(server.address) as gdb:
        gdb.stopped()
        gdb.said(f"add-symbol-file {tmp_path}/doubler.ko -s .text {text} -s .data {data}")
        gdb.do("-break-insert doubler_probe")
        gdb.do("-exec-continue")
        linux.send(f"echo {place} >{driver}/bind\n")
        stop = gdb.stopped()
        assert (stop["reason"], stop["frame"]["func"]) == ("breakpoint-hit", "doubler_probe")
        caller = gdb.do("-stack-list-frames 1 1")["stack"][0]
        assert program.symbol(int(caller["addr"], 16)).name == "local_pci_probe"
        program.create_loaded_modules()  # stacks go through the new one, and gdb's go on in drgn's
        trace = names(vcpu_trace(linux.machine, program, int(stop["thread-id"]) - 1))
        assert trace[:2] == ["doubler_probe", "local_pci_probe"], trace
        assert {"really_probe", "bind_store", "ksys_write"} <= set(trace), trace

        lines = [int(gdb.go("-exec-next")["frame"]["line"]) for _ in range(2)]
        assert int(stop["frame"]["line"]) < lines[0] < lines[1]
        source = (ROOT / "docs/examples/doubler_linux/doubler.c").read_text().splitlines()
        mapped = next(n for n, line in enumerate(source, 1) if "doubler->registers = pcim_iomap_table" in line)
        gdb.do(f"-break-insert doubler.c:{mapped}")
        assert gdb.go("-exec-continue")["frame"]["line"] == str(mapped)
        gdb.do("-break-watch doubler->registers")
        stop = gdb.go("-exec-continue")
        assert stop["reason"] == "watchpoint-trigger"
        before, after = (int(stop["value"][which].split()[-1], 16) for which in ("old", "new"))
        assert before == 0 and after >> 63, "BAR 0, in the half of the addresses that is the kernel's"
        gdb.do("-break-delete")
        gdb.do("-target-detach")
    linux.expect("# ")
    assert linux.shell("echo 21 >/dev/doubler; cat /dev/doubler") == "42\n"
    assert warnings(linux.shell(log, status=None).removeprefix(known)) == []
    linux.shell("rmmod doubler")


def test_what_each_cpu_has_of_its_own_and_the_log(linux: Guest, program: Program) -> None:
    linux.shell("echo seen from outside >/dev/kmsg")
    with linux.machine.paused():
        assert b"seen from outside" in get_dmesg(program)
        runqueues = program["runqueues"]
        assert [per_cpu(runqueues, cpu).cpu.value_() for cpu in (0, 1)] == [0, 1]
    assert program["init_uts_ns"].name.release.string_().decode() == linux.shell("uname -r").strip()


def test_what_the_manual_shows_and_its_core_file(
    linux: Guest, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session of docs/drgn.md, on this machine. In its core drgn finds the kernel that was there, gdb the registers
    and the code."""
    text = (ROOT / "docs" / "drgn.md").read_text().split("and, once Linux is up:")[1].split("**No debugging")[0]
    words = {
        "machine": linux.machine,
        "machine_program": machine_program,
        "vcpu_trace": vcpu_trace,
        "write_core": write_core,
        "find_task": find_task,
        "for_each_task": for_each_task,
    }
    session = doctest.DocTestParser().get_doctest(text, words, "docs/drgn.md", None, 0)
    assert len(session.examples) > 8
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    with idle(linux, program):
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert runner.run(session, out=said.append).failed == 0, "".join(said)
        jiffies = program["jiffies"].value_()
        rips = [vcpu.get_regs().rip for vcpu in linux.machine.vcpus]
        code = program.read(rips[0], 8)
        tasks = [task.pid.value_() for task in for_each_task(program)]
    dumped = core_program("core")
    assert dumped["jiffies"].value_() == jiffies
    assert [task.pid.value_() for task in for_each_task(dumped)] == tasks
    shown = subprocess.run(
        ["gdb", "-nx", "-batch", "-c", "core", "-ex", "print/x $rip", "-ex", "x/8bx $rip", "-ex", "info threads"],
        capture_output=True,
        text=True,
        timeout=600,
    ).stdout
    assert f"$1 = {rips[0]:#x}" in shown and "".join(f"\t0x{byte:02x}" for byte in code) in shown, shown
    assert f"{rips[1]:#018x}" in shown, shown


def test_drgn_by_qmp(linux: Guest, tmp_path: Path) -> None:
    """As `drgn --qemu` connects, with VMCOREINFO by a descriptor of its own."""
    path = str(tmp_path / "qmp")
    program = (
        "import sys",
        "from drgn import Program",
        "from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms",
        "program = Program()",
        "program.set_qemu_qmp(sys.argv[1])",
        "print(program['UTS_RELEASE'].string_().decode())",
        "program.register_symbol_finder('kallsyms', load_vmlinux_kallsyms(program), enable_index=-1)",
        "print(program.read_c_string(program.symbol('linux_banner').address).decode())",
    )
    with QmpServer(linux.machine, path):
        command = [sys.executable, "-c", "\n".join(program), path]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    release, banner = ran.stdout.splitlines()[:2]
    assert release == linux.shell("uname -r").strip() and banner == linux.shell("cat /proc/version").strip()
