"""The tables of many machines: consistent, clean to ACPICA's compiler, and true when its interpreter runs them."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyvmm.acpi.aml import DefinitionBlock, Local0, Method, Name, NotSerialized, Store
from pyvmm.acpi.build import ACPI_GPA, ACPI_ROOM, AcpiTables, build, write
from pyvmm.acpi.platform import (
    COM_PORT,
    KEYBOARD,
    MOUSE,
    RTC,
    CpuHotplugBlock,
    IsaDevice,
    MadtIoApic,
    MemoryHotplugBlock,
    PciRoot,
    Platform,
    PowerManagement,
    Window,
)
from pyvmm.memory import GuestMemory

MEMORY32 = Window(0xC0000000, 0xDFFFFFFF)
MEMORY64 = Window(0x4000000000, 0x7FFFFFFFFF)
PCIE = PciRoot(MEMORY32, MEMORY64)
COM1, COM2, COM3, COM4 = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))


def isa(
    keyboard: bool = True, mouse: bool = True, rtc: bool = True, serial: Sequence[tuple[int, int]] = (COM1,)
) -> tuple[IsaDevice, ...]:
    """What a PC has behind the ISA bridge."""
    devices = [
        IsaDevice("PIC", "PNP0000", ((0x20, 2), (0xA0, 2), (0x4D0, 2)), (2,)),
        IsaDevice("TIMR", "PNP0100", ((0x40, 4),), (0,)),
        IsaDevice("SPKR", "PNP0800", ((0x61, 1),)),
    ]
    if rtc:
        devices.append(IsaDevice("RTC", "PNP0B00", ((0x70, 2),), (8,), sta=True))
    if keyboard:
        devices.append(IsaDevice("PS2K", "PNP0303", ((0x60, 1), (0x64, 1)), (1,), sta=True))
    if mouse:
        devices.append(IsaDevice("PS2M", "PNP0F13", (), (12,), sta=True))
    for number, (port, irq) in enumerate(serial, 1):
        devices.append(IsaDevice(f"COM{number}", "PNP0501", ((port, 8),), (irq,), 8, True, number))
    return tuple(devices)


ISA = isa()
MEMORY = MemoryHotplugBlock(
    Window(0xA00, 0xA17), 3, 5, (Window(0, 0xBFFFFFFF), Window(1 << 32, (5 << 30) - 1)), Window(5 << 30, (8 << 30) - 1)
)

MACHINES: dict[str, Callable[[PowerManagement], Platform]] = {
    "pic only": lambda pm: Platform(1, pm, isa=ISA, apic=None),
    "pic and pci": lambda pm: Platform(1, pm, isa=ISA, apic=None, pci=PciRoot(MEMORY32, ecam=None)),
    "apic": lambda pm: Platform(1, pm, isa=ISA),
    "apic and pci": lambda pm: Platform(2, pm, isa=ISA, pci=PciRoot(MEMORY32, ecam=None)),
    "pcie": lambda pm: Platform(2, pm, isa=ISA, pci=PCIE),
    "pcie below 4 GiB, one bus": lambda pm: Platform(4, pm, isa=ISA, pci=PciRoot(MEMORY32, last_bus=0)),
    "hpet": lambda pm: Platform(1, pm, isa=ISA, pci=PCIE, hpet=0xFED00000),
    "bare": lambda pm: Platform(1, pm, pci=PCIE, isa=isa(False, False, False, ()), vga=False),
    "keyboard only": lambda pm: Platform(3, pm, pci=PCIE, isa=isa(mouse=False), vga=False),
    "four serial ports": lambda pm: Platform(1, pm, pci=PCIE, isa=isa(serial=(COM1, COM2, COM3, COM4))),
    "elsewhere": lambda pm: Platform(
        17,
        pm._replace(sci=11, power_button_gpe=0x1F, gpe0_length=8),
        isa=ISA,
        apic=MadtIoApic(0xFEC10000, 18),
        pci=PciRoot(Window(0x80000000, 0xAFFFFFFF), None, 0xB0000000, 127, (20, 21, 22, 23), (5, 9, 10, 7)),
    ),
    "memory slots": lambda pm: Platform(3, pm, pci=PCIE, isa=ISA, memory=MEMORY),
    "all": lambda pm: Platform(255, pm, pci=PCIE, hpet=0xFED00000, isa=isa(serial=(COM1,) * 9)),
}


@pytest.fixture(params=MACHINES)
def platform(request: pytest.FixtureRequest, pm: PowerManagement) -> Platform:
    return MACHINES[request.param](pm)


def by_name(acpi: AcpiTables) -> dict[str, bytes]:
    return {table.name: table.data for table in acpi.place()}


def follow(memory: GuestMemory, rsdp: int, root: str) -> dict[str, tuple[int, bytes]]:
    """What an OS finds from the RSDP on by way of the RSDT or the XSDT: signature -> (address, table)."""
    assert memory.read(rsdp, 8) == b"RSD PTR "
    assert sum(memory.read(rsdp, 20)) & 0xFF == 0
    length = memory.read_int(rsdp + 20, 4)
    assert (memory.read_int(rsdp + 15, 1), length) == (2, 36)
    assert sum(memory.read(rsdp, length)) & 0xFF == 0
    found: dict[str, tuple[int, bytes]] = {}

    def read(gpa: int) -> bytes:
        signature = memory.read(gpa, 4).decode()
        data = memory.read(gpa, memory.read_int(gpa + 4, 4))
        assert signature == "FACS" or sum(data) & 0xFF == 0
        assert signature not in found
        found[signature] = (gpa, data)
        return data

    width = 4 if root == "RSDT" else 8
    table = read(memory.read_int(rsdp + (16 if root == "RSDT" else 24), width))
    assert table[:4] == root.encode()
    for offset in range(36, len(table), width):
        read(int.from_bytes(table[offset : offset + width], "little"))
    facp = found["FACP"][1]
    facs, dsdt = struct.unpack_from("<II", facp, 36)
    x_facs, x_dsdt = struct.unpack_from("<QQ", facp, 132)
    assert (x_facs, x_dsdt) == (0, dsdt)
    read(facs)
    read(dsdt)
    return found


def test_an_os_finds_every_table(platform: Platform) -> None:
    memory = GuestMemory.of_size(1 << 20)
    rsdp = build(platform).install(memory)
    assert 0xE0000 <= rsdp <= 0xFFFFF
    assert rsdp % 16 == 0
    found = follow(memory, rsdp, "XSDT")
    old = follow(memory, rsdp, "RSDT")
    assert {k: v for k, v in found.items() if k != "XSDT"} == {k: v for k, v in old.items() if k != "RSDT"}
    expected = {"FACP", "FACS", "DSDT", "SSDT"}
    expected |= {"APIC"} if platform.apic else set()
    expected |= {"MCFG"} if platform.pci and platform.pci.ecam else set()
    expected |= {"HPET"} if platform.hpet else set()
    expected |= {"SRAT"} if platform.memory else set()
    assert set(found) == expected | {"XSDT"}
    assert found["FACS"][0] % 64 == 0
    spans = sorted((gpa, gpa + len(data)) for gpa, data in [*found.values(), old["RSDT"], (rsdp, bytes(36))])
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert spans[-1][1] <= ACPI_GPA + ACPI_ROOM


def test_tables_elsewhere(pm: PowerManagement) -> None:
    memory = GuestMemory.of_size(8 << 20)
    acpi = build(Platform(255, pm, pci=PCIE))
    assert acpi.install(memory, 0x7C0000) == 0x7C0000
    assert "DSDT" in follow(memory, 0x7C0000, "XSDT")
    assert not any(memory.read(ACPI_GPA, ACPI_ROOM))
    with pytest.raises(ValueError):
        acpi.place(0x7C0010)
    with pytest.raises(ValueError):
        acpi.place((1 << 32) - 64)


def test_fadt(pm: PowerManagement) -> None:
    facp = by_name(build(Platform(1, pm, isa=ISA, pci=PCIE)))["facp"]
    assert (len(facp), facp[8]) == (244, 3)
    assert struct.unpack_from("<HIBB", facp, 46) == (9, 0xB2, 2, 3)  # SCI_INT, SMI_CMD, ACPI_ENABLE, ACPI_DISABLE
    assert struct.unpack_from("<8I", facp, 56) == (0x600, 0, 0x604, 0, 0, 0x608, 0x620, 0)
    assert list(facp[88:96]) == [4, 2, 0, 4, 4, 0, 0, 0]
    assert struct.unpack_from("<HH", facp, 96) == (101, 1001)  # neither C2 nor C3
    assert facp[108] == 0x32
    assert struct.unpack_from("<H", facp, 109) == (3,)  # legacy devices, 8042; VGA and RTC not denied
    assert struct.unpack_from("<I", facp, 112) == (0b101_0001_0101,)
    assert struct.unpack_from("<BBBBQB", facp, 116) == (1, 8, 0, 1, 0xCF9, 6)
    gas = [struct.unpack_from("<BBBBQ", facp, 148 + 12 * i) for i in range(8)]
    none = (0, 0, 0, 0, 0)
    assert gas == [
        (1, 32, 0, 2, 0x600),
        none,
        (1, 16, 0, 2, 0x604),
        none,
        none,
        (1, 32, 0, 3, 0x608),
        (1, 32, 0, 1, 0x620),
        none,
    ]


@pytest.mark.parametrize(
    ("change", "boot_flags"),
    [({"isa": isa(keyboard=False, mouse=False)}, 1), ({"vga": False}, 7), ({"isa": isa(rtc=False)}, 0x23)],
)
def test_fadt_says_what_is_missing(pm: PowerManagement, change: dict[str, Any], boot_flags: int) -> None:
    facp = by_name(build(replace(Platform(1, pm, isa=ISA), **change)))["facp"]
    assert struct.unpack_from("<H", facp, 109) == (boot_flags,)
    assert facp[108] == (0 if boot_flags & 0x20 else 0x32)


@pytest.mark.parametrize("cpus", [1, 2, 255])
def test_madt(pm: PowerManagement, cpus: int) -> None:
    madt = by_name(build(Platform(cpus, pm, apic=MadtIoApic(id=7))))["apic"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    entries = []
    at = 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    lapics = [struct.unpack("<BBBBI", entry) for entry in entries if entry[0] == 0]
    assert lapics == [(0, 8, cpu, cpu, 1) for cpu in range(cpus)]
    assert [struct.unpack("<BBBBII", entry) for entry in entries if entry[0] == 1] == [(1, 12, 7, 0, 0xFEC00000, 0)]
    overrides = [struct.unpack("<BBBBIH", entry) for entry in entries if entry[0] == 2]
    assert overrides == [(2, 10, 0, 0, 2, 0), (2, 10, 0, 9, 9, 0xD)]
    assert [struct.unpack("<BBBHB", entry) for entry in entries if entry[0] == 4] == [(4, 6, 0xFF, 0, 1)]
    assert len(entries) == cpus + 4


def test_mcfg(pm: PowerManagement) -> None:
    mcfg = by_name(build(Platform(1, pm, pci=PCIE)))["mcfg"]
    assert mcfg[36:44] == bytes(8)
    assert struct.unpack_from("<QHBBI", mcfg, 44) == (0xE0000000, 0, 0, 255, 0)
    assert len(mcfg) == 60


def test_srat(pm: PowerManagement) -> None:
    """All in one domain; RAM, and where some comes."""
    srat = by_name(build(Platform(2, pm, pci=PCIE, memory=MEMORY)))["srat"]
    assert struct.unpack_from("<IQ", srat, 36) == (1, 0)
    assert [struct.unpack_from("<BBBBI", srat, 48 + 16 * cpu) for cpu in range(2)] == [(0, 16, 0, n, 1) for n in (0, 1)]
    pieces = [struct.unpack_from("<BBIHQQII", srat, at) for at in range(80, len(srat), 40)]
    assert pieces == [
        (1, 40, 0, 0, 0, 3 << 30, 0, 1),
        (1, 40, 0, 0, 4 << 30, 1 << 30, 0, 1),
        (1, 40, 0, 0, 5 << 30, 3 << 30, 0, 3),
    ]


def test_hpet(pm: PowerManagement) -> None:
    hpet = by_name(build(Platform(1, pm, hpet=0xFED00000)))["hpet"]
    assert struct.unpack_from("<BBBBQ", hpet, 40) == (0, 64, 0, 0, 0xFED00000)
    assert len(hpet) == 56


def test_rsdp_as_iasl_has_it(pm: PowerManagement, compile_asl: Callable[[str], bytes]) -> None:
    """iasl cannot disassemble an RSDP, but it makes one."""
    placed = {table.name: table for table in build(Platform(1, pm)).place()}
    assert placed["rsdp"].data == compile_asl(
        f"""
        [0008] Signature : "RSD PTR "
        [0001] Checksum : 00
        [0006] Oem ID : "PYVMM "
        [0001] Revision : 02
        [0004] RSDT Address : {placed["rsdt"].gpa:08X}
        [0004] Length : 00000024
        [0008] XSDT Address : {placed["xsdt"].gpa:016X}
        [0001] Extended Checksum : 00
        [0003] Reserved : 000000
        """
    )


def test_iasl_has_nothing_to_say(platform: Platform, recompile: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Disassembled and compiled again, each table is the same but for the compiler's name in it."""
    tables = by_name(build(platform))
    del tables["rsdp"]
    compiled = recompile(tables)
    for name, ours in tables.items():
        theirs = compiled[name]
        if name == "facs":
            assert ours == theirs
        else:
            assert (ours[:9], ours[10:28], ours[36:]) == (theirs[:9], theirs[10:28], theirs[36:])


def test_the_compiler_would_say_so(recompile: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    unused = DefinitionBlock("DSDT", 2, "PYVMM", "TEST", 1, Method("MAIN", 0, NotSerialized, Store(1, Local0)))
    with pytest.raises(AssertionError, match="Local0"):
        recompile({"dsdt": unused})
    wrong_sum = bytearray(DefinitionBlock("DSDT", 2, "PYVMM", "TEST", 1, Name("ONE", 1)))
    wrong_sum[9] ^= 1
    with pytest.raises(AssertionError, match="checksum"):
        recompile({"dsdt": bytes(wrong_sum)})


def evaluations(output: str) -> dict[str, str]:
    """acpiexec's output by the path that it evaluated."""
    parts = re.split(r"^Evaluating (\S+)\n", output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def buffer_of(text: str) -> bytes:
    return bytes.fromhex("".join(re.findall(r" [0-9A-F]{4}: ((?:[0-9A-F]{2} )+)", text)))


def routing_of(text: str) -> list[tuple[int, ...]]:
    numbers = [int(n, 16) for n in re.findall(r"\[Integer\] = ([0-9A-F]{16})", text)]
    return [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


Acpiexec = Callable[[Sequence[tuple[dict[str, bytes], str]]], list[str]]


def interesting_paths(platform: Platform) -> list[str]:
    isa = "\\_SB.PCI0" if platform.pci else "\\_SB"
    paths = [f"{isa}.PIC._CRS", "\\_SB.MBRD._CRS", "\\_SB.PWRB._HID", "\\_S3", "\\_S5"]
    paths += [f"{isa}.PS2K._STA", f"{isa}.PS2K._CRS"] if platform.has(KEYBOARD) else []
    paths += [f"{isa}.PS2M._STA", f"{isa}.PS2M._CRS"] if platform.has(MOUSE) else []
    paths += [f"{isa}.RTC._STA", f"{isa}.RTC._CRS"] if platform.has(RTC) else []
    for number in range(1, sum(device.hid == COM_PORT for device in platform.isa) + 1):
        paths += [f"{isa}.COM{number}._STA", f"{isa}.COM{number}._CRS"]
    paths += ["\\_SB.PCI0._CRS", "\\_SB.PCI0._PRT"] if platform.pci else []
    paths += ["\\_SB.ECAM._CRS"] if platform.pci and platform.pci.ecam else []
    paths += ["\\_SB.HPET._CRS"] if platform.hpet else []
    paths += ["\\_SB.APIC._CRS"] if platform.apic else []
    paths += ["\\_SB.MP04._CRS", "\\_GPE._E03"] if platform.memory else []
    return paths + [f"\\_SB.C{cpu:03X}._UID" for cpu in sorted({0, platform.cpus - 1})]


def test_the_interpreter_runs_it(pm: PowerManagement, acpiexec: Acpiexec) -> None:
    platforms = [make(pm) for make in MACHINES.values()]
    jobs = []
    for platform in platforms:
        tables = by_name(build(platform))
        commands = ";".join(f"evaluate {path}" for path in interesting_paths(platform))
        jobs.append(({name: tables[name] for name in ("dsdt", "ssdt")}, commands))
    for platform, output in zip(platforms, acpiexec(jobs), strict=True):
        results = evaluations(output)
        assert list(results) == interesting_paths(platform)
        for path, result in results.items():
            if path.endswith("_STA"):
                assert "[Integer] = 000000000000000F" in result
            if path.endswith("_CRS"):
                assert buffer_of(result)[-2:] == b"\x79\x00"
        assert re.findall(r"= ([0-9A-F]{16})", results["\\_S3"]) == [f"{n:016X}" for n in (platform.pm.s3, 0, 0, 0)]
        assert re.findall(r"= ([0-9A-F]{16})", results["\\_S5"]) == [f"{n:016X}" for n in (platform.pm.s5, 0, 0, 0)]
        assert f"{platform.cpus - 1:016X}" in results[f"\\_SB.C{platform.cpus - 1:03X}._UID"]


def test_the_methods_of_cpus_that_come_and_go(pm: PowerManagement, acpiexec: Acpiexec) -> None:
    """The interpreter's ports are memory: the status that a method reads is what another has written."""
    hotplug = CpuHotplugBlock(Window(0xCD8, 0xCE3), 4)
    platform = Platform(4, pm, pci=PCIE, cpu_hotplug=hotplug, absent_cpus=frozenset({3}))
    tables = {name: by_name(build(platform))[name] for name in ("dsdt", "ssdt")}
    steps = ["\\_SB.C003._MAT", "\\_SB.C003._STA", "\\_SB.CPEN", "\\_SB.C002._EJ0 1", "\\_SB.CSEL"]
    steps += ["\\_SB.C001._OST 3 0x81 (00)", "\\_SB.CDAT", "\\_SB.CCMD", "\\_GPE._E04", "\\_SB.C000._STA"]
    (output,) = acpiexec([(tables, ";".join(f"evaluate {step}" for step in steps))])
    results = evaluations(output)
    assert buffer_of(results["\\_SB.C003._MAT"]) == bytes([0, 8, 3, 3, 1, 0, 0, 0])
    integers = {path: re.search(r"= ([0-9A-F]{16})", text) for path, text in results.items()}
    said = {path: int(found[1], 16) for path, found in integers.items() if found}
    assert said == {
        "\\_SB.C003._STA": 0,
        "\\_SB.CPEN": 0,
        "\\_SB.CSEL": 2,
        "\\_SB.CDAT": 0x81,
        "\\_SB.CCMD": 2,
        "\\_SB.C000._STA": 0,
    }


@pytest.mark.parametrize(
    ("absent", "hotplug"),
    [({3}, None), ({0}, CpuHotplugBlock(Window(0xCD8, 0xCE3), 4)), ({4}, CpuHotplugBlock(Window(0xCD8, 0xCE3), 4))],
)
def test_cpus_that_cannot_be_absent(pm: PowerManagement, absent: set[int], hotplug: CpuHotplugBlock | None) -> None:
    with pytest.raises(ValueError, match="CPUs that are not there"):
        Platform(4, pm, cpu_hotplug=hotplug, absent_cpus=frozenset(absent))


def test_routing_follows_the_interrupt_model(pm: PowerManagement, acpiexec: Acpiexec) -> None:
    """_PIC 0 is the PIC, 1 the IOAPIC; a guest that never says has the PIC (5.8.1)."""
    with_apic = {"dsdt": by_name(build(Platform(1, pm, pci=PCIE)))["dsdt"]}
    without = {"dsdt": by_name(build(Platform(1, pm, apic=None, pci=PCIE)))["dsdt"]}
    prt = "evaluate \\_SB.PCI0._PRT"
    outputs = acpiexec(
        [
            (with_apic, prt),
            (with_apic, f"evaluate \\_PIC 0;{prt}"),
            (with_apic, f"evaluate \\_PIC 1;{prt}"),
            (without, prt),
            (without, f"evaluate \\_PIC 1;{prt}"),
        ]
    )
    pic, apic = (10, 11, 5, 14), (16, 17, 18, 19)
    for output, interrupts in zip(outputs, (pic, pic, apic, pic, pic), strict=True):
        assert routing_of(evaluations(output)["\\_SB.PCI0._PRT"]) == [
            (slot << 16 | 0xFFFF, pin, 0, interrupts[(slot + pin) % 4]) for slot in range(32) for pin in range(4)
        ]


def test_host_bridge_windows(pm: PowerManagement, acpiexec: Acpiexec) -> None:
    """The descriptors, read from the specification's layout (6.4.3.5) and not by our own constructors."""
    dsdt = by_name(build(Platform(1, pm, pci=PCIE)))["dsdt"]
    (output,) = acpiexec([({"dsdt": dsdt}, "evaluate \\_SB.PCI0._CRS")])
    crs = buffer_of(evaluations(output)["\\_SB.PCI0._CRS"])
    windows: list[tuple[str | int, ...]] = []
    at = 0
    while crs[at] != 0x79:
        if crs[at] == 0x47:
            windows.append(("port", *struct.unpack_from("<xxHHBB", crs, at)))
            at += 8
            continue
        size = {0x88: "H", 0x87: "I", 0x8A: "Q"}[crs[at]]
        length, kind, flags = struct.unpack_from("<xHBB", crs, at)
        assert flags == 0x0C  # producer, positive decode, both ends fixed
        granularity, first, last, translation, span = struct.unpack_from(f"<5{size}", crs, at + 6)
        assert (granularity, translation, span) == (0, 0, last - first + 1)
        windows.append((("memory", "io", "bus")[kind], first, last))
        at += 3 + length
    assert windows == [
        ("bus", 0, 255),
        ("port", 0xCF8, 0xCF8, 1, 8),
        ("io", 0, 0xCF7),
        ("io", 0xD00, 0xFFFF),
        ("memory", 0xA0000, 0xBFFFF),
        ("memory", 0xC0000000, 0xDFFFFFFF),
        ("memory", 0x4000000000, 0x7FFFFFFFFF),
    ]


def test_osc_hands_over_pcie(pm: PowerManagement, acpiexec: Acpiexec) -> None:
    """(UUID, revision, control asked for) -> (status, control granted), 6.2.11."""
    dsdt = {"dsdt": by_name(build(Platform(1, pm, pci=PCIE)))["dsdt"]}
    pcie = "5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66"
    other = " ".join(["00"] * 16)
    cases = [
        ((pcie, 1, 0x1D), (0x00, 0x1D)),
        ((pcie, 1, 0x3F), (0x10, 0x1F)),
        ((pcie, 2, 0x01), (0x08, 0x01)),
        ((other, 1, 0x1D), (0x04, 0x1D)),
    ]
    jobs = [
        (dsdt, f"evaluate \\_SB.PCI0._OSC ({uuid}) {revision} 3 (00 00 00 00 1F 00 00 00 {asked:02X} 00 00 00)")
        for (uuid, revision, asked), _ in cases
    ]
    for output, (_, (status, granted)) in zip(acpiexec(jobs), cases, strict=True):
        answer = buffer_of(evaluations(output)["\\_SB.PCI0._OSC"])
        assert struct.unpack("<III", answer) == (status, 0x1F, granted)


def test_the_power_button_event_notifies_pwrb(pm: PowerManagement, acpiexec: Acpiexec) -> None:
    dsdt = by_name(build(Platform(1, pm)))["dsdt"]
    (output,) = acpiexec([({"dsdt": dsdt}, "evaluate \\_GPE._E02")])
    assert re.search(r"Received a Device Notify on \[PWRB\] \S+ Value 0x80", output), output


def test_write(pm: PowerManagement, tmp_path: Path) -> None:
    acpi = build(Platform(2, pm, pci=PCIE))
    files = write(acpi, tmp_path / "new" / "dir")
    assert [file.name for file in files] == [
        "rsdp.dat",
        "facs.dat",
        "dsdt.aml",
        "facp.dat",
        "apic.dat",
        "mcfg.dat",
        "ssdt.aml",
        "rsdt.dat",
        "xsdt.dat",
    ]
    assert [file.read_bytes() for file in files] == [table.data for table in acpi.place()]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda pm: Platform(0, pm),
        lambda pm: Platform(256, pm),
        lambda pm: Platform(1, pm, isa=isa(keyboard=False)),
        lambda pm: Platform(1, pm, isa=isa(serial=(COM1, COM1)) + isa(serial=(COM1,))),
        lambda pm: Window(2, 1),
        lambda pm: PciRoot(Window(0xC0000000, 0x100000000)),
        lambda pm: PciRoot(MEMORY32, ecam=0xE0080000),
        lambda pm: PciRoot(MEMORY32, ecam=0xF8000000),
        lambda pm: PciRoot(MEMORY32, last_bus=256),
        lambda pm: PciRoot(MEMORY32, last_bus=16, ecam_length=16 << 20),
    ],
)
def test_no_such_machine(pm: PowerManagement, wrong: Callable[[PowerManagement], object]) -> None:
    with pytest.raises(ValueError):
        wrong(pm)
