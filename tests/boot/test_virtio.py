"""virtio-input with MSI-X and INTx, and virtio-rng, under a current Linux: what a process in the guest reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from pyvmm.config import MachineConfig, VirtioInputIdentity
from pyvmm.control.timeline.timeline import Timeline
from pyvmm.input import codes as ic
from tests.rig.events import Event, Events, input_devices
from tests.rig.guest import USERSPACE, Guest, warnings
from tests.rig.lab import CLOUD_KERNEL, INITRAMFS_CLOUD
from tests.rig.timeline import ended, trace_of
from tests.rig.while_typing import back_while_typing

MIB = 1 << 20
SYN = (ic.EV_SYN, ic.SYN_REPORT, 0)
PS2_KEYBOARD = "AT Translated Set 2 keyboard"
KEYBOARD, MOUSE, TABLET = "0000:00:0a.0", "0000:00:0a.1", "0000:00:0a.2"
KEYS = (ic.KEY_A, ic.KEY_LEFTSHIFT, ic.KEY_KP7, ic.KEY_UP, ic.KEY_PAUSE, ic.KEY_MUTE, ic.KEY_F12, ic.KEY_MICMUTE)
BUTTONS = (ic.BTN_LEFT, ic.BTN_RIGHT, ic.BTN_MIDDLE, ic.BTN_SIDE, ic.BTN_EXTRA)


class Case(NamedTuple):
    """One boot; *ids* are vendor and product base of the input devices, their versions, and the subsystem IDs."""

    identity: VirtioInputIdentity
    msix: bool
    maker: str
    vendor: int
    versions: tuple[int, int, int]
    subsystems: tuple[int, int, int]


AERO = Case("aero", True, "Aero", 0x1AF4, (1, 1, 1), (0x0010, 0x0011, 0x0012))
STANDARD = Case("standard", False, "QEMU", 0x0627, (1, 2, 2), (0x1100, 0x1100, 0x1100))


class Linux(Guest):
    """The guest, and its driver model."""

    def __init__(self, case: Case) -> None:
        self.case = case
        super().__init__(
            MachineConfig(
                memory=256 * MIB,
                kernel=CLOUD_KERNEL,
                initrd=INITRAMFS_CLOUD,
                cmdline="console=ttyS0 quiet pyvmm.modules=none" + ("" if case.msix else " pci=nomsi"),
                virtio_input=case.identity,
                tablet=True,
                rng=True,
            )
        )
        self.expect(USERSPACE)
        self.expect("# ")

    def virtio(self, function: str) -> str:
        """virtioN, the virtio device of a PCI function."""
        return self.shell(f"ls /sys/bus/pci/devices/{function} | grep '^virtio[0-9]'").strip()

    def bind(self, function: str, driver: str = "virtio_input") -> None:
        self.shell(f"echo {self.virtio(function)} >/sys/bus/virtio/drivers/{driver}/bind")

    def unbind(self, function: str, driver: str = "virtio_input") -> None:
        self.shell(f"echo {self.virtio(function)} >/sys/bus/virtio/drivers/{driver}/unbind")

    @contextmanager
    def bound(self, function: str) -> Iterator[None]:
        """A function has its driver for a while."""
        self.bind(function)
        try:
            yield
        finally:
            self.unbind(function)

    def interrupts(self, name: str) -> int:
        """How often the handler *name* of /proc/interrupts was called; with INTx it may share its line with others."""
        table = self.shell("cat /proc/interrupts")
        line = next(line for line in table.splitlines() if re.search(rf"[ ,]{name}(,|$)", line))
        chip = "PCI-MSI" if self.case.msix else "IO-APIC"
        assert chip in line, line
        return int(line.split()[1])


@pytest.fixture(scope="module", params=[AERO, STANDARD], ids=["aero-msix", "standard-intx"])
def booted(request: pytest.FixtureRequest) -> Iterator[Linux]:
    """At its shell, with no module loaded."""
    with Linux(request.param) as guest:
        yield guest


@pytest.fixture(scope="module")
def ps2(booted: Linux) -> Events:
    booted.shell("insmod /lib/modules/*-evdev.ko")
    return Events(booted, PS2_KEYBOARD)


@pytest.fixture(scope="module")
def guest(booted: Linux, ps2: Events) -> Linux:
    """With every driver bound but that of the tablet, which would take the mouse's buttons."""
    booted.shell("for module in /lib/modules/*.ko; do insmod $module 2>/dev/null; done; true")
    booted.until(lambda: booted.machine.keyboard.driver_ok, "the keyboard's driver")
    booted.shell("[ -e /dev/input/event3 ] || sleep 1")
    booted.unbind(TABLET)
    return booted


@pytest.fixture(scope="module")
def keyboard(guest: Linux) -> Events:
    return Events(guest, f"{guest.case.maker} Virtio Keyboard")


@pytest.fixture(scope="module")
def mouse(guest: Linux) -> Events:
    return Events(guest, f"{guest.case.maker} Virtio Mouse")


def stroke(guest: Guest, code: int) -> list[Event]:
    """Press and release a key; what evdev should make of it."""
    guest.machine.keyboard.key(code, 1)
    guest.machine.keyboard.key(code, 0)
    return [(ic.EV_KEY, code, 1), SYN, (ic.EV_KEY, code, 0), SYN]


def keys(events: list[Event]) -> list[Event]:
    return [event for event in events if event[0] == ic.EV_KEY]


def test_before_the_driver_keys_go_to_ps2(booted: Linux, ps2: Events) -> None:
    assert not booted.machine.keyboard.driver_ok
    sent = stroke(booted, ic.KEY_A)
    assert keys(ps2.read(6)) == keys(sent)


def test_three_functions_and_their_identity(guest: Linux) -> None:
    with guest.bound(TABLET):
        check_functions(guest, guest.case)


def check_functions(guest: Linux, case: Case) -> None:
    devices = input_devices(guest)
    classes, names = ("090000", "090200", "098000"), ("Keyboard", "Mouse", "Tablet")
    for number, name in enumerate(names):
        pci = f"/sys/bus/pci/devices/0000:00:0a.{number}"
        files = " ".join(f"{pci}/{file}" for file in ("vendor", "device", "revision", "class", "subsystem_device"))
        ids = [int(text, 16) for text in guest.shell(f"cat {files}").split()]
        assert ids == [0x1AF4, 0x1052, 1, int(classes[number], 16), case.subsystems[number]]
        drivers = guest.shell(f"readlink {pci}/driver; readlink {pci}/virtio*/driver").split()
        assert [driver.rpartition("/")[2] for driver in drivers] == ["virtio-pci", "virtio_input"]
        device = devices[f"{case.maker} Virtio {name}"]
        version = case.versions[number]
        assert device["I"] == f"Bus=0006 Vendor={case.vendor:04x} Product={number + 1:04x} Version={version:04x}"
        features = guest.shell(f"cat {pci}/virtio*/features").strip()
        # VIRTIO_F_RING_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX, VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED
        taken = {bit for bit in (28, 29, 32, 34) if features[bit] == "1"}
        assert taken == ({28, 32} if case.identity == "aero" else {28, 29, 32, 34})


def test_keys(guest: Linux, keyboard: Events) -> None:
    sent = [event for code in KEYS for event in stroke(guest, code)]
    assert keyboard.read(len(sent)) == sent


def test_back_to_a_snapshot_that_was_taken_while_typing(guest: Linux, keyboard: Events, mouse: Events) -> None:
    back_while_typing(guest, keyboard, mouse)


def test_motion_wheel_and_buttons(guest: Linux, mouse: Events) -> None:
    machine = guest.machine
    machine.mouse.move(5, -3)
    machine.mouse.move(-300, 0)
    machine.mouse.wheel(1)
    machine.mouse.wheel(-2)
    sent = [(ic.EV_REL, ic.REL_X, 5), (ic.EV_REL, ic.REL_Y, -3), SYN, (ic.EV_REL, ic.REL_X, -300), SYN]
    sent += [(ic.EV_REL, ic.REL_WHEEL, 1), SYN, (ic.EV_REL, ic.REL_WHEEL, -2), SYN]
    if guest.case.identity == "aero":
        machine.mouse.wheel(0, 3)
        sent += [(ic.EV_REL, ic.REL_HWHEEL, 3), SYN]
    for button in BUTTONS:
        sent += stroke(guest, button)
    assert mouse.read(len(sent)) == sent


def test_the_tablet(guest: Linux, mouse: Events) -> None:
    """While it has its driver it takes the buttons; the wheel goes where there is one."""
    with guest.bound(TABLET):
        tablet = Events(guest, f"{guest.case.maker} Virtio Tablet")
        guest.machine.tablet.move(32767, 1)
        guest.machine.tablet.move(100, 20000)
        sent = [(ic.EV_ABS, ic.ABS_X, 32767), (ic.EV_ABS, ic.ABS_Y, 1), SYN]
        sent += [(ic.EV_ABS, ic.ABS_X, 100), (ic.EV_ABS, ic.ABS_Y, 20000), SYN]
        sent += stroke(guest, ic.BTN_LEFT)
        assert tablet.read(len(sent)) == sent
        guest.machine.mouse.wheel(-1)
        wheel = mouse if guest.case.identity == "aero" else tablet
        assert wheel.read(2) == [(ic.EV_REL, ic.REL_WHEEL, -1), SYN]


def test_leds_come_back(guest: Linux) -> None:
    seen: list[tuple[int, bool]] = []
    source = guest.machine.board.router.source("leds", lambda led, on: seen.append((led, on)))
    event = input_devices(guest)[f"{guest.case.maker} Virtio Keyboard"]["event"]
    leds = {"numlock": ic.LED_NUML, "capslock": ic.LED_CAPSL, "scrolllock": ic.LED_SCROLLL}
    if guest.case.identity == "aero":
        leds |= {"compose": ic.LED_COMPOSE, "kana": ic.LED_KANA}
    names = guest.shell(f"cd /sys/class/input/{event}/device; ls -d *::*").split()
    assert {name.partition("::")[2] for name in names} == set(leds)
    del seen[:]
    for name in names:
        led = leds[name.partition("::")[2]]
        for on in (True, False):
            guest.shell(f"echo {int(on)} >/sys/class/leds/{name}/brightness")
            guest.until(lambda led=led, on=on: seen[-1:] == [(led, on)], f"{name} {on}")  # type: ignore[misc]
    assert len(seen) == 2 * len(names)
    source.close()


def test_every_batch_is_an_interrupt(guest: Linux, mouse: Events) -> None:
    """Motion, for a key that is down while a slow host looks repeats itself."""
    device = guest.virtio(MOUSE)
    events = f"{device}-events" if guest.case.msix else device
    before = guest.interrupts(events)
    for step in (1, 2, 3, 4):
        guest.machine.mouse.move(step, 0)
        assert mouse.read(2) == [(ic.EV_REL, ic.REL_X, step), SYN]
    # With INTx the keyboard is on the same line, and silent.
    assert guest.interrupts(events) == before + 4
    if guest.case.msix:
        keyboard = guest.virtio(KEYBOARD)
        assert guest.interrupts(f"{keyboard}-status") > 0, "LEDs are completed"
        assert guest.interrupts(f"{keyboard}-config") == 0


def test_unbound_keys_go_to_ps2_and_bound_they_come_back(guest: Linux, ps2: Events) -> None:
    guest.unbind(KEYBOARD)
    assert not guest.machine.keyboard.driver_ok
    sent = stroke(guest, ic.KEY_B)
    assert keys(ps2.read(6)) == keys(sent)
    size = guest.shell(f"wc -c <{ps2.file}")
    guest.bind(KEYBOARD)
    guest.until(lambda: guest.machine.keyboard.driver_ok, "the keyboard's driver")
    again = Events(guest, f"{guest.case.maker} Virtio Keyboard")
    for code in (ic.KEY_C, ic.KEY_D):
        sent = stroke(guest, code)
        assert again.read(len(sent)) == sent
    assert guest.shell(f"wc -c <{ps2.file}") == size


def test_random_bytes(guest: Linux) -> None:
    assert guest.shell("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng.")
    name = guest.shell("ls /sys/bus/virtio/drivers/virtio_rng | grep '^virtio[0-9]'").strip()
    handler = f"{name}-input" if guest.case.msix else name
    before = guest.interrupts(handler)
    dump = guest.shell("dd if=/dev/hwrng bs=256 count=4 2>/dev/null | od -An -v -tx1")
    data = bytes.fromhex("".join(dump.split()))
    assert len(data) == 1024
    assert len(set(data)) > 200 and len({data[at : at + 16] for at in range(0, 1024, 16)}) == 64
    assert guest.interrupts(handler) > before


def test_a_key_and_a_doorbell_are_a_flow_each(guest: Linux, tmp_path: Path) -> None:
    """From the script to the interrupt, and from the kick; where it is a line, to the driver's read of the status."""
    path = tmp_path / "timeline"
    keyboard = Events(guest, f"{guest.case.maker} Virtio Keyboard")
    with Timeline(guest.machine, path):
        sent = stroke(guest, ic.KEY_E)
        assert keyboard.read(len(sent)) == sent
        guest.shell("dd if=/dev/hwrng bs=256 count=2 2>/dev/null | wc -c")
    ways = ended(trace_of(path))
    (key,) = [way for way in ways if way[0] == ("input", "inject: KEY_E pressed")]
    doorbells = [way for way in ways if way[0] == ("virtio-rng", "queue 0 is kicked")]
    assert doorbells
    assert re.search(r": event type 0x1 code 0x12 value 1$", key[1][1]), key
    for way in doorbells:
        steps = ("queue 0 is kicked$", r"queue 0: chain \d+: ", r"queue 0: chain \d+ is used, \d+ bytes written$")
        assert all(re.match(step, name) for step, (_, name) in zip(steps, way, strict=False)), way
    for channel, way, before in [("virtio-input", key, 2), *(("virtio-rng", way, 3) for way in doorbells)]:
        assert way[before] == (channel, "queue 0: the driver is told of used buffers"), way
        interrupts = [name for track, name in way if track == "interrupts"]
        if guest.case.msix:
            assert len(way) == before + 2 and re.match("MSI by GSI|KVM_SIGNAL_MSI", interrupts[0]), way
        else:  # others may hold the line up
            assert all(name.startswith("KVM_IRQ_LINE: IRQ ") for name in interrupts), way
            assert way[-1] == (channel, "read of the ISR status returns 0x1"), way


def test_the_kernel_has_nothing_to_complain_of(guest: Linux) -> None:
    assert warnings(guest.shell("dmesg -r | grep '^<[0-4]>'", status=None)) == []
