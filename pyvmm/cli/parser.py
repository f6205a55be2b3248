"""What the command line takes: the commands and their options, each with its line of help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cli.values import (
    Cpus,
    parse_cpus,
    parse_disk,
    parse_floppy,
    parse_fw_cfg,
    parse_memory,
    parse_module,
    parse_net,
    parse_seconds,
)
from pyvmm.config import MAX_ROOT_PORTS, MAX_SCALE
from pyvmm.machine.outcome import EXIT_STATUS_HELP

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, and a full disk one, too."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if file is not None and file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; try {self.prog} --help\n")


def _checked(parse: Callable[[str], object]) -> Callable[[str], object]:
    """The parser for argparse, which shows the message of this error alone."""

    def convert(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


class _Version(argparse.Action):
    """Says it and ends; what knows it is slow to import."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> None:
        from importlib.metadata import version

        print(f"pyvmm {version('pyvmm-kvm')}")
        parser.exit()


def machine_options(guests: bool = True) -> Parser:
    """What says which machine: the options that `run` and `acpi` share, and `linux`, which has none for *guests* that
    are something else."""
    options = Parser(add_help=False)
    if guests:
        _guest_options(options)
    else:
        options.set_defaults(guest=None, set=[], flat=None, firmware=None)
    add = options.add_argument
    add("-k", "--kernel", type=Path, help="bzImage, ELF with PVH note, Multiboot, or flat binary (--flat)")
    add(
        "-i",
        "--initrd",
        action="append",
        type=_checked(parse_module),
        default=[],
        metavar="'FILE [ARGUMENTS]'",
        help="initial RAM disk, or a Multiboot module with its arguments; again for more of them",
    )
    add("-p", "--cmdline", default="", help="kernel command line")
    add(
        "-m",
        "--memory",
        type=_checked(parse_memory),
        metavar="SIZE[,shared][,hugetlb[=1G]][,slots=N,max=SIZE]",
        help="guest RAM, such as 512M or 2G; shared with other processes, or in 2 MiB (1 GiB) pages of the host's "
        "pool; slots for more of it while it runs",
    )
    add(
        "-c",
        "--cpus",
        type=_checked(parse_cpus),
        default=Cpus(1),
        metavar="N[,max=M]",
        help="vCPUs (default 1), and how many there may be with those that are plugged in later (docs/hotplug.md)",
    )
    add(
        "--cpu",
        default="host",
        metavar="host[,CHANGE...]",
        help="the processor: the host's, with changes: +FLAG or -FLAG as in /proc/cpuinfo, phys-bits=N, vendor=TEXT",
    )
    add(
        "--irqchip",
        choices=("kernel", "split", "user"),
        default="kernel",
        help="where PIC, IOAPIC and PIT live: kernel (default), split (local APICs in the kernel), user",
    )
    add(
        "--virtio-input",
        choices=("none", "aero", "standard"),
        help="virtio keyboard and mouse at 00:0a, and who they say they are (default: standard with a kernel)",
    )
    add("--tablet", action="store_true", help="a virtio tablet beside them")
    add("--rng", action="store_true", help="a virtio entropy source")
    add(
        "--root-ports",
        type=int,
        choices=range(MAX_ROOT_PORTS + 1),
        default=0,
        metavar="N",
        help="PCI Express root ports, at most 4",
    )
    add(
        "--device",
        action="append",
        default=[],
        metavar="NAME[,KEY=VALUE...]",
        help="a device by its name (list shows them) or of your own as FILE.py:CLASS; NAME,help shows its keys",
    )
    add(
        "--disk",
        action="append",
        type=_checked(parse_disk),
        dest="device",
        metavar="PATH[,bus=ata][,readonly][,temporary][,cache=...][,size=10G][,serial=...]",
        help="a disk, a raw file or block device: virtio, or with bus=ata behind an IDE controller; cache is writeback "
        "(default), none or unsafe",
    )
    add(
        "--floppy",
        action="append",
        type=_checked(parse_floppy),
        dest="device",
        metavar="PATH[,readonly][,temporary]",
        help="a disk that our BIOS shows as drive 00h: a boot sector, or an image of a floppy",
    )
    add(
        "--net",
        action="append",
        type=_checked(parse_net),
        dest="device",
        metavar="user|tap|socket:PATH[,model=ne2k][,forward=tcp:2222:22][,name=...][,mac=...][,mtu=...][,dump=FILE]",
        help="a network card, virtio or an NE2000: by passt, on a TAP interface, or on a Unix socket that another "
        "machine has",
    )
    add(
        "--fw-cfg",
        action="append",
        type=_checked(parse_fw_cfg),
        default=[],
        metavar="name=opt/NAME,file=PATH|string=TEXT",
        help="a file that the guest finds in fw_cfg",
    )
    add(
        "--smbios",
        action="append",
        default=[],
        metavar="type=N,FIELD=VALUE...",
        help="what the SMBIOS table says, such as type=1,product=PC,serial=1 (docs/fw_cfg.md)",
    )
    add(
        "--input",
        choices=("auto", "ps2", "virtio"),
        default="auto",
        help="which of the guest's keyboards and mice get the input: auto is virtio while it has a driver, else PS/2",
    )
    add(
        "--triple-fault",
        choices=("report", "reset"),
        default="report",
        help="what a triple fault does: end with a report (default), or reset the machine as a PC's board does",
    )
    add(
        "--trace",
        metavar="CHANNEL,...[=FILE]",
        help="watch: a part (com1, i8042, pci ...), a device by its id or class, irq, input, exits ..., or all",
    )
    return options


def _guest_options(options: Parser) -> None:
    """What is said of guests that come with pyvmm, and of flat binaries."""
    add = options.add_argument
    add(
        "guest",
        nargs="?",
        metavar="GUEST",
        help="a guest that comes with pyvmm (`pyvmm guests`), ./FOLDER of yours, or the file of a disk to boot",
    )
    add(
        "--firmware",
        metavar="bios|seabios[=FILE]|FILE",
        help="what boots a disk: the BIOS that comes with pyvmm (default), Debian's SeaBIOS, or a firmware image",
    )
    add("--set", action="append", default=[], metavar="NAME=N", help="a parameter of GUEST")
    add("--flat", metavar="MODE[@ADDRESS]", help="the kernel is a flat binary: real, 32, 64 or linux32, put at ADDRESS")


def _host_options(run: argparse.ArgumentParser) -> None:
    """What connects the machine to this host while it runs."""
    add = run.add_argument
    add("--display", choices=("none", "x11", "text"), default="none", help="show the guest's screen: a window, or here")
    add(
        "--scale",
        type=int,
        choices=range(1, MAX_SCALE + 1),
        metavar="N",
        help=f"a window of N times the screen's size, at most {MAX_SCALE}",
    )
    add(
        "--keyboard",
        default="auto",
        metavar="WHERE",
        help="keys come from: auto, x11, evdev or evdev=/dev/input/eventN",
    )
    add("--mouse", default="auto", metavar="WHERE", help="the mouse likewise")
    add(
        "--type-after",
        action="append",
        default=[],
        metavar="TEXT:KEYS",
        help="type KEYS (\\n, <enter>, <ctrl-c> ...) when the guest has shown TEXT",
    )
    add(
        "--send-after",
        action="append",
        default=[],
        metavar="TEXT:DATA",
        help="send DATA (\\n, <enter>, <ctrl-c> ...) to the guest's COM1 when it has shown TEXT",
    )
    add(
        "--debug-exit",
        choices=("pyvmm", "qemu"),
        default="pyvmm",
        help="exit status for a v written to port 0xf4: 16+v (default), or (v<<1)|1 as QEMU's isa-debug-exit has it",
    )
    add(
        "--gdb",
        metavar="WHERE[,wait]",
        help="let gdb connect at [HOST]:PORT or the path of a socket; with wait before the first instruction",
    )
    add("--qmp", metavar="PATH", help="let clients of QEMU's machine protocol connect at this socket")
    add("--prompt", metavar="PATH", help="let `pyvmm attach PATH` have a Python prompt at the machine")
    add("--timeline", type=Path, metavar="FILE", help="write what the machine does to FILE, as a Perfetto trace")
    add("--screenshot", type=Path, metavar="FILE", help="write the screen to this PNG file at the end")
    add("--timeout", type=_checked(parse_seconds), metavar="SECONDS", help="end the machine after this time")
    add("--no-reboot", action="store_true", help="end where the guest resets, with status 3")
    add(
        "--symbols",
        type=Path,
        metavar="FILE",
        help="names for the report when the guest dies: vmlinux or another ELF, System.map, a copy of /proc/kallsyms",
    )


def _save_options(run: argparse.ArgumentParser) -> None:
    """How a machine gets into a file, and goes on from one."""
    add = run.add_argument
    add("--save", type=Path, metavar="FILE", help="write the machine to FILE at Ctrl-A w, or --save-after")
    add("--save-after", metavar="TEXT", help="write it when the guest has shown TEXT")
    add("--quit", action="store_true", help="end the machine when it was written")
    add("--restore", type=Path, metavar="FILE", help="go on with the machine that was written to FILE")


def make_parser() -> Parser:
    parser = Parser(prog="pyvmm", description="A KVM virtual machine monitor whose machine is written in Python.")
    parser.add_argument("--version", action=_Version, nargs=0, help="say which pyvmm this is")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    options = machine_options()
    run = commands.add_parser(
        "run",
        help="run a kernel or one of the guests that come with pyvmm",
        description="Run a kernel, or one of the guests that come with pyvmm (without any: the default one).",
        epilog=EXIT_STATUS_HELP + "\nOn a terminal, Ctrl-A h shows the keys that pyvmm keeps for itself.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[options],
    )
    _host_options(run)
    _save_options(run)
    _add_linux(commands)
    acpi = commands.add_parser("acpi", help="write the ACPI tables that such a machine would get", parents=[options])
    acpi.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the tables go, one file each")
    execute = commands.add_parser(
        "exec",
        help="run a command in a guest that runs, by its agent",
        usage="pyvmm exec [--wait SECONDS] SOCKET -- CMD [ARG...]",
        description="Run CMD in the guest of a machine that was started with --device "
        "virtio-console,port.pyvmm.agent=socket:SOCKET; its input, outputs and exit status are those of pyvmm exec.",
    )
    execute.add_argument("socket", metavar="SOCKET", help="the Unix socket of the agent's port")
    execute.add_argument("misplaced", nargs="*", metavar="CMD", help=argparse.SUPPRESS)  # a command without its --
    execute.add_argument(
        "--wait",
        type=_checked(parse_seconds),
        default=30.0,
        metavar="SECONDS",
        help="how long the agent may take to answer (default: 30)",
    )
    plug = commands.add_parser(
        "plug", help="plug a device, CPU or memory into a machine that runs, by its --qmp socket"
    )
    plug.add_argument("socket", metavar="SOCKET", help="the Unix socket of --qmp")
    plug.add_argument(
        "spec", metavar="DEVICE", help="cpu, or what --device takes: NAME,KEY=VALUE,... or FILE.py:CLASS,..."
    )
    unplug = commands.add_parser("unplug", help="take one out, and wait until its guest has let go of it")
    unplug.add_argument("socket", metavar="SOCKET", help="the Unix socket of --qmp")
    unplug.add_argument("id", metavar="ID", help="the device's id, or kind where it was given none; cpu1 and up")
    unplug.add_argument("--force", action="store_true", help="pull it out at once, from behind a root port")
    dump = commands.add_parser("dump", help="write memory and registers of a machine that runs to an ELF core file")
    dump.add_argument("socket", metavar="SOCKET", help="the Unix socket of --qmp")
    dump.add_argument("file", type=Path, metavar="FILE", help="for gdb, drgn or crash; docs/drgn.md")
    snapshot = commands.add_parser("snapshot", help="look at a file that --save wrote")
    snapshot.add_argument("what", choices=("check",), help="check: whether all of it is what was written")
    snapshot.add_argument("file", type=Path, metavar="FILE")
    attach = commands.add_parser("attach", help="a Python prompt at a machine that runs with --prompt PATH")
    attach.add_argument("socket", metavar="PATH")
    timeline = commands.add_parser("timeline", help="say in words what a file of --timeline shows")
    timeline.add_argument("file", type=Path, metavar="FILE")
    new = commands.add_parser("new-device", help="write a device of your own, its test and a guest with its driver")
    new.add_argument("name", metavar="NAME", help="as a Python module: NAME.py, test_NAME.py, NAME_guest/, NAME_linux/")
    new.add_argument("--into", type=Path, default=Path(), metavar="DIR", help="where (default: here)")
    new.add_argument("--like", metavar="EXAMPLE", help="begin with a device of docs/examples: edu, idio16, pvpanic")
    completion = commands.add_parser("completion", help="write what makes a shell complete pyvmm's command line")
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "candidates"), metavar="bash|zsh|fish")
    completion.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    vfio = commands.add_parser(
        "vfio", help="list the host's PCI devices, move one to vfio-pci (bind) and back (unbind)"
    )
    vfio_commands = vfio.add_subparsers(dest="what", required=True, metavar="WHAT")
    vfio_commands.add_parser("list", help="every PCI device, and whether it can be given to a guest")
    for what, does in (("bind", "let vfio-pci have a device"), ("unbind", "give it back to the driver that it had")):
        one = vfio_commands.add_parser(what, help=does)
        one.add_argument("place", metavar="BDF", help="where it is, such as 0000:00:08.0")
    commands.add_parser("guests", help="list the guests that come with pyvmm")
    commands.add_parser("doctor", help="say what this host offers and what to do about what is missing")
    return parser


def _add_linux(commands: argparse._SubParsersAction[Parser]) -> None:
    linux = commands.add_parser(
        "linux",
        help="run a command, or a shell, on this host's Linux kernel or another",
        usage="pyvmm linux [OPTION...] [-- CMD [ARG...]]",
        description="Boot Linux with an initramfs that is made on the spot (busybox, and what the options add), and "
        "run CMD there: its output and exit status are those of pyvmm linux. Without CMD a shell on this terminal.",
        epilog=EXIT_STATUS_HELP + "\nWith CMD the status is CMD's, where it has ended by itself; what the kernel says "
        "goes to standard error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[machine_options(guests=False)],
    )
    _host_options(linux)
    linux.set_defaults(save=None, save_after=None, quit=False, restore=None)
    add = linux.add_argument
    add("misplaced", nargs="*", help=argparse.SUPPRESS)  # a command without its --
    add(
        "--modules",
        action="append",
        default=[],
        metavar="NAME,...",
        help="modules to load before CMD, with all that they need; FILE.ko for one of yours",
    )
    add("--modules-dir", type=Path, metavar="DIR", help="where they are: /lib/modules/RELEASE of the kernel")
    add(
        "--add",
        action="append",
        default=[],
        metavar="FILE[:PATH]",
        help="a file or folder for the guest, as /NAME or PATH; a program with its shared libraries; again for more",
    )
