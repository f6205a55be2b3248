"""PCI and ACPI under Linux: lspci, setpci, tables, the power button, acpi=off, devices of users, and Linux 2.6.10."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm.acpi.build import build
from pyvmm.config import MachineConfig
from pyvmm.input import codes as ic
from pyvmm.machine.describe import described
from pyvmm.machine.outcome import End
from tests.rig.events import Events, input_devices
from tests.rig.guest import USERSPACE, Guest, irq_counts, warnings
from tests.rig.lab import CLOUD_KERNEL, GENERIC_VMLINUX, INITRAMFS_GENERIC, INITRAMFS_PCI, PATIENT, ROOT

MIB = 1 << 20
SYN = (ic.EV_SYN, ic.SYN_REPORT, 0)
EXAMPLES = ROOT / "docs" / "examples"
EDU = f"{EXAMPLES / 'edu.py'}:Edu,dma_ms=1"
KEYBOARD = "0000:00:0a.0"
VIRTIO_INPUT_GSI = 18
"""INTA of slot 0x0A: the third of the four PIRQ lines."""
CONFIG = MachineConfig(
    memory=256 * MIB,
    kernel=CLOUD_KERNEL,
    initrd=INITRAMFS_PCI,
    cmdline="console=ttyS0 quiet",
    virtio_input="standard",
    root_ports=1,
    devices=(f"{EXAMPLES / 'pvpanic.py'}:PvPanic,port=0",),
)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """At its shell, with the tools of pciutils."""
    with Guest(CONFIG) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        yield guest


def lspci(guest: Guest, slot: str) -> str:
    """`lspci -vvv` of one function, without the names of pci.ids."""
    return guest.shell(f"lspci -n -vvv -s {slot}")


def setpci(guest: Guest, slot: str, *registers: str) -> list[int]:
    """What setpci reads; REGISTER=VALUE writes and reads nothing."""
    return [int(word, 16) for word in guest.shell(f"setpci -s {slot} {' '.join(registers)}").split()]


def devmem(guest: Guest, address: int, width: int = 16) -> int:
    return int(guest.shell(f"devmem {address:#x} {width}"), 16)


def stroke(guest: Guest, events: Events, code: int) -> None:
    """A key comes in on the virtio keyboard."""
    guest.machine.keyboard.key(code, 1)
    guest.machine.keyboard.key(code, 0)
    assert events.read(4) == [(ic.EV_KEY, code, 1), SYN, (ic.EV_KEY, code, 0), SYN]


def test_what_lspci_says_of_a_virtio_function(guest: Guest) -> None:
    said = lspci(guest, "00:0a.0")
    for text in (
        "0900: 1af4:1052 (rev 01)",
        "Subsystem: 1af4:1100",
        "Mem+ BusMaster+",
        "Interrupt: pin A routed to IRQ",
        "Kernel driver in use: virtio-pci",
    ):
        assert text in said, said
    assert re.search(r"Region 0: Memory at [0-9a-f]+ \(64-bit, non-prefetchable\) \[size=16K\]", said), said
    assert re.search(r"Region 2: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\) \[size=4K\]", said), said
    msix = r"MSI-X: Enable\+ Count=3 Masked-\s+Vector table: BAR=2 offset=00000000\s+PBA: BAR=2 offset=00000800"
    assert re.search(msix, said), said
    parts = re.findall(
        r"Vendor Specific Information: VirtIO: (\S+)\s+BAR=0 offset=(\w+) size=(\w+)(?: multiplier=(\w+))?", said
    )
    assert {name: tuple(int(number or "0", 16) for number in numbers) for name, *numbers in parts[:4]} == {
        "CommonCfg": (0x0000, 0x100, 0),
        "Notify": (0x1000, 0x100, 4),
        "ISR": (0x2000, 0x20, 0),
        "DeviceCfg": (0x3000, 0x100, 0),
    }
    assert len(parts) == 5, "the fifth reaches the BAR through configuration space"
    mouse = lspci(guest, "00:0a.1")
    assert "0902: 1af4:1052" in mouse and "MSI-X: Enable+ Count=3" in mouse
    assert "<access denied>" not in said and "Unknown header" not in said


def test_what_lspci_says_of_the_bridges(guest: Guest) -> None:
    slots = [line.split()[:3] for line in guest.shell("lspci -n").splitlines()]
    assert slots == [
        ["00:00.0", "0600:", "8086:29c0"],
        ["00:0a.0", "0900:", "1af4:1052"],
        ["00:0a.1", "0902:", "1af4:1052"],
        ["00:1c.0", "0604:", "8086:29c1"],
        ["01:00.0", "0880:", "1b36:0011"],
    ]
    port = lspci(guest, "00:1c.0")
    for text in (
        "I/O+ Mem+ BusMaster+",
        "Bus: primary=00, secondary=01, subordinate=01",
        "Express (v2) Root Port (Slot+)",
        "Speed 2.5GT/s",
        "Width x1",
        "DLActive+",
        "AttnBtn- PwrCtrl- MRL- AttnInd- PwrInd- HotPlug+ Surprise+",
        "Slot #32",
        "PresDet+",
        "MSI: Enable",
        "Kernel driver in use: pcieport",
    ):
        assert text in port, port
    assert "[size=16]" in lspci(guest, "01:00.0") and "driver in use: pvpanic-pci" in lspci(guest, "01:00.0")
    window = re.search(r"Memory behind bridge: ([0-9a-f]+)-([0-9a-f]+)", port)
    region = re.search(r"Region 0: Memory at ([0-9a-f]+)", lspci(guest, "01:00.0"))
    assert window and region
    assert int(window[1], 16) <= int(region[1], 16) <= int(window[2], 16)
    assert guest.shell("lspci -t").count("+-") >= 3


def test_configuration_space_goes_through_ecam(guest: Guest) -> None:
    log = guest.shell("dmesg | grep -E 'MMCONFIG|PCI: |ACPI: '")
    assert "MMCONFIG for domain 0000 [bus 00-01] at [mem 0xe0000000-0xe01fffff]" in log, log
    assert re.search(r"MMCONFIG at \[mem 0xe0000000-0xe01fffff\] reserved in", log), log
    assert "ACPI: Using IOAPIC for interrupt routing" in log, log
    # Only ECAM reaches beyond byte 255.
    assert guest.shell("wc -c </sys/bus/pci/devices/0000:00:1c.0/config").strip() == "4096"
    assert setpci(guest, "00:1c.0", "100.L") == [0], "no extended capability"
    assert setpci(guest, "00:00.0", "60.L", "64.L") == [0xE0000001, 0]
    assert setpci(guest, "00:0a.0", "VENDOR_ID.B", "1.B", "2.W", "0.L") == [0xF4, 0x1A, 0x1052, 0x10521AF4]


def test_memory_decode_can_be_turned_off_and_a_bar_be_moved(guest: Guest) -> None:
    """num_queues of the common configuration, at offset 0x12, is 2 where the BAR is."""
    drivers = "/sys/bus/pci/drivers/virtio-pci"
    guest.shell(f"echo {KEYBOARD} >{drivers}/unbind")
    assert not guest.machine.keyboard.driver_ok
    setpci(guest, KEYBOARD, "COMMAND=2:2")
    low, high = setpci(guest, KEYBOARD, "BASE_ADDRESS_0", "BASE_ADDRESS_1")
    assert low & 0xF == 4
    here = high << 32 | low & ~0xF
    assert devmem(guest, here + 0x12) == 2
    setpci(guest, KEYBOARD, "COMMAND=0:2")
    assert devmem(guest, here + 0x12) == 0xFFFF
    sizes = guest.shell(
        f"setpci -s {KEYBOARD} BASE_ADDRESS_0=ffffffff BASE_ADDRESS_1=ffffffff BASE_ADDRESS_0 BASE_ADDRESS_1"
    ).split()
    assert [int(size, 16) for size in sizes] == [0xFFFFC004, 0xFFFFFFFF]
    there = here + 32 * MIB
    setpci(guest, KEYBOARD, f"BASE_ADDRESS_0={there & 0xFFFFFFFF:x}", f"BASE_ADDRESS_1={there >> 32:x}")
    assert devmem(guest, there + 0x12) == 0xFFFF
    setpci(guest, KEYBOARD, "COMMAND=2:2")
    assert devmem(guest, there + 0x12) == 2
    assert devmem(guest, here + 0x12) == 0xFFFF
    # The kernel finds the function there, and gives the BAR whatever address it likes best.
    guest.shell(f"echo 1 >/sys/bus/pci/devices/{KEYBOARD}/remove; echo 1 >/sys/bus/pci/rescan")
    guest.until(lambda: guest.machine.keyboard.driver_ok, "the keyboard's driver")
    guest.shell("sleep 0.3")
    keyboard = Events(guest, "QEMU Virtio Keyboard")
    for code in (ic.KEY_A, ic.KEY_B):
        stroke(guest, keyboard, code)
    assert "MSI-X: Enable+" in lspci(guest, KEYBOARD)
    assert setpci(guest, "00:1c.0", "100.L") == [0], "ECAM is where it was"


def test_a_device_behind_the_root_port(guest: Guest) -> None:
    """Its events register reads 3; a bus number or a window that is closed hides it."""
    assert guest.shell("cat /sys/bus/pci/devices/0000:01:00.0/capability").strip() in ("3", "0x3")
    region = re.search(r"Region 0: Memory at ([0-9a-f]+)", lspci(guest, "01:00.0"))
    assert region
    bar = int(region[1], 16)
    assert devmem(guest, bar, 8) == 3
    setpci(guest, "00:1c.0", "COMMAND=0:2")
    assert devmem(guest, bar, 8) == 0xFF
    setpci(guest, "00:1c.0", "COMMAND=2:2", "MEMORY_BASE=fff0", "MEMORY_LIMIT=0")
    assert devmem(guest, bar, 8) == 0xFF
    window = bar >> 16 & 0xFFF0
    setpci(guest, "00:1c.0", f"MEMORY_BASE={window:x}", f"MEMORY_LIMIT={window:x}")
    assert devmem(guest, bar, 8) == 3
    setpci(guest, "00:1c.0", "SECONDARY_BUS=5", "SUBORDINATE_BUS=5")
    assert setpci(guest, "01:00.0", "VENDOR_ID") == [0xFFFF]
    setpci(guest, "00:1c.0", "SECONDARY_BUS=1", "SUBORDINATE_BUS=1")
    assert setpci(guest, "01:00.0", "VENDOR_ID") == [0x1B36]


def test_the_acpi_tables_are_those_that_were_built(guest: Guest) -> None:
    sums = guest.shell("cd /sys/firmware/acpi/tables; md5sum [A-Z]*").splitlines()
    seen = {name: digest for digest, name in (line.split() for line in sums)}
    with described(CONFIG) as board:
        platform = board.platform()
    built = {table.name.upper(): table.data for table in build(platform).place()}
    assert set(seen) == {"APIC", "DSDT", "FACP", "FACS", "MCFG", "SSDT"} == set(built) - {"RSDP", "RSDT", "XSDT"}
    for name in set(seen) - {"FACS"}:  # which the guest writes to
        assert seen[name] == hashlib.md5(built[name]).hexdigest(), name
    assert "ACPI: Interpreter enabled" in guest.shell("dmesg")


def test_devices_of_the_dsdt(guest: Guest) -> None:
    found = guest.shell("ls /sys/bus/acpi/devices").split()
    for name in ("PNP0A08:00", "PNP0C0C:00", "PNP0303:00", "PNP0F13:00", "PNP0501:00", "PNP0B00:00"):
        assert name in found, found
    paths = guest.shell("cat /sys/bus/acpi/devices/PNP*/path").split()
    assert r"\_SB_.PCI0" in paths and len(paths) == len(set(paths))


def test_no_warning(guest: Guest) -> None:
    assert warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None)) == []


def test_the_power_button(guest: Guest) -> None:
    """It is an input event of the ACPI button driver, and what acpid would do then is power off."""
    before = sum(irq_counts(guest.shell("cat /proc/interrupts"))["acpi"])
    button = Events(guest, "Power Button")
    guest.machine.power_button()
    assert button.read(4) == [(ic.EV_KEY, ic.KEY_POWER, 1), SYN, (ic.EV_KEY, ic.KEY_POWER, 0), SYN]
    assert sum(irq_counts(guest.shell("cat /proc/interrupts"))["acpi"]) == before + 1
    guest.shell(f"exec 7</dev/input/{input_devices(guest)['Power Button']['event']}")
    guest.send("head -c 24 <&7 >/dev/null && poweroff -f\n")
    guest.machine.power_button()
    assert guest.wait().end is End.POWER_OFF


def test_without_acpi_and_msi_and_two_devices_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """The MP table routes INTx; the stock drivers of ACCES PCI-IDIO-16 and pvpanic do the rest."""
    config = MachineConfig(
        memory=512 * MIB,
        kernel=GENERIC_VMLINUX,
        initrd=INITRAMFS_GENERIC,
        cmdline="console=ttyS0 quiet acpi=off pci=nomsi",
        virtio_input="aero",
        devices=(f"{EXAMPLES / 'idio16.py'}:Idio16", f"{EXAMPLES / 'pvpanic.py'}:PvPanic", EDU),
    )
    with Guest(config) as guest:
        guest.expect(USERSPACE)
        guest.expect("# ")
        log = guest.shell("dmesg | grep -E 'MultiProcessor|APIC|PCI'")
        assert "Intel MultiProcessor Specification" in log, log
        assert guest.shell("ls /sys/firmware/acpi", status=None).count("tables") == 0
        said = warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None))
        assert [line for line in said if "not an immutable chip" not in line] == []  # the GPIO driver's own age

        guest.until(lambda: guest.machine.keyboard.driver_ok, "the keyboard's driver")
        keyboard = Events(guest, "Aero Virtio Keyboard")
        for code in (ic.KEY_A, ic.KEY_B):
            stroke(guest, keyboard, code)
        assert re.search(
            rf"{VIRTIO_INPUT_GSI}: .*IO-APIC +{VIRTIO_INPUT_GSI}-fasteoi +virtio0", guest.shell("cat /proc/interrupts")
        )

        guest.shell("cd /sys/class/gpio; base=$(cat gpiochip*/base)")
        guest.shell("echo $base >export; echo $((base + 16)) >export; echo both >IIN0/edge")
        before = irq_counts(guest.shell("cat /proc/interrupts"))["0000:00:01.0"]
        for value in ("1", "0", "1"):
            guest.shell(f"echo {value} >OUT0/value")
            assert guest.shell("cat IIN0/value").strip() == value
        after = irq_counts(guest.shell("cat /proc/interrupts"))["0000:00:01.0"]
        assert sum(after) == sum(before) + 3

        drive_edu(guest, "/sys/bus/pci/devices/0000:00:03.0")
        assert guest.machine.replace("Edu") == []  # as a driver's author does who has changed the device
        drive_edu(guest, "/sys/bus/pci/devices/0000:00:03.0")

        events: list[int] = []
        pvpanic = next(function for function in guest.machine.board.pci.all_functions() if function.device_id == 0x0011)
        monkeypatch.setattr(pvpanic, "panicked", events.append)
        guest.send("echo c >/proc/sysrq-trigger\n")
        outcome = guest.wait()
        assert outcome.end is End.PANIC
        assert outcome.message == "Kernel panic - not syncing: sysrq triggered crash"
        assert events == [1]


def drive_edu(guest: Guest, function: str) -> None:
    """A program in the guest (devmem) drives docs/examples/edu.py: a factorial, an interrupt that is cleared, DMA."""
    guest.shell(
        f"echo 1 >{function}/enable; printf '\\6' | dd of={function}/config bs=1 seek=4 conv=notrunc 2>/dev/null"
    )
    bar = int(guest.shell(f"head -n 1 {function}/resource").split()[0], 16)

    def peek(register: int) -> int:
        return int(guest.shell(f"devmem {bar + register:#x} 32"), 16)

    def poke(**values: int) -> None:
        guest.shell("; ".join(f"devmem {bar + int(name[1:], 16):#x} 32 {value:#x}" for name, value in values.items()))

    assert peek(0) == 0x010000ED
    poke(_04=0x1234)
    assert peek(0x04) == 0xFFFFFFFF - 0x1234
    poke(_20=0x80, _08=12)
    guest.until(lambda: not peek(0x20) & 1, "the factorial")
    assert (peek(0x08), peek(0x24)) == (479001600, 1)
    poke(_64=1)
    assert peek(0x24) == 0
    there, back = 0x9FE00, 0x9FF00  # in the EBDA, which Linux leaves alone
    guest.machine.memory.write(there, b"there and back")
    poke(_80=there, _88=0x40000, _90=14, _98=1)
    guest.until(lambda: not peek(0x98) & 1, "DMA to the device")
    poke(_80=0x40000, _88=back, _98=3)
    guest.until(lambda: not peek(0x98) & 1, "DMA from the device")
    assert guest.machine.memory.read(back, 14) == b"there and back"


@pytest.mark.parametrize(
    ("words", "route"),
    [
        ("pci=routeirq", r"ACPI: PCI interrupt 0000:00:0a\.{function}\[A\] -> GSI 18 \(level, low\) -> IRQ 18"),
        ("acpi=off", r"PCI->APIC IRQ transform: \(B0,I10,P0\) -> 18"),
    ],
    ids=["acpi", "mptable"],
)
def test_2_6_10_routes_intx_to_the_ioapic(guests26: Path, words: str, route: str) -> None:
    config = MachineConfig(
        memory=128 * MIB,
        kernel=guests26 / "vmlinuz-2.6.10",
        initrd=guests26 / "initrd-2.6.10",
        cmdline=f"console=ttyS0 root=/dev/ram0 ramdisk_size=8192 panic=1 {PATIENT} {words} init=/bin/sh",
        virtio_input="aero",
    )
    with Guest(config) as guest:
        guest.expect("# ", 300)
        assert "PCI: Probing PCI hardware" in guest.output
        for function in (0, 1):
            assert re.search(route.replace("{function}", str(function)), guest.output), guest.output
        guest.shell("mount -t proc proc /proc")
        devices = guest.shell('while read -r line; do echo "$line"; done </proc/bus/pci/devices')
        found = [line.split()[:3] for line in devices.splitlines()]
        irq = f"{VIRTIO_INPUT_GSI:x}"
        assert found == [["0000", "808629c0", "0"], ["0050", "1af41052", irq], ["0051", "1af41052", irq]]
        table = guest.shell('while read -r line; do echo "$line"; done </proc/interrupts')
        assert "IO-APIC-edge" in table and irq_counts(table)["timer"][0] > 100
