"""The command line: arguments become a MachineConfig, the outcome an exit status; nothing else happens here."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm.cli.parser import machine_options, make_parser
from pyvmm.cli.stdio import complain, complaining, open_closed, printing
from pyvmm.cli.values import (
    Memory,
    boot_disk,
    is_disk_file,
    parse_gdb,
)
from pyvmm.errors import UserError

if TYPE_CHECKING:
    from pyvmm.config import HostConfig, MachineConfig
    from pyvmm.host.trace_file import TraceWriter
    from pyvmm.machine.machine import Machine


def _split_command(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """The arguments of `pyvmm linux` or `exec`, and the words behind the first --, None without it: argparse has ideas
    of its own about those."""
    if argv[:1] in (["linux"], ["exec"]) and "--" in argv:
        at = argv.index("--")
        return argv[:at], argv[at + 1 :]
    return argv, None


def make_config(arguments: argparse.Namespace) -> MachineConfig:
    """The machine that the arguments of `pyvmm run` describe; UserError for what does not go together."""
    from pyvmm.config import MachineConfig

    parameters = []
    for text in arguments.set:
        name, _, value = text.partition("=")
        try:
            parameters.append((name, int(value, 0)))
        except ValueError:
            raise UserError(f"--set {text}: write it as NAME=NUMBER") from None
    memory = arguments.memory or Memory(None)
    modules = tuple(arguments.initrd)
    guest: str | None = arguments.guest
    devices = list(arguments.device)
    if guest is not None and is_disk_file(guest):
        devices.insert(0, boot_disk(guest))
        guest = None
    config = MachineConfig(
        memory=memory.size,
        memory_shared=memory.shared,
        memory_hugetlb=memory.hugetlb,
        memory_slots=memory.slots,
        max_memory=memory.most,
        cpus=arguments.cpus.present,
        max_cpus=arguments.cpus.most,
        cpu=arguments.cpu,
        kernel=arguments.kernel,
        initrd=modules if len(modules) > 1 else modules[0] if modules else None,
        cmdline=arguments.cmdline,
        flat=arguments.flat,
        firmware=arguments.firmware,
        guest=guest,
        guest_parameters=tuple(parameters),
        irqchip=arguments.irqchip,
        virtio_input=arguments.virtio_input,
        tablet=arguments.tablet,
        rng=arguments.rng,
        root_ports=arguments.root_ports,
        devices=tuple(devices),
        fw_cfg=tuple(arguments.fw_cfg),
        smbios=tuple(arguments.smbios),
        input=arguments.input,
        triple_fault=arguments.triple_fault,
        no_reboot=getattr(arguments, "no_reboot", False),  # which `acpi` has not
        trace=trace_channels(arguments),
        symbols=getattr(arguments, "symbols", None),
    )
    return config.complete()


def make_machine(arguments: argparse.Namespace) -> Callable[[TraceWriter], Machine]:
    """What makes the machine that the arguments of `pyvmm run` describe, a new one or one that was saved. UserError for
    what does not go together."""
    if arguments.restore is None:
        config = make_config(arguments)

        def new(sink: TraceWriter) -> Machine:
            from pyvmm.machine.machine import Machine

            return Machine(config, sink)

        return new
    _check_restore(arguments)
    channels = trace_channels(arguments)

    def restored(sink: TraceWriter) -> Machine:
        from pyvmm.machine.machine import Machine
        from pyvmm.machine.saved import Saved

        saved = Saved(os.fspath(arguments.restore), arguments.device or None)
        return Machine(replace(saved.config, trace=channels, symbols=arguments.symbols), sink, saved)

    return restored


def _check_restore(arguments: argparse.Namespace) -> None:
    """The machine is the file's, but for where the files of its devices are."""
    for action in machine_options()._actions:
        if action.dest not in ("help", "device", "trace") and getattr(arguments, action.dest) != action.default:
            given = action.option_strings[-1] if action.option_strings else arguments.guest
            raise UserError(f"--restore {arguments.restore}: the machine is the one in the file: leave {given} away")
    if arguments.no_reboot:
        raise UserError(f"--restore {arguments.restore}: the machine is the one in the file: leave --no-reboot away")


def trace_channels(arguments: argparse.Namespace) -> frozenset[str]:
    """What --trace CHANNEL,...=FILE switches on; UserError where that is nothing."""
    channels, _, _ = (arguments.trace or "").partition("=")
    if arguments.trace is not None and not channels.strip(","):
        raise UserError(f"--trace {arguments.trace}: name a channel, or all")
    return frozenset(filter(None, channels.split(",")))


def trace_file(arguments: argparse.Namespace) -> Path | None:
    """What --trace CHANNEL,...=FILE names; None for stderr."""
    _, _, file = (arguments.trace or "").partition("=")
    return Path(file) if file else None


def make_host_config(arguments: argparse.Namespace) -> HostConfig:
    """What the machine is connected to on this host."""
    from pyvmm.config import HostConfig

    for flag, given, needs, there in (
        ("--scale", arguments.scale is not None, "--display x11", arguments.display == "x11"),
        ("--save-after", arguments.save_after is not None, "--save FILE", arguments.save is not None),
        ("--quit", arguments.quit, "--save-after TEXT", arguments.save_after is not None),
    ):
        if given and not there:
            raise UserError(f"{flag}: it goes with {needs}")
    if arguments.save_after == "":
        raise UserError("--save-after: name a text that the guest shows")
    gdb, wait = (None, False) if arguments.gdb is None else parse_gdb(arguments.gdb)
    return HostConfig(
        display=arguments.display,
        scale=arguments.scale or 1,
        keyboard=arguments.keyboard,
        mouse=arguments.mouse,
        type_after=tuple(arguments.type_after),
        send_after=tuple(arguments.send_after),
        screenshot=arguments.screenshot,
        timeout=arguments.timeout,
        debug_exit=arguments.debug_exit,
        trace_file=trace_file(arguments),
        timeline=arguments.timeline,
        prompt=arguments.prompt,
        save=arguments.save,
        save_after=arguments.save_after,
        quit=arguments.quit,
        gdb=gdb,
        gdb_wait=wait,
        qmp=arguments.qmp,
    )


def _tell(arguments: argparse.Namespace) -> int:
    """The commands that print something and run nothing."""
    match arguments.command:
        case "acpi":
            from pyvmm.machine.describe import write_tables

            files = write_tables(make_config(arguments), arguments.out, trace_file(arguments))
            for file in files:
                print(file)
            return 0
        case "guests":
            from pyvmm import guests

            status = 0
            for name in guests.names():
                try:
                    guest = guests.load(name)
                    print(f"{name:<18} {guest.description}" + (f" (needs {guest.needs})" if guest.needs else ""))
                except guests.GuestError as error:
                    complain(f"pyvmm: {error}")
                    status = 2
            return status
        case "new-device":
            from pyvmm.cli.new_device import EXAMPLE, new_device

            print(new_device(arguments.name, arguments.into, EXAMPLE if arguments.like is None else arguments.like))
            return 0
        case "completion":
            from pyvmm.cli.completion import tell

            return tell(make_parser(), arguments.shell, arguments.words)
        case "vfio":
            from pyvmm.cli.vfio import vfio

            return vfio(arguments.what, getattr(arguments, "place", None))
        case "plug":
            from pyvmm.cli.plug import plug

            return plug(arguments.socket, arguments.spec)
        case "unplug":
            from pyvmm.cli.plug import unplug

            return unplug(arguments.socket, arguments.id, arguments.force)
        case "timeline":
            from pyvmm.control.timeline.summary import summarize

            print(summarize(arguments.file))
            return 0
        case "dump":
            from pyvmm.cli.dump import dump

            return dump(arguments.socket, arguments.file)
        case "snapshot":
            from pyvmm.cli.snapshot import check

            return check(arguments.file)
        case _:
            from pyvmm.cli.doctor import doctor

            return doctor()


def _tell_of_devices(options: list[str]) -> int:
    """--device list and --device NAME,help."""
    from pyvmm.device_spec import DeviceSpec
    from pyvmm.machine.registry import help_text, list_text

    for option in options:
        if option == "list":
            lines = list_text()
        elif option.endswith(",help"):
            lines = help_text(DeviceSpec.parse(option.removesuffix(",help")))
        else:
            continue
        for line in lines:
            print(line)
    return 0


def _command(argv: list[str] | None) -> int:
    argv, words = _split_command(sys.argv[1:] if argv is None else argv)
    with printing():
        arguments = make_parser().parse_args(argv)
        if arguments.command == "exec":
            from pyvmm.cli.exec import execute

            return execute(arguments.socket, words or arguments.misplaced, arguments.wait)
        if arguments.command == "attach":
            from pyvmm.host.repl.client import attach

            fd = arguments.socket.removeprefix("fd:")  # of who has started us
            return attach(int(fd) if fd != arguments.socket and fd.isdecimal() else arguments.socket)
        if arguments.command not in ("run", "linux"):
            return _tell(arguments)
        if any(option == "list" or option.endswith(",help") for option in arguments.device):
            return _tell_of_devices(arguments.device)
    streams = None
    if arguments.command == "linux":
        from pyvmm.cli.linux import prepare

        streams = prepare(arguments, words)
    from pyvmm.cli.run import run

    return run(make_machine(arguments), make_host_config(arguments), _parsed, streams)


def _parsed(words: list[str]) -> tuple[MachineConfig, HostConfig]:
    """The command line *words*, which is to be looked at and not run."""
    arguments = make_parser().parse_args(words)
    return make_config(arguments), make_host_config(arguments)


def main(argv: list[str] | None = None) -> int:
    """The command `pyvmm`; returns the exit status."""
    open_closed()
    with complaining():
        try:
            return _command(argv)
        except UserError as error:
            from pyvmm.cli.flags import in_flags

            complain(f"pyvmm: {in_flags(error)}")
            return 2
        except (OSError, MemoryError, RuntimeError, ImportError) as error:
            from pyvmm.cli.limits import why

            line = why(error)
            if line is None:
                raise
            complain(f"pyvmm: {line}")
            return 2
        except KeyboardInterrupt:  # before or after the machine, which takes the signal for itself
            return 128 + signal.SIGINT
