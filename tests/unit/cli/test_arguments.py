"""Arguments to a MachineConfig: sizes, counts, times, and what goes together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import guests
from pyvmm.cli.arguments import main, make_config, make_host_config
from pyvmm.cli.flags import in_flags
from pyvmm.cli.parser import make_parser
from pyvmm.cli.values import parse_count, parse_cpus, parse_seconds, parse_size
from pyvmm.config import MAX_MEMORY, FwCfgFile, HostConfig, MachineConfig, Module
from pyvmm.errors import UserError
from pyvmm.units import GIB, KIB, MIB


def config(*arguments: str) -> MachineConfig:
    return make_config(make_parser().parse_args(["run", *arguments]))


def host(*arguments: str) -> HostConfig:
    return make_host_config(make_parser().parse_args(["run", *arguments]))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512", 512 * MIB),
        ("2G", 2 * GIB),
        ("2g", 2 * GIB),
        ("2GiB", 2 * GIB),
        ("512mb", 512 * MIB),
        ("1024K", MIB),
        ("1028K", 1028 * KIB),
        ("1T", 1 << 40),
        ("64T", MAX_MEMORY),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=12) | st.from_regex(r"[0-9]{1,30}[KMGTkmgt]?", fullmatch=True))
def test_any_text_is_a_size_or_one_line(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert MIB <= size <= MAX_MEMORY
    assert size % 4096 == 0


@given(st.text(max_size=8) | st.integers().map(str))
def test_any_text_is_a_count_or_one_line(text: str) -> None:
    try:
        count = parse_count(text)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert 1 <= count <= 255


@given(st.text(max_size=12) | st.from_regex(r"[0-9]{1,3}(,(max|min)?=?[0-9]{0,3}){0,2}", fullmatch=True))
def test_any_text_is_cpus_or_one_line(text: str) -> None:
    try:
        cpus = parse_cpus(text)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert 1 <= cpus.present <= (cpus.most or 255) <= 255


@pytest.mark.parametrize(("text", "cpus"), [("2", (2, None)), ("2,max=8", (2, 8)), ("255,max=255", (255, 255))])
def test_cpus(text: str, cpus: tuple[int, int | None]) -> None:
    assert parse_cpus(text) == cpus


def test_the_most_cpus_are_said_once() -> None:
    with pytest.raises(ValueError, match="max is there twice"):
        parse_cpus("1,max=4,max=5")


@given(st.text(max_size=8) | st.floats().map(str))
def test_any_text_is_a_time_or_one_line(text: str) -> None:
    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert 0 < seconds < 1e9


def test_defaults() -> None:
    assert config() == MachineConfig(memory=16 * MIB, virtio_input="none") == MachineConfig().complete()
    assert config("-k", "x") == MachineConfig(kernel=Path("x")).complete()
    assert config("-k", "bzImage") == MachineConfig(memory=512 * MIB, kernel=Path("bzImage"), virtio_input="standard")
    assert host() == HostConfig()


def test_disks_are_devices_in_the_order_of_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--disk", "a.img,readonly", "--device", "virtio-rng", "--disk", "b=c.img"]
    assert config(*words).devices == ("virtio-blk,path=a.img,readonly", "virtio-rng", "virtio-blk,path=b=c.img")
    for text in ("", ",readonly"):
        with pytest.raises(SystemExit):
            config("--disk", text)
        assert "names no file or block device" in capsys.readouterr().err


def test_networks_are_devices_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--net", "user,forward=tcp:2222:22", "--disk", "a.img", "--net", "socket:/tmp/w,model=virtio,mtu=9000"]
    assert config(*words).devices == (
        "virtio-net,to=user,forward=tcp:2222:22",
        "virtio-blk,path=a.img",
        "virtio-net,to=socket:/tmp/w,mtu=9000",
    )
    for text, said in (("", "names no network"), (",mtu=9000", "names no network"), ("user,model=rtl", "no card rtl")):
        with pytest.raises(SystemExit):
            config("--net", text)
        assert said in capsys.readouterr().err


def test_what_the_guest_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0\1")
    words = ["--fw-cfg", "name=opt/a,string=a,b=c", "--fw-cfg", f"name=opt/b,file={tmp_path}/file"]
    made = config(*words, "--smbios", "type=1,serial=1", "--smbios", "type=2,serial=2")
    assert made.fw_cfg == (FwCfgFile("opt/a", b"a,b=c"), FwCfgFile("opt/b", b"\0\1"))
    assert made.smbios == ("type=1,serial=1", "type=2,serial=2")
    for text in ("", "opt/a,string=b", "name=opt/a", "name=opt/a,text=b", "name=opt/a,string"):
        with pytest.raises(SystemExit):
            config("--fw-cfg", text)
        assert "write it as name=opt/NAME,file=PATH or name=opt/NAME,string=TEXT" in capsys.readouterr().err
    for words, said in (
        (["--fw-cfg", "name=opt/a,file=/nowhere"], "--fw-cfg opt/a: cannot read /nowhere: No such file or directory"),
        (["--fw-cfg", "name=etc/a,string="], "--fw-cfg etc/a: the names of your files begin with opt/"),
        (["--smbios", "type=99"], "--smbios type=99: 'type=99' begins with type=N"),
    ):
        assert main(["acpi", "--out", str(tmp_path), *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_disk_says_which_bus_it_is_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--disk", "a.img,bus=ata,readonly", "--disk", "b.img,temporary,bus=virtio"]
    assert config(*words).devices == ("ata-disk,path=a.img,readonly", "virtio-blk,path=b.img,temporary")
    for text in ("a.img,bus=scsi", "a.img,bus", "a.img,bus=ata,bus=virtio"):
        with pytest.raises(SystemExit):
            config("--disk", text)
        assert f"{text!r}: bus= is one of virtio, ata" in capsys.readouterr().err


def test_floppies_and_files_to_boot(tmp_path: Path) -> None:
    """A file in place of a guest's name is a floppy if its size is one's."""
    assert config("--floppy", "a.img,readonly").devices == ("floppy,path=a.img,readonly",)
    for size, device in ((512, "floppy"), (2880 * KIB, "floppy"), (2880 * KIB + 512, "virtio-blk")):
        file = tmp_path / "boot.bin"
        with open(file, "wb") as image:
            image.truncate(size)
        made = config(str(file), "--disk", "b.img")
        assert (made.guest, made.firmware) == (None, "bios")
        assert made.devices == (f"{device},path={file}", "virtio-blk,path=b.img")
    assert config("hello").firmware is None


def test_mistakes_with_floppies_and_firmware(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rom").write_bytes(bytes(100))
    for words, says in (
        (["--floppy", "none"], "--floppy none: there is no such file: name a boot sector or a floppy's image"),
        (["--floppy", str(tmp_path)], f"--floppy {tmp_path}: it is a directory: name a file or block device"),
        (["--floppy", "a,size=1M"], "--floppy a,size=1M: floppy has no key size: it has path, readonly, temporary"),
        (["--firmware", "none"], "--firmware none: No such file or directory"),
        (["--firmware", f"{tmp_path}/rom"], f"--firmware {tmp_path}/rom: 100 bytes are no image of one: it has whole"),
        (["--firmware", "bios", "pio"], "GUEST pio --firmware bios: a firmware boots what is on a disk"),
    ):
        assert main(["acpi", "--out", str(tmp_path / "out"), *words]) == 2
        assert capfd.readouterr().err.startswith(f"pyvmm: {says}")


def test_everything() -> None:
    assert config(
        *["-k", "bzImage", "-i", "initrd", "-p", "console=ttyS0 quiet", "-m", "1G", "-c", "4", "--cpu", "host,-avx"],
        *["--irqchip", "split", "--virtio-input", "aero", "--tablet", "--rng", "--trace", "irq,exits=trace.txt"],
    ) == MachineConfig(
        memory=GIB,
        cpus=4,
        cpu="host,-avx",
        kernel=Path("bzImage"),
        initrd=Path("initrd"),
        cmdline="console=ttyS0 quiet",
        irqchip="split",
        virtio_input="aero",
        tablet=True,
        rng=True,
        trace=frozenset({"irq", "exits"}),
    )
    assert host("--debug-exit", "qemu") == HostConfig(debug_exit="qemu")
    assert host("--timeout", "1.5", "--trace", "irq=a=b") == HostConfig(timeout=1.5, trace_file=Path("a=b"))
    assert config("--no-reboot").no_reboot and not config().no_reboot


@pytest.mark.parametrize(
    ("text", "shared", "hugetlb"),
    [
        ("2G", False, None),
        ("2G,shared", True, None),
        ("2G,hugetlb", False, 2 * MIB),
        ("2G,hugetlb=2M", False, 2 * MIB),
        ("2G,shared,hugetlb=1G", True, GIB),
    ],
)
def test_what_memory_is_made_of(text: str, shared: bool, hugetlb: int | None) -> None:
    made = config("-m", text)
    assert (made.memory, made.memory_shared, made.memory_hugetlb) == (2 * GIB, shared, hugetlb)


def test_slots_for_memory() -> None:
    made = config("-m", "2G,shared,slots=4,max=8G")
    assert (made.memory, made.memory_shared, made.memory_slots, made.max_memory) == (2 * GIB, True, 4, 8 * GIB)
    assert (config().memory_slots, config().max_memory) == (0, None)


NOTHING = ["2G,", "2G,share", "2G,hugetlb=4M", "2G,hugetlb=", ",shared", "2G,slots=0,max=4G", "2G,slots=x,max=4G"]
TWICE = ["2G,shared,shared", "2G,hugetlb,hugetlb=1G", "2G,slots=1,slots=2,max=4G", "2G,slots=1,max=3G,max=4G"]


@pytest.mark.parametrize("text", [*NOTHING, *TWICE, "2G,slots=33,max=4G", "2G,slots=1,max=", "2G,slots=\u0663,max=4G"])
def test_nothing_to_say_of_memory(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        config("-m", text)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_files_beside_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a name with spaces", "a,b"):
        Path(name).write_bytes(b"x")

    def modules(*texts: str) -> tuple[Module, ...]:
        return config("-k", "x", *(word for text in texts for word in ("-i", text))).modules

    assert modules() == ()
    assert modules("a") == (Module(Path("a")),)
    assert modules("a one  two=2") == (Module(Path("a"), "one  two=2"),)
    assert modules("a", "b x", "a") == (Module(Path("a")), Module(Path("b"), "x"), Module(Path("a")))
    assert modules("a name with spaces", "a,b", "c,d") == tuple(
        Module(Path(name)) for name in ("a name with spaces", "a,b", "c,d")
    )
    with pytest.raises(SystemExit):
        modules("a,c x")
    assert MachineConfig(initrd=Module(b"x", "y")).modules == (Module(b"x", "y"),)


def test_a_guest_brings_its_memory_and_its_parameters() -> None:
    wanted = config("timer", "--set", "count=5", "--set", "ticks=0x10")
    assert (wanted.guest, wanted.memory) == ("timer", 16 * MIB)
    assert wanted.guest_parameters == (("count", 5), ("ticks", 16))
    assert config("timer", "-m", "32M").memory == 32 * MIB


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-k", "x", "hello"], r"^-k x GUEST hello: a machine boots one of them: leave the other away$"),
        (["--flat", "real"], r"^--flat real: it goes with a kernel: add -k FILE$"),
        (["--set", "x"], "NAME=NUMBER"),
        (["nobody"], "there is no guest 'nobody'"),
        (["--tablet"], r"^--tablet: there are no virtio input devices: add --virtio-input standard$"),
        (["-k", "x", "--set", "a=1", "--set", "b=2"], r"^--set a=1 --set b=2: they are parameters of a guest"),
        (["--trace", ""], "name a channel"),
        (["--trace", ",,=file"], "name a channel"),
    ],
)
def test_what_does_not_go_together(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        config(*arguments)
    assert re.search(says, in_flags(error.value))
    assert "\n" not in str(error.value)


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(guests, "names", interrupted)
    assert main(["guests"]) == 130
    assert capfd.readouterr() == ("", "")


@given(
    st.lists(st.sampled_from(["-k", "-m", "-c", "1", "2G", "hello", "--set", "x=1", "--flat", "-i", "--trace", "="]))
)
def test_any_arguments_are_a_config_or_one_line(arguments: list[str]) -> None:
    import contextlib
    import io

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            assert isinstance(config(*arguments), MachineConfig)
        except UserError as error:
            assert "\n" not in str(error)
        except SystemExit as ended:
            assert ended.code == 2
            assert errors.getvalue().count("\n") == 1


def test_which_one_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"pyvmm \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_devices_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--device", "list"]) == 0
    listed = capsys.readouterr().out
    assert "virtio-rng       The host's entropy for the guest." in listed and "FILE.py:CLASS" in listed
    assert main(["run", "--device", "pci-testdev,help"]) == 0
    assert "  membar=INT   default 0\n" in capsys.readouterr().out
    assert main(["run", "--device", "virtio-rgn,help"]) == 2
    assert "did you mean virtio-rng?" in capsys.readouterr().err


def test_a_scale_is_of_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    assert host("--display", "x11", "--scale", "3").scale == 3 and host().scale == 1
    with pytest.raises(UserError, match=r"^--scale: it goes with --display x11$"):
        host("--scale", "2")
    with pytest.raises(SystemExit):
        host("--display", "x11", "--scale", "5")
    assert "1, 2, 3, 4" in capsys.readouterr().err
