"""The command itself, in this process: each guest's exit status and messages, and one line for each mistake."""

from __future__ import annotations

import os
import re
import resource
import select
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import ANY

import pytest

from pyvmm import guests
from pyvmm.board import layout
from pyvmm.cli.arguments import main, make_config
from pyvmm.cli.parser import make_parser
from pyvmm.cli.run import allow_all_descriptors
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine import kvm
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import EXIT_STATUS_HELP
from tests.rig.images import FIELDS, make_bzimage, make_elf, multiboot_header, pvh_note
from tests.rig.rig import HARDWARE

PYVMM = Path(sys.executable).with_name("pyvmm")


class Ran(NamedTuple):
    status: int
    out: str
    err: str


Pyvmm = Callable[..., Ran]


@pytest.fixture
def pyvmm(capfd: pytest.CaptureFixture[str]) -> Iterator[Pyvmm]:
    """Run the command with these arguments and stdin on /dev/null."""
    null, stdin = os.open(os.devnull, os.O_RDONLY), os.dup(0)
    os.dup2(null, 0)

    def run(*arguments: object) -> Ran:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            status = ended.code
        return Ran(status, *capfd.readouterr())

    yield run
    os.dup2(stdin, 0)
    os.close(stdin)
    os.close(null)


@pytest.fixture
def mistake(pyvmm: Pyvmm) -> Callable[..., str]:
    """Run the command; it ends with 2 and one line, which is returned."""

    def run(*arguments: object) -> str:
        ran = pyvmm(*arguments)
        assert (ran.status, ran.out) == (2, ""), ran
        assert ran.err.endswith("\n") and ran.err.count("\n") == 1, ran.err
        assert ran.err.startswith("pyvmm"), ran.err
        assert len(ran.err) < 500
        return ran.err

    return run


STATUSES = {
    "ata": 17, "blk-bench": 17, "blk-log": 17, "cpus": 17, "debug": 16, "dirty": 16, "doorbell": 16, "fetch-mmio": 6,
    "hello": 124, "hlt": 124,
    "hyperv-crash": 17, "int3": 16, "internal-error": 6, "irq-window": 16, "kbd-inb60": 124, "keyboard": 124,
    "memory-hotplug": 17,
    "mmio": 16, "mmio-cross": 16, "msi": 124, "ne2k": 17, "nmi": 124, "pci": 17, "pio": 16, "pio-bench": 16,
    "ports": 16, "protected": 16, "reset-cf9": 16, "reset-i8042": 16, "reset-port92": 16, "reset-triple-fault": 5,
    "rtc": 16, "s3": 16, "shutdown": 5, "smp": 17, "string-io": 16, "testdev": 20, "timer": 16, "tpr": 16, "uart": 16,
}  # fmt: skip
"""Each guest's exit status with nobody to type or to interrupt it."""
FASTER = {
    "pio-bench": ["--set", "outs=1000", "--set", "ins=1000"],
    "ports": ["--set", "port_step=5", "--set", "mmio_step=0x100000"],
    "s3": ["--set", "sleeps=1"],
    "smp": ["--set", "wait=0x400000"],
    "timer": ["--set", "count=3"],
}


def test_every_guest_is_here() -> None:
    assert sorted(STATUSES) == guests.names()


@pytest.mark.parametrize("guest", list(STATUSES))
def test_exit_status(pyvmm: Pyvmm, guest: str) -> None:
    status = STATUSES[guest]
    ran = pyvmm("run", guest, *FASTER.get(guest, []), "--timeout", 0.3 if status == 124 else 100)
    assert ran.status == status
    needs = guests.load(guest).needs
    said = ran.err.splitlines()
    if needs:
        assert said.pop(0) == f"pyvmm: guest {guest} needs {needs}"
    first, *rest = said
    if status >= 16 and status != 124:
        assert (first, rest) == (f"pyvmm: debug-exit {status - 16}", [])
    else:
        assert re.match(r"pyvmm: (timeout: after 0.3 s|triple fault: |internal error: )", first)
        assert rest[0].startswith("vCPU 0 ") == (status == 124)
        assert any(line.startswith("vCPU 0: ") for line in rest) and len(rest) < 40
        assert any(line.startswith("code at 0x") for line in rest)


@pytest.mark.parametrize(
    ("guest", "how"),
    [("reset-cf9", "port 0xcf9"), ("reset-i8042", "port 0x64"), ("reset-port92", "port 0x92")],
)
def test_no_reboot(pyvmm: Pyvmm, guest: str, how: str) -> None:
    assert pyvmm("run", guest, "--no-reboot") == Ran(3, "", f"pyvmm: reset: {how}\n")


def test_a_triple_fault_can_be_a_reset(pyvmm: Pyvmm) -> None:
    assert pyvmm("run", "reset-triple-fault", "--triple-fault", "reset").status == 16
    assert pyvmm("run", "reset-triple-fault", "--triple-fault", "reset", "--no-reboot").status == 3


@pytest.mark.parametrize(("value", "status"), [(0, 16), (1, 17), (94, 110), (95, 111), (96, 111), (255, 111)])
def test_debug_exit_values(pyvmm: Pyvmm, tmp_path: Path, value: int, status: int) -> None:
    (tmp_path / "code").write_bytes(bytes([0xB0, value, 0xE6, 0xF4, 0xF4]))
    ran = pyvmm("run", "-m", "1M", "-k", tmp_path / "code", "--flat", "real@0x1000")
    assert (ran.status, ran.err) == (status, f"pyvmm: debug-exit {value}\n")


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (94, 189), (127, 255), (128, 1), (255, 255)])
def test_debug_exit_values_as_qemu_tells_them(pyvmm: Pyvmm, tmp_path: Path, value: int, status: int) -> None:
    (tmp_path / "code").write_bytes(bytes([0xB0, value, 0xE6, 0xF4, 0xF4]))
    ran = pyvmm("run", "-m", "1M", "-k", tmp_path / "code", "--flat", "real@0x1000", "--debug-exit", "qemu")
    assert (ran.status, ran.err) == (status, f"pyvmm: debug-exit {value}\n")


def test_what_kvms_test_programs_expect(pyvmm: Pyvmm) -> None:
    ran = pyvmm("run", "testdev", "--device", "testdev", "--device", "pci-testdev", "--debug-exit", "qemu")
    assert (ran.status, ran.err) == (1, "pyvmm: debug-exit 0\n")


def test_cpus(pyvmm: Pyvmm) -> None:
    assert pyvmm("run", "smp", "-c", 3).status == 16 + 3


def test_power_off_is_0_and_says_nothing(pyvmm: Pyvmm, tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(bytes.fromhex("ba 0406 b8 003c ef f4"))  # SLP_EN and S5 to PM1a_CNT
    assert pyvmm("run", "-m", "1M", "-k", tmp_path / "code", "--flat", "real@0x1000") == Ran(0, "", "")


def test_power_off_as_small_kernels_for_qemu_do_it(pyvmm: Pyvmm, tmp_path: Path) -> None:
    """cli; mov dx,0x604; mov ax,0x2000; out dx,ax; hlt"""
    (tmp_path / "code").write_bytes(bytes.fromhex("fa ba0406 b80020 ef f4 ebfd"))
    assert pyvmm("run", "-m", "1M", "-k", tmp_path / "code", "--flat", "real") == Ran(0, "", "")


def test_a_trace_in_a_file(pyvmm: Pyvmm, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    assert pyvmm("run", "pio", "--trace", f"exits={file}").err == "pyvmm: debug-exit 0\n"
    text = file.read_text()
    assert "KVM_EXIT_IO out port 0x5000 size 2 = 0x2211" in text
    assert "KVM_EXIT_IO in port 0x5000 size 4" in text
    assert "gets 0xffffffff from port 0x5000" in text


def test_a_trace_on_stderr(pyvmm: Pyvmm) -> None:
    assert re.search(
        r"^ +\d+\.\d{6} exits +vcpu0 KVM_EXIT_IO out port 0x5000", pyvmm("run", "pio", "--trace", "exits").err, re.M
    )


def test_guests_lists_them(pyvmm: Pyvmm) -> None:
    ran = pyvmm("guests")
    assert (ran.status, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == guests.names()
    for line in ran.out.splitlines():
        needs = guests.load(line.split()[0]).needs
        assert line.endswith(f" (needs {needs})") if needs else "needs" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["pci", "--rng"],
        ["pci", "--device", "virtio-rng"],
        ["testdev", "--device=testdev", "--device", "pci-testdev"],
        ["reset-triple-fault", "--triple-fault", "reset"],
        ["kbd-inb60", "--type-after", "K:a"],
    ],
)
def test_a_guest_that_has_what_it_needs(pyvmm: Pyvmm, arguments: list[str]) -> None:
    assert pyvmm("run", *arguments) == Ran(16, ANY, "pyvmm: debug-exit 0\n")


def test_help_has_the_exit_statuses(pyvmm: Pyvmm) -> None:
    ran = pyvmm("run", "--help")
    assert ran.status == 0
    assert EXIT_STATUS_HELP in ran.out
    for status in (0, 1, 2, 3, 4, 5, 6, 7, 124):
        assert re.search(rf"^ +{status} ", ran.out, re.M)


def test_doctor(pyvmm: Pyvmm) -> None:
    ran = pyvmm("doctor")
    assert ran.status == 0, "guests can run here, or this test would not"
    assert ("ok    /dev/kvm     hardware" if HARDWARE else "WARN  /dev/kvm     software-backed") in ran.out
    assert "MISS" not in ran.out


def test_a_linux_that_will_not_boot_here_is_told_at_the_start(tmp_path: Path) -> None:
    """One line, on standard error, and the kernel runs all the same; of a kernel that is no Linux, nothing."""
    linux, other = tmp_path / "bzImage", tmp_path / "flat"
    ends_with_7 = bytes.fromhex("b0 07 e6 f4 f4")
    linux.write_bytes(make_bzimage(ends_with_7.ljust(0x200, b"\x90") + ends_with_7))
    other.write_bytes(ends_with_7)
    runs = {("-k", str(linux)): not HARDWARE, ("-k", str(other), "--flat", "32"): False}
    for arguments, warned in runs.items():
        ran = subprocess.run([PYVMM, "run", "-m", "64M", *arguments], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 16 + 7
        lines = ran.stderr.splitlines()
        assert lines[-1] == "pyvmm: debug-exit 7"
        assert [line.startswith("pyvmm: KVM is software-backed here") for line in lines[:-1]] == [True] * warned


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "0"], "'0' is too little: a PC needs 1M at least"),
        (["-m", "-5"], "'-5' is too little"),
        (["-m", "1T"], "ask for less"),
        (["-m", "65T"], "'65T' is more than the 64T"),
        (["-m", "1025K"], "'1025K' is no multiple of 4 KiB"),
        (["-m", "much"], "'much' is no size: write it as 512M or 2G"),
        (["-m", "M"], "'M' is no size"),
        (["-m", "64M,share"], "'share' is nothing to say of RAM"),
        (["-m", "63M,hugetlb"], "-m 63M,hugetlb=2M: the size is no multiple of 2M"),
        (["-m", "64M,hugetlb=4M"], "'hugetlb=4M' is nothing to say of RAM: shared, hugetlb (pages of 2 MiB) or"),
        (["-m", "1M"], "guest keyboard needs 16384 KiB"),
        (["-c", "0"], "'0' is no number of vCPUs: 1 to 255"),
        (["-c", "1000"], "'1000' is no number of vCPUs: 1 to 255"),
        (["-c", "two"], "'two' is no number of vCPUs"),
        (["-k", "bzImage", "hello"], "-k bzImage GUEST hello: a machine boots one of them: leave the other away"),
        (["nobody"], "there is no guest 'nobody'; there are: ata, blk-bench, "),
        (["../hello"], "there is no guest '../hello'"),
        (["pio", "hello"], "unrecognized arguments: hello"),
        (["-i", "initrd"], "-i initrd: it goes with a kernel: add -k FILE"),
        (["-p", "quiet"], "-p quiet: it goes with a kernel: add -k FILE"),
        (["--flat", "real"], "--flat real: it goes with a kernel: add -k FILE"),
        (["pio", "--set", "x=1"], "guest pio has no x; it has: port, "),
        (["pio", "--set", "port"], "--set port: write it as NAME=NUMBER"),
        (["pio", "--set", "port=many"], "--set port=many: write it as NAME=NUMBER"),
        (["pio", "--set", "port=-1"], "-1 does not fit"),
        (["pio", "--set", "port=0x10000000000000000"], "does not fit"),
        (["--timeout", "0"], "'0' is no time: seconds, more than 0"),
        (["--timeout", "-1"], "'-1' is no time"),
        (["--timeout", "nan"], "'nan' is no time"),
        (["--timeout", "inf"], "'inf' is no time"),
        (["--trace", "exits=/no/such/place"], "--trace: cannot write /no/such/place: No such file or directory"),
        (["--trace", "exits=/"], "--trace: cannot write /: Is a directory"),
        (["--trace", "exit"], "--trace exit: there is no such channel; did you mean exits?"),
        (["--trace", "=file"], "name a channel, or all"),
        (["--irqchip", "none"], "invalid choice: 'none'"),
        (["--irqchip", "user", "-c", "2", "smp"], "-c 2 --irqchip user: a PIC serves one CPU: ask for one"),
        (["--symbols", "/no/such"], "--symbols /no/such: No such file or directory"),
        (["--symbols", "/dev/null"], "--symbols /dev/null: neither an ELF file, nor System.map"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_the_arguments(mistake: Callable[..., str], arguments: list[str], says: str) -> None:
    assert says in mistake("run", *arguments)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere/shot.png", "No such file or directory"),
        ("file/shot.png", "Not a directory"),
        (".", "Is a directory"),
        ("x" * 300, "File name too long"),
        ("denied/shot.png", "Permission denied"),
        ("file", "Permission denied"),
    ],
)
def test_a_screenshot_that_cannot_be_written_is_told_at_the_start(
    mistake: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "denied").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as it is for who is not root
    assert mistake("run", "hlt", "--screenshot", tmp_path / name) == (
        f"pyvmm: --screenshot: cannot write {tmp_path / name}: {says}\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["denied", "file"]


@pytest.mark.parametrize("arguments", [[], ["boot"], ["run", "-k"]])
def test_a_mistake_before_that(mistake: Callable[..., str], arguments: list[str]) -> None:
    assert "--help" in mistake(*arguments)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(2, "No such file or directory"), "does not exist: load kvm_intel or kvm_amd"),
        (PermissionError(13, "Permission denied"), "no permission for /dev/kvm ("),
        (OSError(16, "Device or resource busy"), "/dev/kvm: Device or resource busy: ask `pyvmm doctor`"),
    ],
)
def test_no_kvm(
    mistake: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    says: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    class NoSystem:
        def __init__(self, path: str) -> None:
            raise error

    monkeypatch.setattr(kvm, "System", NoSystem)
    assert says in mistake("run", "pio")
    assert main(["doctor"]) == 2
    assert "MISS  /dev/kvm" in capfd.readouterr().out


def test_a_file_that_is_not_kvm(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none", "does not exist"), (Path("/dev/null"), "Inappropriate ioctl")):
        with pytest.raises(UserError, match=says):
            kvm.open_kvm(str(path))


@pytest.mark.parametrize(
    "command", [["run", "pio"], ["run", "pio", "-c", "4", "--rng"], ["run", "pio", "-m", "16M,shared"], ["doctor"]]
)
@pytest.mark.parametrize("descriptors", [5, 8, 9, 10, 12])
def test_few_descriptors(command: list[str], descriptors: int) -> None:
    """It works, or one line says which limit it was, and nothing else."""
    limited(command, resource.RLIMIT_NOFILE, descriptors, rb"needs more than the \d+ descriptors .*: raise ulimit -n")


@pytest.mark.parametrize("command", [["run", "pio"], ["run", "pio", "--trace", "irq=/dev/null"], ["doctor"]])
@pytest.mark.parametrize("megabytes", [18, 20, 30, 41, 47, 54, 58, 62])
def test_little_memory(command: list[str], megabytes: int) -> None:
    """The addresses that a process may have: what is missing is told, be it for Python, RAM or a thread."""
    limited(
        command,
        resource.RLIMIT_AS,
        megabytes << 20,
        rb"(no memory for|-m 16M: Cannot allocate memory).*raise ulimit -v",
    )


def limited(command: list[str], limit: int, value: int, says: bytes) -> None:
    ran = subprocess.run(
        [PYVMM, *command],
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
        capture_output=True,
        timeout=100,
    )
    if ran.returncode == 2:
        assert re.fullmatch(rb"pyvmm: [^\n]*" + says + rb"[^\n]*\n", ran.stderr), ran.stderr
    else:
        assert (ran.returncode, b"Traceback" in ran.stderr) == (0 if command == ["doctor"] else 16, False), ran.stderr


# Devices of the user's own

DEVICES = """
from pyvmm.pci.device import PciDevice

class Vectors(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000

    def __init__(self, count=1):
        super().__init__()
        self.add_msix(count, 0)

class Raises(PciDevice):
    vendor_id, device_id = 0x1B36, 0x00F1

    def attached(self):
        raise FileNotFoundError(2, "No such file or directory", "firmware.bin")
"""


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    file = tmp_path / "devices.py"
    file.write_text(DEVICES)
    return file


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Soft and hard limit of descriptors, as Debian has them in a shell; but not so low that Python fails."""
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, old)


@pytest.mark.usefixtures("few_descriptors")
def test_all_the_vectors_that_a_device_can_have(pyvmm: Pyvmm, devices: Path) -> None:
    assert pyvmm("run", "pio", "--device", f"{devices}:Vectors,count=2048").status == 16


def test_more_vectors_than_kvm_routes(pyvmm: Pyvmm, devices: Path) -> None:
    device = f"{devices}:Vectors,count=2048"
    assert pyvmm("run", "pio", "--device", device, "--device", device).status == 16


def test_more_vcpus_than_descriptors() -> None:
    """A hard limit cannot be raised again, so in a process of its own."""
    command: list[str | Path] = [PYVMM, "run", "pio", "-c", "64"]
    ran = subprocess.run(
        command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)), capture_output=True
    )
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert re.fullmatch(rb"pyvmm: the machine needs more than the 40 descriptors .*: raise ulimit -n.*\n", ran.stderr)


@pytest.mark.usefixtures("few_descriptors")
def test_vectors_leave_the_descriptors_that_select_knows(devices: Path) -> None:
    config = MachineConfig(memory=16 << 20, guest="pio", devices=(f"{devices}:Vectors,count=1500",))
    allow_all_descriptors()
    with Machine(config):
        fd = os.open(os.devnull, os.O_RDONLY)
        select.select([fd], [], [], 0)  # ValueError for one from 1024 up
        os.close(fd)


def test_devices_leave_the_slot_of_virtio_input(pyvmm: Pyvmm, devices: Path) -> None:
    options = ["--device", f"{devices}:Vectors"] * 30
    assert pyvmm("run", "pio", "--virtio-input", "standard", *options).status == 16


@pytest.mark.parametrize("also", [["--rng"], ["--virtio-input", "standard", "--device", "{}:Vectors"]])
def test_more_devices_than_slots(mistake: Callable[..., str], devices: Path, also: list[str]) -> None:
    options = ["--device", f"{devices}:Vectors"] * (31 if also == ["--rng"] else 30)
    said = mistake("run", "pio", *options, *(word.format(devices) for word in also))
    assert "no free PCI slot: leave a --device away, or put one behind a root port" in said


def test_a_device_that_raises_when_it_is_plugged_in(mistake: Callable[..., str], devices: Path) -> None:
    said = mistake("run", "pio", "--device", f"{devices}:Raises")
    assert "devices.py:Raises: FileNotFoundError: [Errno 2] No such file or directory: 'firmware.bin'" in said


# ACPI tables


def test_acpi_writes_what_the_machine_has(pyvmm: Pyvmm, devices: Path, tmp_path: Path) -> None:
    """With everything that can be plugged in; a kernel finds them in RAM byte for byte."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(make_bzimage())
    device, out = f"{devices}:Vectors", tmp_path / "tables"
    options = ["--device", device, "--rng", "--root-ports", 2, "--device", f"{device},port=1", "-c", 3, "-m", "64M"]
    assert pyvmm("acpi", "-k", kernel, *options, "--out", out).status == 0
    arguments = make_parser().parse_args(["run", "-k", str(kernel), *map(str, options)])
    with Machine(make_config(arguments)) as running:
        area = running.memory.read(layout.ACPI_TABLES, layout.ACPI_TABLES_SIZE)
    tables = {file.stem: file.read_bytes() for file in out.iterdir()}
    assert area.startswith(tables["rsdp"])
    assert sorted(tables) == ["apic", "dsdt", "facp", "facs", "mcfg", "rsdp", "rsdt", "ssdt", "xsdt"]
    assert all(table in area for table in tables.values())


# Files


def test_a_kernel_that_is_not_there(mistake: Callable[..., str], tmp_path: Path) -> None:
    assert f"kernel {tmp_path}/none: No such file or directory" in mistake("run", "-k", tmp_path / "none")
    assert f"kernel {tmp_path}: is a directory, not a file" in mistake("run", "-k", tmp_path)
    assert "neither a file nor a pipe" in mistake("run", "-k", "/dev/zero")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"Some text.\n", "a text file"),
        (b"\x7fELF", ""),
        (b"\x1f\x8b\x08" + bytes(100), "a gzip file: unpack it first"),
        (bytes(5000), "no kernel format that is known"),
        (bytes(0x1FE) + b"\x55\xaa", "boot sector"),
    ],
    ids=["empty", "text", "ELF magic alone", "gzip", "zeros", "boot sector"],
)
def test_a_file_that_is_no_kernel(mistake: Callable[..., str], tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "kernel").write_bytes(content)
    assert says in mistake("run", "-k", tmp_path / "kernel")


@pytest.mark.parametrize("field", [*FIELDS, "payload"])
def test_a_bzimage_cut_off_in_each_header_field(mistake: Callable[..., str], tmp_path: Path, field: str) -> None:
    image = make_bzimage()
    offset = FIELDS[field][0] if field in FIELDS else len(image) - 100
    for length in {offset, offset + 1}:
        (tmp_path / "kernel").write_bytes(image[:length])
        assert "kernel" in mistake("run", "-m", "64M", "-k", tmp_path / "kernel")


@pytest.mark.parametrize(
    "changes",
    [
        {"setup_sects": 255},
        {"syssize": 0xFFFFFFFF},
        {"version": 0x0100},
        {"loadflags": 0},
        {"init_size": 0xFFFFF000},
        {"pref_address": 1 << 62, "relocatable_kernel": 0},
        {"initrd_addr_max": 0x1000},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_a_bzimage_whose_header_lies(mistake: Callable[..., str], tmp_path: Path, changes: dict[str, int]) -> None:
    image = make_bzimage()
    for name, value in changes.items():
        offset, form = FIELDS[name]
        struct.pack_into(form, image, offset, value)
    (tmp_path / "kernel").write_bytes(image)
    (tmp_path / "initrd").write_bytes(bytes(8192))
    mistake("run", "-m", "64M", "-k", tmp_path / "kernel", "-i", tmp_path / "initrd")


def test_an_elf_and_a_multiboot_kernel_cut_off(mistake: Callable[..., str], tmp_path: Path) -> None:
    pvh = make_elf([(0x100000, bytes(4096), 4096)], notes=pvh_note(0x100000))
    multiboot = multiboot_header(0x10000, 0x100000, 0x100000, 0x200000, 0x200000, 0x100020) + bytes(64)
    for image in (pvh[:100], pvh[:2000], multiboot):
        (tmp_path / "kernel").write_bytes(image)
        mistake("run", "-m", "64M", "-k", tmp_path / "kernel")


def test_initrds(mistake: Callable[..., str], tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(make_bzimage())
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(65 << 20)
    (tmp_path / "empty").write_bytes(b"")
    arguments = ["run", "-m", "64M", "-k", kernel, "-i"]
    assert f"initrd {large}: 65.0 MiB, larger than RAM: give the guest more RAM with -m" in mistake(*arguments, large)
    assert "the file is empty" in mistake(*arguments, tmp_path / "empty")
    assert "is a directory" in mistake(*arguments, tmp_path)
    assert "No such file" in mistake(*arguments, tmp_path / "none")


def test_a_command_line_that_is_too_long(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(make_bzimage())
    assert "2047" in mistake("run", "-m", "64M", "-k", tmp_path / "kernel", "-p", "x" * 5000)


def test_too_little_memory_for_a_kernel(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(make_bzimage())
    assert "-m" in mistake("run", "-m", "1M", "-k", tmp_path / "kernel")
    assert "-m" in mistake("run", "-m", "2M", "-k", tmp_path / "kernel")


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ("bogus", "no mode of a flat binary"),
        ("real@here", "no address"),
        ("real@0x100000000", "no address"),
        ("64@-1", ""),
    ],
)
def test_flat_binaries(mistake: Callable[..., str], tmp_path: Path, flat: str, says: str) -> None:
    (tmp_path / "code").write_bytes(b"\xf4")
    assert says in mistake("run", "-m", "2M", "-k", tmp_path / "code", "--flat", flat)


# A script at COM1


def test_send_after(pyvmm: Pyvmm) -> None:
    """Each waits for its text, and the guest's echo of what was sent is one."""
    sending = ["--send-after", "powers off.:ab<tab>\\:", "--send-after", "ab\t\\::q"]
    ran = pyvmm("run", "hello", *sending, "--trace", "input", "--timeout", 100)
    assert ran.status == 0 and ran.out.replace("\r\n", "\n").endswith("powers off.\nab\t:\nBye.\n"), ran
    assert [line.split("port: ")[1] for line in ran.err.splitlines()] == [
        "sending 4 bytes to COM1",
        "sending 1 bytes to COM1",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing", "'nothing' is not TEXT:DATA, the text"),
        ("a:<f1>", "no terminal sends <f1>: use "),
        ("a:\\q", "unknown escape \\q"),
    ],
)
def test_a_mistake_in_what_is_to_be_sent(mistake: Callable[..., str], text: str, says: str) -> None:
    assert mistake("run", "hello", "--send-after", text).startswith(f"pyvmm: --send-after: {says}")
