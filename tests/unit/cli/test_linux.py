"""`pyvmm linux`: its words, and each mistake in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pyvmm.boot.initramfs import AGENT
from pyvmm.cli import linux
from pyvmm.cli.arguments import _split_command, main, make_config, make_host_config
from pyvmm.cli.linux import CMDLINE, prepare
from pyvmm.cli.parser import make_parser
from pyvmm.config import MachineConfig, Module
from pyvmm.host.streams import Streams
from pyvmm.virtio.console import VirtioConsole
from tests.rig.cpio import Found, read_newc
from tests.rig.images import make_bzimage


@pytest.fixture(autouse=True)
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KVM that runs Linux, as far as anybody asks."""
    monkeypatch.setattr(linux, "runs_linux", lambda: True)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """An unpacked one of release 6.1, with a module."""
    file = tmp_path / "boot/vmlinuz"
    folder = tmp_path / "lib/modules/6.1"
    file.parent.mkdir()
    (folder / "kernel").mkdir(parents=True)
    image = make_bzimage()
    image[0x20E:0x210] = (0x100).to_bytes(2, "little")
    image[0x300:0x310] = b"6.1 (somebody)\0\0"
    file.write_bytes(image)
    names = ("virtio_pci", "virtio_console", "toy")
    (folder / "modules.dep").write_text("".join(f"kernel/{name}.ko:\n" for name in names))
    for name in names:
        (folder / f"kernel/{name}.ko").write_bytes(b"\x7fELF")
    return file


def prepared(*words: str) -> tuple[MachineConfig, Streams | None, dict[str, Found]]:
    argv, command = _split_command(["linux", *words])
    arguments = make_parser().parse_args(argv)
    streams = prepare(arguments, command)
    make_host_config(arguments)
    config = make_config(arguments)
    assert isinstance(config.modules[0], Module) and isinstance(config.modules[0].file, bytes)
    return config, streams, read_newc(config.modules[0].file)


def test_a_command(kernel: Path) -> None:
    config, streams, found = prepared("-k", str(kernel), "--", "grep", "-e", "--", "a b")
    assert isinstance(streams, Streams)
    assert found["pyvmm/command"].data == b"exec grep -e -- 'a b'\n"
    assert found["pyvmm/modules"].data.count(b"\n") == 2
    assert config.kernel == kernel and config.cmdline == CMDLINE and config.no_reboot
    assert config.virtio_input == "none" and [type(device) for device in config.devices] == [VirtioConsole]


def test_a_shell(kernel: Path) -> None:
    config, streams, found = prepared("-k", str(kernel))
    assert streams is None and "pyvmm/command" not in found and found["pyvmm/modules"].data == b""
    assert not config.no_reboot and config.devices == ()


def test_options_of_run_are_its_own_too(kernel: Path, tmp_path: Path) -> None:
    file, more = tmp_path / "file", tmp_path / "more.cpio"
    file.write_bytes(b"1")
    more.write_bytes(b"2")
    words = ["-m", "1G", "-c", "2", "--irqchip", "split", "--rng", "-p", "loglevel=7", "--virtio-input", "standard"]
    words += ["--modules", "toy", "--add", f"{file}:/x", "-i", str(more), "--device", "pci-testdev", "--timeout", "5"]
    config, _, found = prepared("-k", str(kernel), *words, "--", "true")
    assert (config.memory, config.cpus, config.irqchip, config.rng) == (1 << 30, 2, "split", True)
    assert config.cmdline == f"{CMDLINE} loglevel=7" and config.virtio_input == "standard"
    assert config.devices[0] == "pci-testdev" and config.modules[1].file == more
    assert found["x"].data == b"1"
    assert found["pyvmm/modules"].data.split()[-1] == b"/lib/modules/6.1/kernel/toy.ko"


def test_the_folder_of_modules(kernel: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "lib/modules/6.1", tmp_path / "elsewhere")
    _, _, found = prepared("-k", str(kernel), "--modules-dir", str(tmp_path / "elsewhere"), "--modules", "toy")
    assert found["pyvmm/modules"].data == b"/lib/modules/elsewhere/kernel/toy.ko\n"
    _, _, found = prepared("-k", str(kernel), "--", "true")
    assert found["pyvmm/modules"].data == b""  # what the streams need may be built in


def test_the_hosts_own_kernel(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "host_kernel", lambda release: kernel if release == os.uname().release else None)
    config, _, _ = prepared("--", "true")
    assert config.kernel == kernel


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-k", "{}/none"], "kernel {}/none: No such file or directory"),
        (["-k", "{}"], "kernel {}: no Linux kernel, neither a bzImage nor a vmlinux"),
        (["-k", "{}/fifo"], "kernel {}/fifo: no Linux kernel, neither a bzImage nor a vmlinux"),
        (["-k", "{}/text"], "kernel {}/text: no Linux kernel, neither a bzImage nor a vmlinux"),
        (["-k", "{}/boot/vmlinuz", "ls", "a b"], "a command goes behind --, as in pyvmm linux -- ls 'a b'"),
        (["-k", "{}/boot/vmlinuz", "--"], "--: name the command behind it, as in pyvmm linux -- uname -a"),
        (
            ["-k", "{}/boot/vmlinuz", "--modules", "toi"],
            "module toi: not among those in {}/lib/modules/6.1: did you mean toy?",
        ),
        (["-k", "{}/boot/vmlinuz", "--modules", "{}/x.ko"], "module {}/x.ko: No such file or directory"),
        (
            ["-k", "{}/boot/vmlinuz", "--modules-dir", "{}"],
            "{}: no modules.dep there: it is /lib/modules/RELEASE of a kernel",
        ),
        (
            ["-k", "{}/old", "--modules", "toy"],
            "--modules toy: the modules of {}/old, which does not tell its release, are not here: name their folder, "
            "--modules-dir",
        ),
        (["-k", "{}/boot/vmlinuz", "--add", "{}/none:/x"], "{}/none: No such file or directory"),
        (["-k", "{}/boot/vmlinuz", "-c", "300"], "argument -c/--cpus: '300' is no number of vCPUs: 1 to 255"),
        (["-k", "{}/boot/vmlinuz", "--restore", "x"], "unrecognized arguments: --restore"),
        (["-k", "{}/boot/vmlinuz", "--flat", "real"], "unrecognized arguments: --flat"),
    ],
)
def test_mistakes(
    words: list[str], says: str, kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("x" * 1000)
    (tmp_path / "old").write_bytes(make_bzimage())
    os.mkfifo(tmp_path / "fifo")
    argv = ["linux", *(word.replace("{}", str(tmp_path)) for word in words)]
    try:
        status: object = main(argv)
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr()
    assert status == 2 and told.out == ""
    assert told.err.count("\n") == 1 and says.replace("{}", str(tmp_path)) in told.err


def test_no_kernel_of_the_hosts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pyvmm.boot.linux_kernel import host_kernel

    monkeypatch.setattr(linux, "host_kernel", lambda release: host_kernel("0.0-none"))
    assert main(["linux", "--", "true"]) == 2
    told = capsys.readouterr().err
    assert told == "pyvmm: no kernel of this host's Linux 0.0-none (as in /boot/vmlinuz-0.0-none): name one with -k\n"


def test_a_kvm_that_runs_no_linux(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(linux, "runs_linux", lambda: False)
    assert main(["linux", "-k", str(kernel), "--", "true"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pyvmm: KVM is software-backed here: ") and told.count("\n") == 1


def test_no_busybox(kernel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["linux", "-k", str(kernel), "--", "true"]) == 2
    assert "no busybox on PATH: install busybox-static" in capsys.readouterr().err


def test_the_agent_is_there_where_it_has_a_port(kernel: Path) -> None:
    _, _, found = prepared("-k", str(kernel), "--device", "virtio-console,port.pyvmm.agent=socket:/x")
    assert found["pyvmm/agent"].data == AGENT.read_bytes() and found["pyvmm/agent"].mode & 0o111
    _, _, found = prepared("-k", str(kernel), "--device", "virtio-console,port.other")
    assert "pyvmm/agent" not in found
