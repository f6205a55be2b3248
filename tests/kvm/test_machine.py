"""Every guest of guests/ on the whole machine: it ends as its guest.toml says, and leaves the right things behind."""

from __future__ import annotations

import mmap
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kvm_cffi import Exit, KvmError
from kvm_cffi.exits import Debug, ExceptionExit, FailEntry, InternalError, Shutdown, SystemEvent, UnknownExit
from pyvmm import guests
from pyvmm.board import memslots as ram
from pyvmm.board.layout import COM1, DEBUGCON
from pyvmm.bus import Bus
from pyvmm.config import Irqchip, MachineConfig
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.machine.kvm import open_kvm
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.units import MIB
from pyvmm.vcpu.exits import serve
from tests.rig.board import board
from tests.rig.rig import HARDWARE, SVM

MSI_TO_CPU_0 = 0xFEE00000
OK = Outcome(End.DEBUG_EXIT, 0)
FAST = {
    "ports": {"port_step": 7, "mmio_step": 0x20000},
    "pio-bench": {"outs": 1000, "ins": 1000},
    "timer": {"count": 5},
}
"""Guests that would take seconds: what of them is left out."""

BY_THEMSELVES = [
    "debug", "dirty", "doorbell", "int3", "irq-window", "mmio", "mmio-cross", "pio", "pio-bench", "ports", "protected",
    "rtc", "string-io", "timer", "tpr", "uart",
]  # fmt: skip
DRIVEN = ["hello", "hlt", "hyperv-crash", "kbd-inb60", "keyboard", "msi", "nmi", "smp"]
ELSEWHERE = [
    "ata", "blk-bench", "blk-log", "cpus", "memory-hotplug", "ne2k", "pci", "s3", "testdev",
]  # fmt: skip
"""In test_ata.py, test_disk.py, test_disk_kills.py, test_cpu_hotplug.py, test_hotplug_memory.py, test_ne2k.py,
test_pci.py, test_sleep.py and test_testdev.py."""
DYING = {"shutdown": End.TRIPLE_FAULT, "internal-error": End.INTERNAL_ERROR, "fetch-mmio": End.INTERNAL_ERROR}
LOST = {"shutdown": SVM, "internal-error": False, "fetch-mmio": False}
"""On AMD's processors KVM resets a vCPU that has shut down."""
RESETS = {
    "reset-i8042": "port 0x64",
    "reset-cf9": "port 0xcf9",
    "reset-port92": "port 0x92",
    "reset-triple-fault": "triple fault",
}


def discard(value: object) -> None:
    """For a lambda whose caller wants nothing back."""


def test_every_guest_is_tested_here() -> None:
    assert sorted([*BY_THEMSELVES, *DRIVEN, *DYING, *RESETS, *ELSEWHERE]) == guests.names()


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_a_guest_that_needs_nobody(name: str) -> None:
    with board(name, parameters=FAST.get(name)) as machine:
        assert machine.finish() == OK
        if name == "timer":
            assert machine.value("ticks") == 5
        elif name == "ports":
            assert machine.value("accesses") > 30_000
        elif name == "rtc":
            shown = re.search(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", machine.output)
            assert shown, bytes(machine.output)
            guest = datetime.strptime(shown[1].decode(), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            assert abs(datetime.now(UTC) - guest).total_seconds() < 60
        elif name == "irq-window":
            assert machine.output == b"RRR", "from the debug console"


def column(machine: Machine) -> int:
    """Where the cursor is on the screen."""
    cursor = machine.screen.cursor
    assert cursor is not None
    return cursor.column


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_writes_that_kvm_gathers_reach_their_devices(irqchip: Irqchip, tmp_path: Path) -> None:
    """The VGA's registers, and the NMI mask of port 0x70, without any exit."""
    # mov dx, 0x3d4; mov ax, 0x070f; out dx, ax; mov al, 0x80; out 0x70, al; mov byte [0x5000], 1; jmp $
    code = "ba d403 b8 0f07 ef b0 80 e6 70 c6 06 0050 01 eb fe"
    (tmp_path / "code").write_bytes(bytes.fromhex(code))
    config = MachineConfig(memory=MIB, kernel=tmp_path / "code", flat="real@0x1000", irqchip=irqchip)
    with Machine(config) as machine:
        assert column(machine) == 0
        assert machine.wait(lambda: machine.memory.read_int(0x5000, 1) == 1)
        assert machine.vcpus[0].exits == 0
        assert column(machine) == 7
        machine.nmi()
        assert machine.board.nmi_masked


@pytest.mark.parametrize("irqchip", ["split", "user"])
@pytest.mark.parametrize("name", ["timer", "uart", "irq-window", "hello", "string-io"])
def test_the_interrupt_controllers_of_ours(name: str, irqchip: str) -> None:
    with board(name, parameters=FAST.get(name), irqchip=irqchip) as machine:
        if name == "hello":
            machine.board.com1.on_room = lambda: discard(machine.board.com1.receive(b"q"))
            assert machine.finish() == Outcome(End.POWER_OFF)
        else:
            assert machine.finish() == OK


def test_the_alarm_through_two_pics_of_ours() -> None:
    with board("rtc", irqchip="user") as machine:
        assert machine.finish() == OK


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_hello_echoes(irqchip: str) -> None:
    with board("hello", irqchip=irqchip) as machine:
        waiting = bytearray(b"Some text, longer than the FIFO of sixteen bytes.\rq")

        def feed() -> None:
            del waiting[: machine.board.com1.receive(bytes(waiting))]

        machine.board.com1.on_room = feed
        assert machine.finish() == Outcome(End.POWER_OFF)
        assert b"longer than the FIFO of sixteen bytes.\r\n\r\nBye." in machine.output


def test_hlt_ends_by_nmi_only() -> None:
    with board("hlt") as machine:
        machine.memory.write(0x600, b"\xcf")  # iret
        machine.memory.write_int(2 * 4, 4, 0x600)

        def press() -> None:
            machine.nmi()
            timer.arm(machine.life.loop.now() + 50_000_000)

        timer = machine.life.loop.timer(press)
        timer.arm(machine.life.loop.now() + 50_000_000)
        assert machine.finish() == OK
        assert machine.value("halts") == 3


@pytest.mark.parametrize("irqchip", ["kernel", "user"])
def test_nmi_button(irqchip: str) -> None:
    """Pressed by the guest's own output, that is from inside one of its exits."""
    with board("nmi", parameters={"count": 3}, irqchip=irqchip) as machine:
        machine.on_output = lambda data: machine.nmi()
        assert machine.finish() == OK
        assert machine.value("taken") == 3


def test_nmi_button_while_the_guest_masks_it() -> None:
    with board("nmi") as machine:
        machine.board.pio.write(0x70, 1, 0x80)
        machine.on_output = lambda data: machine.nmi()
        assert machine.finish(0.3).end is End.TIMEOUT
        assert machine.value("taken") == 0


def test_hyperv_crash_without_hyperv() -> None:
    with board("hyperv-crash") as machine:
        assert machine.finish() == Outcome(End.DEBUG_EXIT, 1), "CPUID offers no Hyper-V, so the MSRs are not there"


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
def test_a_key_comes_by_irq_1(irqchip: str) -> None:
    with board("kbd-inb60", irqchip=irqchip) as machine:
        machine.on_output = lambda data: machine.keyboard.press("a") if data == b"K" else None
        assert machine.finish() == OK
        assert machine.output == b"K\x1e\x9e"


def test_keyboard_guest() -> None:
    with board("keyboard") as machine:
        machine.on_output = lambda data: machine.keyboard.press("ctrl", "d") if machine.output.endswith(b"> ") else None
        assert machine.finish() == Outcome(End.POWER_OFF)
        assert b"Bye" in machine.output


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_messages(irqchip: str) -> None:
    with board("msi", parameters={"count": 3}, irqchip=irqchip) as machine:
        machine.on_output = lambda data: discard(machine.board.vm.signal_msi(MSI_TO_CPU_0, 0x45))
        assert machine.finish() == OK
        assert machine.value("taken") == 3


@pytest.mark.parametrize("name", list(DYING))
def test_a_guest_that_dies(name: str) -> None:
    with board(name) as machine:
        outcome = machine.finish()
        assert outcome.end is DYING[name]
        assert ("vCPU 0: real mode" if LOST[name] else "vCPU 0: 64-bit long mode, paging on, CPL 0") in outcome.report
        assert ("loses its state" in outcome.report) == LOST[name]


@pytest.mark.parametrize("irqchip", ["kernel", "split", "user"])
@pytest.mark.parametrize("name", list(RESETS))
def test_a_reset(name: str, irqchip: str) -> None:
    """The second start finds the note of the first in CMOS RAM, which a reset leaves as it is."""
    with board(name, triple_fault="reset", irqchip=irqchip) as machine:
        events: list[str] = []
        machine.events.add(lambda event: events.append(f"{event.kind} {event.message}".strip()))
        assert machine.finish() == OK
        assert events == ["started", f"reset {RESETS[name]}", "ended debug-exit 0"]


@pytest.mark.parametrize("name", list(RESETS))
def test_a_reset_that_ends_the_machine(name: str) -> None:
    with board(name, triple_fault="reset", no_reboot=True) as machine:
        outcome = machine.finish()
        assert outcome.end is End.RESET
        assert RESETS[name] in outcome.message


@pytest.fixture
def large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gives a guest more memory than it has: pages exist once they are touched."""
    monkeypatch.setattr(ram, "host_memory", lambda: 1 << 40)


@pytest.mark.usefixtures("large_host")
def test_ports_in_full_on_memory_above_the_hole() -> None:
    """Every port; RAM on both sides of the hole, so that a stray write has somewhere to go."""
    with board("ports", memory=3072 * MIB + 16 * MIB, parameters={"mmio_step": 0x200000}, rng=True) as machine:
        assert machine.finish() == OK
        assert machine.value("accesses") > 150_000


@pytest.mark.parametrize("irqchip", ["split", "user"])
def test_ports_with_the_interrupt_controllers_of_ours(irqchip: str) -> None:
    with board("ports", parameters={"port_step": 7, "mmio_step": 0x80000, "seed": 7}, irqchip=irqchip) as machine:
        assert machine.finish() == OK


def test_a_debug_exit_value() -> None:
    with board("smp", parameters={"wait": 1 << 20}) as machine:
        machine.board.pio.write(0xF4, 1, 77)
        assert machine.run(10) == Outcome(End.DEBUG_EXIT, 77)


def test_a_timeout_reports_every_vcpu() -> None:
    with board("hlt", cpus=2) as machine:
        start = time.monotonic()
        outcome = machine.run(0.2)
        assert outcome.end is End.TIMEOUT
        assert time.monotonic() - start < 30
        assert outcome.message == "after 0.2 s"
        lines = outcome.report.splitlines()
        assert lines[0] == "vCPU 0 halted with interrupts off; vCPU 1 waits to be started"
        assert lines[1] == "vCPU 0: real mode" and "vCPU 1:" not in outcome.report


def test_a_device_of_ours_that_raises_ends_the_machine_and_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours: whoever runs the machine gets the traceback, and a note that says what the guest did."""

    def write(self: DebugExit, offset: int, size: int, value: int) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(DebugExit, "write", write)
    with board("pio") as machine:
        with pytest.raises(ZeroDivisionError, match="broken") as caught:
            machine.finish()
        assert machine.outcome is not None and machine.outcome.end is End.INTERNAL_ERROR
        (note,) = caught.value.__notes__
        assert re.match(r"device debug_exit.py:DebugExit: write of 0x0, \d bytes?, at port 0xf4 raised", note), note
        assert re.search(r"ZeroDivisionError: broken \(test_machine.py:\d+\), guest RIP 0x\w+$", note), note


def test_a_kvm_run_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where the host has no page for the guest any more: EFAULT."""
    with board("pio", cpus=2) as machine:

        def fail(lock: object, pio: Bus, mmio: Bus) -> Exit:
            raise KvmError(14, "KVM_RUN")

        monkeypatch.setattr(machine.vcpus[0], "run_io", fail)
        outcome = machine.finish()
        assert (outcome.end, outcome.message) == (End.INTERNAL_ERROR, "vCPU 0: KVM_RUN: Bad address")
        assert outcome.report.startswith("KVM cannot reach a page of guest RAM on the host: with hugetlb ")
        assert "\nvCPU 0: real mode\n" in outcome.report
        assert "vCPU 1" not in outcome.report


def test_the_first_vcpu_that_dies_is_the_one_reported() -> None:
    with board("hlt", cpus=2) as machine:
        first, second = machine.life.cpus.threads
        serve(first, Shutdown(), machine.verdicts)
        serve(second, InternalError(1, (), b"\xd9\x03"), machine.verdicts)
        outcome = machine.finish()
        assert (outcome.end, outcome.message) == (End.TRIPLE_FAULT, "vCPU 0: KVM_EXIT_SHUTDOWN")
        assert "\nvCPU 0: real mode\n" in outcome.report and ": triple fault\n" in outcome.report
        assert "vCPU 1" not in outcome.report and "d9 03" not in outcome.report


@pytest.mark.parametrize(
    ("exit", "end", "says"),
    [
        (FailEntry(0x80000021, 3), End.INTERNAL_ERROR, "KVM_EXIT_FAIL_ENTRY, reason 0x80000021 on host CPU 3"),
        (SystemEvent(3, ()), End.PANIC, "KVM_EXIT_SYSTEM_EVENT 3"),
        (SystemEvent(2, ()), End.RESET, "KVM_SYSTEM_EVENT_RESET"),
        (UnknownExit(4711, 0), End.INTERNAL_ERROR, "unknown exit 4711"),
        (ExceptionExit(6, 0), End.INTERNAL_ERROR, "unexpected ExceptionExit(exception=6, error_code=0)"),
        (Debug(1, 0x1000, 0, 0), End.INTERNAL_ERROR, "unexpected Debug("),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exits_that_no_guest_here_causes(exit: Exit, end: End, says: str) -> None:
    with board("hlt", no_reboot=True) as machine:
        serve(machine.life.cpus.threads[0], exit, machine.verdicts)
        outcome = machine.finish()
        assert outcome.end is end
        assert says in outcome.message


def test_wait_serves_the_machine_until_a_condition() -> None:
    with board("hello") as machine:
        assert machine.wait(lambda: b"powers off" in machine.output, 60)
        machine.board.com1.receive(b"abc")
        assert machine.wait(lambda: machine.output.endswith(b"abc"), 60)
        assert not machine.wait(lambda: False, 0.05)
        machine.board.com1.receive(b"q")
        assert not machine.wait(lambda: False, 60), "the guest has ended"
        assert machine.finish() == Outcome(End.POWER_OFF)


@pytest.mark.parametrize("ask", ["call", "change"])
def test_what_is_asked_of_a_loop_that_has_done_its_last_is_done_all_the_same(ask: str) -> None:
    asked, answers = threading.Event(), []

    with Machine(MachineConfig(guest="hlt")) as machine:
        life = machine.life
        post, gone = life.loop.post, life._gone.set
        who = threading.Thread(target=lambda: answers.append(getattr(life, ask)(lambda: 42)))

        def posted(callback: Callable[[], None]) -> None:
            post(callback)
            if threading.current_thread() is who:
                asked.set()

        def last() -> None:
            life._gone.set = gone  # type: ignore[method-assign]
            life.loop.post = posted  # type: ignore[method-assign]
            who.start()
            asked.wait()
            gone()

        life._gone.set = last  # type: ignore[method-assign]
        machine.start()
        machine.end(Outcome(End.QUIT))
        machine.run()
        who.join()
    assert answers == [42]


def test_the_report_of_an_internal_error() -> None:
    with board("internal-error") as machine:
        outcome = machine.finish()
        culprit = machine.guest.symbols["culprit"] if machine.guest else 0
        report = outcome.report
    assert outcome.message == "vCPU 0: KVM_INTERNAL_ERROR_EMULATION"
    where = f"KVM could not emulate the instruction at {culprit:#x}, fld dword ptr [rbx]"
    assert report.startswith(f"{where}: it touches GPA 0xd0000000")
    assert f"RIP {culprit:016x}" in report
    assert "RBX 00000000d0000000" in report
    assert re.search(rf"^> {culprit:#x}  d9 03 +fld dword ptr \[rbx\]$", report, re.MULTILINE), report
    assert "instruction that KVM could not emulate: d9 03" in report
    assert "CR0 " in report and "EFER 0500" in report
    assert "CS 0008" in report
    assert report.splitlines()[-1].split()[1] == "KVM_EXIT_INTERNAL_ERROR"


def test_the_report_of_a_triple_fault_shows_the_last_exits() -> None:
    with board("shutdown") as machine:
        outcome = machine.finish()
    lines = outcome.report.splitlines()
    assert outcome.message == "vCPU 0: KVM_EXIT_SHUTDOWN"
    if SVM:
        assert lines[0] == "triple fault; its cause is lost: an AMD processor loses its state in a shutdown"
    else:
        assert re.fullmatch(r"#UD \(ud2\) at RIP 0x[0-9a-f]+, no IDT: triple fault", lines[0])
    assert lines[1] == ("vCPU 0: real mode" if SVM else "vCPU 0: 64-bit long mode, paging on, CPL 0")
    assert len(lines) < 40 and all(len(line) <= 100 for line in lines)
    assert "IDT base" in outcome.report
    assert lines[-1].endswith("KVM_EXIT_SHUTDOWN")
    assert re.search(r"^last exits of \d+:$", outcome.report, re.MULTILINE)


def test_a_report_where_nothing_is_mapped_at_rip() -> None:
    with board("fetch-mmio") as machine:
        report = machine.finish().report
    assert "RIP 00000000d0000000" in report
    assert report.startswith("RIP leads to GPA 0xd0000000, where there is no RAM")
    assert "code at 0xd0000000: no RAM there" in report


def test_what_the_guest_reads_where_nothing_is() -> None:
    with board("pio") as machine:
        assert machine.finish() == OK
        assert [machine.value(name) for name in ("in1", "in2", "in4")] == [0xFF, 0xFFFF, 0xFFFFFFFF]


def test_ports_of_the_board() -> None:
    """The debug console prints, COM1 prints, and nothing else of the two is swallowed."""
    with board("nmi") as machine:
        for port, text in ((DEBUGCON, b"debug "), (COM1, b"serial")):
            for byte in text:
                machine.board.pio.write(port, 1, byte)
        assert machine.output == b"debug serial"


def test_the_default_guest_starts_within_the_default_memory() -> None:
    guest = guests.load(guests.DEFAULT)
    assert guest.memory <= 128 * MIB
    assert guest.end == "power-off"


@pytest.mark.usefixtures("large_host")
@pytest.mark.parametrize("memory", [16 * MIB, 64 * MIB + 4096, 3072 * MIB, 3073 * MIB, 5120 * MIB])
def test_sizes_of_memory(memory: int) -> None:
    with board("mmio-cross" if memory == 16 * MIB else "pio", memory=memory) as machine:
        assert machine.finish() == OK
        assert machine.board.ram.below_4g + machine.board.ram.above_4g == memory
        if memory > 3072 * MIB:
            assert machine.memory.read_int(4096 * MIB, 8) == 0


def test_memory_that_another_process_can_map() -> None:
    with board("pio", memory=16 * MIB, memory_shared=True) as machine:
        assert machine.finish() == OK
        for gpa, buffer, fd, offset, _ in machine.board.ram.regions:
            assert fd is not None
            with mmap.mmap(fd, offset + len(buffer), mmap.MAP_SHARED, mmap.PROT_READ) as theirs:
                assert theirs[offset:] == machine.memory.read(gpa, len(buffer))
                assert any(theirs[offset:]), "the guest in base memory, what a BIOS leaves below 1 MiB"


def test_software_backed_kvm_is_told_apart() -> None:
    from pyvmm.cli.backend import backend

    with open_kvm() as system:
        assert backend(system.get_supported_cpuid).hardware == HARDWARE


def test_parts_by_name() -> None:
    with Machine(MachineConfig(guest="hlt", devices=("virtio-rng,id=dice", "pci-testdev"))) as machine:
        parts = machine.parts
        assert parts["dice"] is machine.board.devices["dice"] and "pci-testdev" in parts
        assert parts["com1"] is machine.board.com1 and "i8259" not in parts, "that is the kernel's"
