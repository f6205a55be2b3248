"""The trace of a guest that runs: accesses by device and offset, configuration space by name, DMA and messages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pyvmm.config import MachineConfig
from tests.rig.board import Board, board

EDU = Path(__file__).resolve().parents[2] / "docs" / "examples" / "edu.py"


def traced(guest: str, *channels: str, **options: object) -> list[str]:
    """The lines that a guest's whole run gives on *channels*."""
    lines: list[str] = []
    config = MachineConfig(guest=guest, trace=frozenset(channels), **options)  # type: ignore[arg-type]
    with Board(config, lambda ns, channel, message: lines.append(f"{channel} {message}")) as machine:
        machine.finish()
    return lines


EDU_DRIVER = """
    b804080080 66baf80c ef  b806000000 66bafc0c 66ef    # COMMAND: memory, bus master
    b844080080 66baf80c ef  b80000e0fe 66bafc0c ef      # the MSI capability's address, data and enable bit
    b84c080080 66baf80c ef  b841000000 66bafc0c 66ef
    b840080080 66baf80c ef  b801000000 66bafe0c 66ef
    bb000000c0  c7432080000000 c7430805000000           # interrupt when done; the factorial of 5
    8b4320 a801 75f9                                    # until it is no longer computing
    c7838000000000000400 c7838800000000200000           # DMA from 0x40000 in the device to 0x2000,
    c7839000000016000000 c7839800000003000000           # 22 bytes
    8b8398000000 a801 75f6  b000 e6f4 f4                # until that is over: debug exit 0
"""
"""What a driver of docs/examples/edu.py does, in flat 32-bit mode; as(1) made it of mov, out, test and jnz."""


def test_edu(tmp_path: Path) -> None:
    """As docs/machine.md shows it."""
    kernel = tmp_path / "driver"
    kernel.write_bytes(bytes.fromhex("".join(line.partition("#")[0] for line in EDU_DRIVER.splitlines())))
    lines: list[str] = []
    config = MachineConfig(
        kernel=kernel,
        flat="32@0x10000",
        memory=1 << 20,
        virtio_input="none",
        devices=(f"{EDU}:Edu,dma_ms=1,id=edu",),
        trace=frozenset({"edu"}),
    )
    with Board(config, lambda ns, channel, message: lines.append(f"{channel} {message}")) as machine:
        assert machine.finish().value == 0
    polled = ("edu BAR0+0x20 R4 -> 0x81", "edu BAR0+0x98 R4 -> 0x3 ")
    told = [re.sub(r" rip=0x100[0-9a-f]{2}$", "", line) for line in lines if not line.startswith(polled)]
    assert told == [
        "edu BAR0 is at 0xc0000000, 0x100000 bytes, but decoding is off",
        "edu BAR0 is at 0xc0000000, 0x100000 bytes",
        "edu 00:01.0 COMMAND W2 <- 0x6",
        "edu 00:01.0 MSI+0x4 W4 <- 0xfee00000",
        "edu 00:01.0 MSI+0xc W2 <- 0x41",
        "edu 00:01.0 MSI+0x2 W2 <- 0x1",
        "edu BAR0+0x20 W4 <- 0x80",
        "edu BAR0+0x8 W4 <- 0x5",
        "edu MSI 0: 0x41 to 0xfee00000",
        "edu BAR0+0x20 R4 -> 0x80",
        "edu BAR0+0x80 W4 <- 0x40000",
        "edu BAR0+0x88 W4 <- 0x2000",
        "edu BAR0+0x90 W4 <- 0x16",
        "edu BAR0+0x98 W4 <- 0x3",
        "edu DMA write 0x2000, 22 bytes: " + "00 " * 16 + "…",
        "edu BAR0+0x98 R4 -> 0x2",
    ]


def test_a_driver_and_its_device() -> None:
    """The guest `pci`, and virtio-rng: it sizes and moves BARs, and takes the device's messages."""
    lines = traced("pci", "pci", "virtio-rng", devices=("virtio-rng",))
    at = 0
    for step in (
        r"virtio-rng BAR0 is at 0xc0000000, 0x4000 bytes$",
        r"pci CONFIG_ADDRESS W4 <- 0x80000000 \(00:00\.0 VENDOR_ID\) rip=0x1[0-9a-f]{5}$",
        r"pci 00:00\.0 VENDOR_ID R4 -> 0x29c08086 rip=0x1[0-9a-f]{5}$",
        r"virtio-rng 00:01\.0 VENDOR_ID R4 -> 0x10441af4 rip=0x1[0-9a-f]{5}$",
        r"virtio-rng 00:01\.0 BAR0 W4 <- 0xffffffff rip=",
        r"virtio-rng BAR0\+0x12 R2 -> 0x1 rip=",
        r"virtio-rng BAR2\+0x10 W4 <- 0xfee00000 rip=",
        r"virtio-rng 00:01\.0 MSIX\+0x2 W2 <- 0x8000 rip=",
        r"virtio-rng queue 0 is kicked$",
        r"virtio-rng queue 0: chain 0: DMA reads 0 bytes, may write 64$",
        r"virtio-rng queue 0: chain 0 is used, 64 bytes written$",
        r"virtio-rng MSI-X 1: 0x41 to 0xfee00000$",
        r"virtio-rng MSI-X 1: masked, it waits$",
    ):
        found = next((i for i in range(at, len(lines)) if re.match(step, lines[i])), None)
        assert found is not None, f"{step} is not in\n" + "\n".join(lines[at : at + 60])
        at = found + 1
    assert not any("KVM_" in line for line in lines)


def test_kvm_run_has_a_channel_of_its_own() -> None:
    assert {line.split()[2] for line in traced("pio", "kvm-run")} == {"KVM_RUN"}
    exits = traced("pio", "exits")
    assert exits and not any("KVM_RUN" in line for line in exits)


def test_writes_that_kvm_gathers_are_told_too() -> None:
    """The index of the CMOS comes with the exit for its data."""
    lines = traced("rtc", "rtc")
    index = next(i for i, line in enumerate(lines) if line.startswith("rtc port 0x70 W1 <- "))
    assert "rip=" not in lines[index] and re.match(r"rtc port 0x71 R1 -> \S+ rip=", lines[index + 1])


def test_of_several_vcpus_the_line_says_which() -> None:
    lines = traced("smp", "all", cpus=2)
    assert any(re.search(r" rip=0x[0-9a-f]+ vcpu[01]$", line) for line in lines)


def exits(**options: object) -> int:
    """How often the guest `pio` goes to userspace."""
    lines: list[str] = []
    with Board(MachineConfig(guest="pio", **options), lambda *line: lines.append(line[2])) as machine:  # type: ignore[arg-type]
        machine.finish()
        assert bool(lines) == bool(options)
        return sum(vcpu.exits for vcpu in machine.vcpus)


def test_watching_takes_no_more_exits() -> None:
    assert exits() == exits(trace=frozenset({"com1", "debug-exit"})) == exits(trace=frozenset({"exits"}))


def test_while_nobody_watches_nothing_of_it_is_there() -> None:
    """No observer sees an exit and the bus calls the device itself: before, and after it was watched."""
    with board("keyboard", devices=(f"{EDU}:Edu,id=edu",)) as machine:
        edu, bus = machine.board.devices["edu"], machine.board.mmio
        thread = machine.life.cpus.threads[0]
        for _ in range(2):
            assert thread.observers == () and thread._way() == thread.vcpu.run_io
            assert bus.read(0xC0000000, 4) == 0x010000ED and bus._hits[0xC0000000][0] == edu.read  # type: ignore[attr-defined]
            machine.trace.on("edu")
            assert len(thread.observers) == 1 and thread._way() != thread.vcpu.run_io
            machine.trace.off("edu")


def test_a_start_without_a_trace_imports_nothing_of_it() -> None:
    modules = "('pyvmm.board.access_trace', 'pyvmm.pci.names', 'pyvmm.pci.dma')"
    code = (
        "import sys; from pyvmm.cli.arguments import main; main(['run', 'pio']);"
        f"sys.exit(f'imported {{there}}' if (there := [name for name in {modules} if name in sys.modules]) else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
