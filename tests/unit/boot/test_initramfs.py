"""What the initramfs of `pyvmm linux` holds."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.error import BootError
from pyvmm.boot.initramfs import INIT, Added, Initramfs, needs
from pyvmm.boot.kernel_modules import KernelModules
from pyvmm.boot.shared_libraries import interpreter, parse_list, shared_libraries
from tests.rig.cpio import Found, read_newc

BUSYBOX = "#!/bin/sh\n[ \"$1\" = --list ] && printf 'busybox\\nsh\\ninsmod\\n'\n"


@pytest.fixture
def busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that is first on PATH."""
    folder = tmp_path / "path"
    folder.mkdir()
    file = folder / "busybox"
    file.write_text(BUSYBOX)
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return file


@pytest.fixture
def modules(tmp_path: Path) -> KernelModules:
    folder = tmp_path / "6.1"
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/a.ko: kernel/b-c.ko\nkernel/b-c.ko:\n")
    (folder / "kernel/a.ko").write_bytes(b"\x7fELFa")
    (folder / "kernel/b-c.ko").write_bytes(b"\x7fELFb")
    return KernelModules(folder)


def made(**what: object) -> dict[str, Found]:
    return read_newc(Initramfs(**what).build())  # type: ignore[arg-type]


def test_what_is_always_there(busybox: Path) -> None:
    found = made()
    assert found["init"] == Found(0o100755, INIT.read_bytes(), (0, 0))
    assert found["bin/busybox"].data == BUSYBOX.encode() and found["bin/busybox"].mode == 0o100755
    assert found["bin/sh"] == Found(0o120777, b"busybox", (0, 0))
    assert found["sbin/modprobe"].data == b"/bin/busybox"
    assert stat.S_ISCHR(found["dev/console"].mode) and found["dev/console"].device == (5, 1)
    assert found["pyvmm/modules"].data == b""
    assert "pyvmm/command" not in found and "pyvmm/terminal" not in found


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8), min_size=1))
def test_the_words_of_the_command_stay_words(words: list[str]) -> None:
    archive = Initramfs(command=words)
    archive._add_busybox = lambda: None  # type: ignore[method-assign]
    line = read_newc(archive.build())["pyvmm/command"].data.decode()
    assert shlex.split(line) == ["exec", *words]


def test_the_terminal(busybox: Path) -> None:
    assert made(terminal=(24, 80))["pyvmm/terminal"].data == b"rows 24 cols 80\n"


def test_modules_in_their_order(busybox: Path, modules: KernelModules, tmp_path: Path) -> None:
    own = tmp_path / "mine-1.ko"
    own.write_bytes(b"\x7fELF\0license=GPL\0depends=b_c,mine_0\0name=mine_1\0")
    other = tmp_path / "mine-0.ko"
    other.write_bytes(b"\x7fELF\0depends=\0")
    found = made(modules=modules, load=["a"])
    assert found["pyvmm/modules"].data == b"/lib/modules/6.1/kernel/b-c.ko\n/lib/modules/6.1/kernel/a.ko\n"
    assert found["lib/modules/6.1/kernel/a.ko"].data == b"\x7fELFa"
    assert found["lib/modules/6.1/modules.dep"].data == b"kernel/b-c.ko:\nkernel/a.ko: kernel/b-c.ko\n"
    found = made(modules=modules, load=[str(other), str(own)])
    assert found["pyvmm/modules"].data.split() == [
        b"/lib/modules/6.1/kernel/b-c.ko",
        b"/lib/modules/mine-0.ko",
        b"/lib/modules/mine-1.ko",
    ]
    assert found["lib/modules/mine-1.ko"].data == own.read_bytes()
    with pytest.raises(BootError, match=r"module b_c: the kernel's modules are not here: name their folder"):
        made(load=[str(other), str(own)])
    with pytest.raises(BootError, match=r"module .*none\.ko: No such file"):
        made(load=[str(tmp_path / "none.ko")])


@given(st.binary(max_size=200) | st.just(b"\0depends=\xff\0"))
def test_any_bytes_need_some_modules(code: bytes) -> None:
    assert all(name for name in needs(code))


@pytest.mark.parametrize(
    ("text", "file", "path"),
    [
        ("/etc/hosts", "/etc/hosts", "/hosts"),
        ("/etc/hosts:/x/y", "/etc/hosts", "/x/y"),
        ("/etc/hosts:/x/", "/etc/hosts", "/x/hosts"),
        ("/etc/hosts:/", "/etc/hosts", "/hosts"),
        ("/etc/", "/etc/", "/etc"),
        ("a:b", "a:b", "/a:b"),
        (":/b", ":/b", "/b"),
    ],
)
def test_where_a_file_goes(text: str, file: str, path: str) -> None:
    assert Added.parse(text) == Added(Path(file), path)


def test_a_file_whose_name_has_the_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:").mkdir()
    (tmp_path / "a:/b").write_text("")
    monkeypatch.chdir(tmp_path)
    assert Added.parse("a:/b") == Added(Path("a:/b"), "/b")


def test_files_and_folders(busybox: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"x")
    (tree / "sub/file").chmod(0o640)
    (tree / "link").symlink_to("sub/file")
    found = made(
        added=[Added.parse(f"{tree}:/srv/t"), Added.parse(f"{tree}/sub/file:/bin/sh"), Added.parse(f"{tree}/link")]
    )
    assert found["srv/t/sub/file"] == Found(0o100640, b"x", (0, 0))
    assert found["srv/t/link"] == Found(0o120777, b"sub/file", (0, 0))
    assert found["bin/sh"].data == b"x"
    assert found["link"].data == b"x"


def test_a_program_brings_its_libraries(busybox: Path) -> None:
    """Those that ldd(1) names."""
    import subprocess
    import sys

    program = Path(sys.executable).resolve()
    named = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    files = {word for word in named.split() if word.startswith("/")}
    assert files
    found = made(added=[Added(program, "/python")])
    for file in files:
        assert found[os.path.normpath(file).lstrip("/")].data == Path(file).read_bytes()
    assert found["python"].mode == 0o100755


@pytest.mark.parametrize(
    ("what", "says"),
    [("none", "none: No such file or directory"), ("fifo/x", "fifo/x: Not a directory"), ("dir", "socket: neither")],
)
def test_what_cannot_be_added(busybox: Path, tmp_path: Path, what: str, says: str) -> None:
    import socket

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dir").mkdir()
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(tmp_path / "dir/socket"))
    with pytest.raises(BootError, match=says) as error:
        made(added=[Added(tmp_path / what, "/x")])
    assert "\n" not in str(error.value)


def test_no_busybox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busybox: Path) -> None:
    busybox.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(BootError, match="--list fails: this busybox does not run here"):
        made()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BootError, match="there is no busybox on PATH: install busybox-static"):
        made()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n",
            [("libc.so.6", "/lib/x/libc.so.6"), ("/lib64/ld.so.2", "/lib64/ld.so.2")],
        ),
        ("\tlibnone.so => not found\n", [("libnone.so", "")]),
        ("\tstatically linked\n", []),
        ("\tlib.so => /a b (c)/lib.so (0x7f)\n", [("lib.so", "/a b (c)/lib.so")]),
    ],
)
def test_what_a_loader_prints(text: str, found: list[tuple[str, str]]) -> None:
    assert parse_list(text) == found


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_name_a_loader_or_none(data: bytes, elf: bool) -> None:
    assert isinstance(interpreter((b"\x7fELF\2\1" if elf else b"") + data), str)


def test_a_library_that_is_missing(tmp_path: Path) -> None:
    loader = tmp_path / "ld.so"
    loader.write_text("#!/bin/sh\necho ' libnone.so => not found'\nexit 1\n")
    loader.chmod(0o755)
    data = bytearray(b"\x7fELF\2\1".ljust(64 + 56, b"\0"))
    data[32:40] = (64).to_bytes(8, "little")
    data[54:58] = b"\x38\0\1\0"
    name = str(loader).encode() + b"\0"
    data[64:68] = b"\3\0\0\0"
    data[72:80] = (120).to_bytes(8, "little")
    data[96:104] = len(name).to_bytes(8, "little")
    assert interpreter(bytes(data) + name) == str(loader)
    with pytest.raises(BootError, match=r"program: its libraries: libnone\.so: install them, or add a static program"):
        shared_libraries(Path("program"), bytes(data) + name)
    loader.unlink()
    with pytest.raises(BootError, match=r"its loader .*: No such file"):
        shared_libraries(Path("program"), bytes(data) + name)
