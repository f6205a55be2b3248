"""Devices of the lab given to a guest, behind an emulated IOMMU: QEMU's edu, e1000e, nvme and virtio-rng.

Run in a lab that has them: scripts/test says with which options. The tests of the file go in their order.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from kvm_cffi import address_of
from pyvmm.board.host_address import host_physical
from pyvmm.config import MachineConfig
from pyvmm.errors import UserError
from pyvmm.machine.machine import Machine
from pyvmm.pci.regs import PCI_COMMAND, PCI_STATUS_INTERRUPT
from pyvmm.testing.patience import LOOK_S, PATIENCE, Patience
from pyvmm.vfio.sysfs import Pci
from tests.boot.test_pci import drive_edu
from tests.rig.guest import USERSPACE, Guest, irq_counts, warnings
from tests.rig.lab import GENERIC_VMLINUX, INITRAMFS_PASSTHROUGH, PYVMM

MIB = 1 << 20
EDU, NIC, NVME, RNG = (f"0000:00:{slot:02x}.0" for slot in (8, 9, 10, 11))  # in the lab
PAIR = ("0000:01:00.0", "0000:01:00.1")
"""Two e1000 in one group, without a reset of their own: functions of one device behind a root port."""
FREE = "0000:41:00.0"
"""An edu that no IOMMU holds back."""
DRIVERS = {EDU: None, NIC: "e1000e", NVME: "nvme", RNG: "virtio-pci"}
"""That the lab itself has for them."""
GIVEN_EDU = f"vfio,host={EDU},slot=3,id=edu"
GIVEN_NIC = f"vfio,host={NIC},slot=5,id=nic"
GIVEN_NVME = f"vfio,host={NVME},slot=4,id=nvme"
CONFIG = MachineConfig(
    memory=256 * MIB,
    kernel=GENERIC_VMLINUX,
    initrd=INITRAMFS_PASSTHROUGH,
    cmdline="console=ttyS0 quiet iomem=relaxed",
    virtio_input="none",
    cpus=2,
    devices=(GIVEN_EDU, GIVEN_NVME, GIVEN_NIC, f"vfio,host={RNG},slot=6,id=rng"),
)
GUEST_EDU, GUEST_NVME, GUEST_NIC, GUEST_RNG = "00:03.0", "00:04.0", "00:05.0", "00:06.0"
RAISE, ACKNOWLEDGE, DMA_SRC, DMA_DST, DMA_COUNT, DMA_COMMAND = 0x60, 0x64, 0x80, 0x88, 0x90, 0x98
"""Registers of edu (QEMU docs/specs/edu)."""
UNEXPECTED = "No irq handler for vector"
"""What Linux says of an interrupt that nobody has asked for."""
EDU_BUFFER = 0x40000
RAM_BUFFER = 0x50000
RDBAL = 0x2800
"""A register of e1000 that is nothing but what was written, and 0 after a reset."""
READS = 1000
DISK = 32 * MIB
NO_RAM = 0xA8000
REBOOTS = int(os.environ.get("PYVMM_SOAK_REBOOTS", "1"))
"""Behind base memory, where a PC has none, and the window of text mode has not begun."""
PCIR = b"PCIR" + struct.pack("<HHHHBBHHHBB", 0x1234, 0x11E8, 0, 24, 0, 0, 0xFF00, 4, 0, 0, 0x80)
ROM = (struct.pack("<HB21xHxx", 0xAA55, 4, 0x1C) + PCIR).ljust(2048, b"r")
"""Of one image of 2 KiB, the last (PCI Firmware Specification 3.0, section 5.1)."""
DOWNLOAD = GENERIC_VMLINUX
"""Of which the network's one server sends 10 MB to whoever connects (QEMU's guestfwd)."""
SERVER = "10.0.2.100 80"


def pyvmm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYVMM, *words], capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def bound() -> None:
    for place, driver in DRIVERS.items():
        assert Pci().find(place).driver == driver, "the lab has not the devices that scripts/test gives it"
        ran = pyvmm("vfio", "bind", place)
        assert (ran.returncode, ran.stderr) == (0, ""), ran
        assert Pci().find(place).driver == "vfio-pci"


def booted(guest: Guest) -> None:
    guest.expect(USERSPACE)
    guest.expect("# ")


@pytest.fixture(scope="class")
def guest(bound: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    rom = tmp_path_factory.mktemp("rom") / "rom"
    rom.write_bytes(ROM)
    with Guest(replace(CONFIG, devices=(f"{GIVEN_EDU},rom={rom}", *CONFIG.devices[1:]))) as guest:
        booted(guest)
        yield guest


def interrupts(guest: Guest, name: str) -> int:
    return sum(irq_counts(guest.shell("cat /proc/interrupts"))[name])


def edu_bar(guest: Guest) -> int:
    return int(guest.shell(f"head -n 1 /sys/bus/pci/devices/0000:{GUEST_EDU}/resource").split()[0], 16)


def drive_intx(guest: Guest, times: int, each: int = 1) -> None:
    """A user's driver (uio_pci_generic): it holds the interrupt back by COMMAND until the program has answered it. At
    most *each* interrupts come of one: Linux ends those of a PIC before it serves them, the device still being up."""
    bar = edu_bar(guest)
    guest.shell(
        "[ -e /dev/uio0 ] || echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id; exec 3<&-; exec 3</dev/uio0"
    )
    before = interrupts(guest, "uio_pci_generic")
    for count in range(1, times + 1):
        status = guest.shell(
            f"setpci -s {GUEST_EDU} COMMAND=0:400; devmem {bar + RAISE:#x} 32 1; "
            "dd bs=4 count=1 <&3 >/tmp/n 2>/dev/null; "
            f"setpci -s {GUEST_EDU} STATUS; devmem {bar + ACKNOWLEDGE:#x} 32 1; setpci -s {GUEST_EDU} STATUS"
        ).split()
        assert [int(word, 16) & PCI_STATUS_INTERRUPT for word in status] == [PCI_STATUS_INTERRUPT, 0]
        assert count <= interrupts(guest, "uio_pci_generic") - before <= each * count


def edu_dma_from_device(guest: Guest, address: int) -> None:
    """64 bytes of edu's own memory to *address*."""
    bar = edu_bar(guest)
    values = ((DMA_SRC, EDU_BUFFER), (DMA_DST, address), (DMA_COUNT, 64), (DMA_COMMAND, 3))
    writes = "; ".join(f"devmem {bar + register:#x} 64 {value:#x}" for register, value in values)
    guest.shell(f"setpci -s {GUEST_EDU} COMMAND=6; {writes}")  # a driver that goes takes bus mastering away
    guest.until(lambda: not int(guest.shell(f"devmem {bar + DMA_COMMAND:#x} 32"), 16) & 1, "the end of the DMA")


def drive_nvme(guest: Guest) -> None:
    """Bytes there and back, behind those that `reads fill` writes."""
    guest.shell(
        "dd if=/dev/urandom of=/tmp/a bs=256k count=4; dd if=/tmp/a of=/dev/nvme0n1 bs=256k seek=160 oflag=direct; "
        "dd if=/dev/nvme0n1 of=/tmp/b bs=64k skip=640 count=16 iflag=direct; cmp /tmp/a /tmp/b"
    )


def drive_nic(guest: Guest, size: int = 1_000_000) -> None:
    """An address by DHCP, and *size* bytes over TCP, at most 10 MB."""
    guest.shell(
        "cat >/tmp/lease <<'END'\n#!/bin/sh\n"
        '[ "$1" != bound ] || { ip addr add $ip/24 dev $interface; echo address $ip; }\nEND\n'
        "chmod +x /tmp/lease; ip link set eth0 up"
    )
    assert "address 10.0.2.15" in guest.shell("udhcpc -i eth0 -n -q -t 20 -s /tmp/lease")
    with DOWNLOAD.open("rb") as file:
        wanted = hashlib.md5(file.read(size)).hexdigest()
    assert guest.shell(f"nc {SERVER} </dev/null | head -c {size} | md5sum").split()[0] == wanted
    counts = irq_counts(guest.shell("cat /proc/interrupts"))
    assert sum(sum(count) for name, count in counts.items() if name.startswith("eth0")), "by its own interrupts"
    guest.shell("ip addr flush dev eth0; ip link set eth0 down")


def canary() -> tuple[mmap.mmap, int]:
    """Pages of this process, and where one is in this host's memory: where the guest has no RAM."""
    pages = mmap.mmap(-1, 16 * MIB)
    for offset in range(0, len(pages), mmap.PAGESIZE):
        pages[offset : offset + mmap.PAGESIZE] = b"\x5a" * mmap.PAGESIZE
    start = address_of(memoryview(pages))
    for offset in range(0, len(pages), mmap.PAGESIZE):
        physical = host_physical(start + offset)
        if physical is not None and physical >= CONFIG.ram_size:
            return pages, physical
    raise AssertionError("none of 4096 pages is beyond the guest's RAM")


class TestFourDevices:
    def test_identity_and_bars(self, guest: Guest) -> None:
        said = guest.shell(f"lspci -n -vvv -s {GUEST_EDU}")
        assert "00ff: 1234:11e8 (rev 10)" in said
        assert re.search(r"Region 0: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\) .*\[size=1M\]", said), said
        assert "MSI: Enable- Count=1/1 Maskable- 64bit+" in said
        for place, identity, driver in (
            (GUEST_NVME, "0108: 1b36:0010", "nvme"),
            (GUEST_NIC, "0200: 8086:10d3", "e1000e"),
            (GUEST_RNG, "1af4:1044", "virtio-pci"),
        ):
            said = guest.shell(f"lspci -n -vv -s {place}")
            assert identity in said and "MSI-X: Enable+" in said and f"driver in use: {driver}" in said, said

    def test_the_file_as_expansion_rom(self, guest: Guest) -> None:
        rom = f"/sys/bus/pci/devices/0000:{GUEST_EDU}/rom"
        assert guest.shell(f"echo 1 >{rom}; md5sum <{rom}; echo 0 >{rom}").split()[0] == hashlib.md5(ROM).hexdigest()

    def test_edu_registers_factorial_and_dma(self, guest: Guest) -> None:
        drive_edu(guest, f"/sys/bus/pci/devices/0000:{GUEST_EDU}")

    def test_edu_msi(self, guest: Guest) -> None:
        """To a vector that nobody has, which Linux complains of."""
        setpci, bar = f"setpci -s {GUEST_EDU}", edu_bar(guest)
        guest.shell(
            f"{setpci} COMMAND=406 CAP_MSI+4.l=fee00000 CAP_MSI+8.l=0 CAP_MSI+c.w=e0; {setpci} CAP_MSI+2.w=0001:0001; "
            f"devmem {bar + RAISE:#x} 32 1"
        )
        guest.until(lambda: guest.shell(f"dmesg | grep '{UNEXPECTED}'", status=None) != "", "the interrupt")
        guest.shell(f"devmem {bar + ACKNOWLEDGE:#x} 32 1; {setpci} CAP_MSI+2.w=0000:0001 COMMAND=6")

    def test_edu_intx(self, guest: Guest) -> None:
        drive_intx(guest, 3)

    def test_a_network(self, guest: Guest) -> None:
        drive_nic(guest, 10_000_000)

    def test_nvme_with_a_file_system(self, guest: Guest) -> None:
        drive_nvme(guest)
        guest.shell("mke2fs /dev/nvme0n1 2>/dev/null && mkdir -p /mnt && mount /dev/nvme0n1 /mnt")
        guest.shell("cp /tmp/a /mnt/a && umount /mnt && mount /dev/nvme0n1 /mnt && cmp /tmp/a /mnt/a && rm /mnt/a")
        assert "trimmed" in guest.shell("fstrim -v /mnt && umount /mnt")

    def test_nvme_random_reads_whose_doorbells_no_exit_hears_of(self, guest: Guest) -> None:
        guest.shell(f"reads fill /dev/nvme0n1 {DISK}")
        queues = [name for name in irq_counts(guest.shell("cat /proc/interrupts")) if re.match("nvme0q[1-9]", name)]
        heard = sum(interrupts(guest, name) for name in queues)
        exits = []
        for reads in (1, READS):  # the first is what the shell itself costs on COM1
            before = sum(vcpu.exits for vcpu in guest.machine.vcpus)
            guest.shell(f"reads /dev/nvme0n1 {DISK} {reads} 1")
            exits.append(sum(vcpu.exits for vcpu in guest.machine.vcpus) - before)
        assert sum(interrupts(guest, name) for name in queues) - heard >= READS
        assert exits[1] - exits[0] < READS, "each is two doorbells, one to submit and one to complete"
        assert warnings(guest.shell("dmesg -r | grep nvme", status=None)) == []

    def test_watched_from_the_middle_on(self, guest: Guest) -> None:
        """Each interrupt goes by the loop then, with its time, and afterwards no more."""
        guest.machine.trace.on("edu", "nvme")
        drive_intx(guest, 2)
        guest.shell(f"reads /dev/nvme0n1 {DISK} 10 1")
        lines = [line for line in guest.trace if line.endswith("by the loop")]
        assert sum(line.startswith("edu ") and "INTx up" in line for line in lines) >= 2, lines
        assert sum(line.startswith("nvme ") and "MSI-X" in line for line in lines) >= 10, lines
        assert sum("the guest has ended it" in line for line in guest.trace) >= 2
        guest.machine.trace.off("edu", "nvme")
        guest.shell(f"reads /dev/nvme0n1 {DISK} 10 1")
        drive_intx(guest, 2)
        assert [line for line in guest.trace if line.endswith("by the loop")] == lines

    def test_virtio_behind_the_iommu(self, guest: Guest) -> None:
        """VIRTIO_F_ACCESS_PLATFORM, feature 33: QEMU's own device asks for translation."""
        assert guest.shell("cat /sys/bus/virtio/devices/virtio0/features")[33] == "1"
        assert "virtio_rng" in guest.shell("cat /sys/class/misc/hw_random/rng_current")
        one, other = (guest.shell("dd if=/dev/hwrng bs=64 count=1 2>/dev/null | xxd -p") for _ in range(2))
        assert len(one) > 128 and one != other

    def test_dma_to_no_ram_ends_at_the_iommu(self, guest: Guest) -> None:
        """And a page of the host is as it was, and guest and machine go on."""
        pages, where = canary()
        for address in (NO_RAM, where):
            edu_dma_from_device(guest, address)
            log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
            page = address & ~0xFFF
            if "DMAR" in log:  # QEMU's amd-iommu refuses as well, and tells nobody
                assert re.search(rf"DMAR: .*{EDU[5:]}.*fault addr {page:#x}", log), log[-2000:]
        assert pages[:] == b"\x5a" * len(pages)
        assert guest.shell("echo still here") == "still here\n"
        said = guest.machine.parts["edu"].iova(where)
        assert "no guest RAM is there, and the IOMMU refuses" in said

    def test_asleep_and_awake(self, guest: Guest) -> None:
        """D3hot: what the guest reads there is nobody's, and then the device is as after a reset."""
        driver = "/sys/bus/pci/drivers/e1000e"
        bar = int(guest.shell(f"head -n 1 /sys/bus/pci/devices/0000:{GUEST_NIC}/resource").split()[0], 16)
        guest.shell(f"echo 0000:{GUEST_NIC} >{driver}/unbind; setpci -s {GUEST_NIC} COMMAND=6 CAP_PM+4.b=3:3")
        assert guest.shell(f"devmem {bar:#x} 32") == "0xFFFFFFFF\n"
        guest.shell(f"setpci -s {GUEST_NIC} CAP_PM+4.b=0:3")
        assert guest.shell(f"devmem {bar:#x} 32") != "0xFFFFFFFF\n"
        guest.shell(f"echo 0000:{GUEST_NIC} >{driver}/bind")
        drive_nic(guest)

    def test_a_function_level_reset(self, guest: Guest) -> None:
        said = guest.shell(f"lspci -vvv -s {GUEST_NVME}")
        assert "FLReset+" in said, said
        guest.shell(
            f"cd /sys/bus/pci/devices/0000:{GUEST_NVME}; echo 0000:{GUEST_NVME} >driver/unbind; "
            f"echo flr >reset_method; echo 1 >reset; cd /; echo 0000:{GUEST_NVME} >/sys/bus/pci/drivers/nvme/bind"
        )
        guest.until(lambda: guest.shell("ls /dev/nvme0n1", status=None).startswith("/dev/nvme"), "the disk")
        drive_nvme(guest)

    def test_a_snapshot_is_refused(self, guest: Guest) -> None:
        with pytest.raises(UserError, match="is a device of the host, whose state nobody can read: leave it away"):
            guest.machine.snapshot()

    def test_a_device_in_use(self, guest: Guest) -> None:
        with pytest.raises(UserError, match="is in use: another guest has a device of this group"):
            Machine(CONFIG)
        ran = pyvmm("vfio", "unbind", EDU)
        assert ran.returncode == 2 and "is in use: end the guest that has it" in ran.stderr, ran

    def test_a_device_goes_back_to_the_host_under_load_and_comes_again(self, guest: Guest) -> None:
        """The host's own driver has the disk while the guest, which was reading it, runs on without."""
        load = "while dd if=/dev/nvme0n1 of=/dev/null bs=64k count=16 iflag=direct; do :; done; touch /tmp/end"
        guest.shell(f"({load}) 2>/dev/null & true")
        assert not guest.machine.unplug("nvme")
        guest.until(lambda: "nvme" not in guest.machine.board.devices, "an ejection")
        guest.shell("until [ -e /tmp/end ]; do usleep 20000; done")
        ran = pyvmm("vfio", "unbind", NVME)
        assert (ran.returncode, ran.stderr, Pci().find(NVME).driver) == (0, "", "nvme")
        assert pyvmm("vfio", "bind", NVME).returncode == 0
        guest.machine.plug(GIVEN_NVME)
        guest.shell("until [ -b /dev/nvme0n1 ]; do usleep 20000; done")
        guest.until(lambda: guest.shell("dd if=/dev/nvme0n1 count=1 2>&- | wc -c").strip() == "512", "the disk")
        drive_nvme(guest)

    def test_a_reset_gives_the_guest_clean_devices(self, guest: Guest) -> None:
        guest.machine.reset()
        booted(guest)
        guest.shell(f"reads /dev/nvme0n1 {DISK} 50 4")
        drive_nic(guest)
        drive_edu(guest, f"/sys/bus/pci/devices/0000:{GUEST_EDU}")


def bus(machine: Machine, part: str, register: int, size: int = 4, value: int | None = None) -> int:
    """A read or a write of a register in BAR 0 of *part*, as the guest would do it where it traps."""
    function = machine.parts[part]
    address = function.bars[0].address(function.config) + register
    mmio = machine.board.mmio
    if value is not None:
        machine.call(lambda: mmio.write(address, size, value))
    return machine.call(lambda: mmio.read(address, size))


def dma_to_peer(machine: Machine, value: int) -> int:
    """Edu writes *value* from RAM to a register of the pair's first; what that is then."""
    peer = machine.parts["first"]
    there = peer.bars[0].address(peer.config) + RDBAL
    machine.call(lambda: machine.memory.write(RAM_BUFFER, value.to_bytes(4, "little")))
    for source, target, command in ((RAM_BUFFER, EDU_BUFFER, 1), (EDU_BUFFER, there, 3)):
        for register, word in ((DMA_SRC, source), (DMA_DST, target), (DMA_COUNT, 4), (DMA_COMMAND, command)):
            bus(machine, "edu", register, 8, word)
        patience = Patience(PATIENCE, os.getpid())
        while bus(machine, "edu", DMA_COMMAND, 8) & 1:
            assert not patience.is_over, "the DMA does not end"
            time.sleep(LOOK_S)
    return bus(machine, "first", RDBAL)


def test_two_of_one_group_peers_a_hot_reset_and_a_device_that_is_wanted_back() -> None:
    first, second = PAIR
    config = MachineConfig(guest="keyboard", devices=(f"vfio,host={first},id=first", f"vfio,host={second},id=second"))
    assert pyvmm("vfio", "bind", first).returncode == 0
    Path(f"/sys/bus/pci/devices/{second}/driver_override").write_text("uio_pci_generic")
    Path("/sys/bus/pci/drivers_probe").write_text(second)
    listed = pyvmm("vfio", "list").stdout
    assert re.search(rf"{first} .* no: bind {second} \(uio_pci_generic\) of its group to vfio-pci too", listed), listed
    with pytest.raises(UserError, match=rf"is not viable, .* {second} \(uio_pci_generic\): pyvmm vfio bind them too"):
        Machine(config)
    assert pyvmm("vfio", "bind", second).returncode == 0
    lines: list[str] = []
    devices = (f"vfio,host={first},id=first,p2p=on", f"vfio,host={second},id=second", GIVEN_EDU)
    for peers in (False, True):
        config = replace(config, devices=devices if peers else (devices[0].removesuffix(",p2p=on"), *devices[1:]))
        with Machine(config) as machine:
            machine.events.add(lambda event: lines.append(event.message))
            machine.start()
            machine.call(lambda: machine.parts["edu"].config_write(PCI_COMMAND, 2, 6))
            assert bus(machine, "first", RDBAL) == 0
            assert dma_to_peer(machine, 0x1230) == (0x1230 if peers else 0)
            bus(machine, "second", RDBAL, value=0x4560)
            machine.reset()
            assert [bus(machine, name, RDBAL) for name in ("first", "second")] == [0, 0], "by a reset of their bus"
            if peers:
                Path("/sys/bus/pci/drivers/vfio-pci/unbind").write_text(second)  # it comes back when that is done
                assert machine.parts["second"].config_read(0, 4) == 0xFFFFFFFF
                assert [line for line in lines if f"device {second}: this host wants it back" in line], lines
                assert bus(machine, "first", RDBAL) == 0, "the other goes on"


def test_what_is_refused() -> None:
    """Each is one line, and says what to do."""

    def refused(*words: str, device: str = EDU) -> str:
        command: list[str | Path] = [*words, PYVMM, "run", "--device", f"vfio,host={device}", "keyboard"]
        ran: subprocess.CompletedProcess[str] = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran
        return ran.stderr

    assert "this host has no PCI device 0000:00:19.0: pyvmm vfio list" in refused(device="00:19.0")
    assert "is no place of a PCI device: write it as lspci -D shows it" in refused(device="edu")
    assert "has no IOMMU group: switch the IOMMU on" in refused(device=FREE)
    # Root without its capabilities is a user as any other.
    group = Path("/dev/vfio") / Path(f"/sys/bus/pci/devices/{EDU}/iommu_group").resolve().name
    user = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    os.chown(group, 65534, 65534)
    assert f"no permission for {group}: as root, chown {group} to who runs pyvmm" in refused(*user)
    os.chown(group, 0, 0)
    locked = refused("prlimit", "--memlock=65536:65536", *user)
    assert re.search(r"pins all of guest RAM, \d+ KiB, and this process may lock 64: raise ulimit -l", locked), locked


def test_the_same_device_twice() -> None:
    with pytest.raises(UserError, match="is given to this guest already"):
        Machine(replace(CONFIG, devices=(GIVEN_EDU, f"vfio,host={EDU},slot=5")))


def test_reboots() -> None:
    """Each finds what `reads fill` has written. PYVMM_SOAK_REBOOTS says how many there are."""
    run = f"until [ -b /dev/nvme0n1 ]; do sleep 0.1; done; reads /dev/nvme0n1 {DISK} 50 4"
    cmdline = f'{CONFIG.cmdline} pyvmm.run="{run}" pyvmm.end=reboot'
    with Guest(replace(CONFIG, cpus=1, devices=(GIVEN_EDU, GIVEN_NVME), cmdline=cmdline)) as guest:
        for _ in range(REBOOTS + 1):
            guest.expect(USERSPACE)
            guest.expect("pyvmm guest: exit 0")


def test_killed_while_dma_runs_and_run_again() -> None:
    """The kernel takes back what a process had that is killed; the host has its disk again, then the next guest."""
    busy = 'pyvmm.run="echo busy; while dd if=/dev/nvme0n1 of=/dev/null bs=1M count=32 iflag=direct; do :; done"'
    words: list[str | Path] = [PYVMM, "run", "-k", GENERIC_VMLINUX, "-i", INITRAMFS_PASSTHROUGH]
    words += ["-p", f"console=ttyS0 quiet {busy}"]
    words += ["--device", GIVEN_NVME, "--virtio-input", "none"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"records out" in line:
                break
        else:
            pytest.fail("the guest ended before it had read its disk")
        process.send_signal(signal.SIGKILL)
    ran = pyvmm("vfio", "unbind", NVME)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert Pci().find(NVME).driver == "nvme"
    ran = pyvmm("vfio", "bind", NVME)
    assert (ran.returncode, ran.stderr) == (0, ""), ran


@pytest.mark.parametrize(
    ("irqchip", "words", "each"),
    [("kernel", "noapic", 2), ("split", "", 1), ("user", "", 2)],
    ids=["kernel-pic", "split", "user"],
)
def test_intx_by_other_chips(irqchip: Literal["kernel", "split", "user"], words: str, each: int) -> None:
    config = replace(
        CONFIG,
        irqchip=irqchip,
        cpus=2 if irqchip == "split" else 1,
        devices=(GIVEN_EDU, GIVEN_NIC.replace("slot=5", "slot=4")),  # not edu's IRQ: docs/passthrough.md
        cmdline=f"{CONFIG.cmdline} pci=nomsi {words}",
    )
    with Guest(config) as guest:
        booted(guest)
        drive_intx(guest, 3, each)
        drive_nic(guest, 100_000)


def test_given_back() -> None:
    for place, driver in DRIVERS.items():
        ran = pyvmm("vfio", "unbind", place)
        assert (ran.returncode, ran.stderr) == (0, ""), ran
        assert Pci().find(place).driver == driver
    with pytest.raises(UserError, match=f"pyvmm vfio bind {EDU}"):
        Machine(CONFIG)
