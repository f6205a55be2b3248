"""The ACPI tables of machines as users configure them: `pyvmm acpi`, its files, and iasl on each of them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.acpi.platform import Window
from pyvmm.board import layout
from pyvmm.board.placement import Parts
from pyvmm.board.tables import isa_devices, memory64
from pyvmm.bus import Bus, Nobody
from pyvmm.cli.arguments import main
from pyvmm.units import GIB, MIB

CONFIGURATIONS = [
    ["--irqchip", irqchip, "-c", cpus]
    for irqchip, cpus in itertools.product(("kernel", "split", "user"), ("1", "2", "16"))
    if irqchip != "user" or cpus == "1"
] + [
    ["-c", "255", "-m", "1G"],
    ["-c", "1,max=2"],
    ["-c", "2,max=4", "--irqchip", "split"],
    ["-c", "4,max=4"],
    ["-c", "3,max=255", "-m", "1G"],
    ["-c", "1,max=1", "--irqchip", "user"],
    ["--root-ports", "4", "--rng", "--virtio-input", "aero", "--tablet"],
    ["--root-ports", "1", "--irqchip", "user", "--virtio-input", "standard"],
    ["-m", "512M,slots=4,max=4G"],
    ["-m", "4G,slots=32,max=64G", "-c", "255"],
    ["-m", "1G,slots=1,max=2G", "--irqchip", "user"],
    ["-m", "2G,slots=3,max=8G", "--root-ports", "2", "--device", "memory,size=256M,slot=1"],
    ["--cpu", "host,phys-bits=36"],
    ["--cpu", "host,phys-bits=32"],
]  # fmt: skip

IDIO16 = Path(__file__).resolve().parents[3] / "docs" / "examples" / "idio16.py"


def tables(directory: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=" ".join)
def test_iasl_has_nothing_to_say(
    options: list[str],
    tmp_path: Path,
    recompile: Callable[[dict[str, bytes]], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "tables"
    assert main(["acpi", "--out", str(out), *options]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(map(str, out.iterdir()))
    written = tables(out)
    common = {"rsdp", "rsdt", "xsdt", "facp", "facs", "dsdt", "ssdt", "mcfg"}
    assert set(written) - {"srat"} == (common if "user" in options else common | {"apic"})
    assert ("srat" in written) == any("slots=" in option for option in options)
    del written["rsdp"]
    for name, theirs in recompile(written).items():
        ours = written[name]
        assert ours == theirs or (ours[10:28], ours[36:]) == (theirs[10:28], theirs[36:])


def test_they_say_what_the_machine_is(tmp_path: Path) -> None:
    assert main(["acpi", "--out", str(tmp_path), "-c", "3"]) == 0
    written = tables(tmp_path)
    assert struct.unpack_from("<QHBB", written["mcfg"], 44) == (layout.ECAM_START, 0, 0, 0), "one bus"
    facp = written["facp"]
    assert struct.unpack_from("<H", facp, 46) == (layout.IRQ_SCI,)
    assert struct.unpack_from("<II", facp, 56)[0] == layout.ACPI_PM
    assert struct.unpack_from("<I", facp, 48) == (layout.APM,)
    assert struct.unpack_from("<BBBBQB", facp, 116) == (1, 8, 0, 1, 0xCF9, 6), "RESET_REG and RESET_VALUE"
    madt = written["apic"]
    kinds = []
    at = 44
    while at < len(madt):
        kinds.append(madt[at])
        at += madt[at + 1]
    assert kinds.count(0) == 3 and kinds.count(1) == 1


def local_apics(madt: bytes) -> list[tuple[int, int, int]]:
    """ACPI processor UID, APIC ID and flags of each."""
    found, at = [], 44
    while at < len(madt):
        if madt[at] == 0:
            found.append(struct.unpack_from("<BBI", madt, at + 2))
        at += madt[at + 1]
    return found


def test_cpus_that_may_come_are_named(tmp_path: Path) -> None:
    assert main(["acpi", "--out", str(tmp_path / "more"), "-c", "2,max=4"]) == 0
    assert main(["acpi", "--out", str(tmp_path / "none"), "-c", "2"]) == 0
    more, none = tables(tmp_path / "more"), tables(tmp_path / "none")
    assert (more["apic"][8], none["apic"][8]) == (5, 1), "revision: Linux believes the second flag from 5 on"
    assert local_apics(more["apic"]) == [(0, 0, 1), (1, 1, 1), (2, 2, 2), (3, 3, 2)]
    assert local_apics(none["apic"]) == [(0, 0, 1), (1, 1, 1)]
    assert more["ssdt"].count(b"ACPI0007") == 4 and none["ssdt"].count(b"ACPI0007") == 2
    assert more["ssdt"].count(b"_EJ0") == 3 and b"_MAT" not in none["ssdt"]
    assert struct.pack("<H", layout.CPU_HOTPLUG) in more["dsdt"], "reserved"


def test_the_buses_of_root_ports_are_named(tmp_path: Path) -> None:
    assert main(["acpi", "--out", str(tmp_path), "--root-ports", "3"]) == 0
    assert struct.unpack_from("<QHBB", tables(tmp_path)["mcfg"], 44) == (layout.ECAM_START, 0, 0, 3)


@pytest.mark.parametrize(
    ("memory", "phys_bits", "window", "size"),
    [
        (128 * MIB, 52, 1 << 38, 1 << 38),
        (255 * GIB, 52, 1 << 38, 1 << 38),
        (255 * GIB + 4096, 52, 2 << 38, 1 << 38),
        (600 * GIB, 46, 3 << 38, 1 << 38),
        (128 * MIB, 39, 1 << 38, 1 << 38),
        (255 * GIB + 4096, 39, 384 * GIB, 128 * GIB),
        (500 * GIB, 39, 504 * GIB, 8 * GIB),
        (128 * MIB, 38, 1 << 37, 1 << 37),
        (128 * MIB, 36, 32 * GIB, 32 * GIB),
        (40 * GIB, 36, 48 * GIB, 16 * GIB),
        (62 * GIB, 36, 63 * GIB, GIB),
        (128 * MIB, 33, 4 * GIB, 4 * GIB),
        (4 * GIB, 33, 6 * GIB, 2 * GIB),
    ],
)
def test_64_bit_pci_memory_is_not_ram_and_within_reach(memory: int, phys_bits: int, window: int, size: int) -> None:
    assert memory64(memory, phys_bits) == Window(window, window + size - 1)
    assert window >= memory + GIB or memory <= 3 * GIB
    assert window % size == 0 and window + size <= 1 << phys_bits


class Chip:
    def reset(self) -> None: ...


def test_what_is_not_on_the_board_is_not_in_the_tables() -> None:
    parts = Parts(Bus("PIO", 1 << 16), Bus("MMIO", 1 << 52))
    parts.add("i8042", Chip(), ports=[(0x60, 1, Nobody())])
    parts.add("ps2-keyboard", Chip(), irqs=[1])
    assert [(device.name, device.ports, device.irqs) for device in isa_devices(parts)] == [("PS2K", ((0x60, 1),), (1,))]
    parts.add("ps2-mouse", Chip(), irqs=[12])
    assert [device.name for device in isa_devices(parts)] == ["PS2K", "PS2M"]
    parts.note("i8259", ports=[(0x20, 2)], irqs=[2])
    assert [device.name for device in isa_devices(parts)] == ["PIC", "PS2K", "PS2M"]


@pytest.mark.parametrize(("memory", "phys_bits"), [(128 * MIB, 32), (7 * GIB, 33), (63 * GIB, 36)])
def test_no_64_bit_pci_memory_where_nothing_is_left(memory: int, phys_bits: int) -> None:
    assert memory64(memory, phys_bits) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--out"),
        (["--out", "/proc/tables"], "--out /proc/tables: No such file or directory"),
        (["--out", "/dev/null/tables"], "--out /dev/null/tables: Not a directory"),
        (["--out", "x", "-c", "0"], "'0' is no number of vCPUs"),
        (["--out", "x", "-c", "3,max=2"], "'3,max=2': there are more vCPUs than there may be"),
        (["--out", "x", "-c", "3,most=4"], "'most=4' is nothing to say of vCPUs"),
        (["--out", "x", "-c", "3,max=256"], "'256' is no number of vCPUs: 1 to 255"),
        (["--out", "x", "-c", "1,max=2", "--irqchip", "user"], "-c 1,max=2 --irqchip user: a PIC serves one CPU"),
        (["--out", "x", "nobody"], "there is no guest 'nobody'"),
        (["--out", "x", "--display", "x11"], "unrecognized arguments: --display"),
        (["--out", "x", "--device", "/no/such.py:Device"], "/no/such.py is no Python file"),
        (["--out", "x", "--device", str(IDIO16), "--device", f"{IDIO16}:Idio16"], "write it as FILE.py:CLASS"),
        (
            ["--out", "x", "--device", f"{IDIO16}:Idio16,port=1", "--root-ports", "1"],
            "no root port 1 (there are 1, from 0 up)",
        ),
        (
            ["--out", "x", *["--device", f"{IDIO16}:Idio16"] * 31, "--rng"],
            "--device virtio-rng: no free PCI slot: leave a --device away",
        ),
        (["--out", "x", *["--device", f"{IDIO16}:Idio16"] * 31, "--virtio-input", "aero"], "no free PCI slot"),
        (["--out", "x", "-k", "/no/kernel"], "kernel /no/kernel: No such file or directory"),
        (["--out", "x", "-k", str(IDIO16)], "a text file"),
        (["--out", "x", "-k", str(IDIO16), "--flat", "real", "-i", "x"], "a flat binary of mode real takes no initrd"),
        (["--out", "x", "-i", "x"], "-i x: it goes with a kernel: add -k FILE"),
        (["--out", "x", "-m", "1M"], "guest keyboard needs 16384 KiB"),
        (["--out", "x", "-m", "64T"], "ask for less"),
        (["--out", "x", "pio", "--set", "y=1"], "guest pio has no y"),
        (["--out", "x", "--irqchip", "user", "-c", "2"], "a PIC serves one CPU"),
        (["--out", "x", "--input", "virtio"], "add --virtio-input standard"),
        (["--out", "x", "--cpu", "host,phys-bits=99"], "--cpu host,phys-bits=99: physical addresses have at most "),
        (["--out", "x", "--cpu", "host,-avxx"], "--cpu host,-avxx: CPUID has no feature 'avxx'; did you mean avx"),
        (["--out", "x", "--trace", "exit"], "--trace exit: there is no such channel"),
        (["--out", "x", "--trace", "exits=/no/such/place"], "--trace: cannot write /no/such/place"),
        (["--out", "x", "--trace", "exits=/"], "--trace: cannot write /"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["acpi", *arguments])
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        status = ended.code
    assert not Path("x").exists()
    shown = capsys.readouterr()
    assert (status, shown.out, shown.err.count("\n")) == (2, "", 1)
    assert says in shown.err
