"""`pyvmm doctor`: what this host offers a VMM, and what to do about each thing that is missing."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kvm_cffi import CpuidEntry, System
from pyvmm.board.memslots import POOLS, free_pages
from pyvmm.cli.backend import INSTEAD, backend
from pyvmm.errors import UserError
from pyvmm.machine.kvm import open_kvm
from pyvmm.units import KIB, size_text
from pyvmm.vcpu.cpuid import phys_bits
from pyvmm.vcpu.dependencies import closed
from pyvmm.vcpu.features import present

NEEDED = {
    "KVM_CAP_USER_MEMORY": "guest RAM",
    "KVM_CAP_SET_TSS_ADDR": "real mode on Intel hosts",
    "KVM_CAP_SET_IDENTITY_MAP_ADDR": "real mode on Intel hosts",
    "KVM_CAP_EXT_CPUID": "CPUID",
    "KVM_CAP_IRQCHIP": "interrupt controllers in the kernel",
    "KVM_CAP_PIT2": "the timer in the kernel",
    "KVM_CAP_IRQ_ROUTING": "wiring interrupts",
    "KVM_CAP_IRQFD": "interrupts from outside a vCPU",
    "KVM_CAP_IOEVENTFD": "doorbells",
    "KVM_CAP_SIGNAL_MSI": "MSI",
    "KVM_CAP_MP_STATE": "more than one vCPU",
    "KVM_CAP_IMMEDIATE_EXIT": "stopping a vCPU",
    "KVM_CAP_VCPU_EVENTS": "reports",
    "KVM_CAP_USER_NMI": "the NMI button",
}
OPTIONAL = {
    "KVM_CAP_SPLIT_IRQCHIP": "PIC and IOAPIC in user space beside local APICs in the kernel",
    "KVM_CAP_IRQFD_RESAMPLE": "level-triggered irqfds",
    "KVM_CAP_COALESCED_MMIO": "writes that gather without an exit",
    "KVM_CAP_COALESCED_PIO": "port writes that gather without an exit",
    "KVM_CAP_TSC_DEADLINE_TIMER": "the TSC deadline timer",
    "KVM_CAP_READONLY_MEM": "ROM",
    "KVM_CAP_SET_GUEST_DEBUG": "breakpoints",
}

UNSAFE = (
    ("vfio", "enable_unsafe_noiommu_mode", "devices without an IOMMU reach all of this host's memory"),
    ("vfio_iommu_type1", "allow_unsafe_interrupts", "a device can send this host any interrupt"),
)
"""Parameters of modules that take protection away, and what that means."""


@dataclass(frozen=True)
class Finding:
    """One line: ok is False where something that pyvmm cannot do without is missing, warning is True where much of it
    is of no use; hint says what to do."""

    subject: str
    text: str
    ok: bool = True
    hint: str = ""
    warning: bool = False

    def __str__(self) -> str:
        mark = "MISS" if not self.ok else "WARN" if self.warning else "ok  "
        line = f"{mark}  {self.subject:<12} {self.text}"
        return f"{line}\n      {'':<12} -> {self.hint}" if self.hint else line


def kvm_findings(open_system: Callable[[], System] = open_kvm) -> Iterator[Finding]:
    try:
        system = open_system()
    except UserError as error:
        yield Finding("/dev/kvm", "cannot be used", ok=False, hint=str(error))
        return
    with system:
        behind = backend(system.get_supported_cpuid)
        yield Finding("/dev/kvm", behind.text, warning=not behind.hardware, hint="" if behind.hardware else INSTEAD)
        vcpus = system.check_extension("KVM_CAP_MAX_VCPUS")
        yield Finding("vCPUs", f"up to {vcpus}, recommended {system.check_extension('KVM_CAP_NR_VCPUS')}")
        yield cpu_finding(system.get_supported_cpuid())
        for names, needed in ((NEEDED, True), (OPTIONAL, False)):
            for name, purpose in names.items():
                present = system.check_extension(name) > 0
                hint = "" if present else "a newer host kernel" if needed else "optional; a newer host kernel has it"
                yield Finding(name.removeprefix("KVM_CAP_").lower(), purpose, present or not needed, hint)


def cpu_finding(supported: list[CpuidEntry]) -> Finding:
    """What a guest's processor is, and what of KVM's offer it lacks because something that this needs is missing."""
    vendor = next((e for e in supported if e.function == 0), CpuidEntry(0))
    name = b"".join(value.to_bytes(4, "little") for value in (vendor.ebx, vendor.edx, vendor.ecx))
    offered = {feature for feature in present(supported) if ":" not in feature}
    text = f"{name.decode(errors='replace')}, {phys_bits(supported)} physical address bits, {len(offered)} features"
    if hidden := sorted(offered - closed(present(supported))):
        text += f"; hidden, for want of what they need: {' '.join(hidden)}"
    return Finding("CPU", text)


def memory_findings(mm: Path = POOLS.parent) -> Iterator[Finding]:
    """What guest RAM can be made of."""
    settings = {
        "enabled": ("madvise", "guest RAM comes in pages of 4 KiB, and is slower"),
        "shmem_enabled": ("advise", "-m SIZE,shared comes in pages of 4 KiB"),
    }
    for name, (value, otherwise) in settings.items():
        file = mm / "transparent_hugepage" / name
        try:
            chosen = file.read_text().partition("[")[2].partition("]")[0]
        except OSError:
            yield Finding("huge pages", "none: the host's kernel is built without them", hint=f"optional; {otherwise}")
            break
        hint = f"optional; {otherwise}; as root: echo {value} > {file}" if chosen in ("never", "deny") else ""
        yield Finding("huge pages", f"{name}: {chosen}", hint=hint)
    for pool in sorted((mm / "hugepages").glob("hugepages-*kB")):
        size = size_text(int(pool.name.removeprefix("hugepages-").removesuffix("kB")) * KIB)
        pages = (pool / "nr_hugepages").read_text().strip()
        yield Finding(f"hugetlb={size}", f"{pages} pages in the pool, {free_pages(pool)} free")


def input_findings(directory: Path = Path("/dev/input")) -> Iterator[Finding]:
    events = sorted(directory.glob("event*"))
    if not events:
        yield Finding("/dev/input", "no input devices", hint="optional; a host keyboard can't be captured here")
        return
    readable = [path for path in events if os.access(path, os.R_OK)]
    hint = "" if readable else "add yourself to group input (usermod -aG input $USER), or a udev rule with TAG+=uaccess"
    yield Finding("/dev/input", f"{len(readable)} of {len(events)} event devices readable", hint=hint)


def remaps_interrupts(proc: Path = Path("/proc")) -> bool | None:
    """Whether this host's IOMMU remaps interrupts: then Linux calls the chips that they come from IR-IO-APIC and
    IR-PCI-MSI (arch/x86/kernel/apic/io_apic.c, msi.c). None where no chip is named."""
    try:
        words = {word for line in (proc / "interrupts").read_text().splitlines() for word in line.split()}
    except OSError:
        return None
    chips = [word for word in words if word.removeprefix("IR-").startswith(("IO-APIC", "PCI-MSI"))]
    return any(word.startswith("IR-") for word in chips) if chips else None


def vfio_findings(dev: Path = Path("/dev"), sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Iterator[Finding]:
    groups = sorted(path.name for path in (sys / "kernel/iommu_groups").glob("*"))
    if not groups:
        yield Finding(
            "IOMMU", "no IOMMU groups", hint="optional; intel_iommu=on or amd_iommu=on on the kernel command line"
        )
        return
    bound = sorted(path.name for path in (dev / "vfio").glob("[0-9]*"))
    hint = (
        "" if bound else "optional; pyvmm vfio list shows what a guest could have, pyvmm vfio bind gives it to vfio-pci"
    )
    yield Finding("VFIO", f"{len(groups)} IOMMU groups, bound to VFIO: {', '.join(bound) or 'none'}", hint=hint)
    unsafe: set[str] = set()
    for module, parameter, what in UNSAFE:
        file = sys / "module" / module / "parameters" / parameter
        if file.exists() and file.read_text().strip() == "Y":
            unsafe.add(parameter)
            yield Finding("VFIO", f"{module} has {parameter}=Y: {what}", warning=True, hint=f"load {module} without it")
    if remaps_interrupts(proc) is False and "allow_unsafe_interrupts" not in unsafe:
        yield Finding(
            "VFIO",
            "this host does not remap interrupts: no device can be had",
            warning=True,
            hint="switch interrupt remapping on in the firmware",
        )
    if not bound:
        return
    if (
        dev / "vfio/devices"
    ).is_dir():  # VFIO_DEVICE_CDEV: each device has a file there, and /dev/iommu has their memory
        iommu = dev / "iommu"
        if not iommu.exists():
            yield Finding(
                "VFIO", f"no {iommu}: devices are had by their groups", hint="optional; as root, modprobe iommufd"
            )
        elif not os.access(iommu, os.R_OK | os.W_OK):
            yield Finding("VFIO", f"no permission for {iommu}", warning=True, hint=f"as root, chmod 666 {iommu}")
        else:
            yield Finding("VFIO", f"devices are had by {iommu}")
    from pyvmm.vfio.sysfs import VFIO_DRIVER, Pci

    pci = Pci(sys, dev=dev)
    for function in pci.all():
        if function.driver == VFIO_DRIVER:
            verdict = pci.verdict(function)
            yield Finding("VFIO", f"{function.name}: {verdict}", warning=verdict != "yes")
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and os.geteuid():
        hint = "optional; a device pins all of guest RAM: raise ulimit -l (memlock in /etc/security/limits.conf)"
        yield Finding("VFIO", f"{limit // KIB} KiB may be locked", hint=hint)


def network_findings(tun: Path = Path("/dev/net/tun")) -> Iterator[Finding]:
    """What --net can be."""
    passt = shutil.which("passt")
    hint = "" if passt else "optional; apt-get install passt"
    yield Finding("net user", passt or "there is no passt: it takes a guest's packets apart for a user", hint=hint)
    if not tun.exists():
        yield Finding("net tap", f"there is no {tun}", hint="optional; as root, modprobe tun")
    elif not os.access(tun, os.R_OK | os.W_OK):
        yield Finding(
            "net tap", f"{tun} may not be opened", hint=f"optional; as root, chmod 666 {tun}, as it is elsewhere"
        )
    else:
        hint = "" if os.geteuid() == 0 else "an interface of yours: as root, ip tuntap add tap0 mode tap user $USER"
        yield Finding("net tap", f"{tun}", hint=hint)


def vhost_findings(dev: Path = Path("/dev")) -> Iterator[Finding]:
    """What of virtio the host's kernel can serve by itself."""
    servers = {
        "vhost-vsock": "sockets between guest and host, --device vhost-vsock,cid=N",
        "vhost-net": "frames of a TAP interface, --net tap,vhost",
    }
    for name, what in servers.items():
        file = dev / name
        if not file.exists():
            hint = f"optional; as root, modprobe {name.replace('-', '_')}: {what}"
            yield Finding("vhost", f"no {name}", hint=hint)
        elif not os.access(file, os.R_OK | os.W_OK):
            yield Finding("vhost", f"no permission for {file}", hint=f"optional; as root, chmod 666 {file}")
        else:
            yield Finding("vhost", name)


def display_findings(display: str | None) -> Iterator[Finding]:
    if not display:
        yield Finding(
            "DISPLAY", "not set", hint="optional; start from an X session to see the guest's screen in a window"
        )
        return
    from pyvmm.host.display.x11 import open_display  # python-xlib takes its time

    try:
        open_display(display).close()
    except UserError as error:
        yield Finding("DISPLAY", f"{display}: nobody answers", hint=f"optional; {error}")
        return
    yield Finding("DISPLAY", display)


def doctor() -> int:
    """Print the findings; 0 if guests can run here, else 2."""
    good = True
    display = os.environ.get("DISPLAY")
    parts = (
        kvm_findings(),
        memory_findings(),
        network_findings(),
        input_findings(),
        vfio_findings(),
        vhost_findings(),
        display_findings(display),
    )
    for findings in parts:
        for finding in findings:
            print(finding)
            good = good and finding.ok
    return 0 if good else 2
