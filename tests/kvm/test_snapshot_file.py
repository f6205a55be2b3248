"""A machine in a file: it goes on in another process as it would have gone on here, or one line says why not."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm import plain
from pyvmm.config import MachineConfig, Module
from pyvmm.errors import UserError
from pyvmm.machine.outcome import End
from pyvmm.machine.saved import Saved
from pyvmm.machine.snapshot_file import write
from tests.kvm.test_snapshot import CHECKING, FEW, GREETING, IRQCHIPS, MOMENTS, echo, run_on
from tests.rig.board import SPIN, Board, board, count, counting

PYVMM = [sys.executable, "-m", "pyvmm"]


def pyvmm(*words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PYVMM, *map(str, words)], input=stdin, capture_output=True, timeout=300)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_it_goes_on_elsewhere(tmp_path: Path, irqchip: str) -> None:
    with board("hello", irqchip=irqchip) as machine:
        assert machine.wait(lambda: machine.output.endswith(GREETING), 60)
        assert echo(machine, b"abc").endswith(b"abc")
        machine.snapshot().save(tmp_path / "saved")
        assert machine.state == "running"
    with Board.restored(tmp_path / "saved") as machine:
        assert machine.state == "built"
        machine.start()
        assert echo(machine, b"def") == b"def"


@pytest.mark.parametrize("memory", ["memory_shared", "plain"])
def test_snapshots_of_a_restored_machine(tmp_path: Path, memory: str) -> None:
    """They stand on the file, and one of them can be saved again; the first file may go meanwhile."""
    with counting(tmp_path, memory_shared=memory == "memory_shared") as machine:
        assert machine.wait(lambda: count(machine) > 1000, 60)
        with machine.paused():
            machine.memory.write(0x20000, b"\xab" * 8192)
            first = count(machine)
            machine.snapshot().save(tmp_path / "first")
    with Board.restored(tmp_path / "first") as machine:
        assert count(machine) == first
        assert machine.memory.read(0x20000, 8192) == b"\xab" * 8192
        (tmp_path / "first").unlink()
        machine.memory.write(0x20000, bytes(4096))  # zero over what the file has
        at_start = machine.snapshot()
        assert machine.wait(lambda: count(machine) > first + 1000, 60)
        with machine.paused():
            later, second = machine.snapshot(), count(machine)
            later.save(tmp_path / "second")
            machine.restore(at_start)
            assert count(machine) == first
            assert machine.memory.read(0x20000, 8192) == bytes(4096) + b"\xab" * 4096
            machine.restore(later)
            assert count(machine) == second
    with Board.restored(tmp_path / "second") as machine:
        assert count(machine) == second
        assert machine.memory.read(0x20000, 8192) == bytes(4096) + b"\xab" * 4096
        assert machine.wait(lambda: count(machine) > second, 60)
    assert pyvmm("snapshot", "check", tmp_path / "second").returncode == 0


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("guest", sorted(set(CHECKING) - {"rtc"}))
def test_at_any_moment(tmp_path: Path, guest: str, irqchip: str) -> None:
    """As test_snapshot has it, from the file."""
    with board(guest, irqchip=irqchip) as machine:
        expected = machine.finish()
        printed, exits = bytes(machine.output), sum(vcpu.exits for vcpu in machine.vcpus)
    assert expected.end is End.DEBUG_EXIT
    seed, tried = random.Random(f"{guest} {irqchip} file"), 0
    for _ in range(20 * MOMENTS):  # it ends before the moment now and then: another try
        if tried == MOMENTS // 2:
            break
        moment = seed.randrange(1, exits) if exits > FEW else 0
        with board(guest, irqchip=irqchip) as machine:
            machine.pause("moment")
            if not run_on(machine, moment, seed.random() / 100):
                continue
            before = bytes(machine.output)
            machine.snapshot().save(tmp_path / "saved")
        with Board.restored(tmp_path / "saved") as machine:
            machine.output[:] = before
            assert machine.finish() == expected
            assert machine.output == printed
        tried += 1
    assert tried == MOMENTS // 2


def test_a_reset_of_one_that_was_restored(tmp_path: Path) -> None:
    """It boots what the file names."""
    with counting(tmp_path) as machine:
        assert machine.wait(lambda: count(machine) > 1000, 60)
        machine.snapshot().save(tmp_path / "saved")
    with Board.restored(tmp_path / "saved") as machine:
        machine.pause()
        before = count(machine)
        machine.memory.write(0x1000, bytes(16))
        machine.reset()
        assert machine.memory.read(0x1000, 7) == bytes.fromhex(SPIN)
        machine.resume()
        assert machine.wait(lambda: count(machine) > before, 60)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    with counting(tmp_path) as machine:
        machine.start()
        machine.snapshot().save(tmp_path / "saved")
    yield tmp_path / "saved"


def rewritten(path: Path, **identity: object) -> Path:
    """The same file with another identity."""
    saved = Saved(str(path))
    assert isinstance(saved.file.config, dict)
    config: Any = {**saved.file.config, **identity}
    state, size = saved.file.state, saved.file.ram.length
    saved.close()
    write(str(path), config, state, size, [])
    return path


def test_what_this_host_lacks(saved: Path) -> None:
    opened = Saved(str(saved))
    identity = opened.identity
    opened.close()
    cpuid = list(identity.cpuid)
    for entry in cpuid:
        if entry.function == 1:
            entry.ecx |= 1 << 16  # reserved: no name
            entry.ecx |= 1 << 5 | 1 << 7 | 1 << 8  # vmx, est, tm2
    with pytest.raises(UserError, match=r"its processor has .*\bvmx\b.*, which this host's has not"):
        Board.restored(rewritten(saved, cpuid=plain.of(cpuid)))
    cpuid = [entry for entry in identity.cpuid if entry.function]
    with pytest.raises(UserError, match="its processor is of no vendor, this host's of "):
        Board.restored(rewritten(saved, cpuid=plain.of(cpuid)))


def test_a_tsc_that_cannot_be_scaled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Saved(str(saved))
    khz = opened.identity.tsc_khz

    class Tsc:
        def get_tsc_khz(self) -> int:
            return khz + khz // 1000

    with pytest.raises(UserError, match=rf"its TSC runs at {khz} kHz, this host's at \d+, and its KVM cannot scale"):
        opened.set_tsc([Tsc()], False)  # type: ignore[list-item]
    opened.close()


def test_what_is_gone(tmp_path: Path, saved: Path) -> None:
    opened = Saved(str(saved))
    kernel = opened.config.kernel
    opened.close()
    assert kernel is not None and kernel.is_absolute()
    kernel.rename(kernel.with_suffix(".away"))
    with pytest.raises(UserError, match=rf"its kernel {re.escape(str(kernel))} is gone: put it back"):
        Board.restored(saved)
    ran = pyvmm("run", "--restore", saved)
    assert ran.returncode == 2 and ran.stderr.count(b"\n") == 1, ran.stderr


DEVICE = """
from pyvmm.pci.device import PciDevice

class Counter(PciDevice):
    vendor_id, device_id = 0x1234, 1
    STATE = ("n",)
    def __init__(self):
        super().__init__()
        self.n = 0
"""


def test_a_device_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its absolute path, or where it is said to be now; one that is gone is named, and one that has no STATE."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counter.py").write_text(DEVICE)
    with board("hello", devices=("counter.py:Counter",)) as machine:
        machine.start()
        machine.snapshot().save("saved")
    monkeypatch.chdir("/")
    file = tmp_path / "saved"
    with Board.restored(file):
        pass
    (tmp_path / "counter.py").rename(tmp_path / "elsewhere.py")
    with pytest.raises(UserError, match=r"device /.*/counter.py:Counter: "):
        Board.restored(file)
    with Board.restored(file, [f"{tmp_path}/elsewhere.py:Counter"]):
        pass
    with pytest.raises(UserError, match=r"this is the state of another machine: it has pci/.* too"):
        Board.restored(file, [])
    (tmp_path / "silent.py").write_text(DEVICE.replace('STATE = ("n",)', "pass"))
    with board("hello", devices=(f"{tmp_path}/silent.py:Counter",)) as machine:
        machine.start()
        with pytest.raises(UserError, match="Counter does not say what its state is: add  STATE ="):
            machine.snapshot()


def test_what_a_reset_could_not_read_again(tmp_path: Path) -> None:
    with counting(tmp_path) as machine:
        machine.start()
        snapshot = machine.snapshot()
        kernel = machine.config.kernel
        assert kernel is not None
        kernel.unlink()
        with pytest.raises(UserError, match=r"kernel .* cannot be saved: it is no file that a reset could read again"):
            snapshot.save(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


# pyvmm run


def test_save_after_and_restore(tmp_path: Path) -> None:
    file = tmp_path / "saved"
    ran = pyvmm("run", "hello", "--save", file, "--save-after", "powers off.", "--quit", "--timeout", 250)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.decode().splitlines() == [f"pyvmm: wrote {file}", f"pyvmm: saved: {file}"]
    checked = pyvmm("snapshot", "check", file)
    assert checked.returncode == 0
    assert re.fullmatch(rb".*/saved: whole; hello, 1 vCPU, 16M of RAM, \d+ KiB of it not zero\n", checked.stdout)
    ran = pyvmm("run", "--restore", file, "--timeout", 250, "--trace", "com1=" + str(tmp_path / "trace"), stdin=b"xyzq")
    assert ran.returncode == 0, ran.stderr
    assert b"xyz" in ran.stdout and GREETING not in ran.stdout
    assert (tmp_path / "trace").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--restore", "f", "-m", "1M"], "the machine is the one in the file: leave --memory away"),
        (["--restore", "f", "hello"], "the machine is the one in the file: leave hello away"),
        (["--restore", "f", "--no-reboot"], "leave --no-reboot away"),
        (["--restore", "/nowhere"], "cannot read /nowhere: No such file or directory"),
        (["--restore", "/dev/zero"], "/dev/zero: it is no regular file"),
        (["--save-after", "x"], "--save-after: it goes with --save FILE"),
        (["--save", "f", "--quit"], "--quit: it goes with --save-after TEXT"),
        (["--save", "f", "--save-after", ""], "--save-after: name a text that the guest shows"),
        (["--save", "/nowhere/f"], "--save: cannot write /nowhere/f: No such file or directory"),
    ],
)
def test_mistakes(words: list[str], says: str) -> None:
    ran = pyvmm("run", *words)
    assert ran.returncode == 2
    assert says in ran.stderr.decode() and ran.stderr.count(b"\n") == 1


def test_modules_and_bytes_are_kept(tmp_path: Path) -> None:
    """An initrd that Python gave as bytes is in the file."""
    config = MachineConfig(initrd=(Module(b"\0\xff", "words"),))
    assert plain.made(MachineConfig, plain.decode(plain.encode(plain.of(config)))) == config
