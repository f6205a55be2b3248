"""Opening a disk: one line for each mistake, formats that are no raw disk, and who else may have the file meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.backends import image
from pyvmm.backends.disks import Disk, Disks
from pyvmm.errors import UserError
from pyvmm.units import size_of

needs_qemu = pytest.mark.skipif(not which("qemu-img") or not which("qemu-system-x86_64"), reason="there is no QEMU")


@pytest.fixture
def disks() -> Iterator[Disks]:
    made = Disks(lambda call: call())
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(1 << 20))
    return file


def refused(disks: Disks, path: Path, **words: object) -> str:
    """The one line, without the disk's name."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError) as error:
        disks.open(path, **words)  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before
    line = str(error.value)
    assert "\n" not in line and line.startswith(f"disk {path}: ")
    return line.removeprefix(f"disk {path}: ")


def test_no_such_file(disks: Disks, tmp_path: Path) -> None:
    line = refused(disks, tmp_path / "none.img")
    assert line == f"there is no such file: make one with  truncate -s 10G {tmp_path}/none.img  or add size=10G"
    assert refused(disks, tmp_path / "none" / "none.img", size="1M") == "it cannot be made: No such file or directory"
    assert refused(disks, tmp_path / ("x" * 300)) == "File name too long"
    for words in ({"readonly": True}, {"temporary": True}):
        line = refused(disks, tmp_path / "a disk", size="1M", **words)
        assert line == (
            "there is no such file, and size= makes none that is only read from: "
            f"make one with  truncate -s 1M '{tmp_path}/a disk'"
        )
        assert refused(Disks(lambda call: call(), look_only=True), tmp_path / "a disk", size="1M", **words) == line


def test_a_disk_that_is_given_twice(disks: Disks, path: Path) -> None:
    line = "this machine has it already: name another file, or let both be readonly or temporary"
    first = disks.open(path)
    (path.parent / "link").symlink_to(path)
    for other in (path, path.parent / "link"):
        for words in ({}, {"readonly": True}, {"temporary": True}):
            with pytest.raises(UserError, match=line):
                disks.open(other, **words)  # type: ignore[arg-type]
    first.close()
    disks.open(path, temporary=True)
    disks.open(path, readonly=True)
    assert refused(disks, path) == line


def test_what_is_written_to_a_temporary_disk_goes_past_no_page_cache(disks: Disks, path: Path) -> None:
    line = refused(disks, path, temporary=True, cache="none")
    assert line == "cache=none and temporary do not go together: leave one away"
    disks.open(path, temporary=True, cache="unsafe")


def test_what_is_no_disk(disks: Disks, tmp_path: Path) -> None:
    assert refused(disks, tmp_path) == "it is a directory: name a file or block device"
    assert refused(disks, Path("/dev/null")) == "it is no file and no block device"
    os.mkfifo(tmp_path / "fifo")
    assert refused(disks, tmp_path / "fifo") == "it is no file and no block device"
    (tmp_path / "empty").touch()
    assert refused(disks, tmp_path / "empty") == "it is empty: give it a size with  truncate -s 10G  first"


@pytest.mark.parametrize(
    ("number", "write", "line"),
    [
        (errno.EACCES, True, "you may read it but not write to it: add readonly or temporary"),
        (errno.EPERM, True, "you may read it but not write to it: add readonly or temporary"),
        (errno.EACCES, False, "you may not read it"),
        (errno.EROFS, True, "its medium is read-only: add readonly or temporary"),
        (errno.EBUSY, True, "this host uses it itself: unmount it first"),
        (errno.ENOMEDIUM, False, "there is no medium in it"),
        (errno.EMFILE, True, "this process has no descriptor left for it: raise ulimit -n"),
    ],
)
def test_what_the_host_refuses(
    disks: Disks, path: Path, monkeypatch: pytest.MonkeyPatch, number: int, write: bool, line: str
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    assert refused(disks, path, readonly=not write) == line


def test_permission_of_a_user(path: Path) -> None:
    """A process of its own gives up root, which may write to anything."""
    path.chmod(0o444)
    path.parent.chmod(0o755)
    code = (
        "import os; from pathlib import Path; from pyvmm.backends import image\n"
        "from pyvmm.backends.disks import Disks\n"
        "if not os.getuid(): os.setuid(65534)\n"
        "Disks(print).open(Path('disk.img'))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True)
    assert "disk disk.img: you may read it but not write to it: add readonly or temporary" in ran.stderr


def test_words_that_do_not_go_together(disks: Disks, path: Path) -> None:
    line = refused(disks, path, readonly=True, temporary=True)
    assert line == "readonly and temporary do not go together: leave one away"


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("64K", 65536), ("10m", 10 << 20), ("2G", 2 << 30), ("2GiB", 2 << 30), ("1TB", 1 << 40)],
)
def test_a_size_in_words(disks: Disks, tmp_path: Path, text: str, size: int) -> None:
    file = tmp_path / "new.img"
    disk = disks.open(file, size=text)
    assert disk.size == size == file.stat().st_size and file.stat().st_blocks < 100
    disk.close()
    assert disks.open(file, size=text).size == size, "and the next time it is there"


@pytest.mark.parametrize("text", ["", "G", "1.5G", "-1G", "ten", "0", "0x10", "1000", "100P", "9E", "8388608T", "٣G"])
def test_a_size_that_is_none(disks: Disks, tmp_path: Path, text: str) -> None:
    assert refused(disks, tmp_path / "new.img", size=text).startswith("size=")
    assert not (tmp_path / "new.img").exists()


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_one_line(text: str) -> None:
    try:
        assert size_of(text) >= 0
    except ValueError as error:
        assert "\n" not in str(error)


def test_another_size_than_it_has(disks: Disks, path: Path) -> None:
    assert refused(disks, path, size="2M") == "it has 1M, not the 2M of size=: leave size away"
    assert disks.open(path, size="1024K").size == 1 << 20


def test_a_file_system_without_direct_io(disks: Disks, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(file: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(file, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    assert refused(disks, path, cache="none") == "its file system has no O_DIRECT: take another cache than none"


# Formats


@needs_qemu
@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "qed", "vhdx", "vpc", "vdi"])
@pytest.mark.parametrize("words", [{}, {"readonly": True}, {"temporary": True}, {"cache": "none"}])
def test_an_image_that_is_not_raw(disks: Disks, tmp_path: Path, kind: str, words: dict[str, object]) -> None:
    file = tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, file, "1M"], check=True)
    assert refused(disks, file, **words) == (
        f"it is a {kind} image, and only raw ones can be used: qemu-img convert -O raw {file} {tmp_path}/disk.raw; "
        "or add format=raw, if the guest has written it"
    )
    disk = disks.open(file, raw=True, **words)  # type: ignore[arg-type]
    assert disk.size == -(-file.stat().st_size // 512) * 512 or disk.size == file.stat().st_size


# Locks


def other(path: Path, **words: object) -> str:
    """What another process of ours says when it opens the file; nothing where it can."""
    code = (
        f"from pathlib import Path; from pyvmm.backends.disks import Disks\n"
        f"from pyvmm.errors import UserError\n"
        f"try: Disks(print).open(Path({str(path)!r}), **{words!r})\n"
        f"except UserError as error: print(error)"
    )
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


LOCKED = "another machine has it, and locked it: end that one first"
READ, RDWR = {"readonly": True}, dict[str, object]()
TEMP = {"temporary": True}


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [
        (RDWR, RDWR, False),
        (RDWR, READ, False),
        (RDWR, TEMP, False),
        (READ, RDWR, False),
        (READ, READ, True),
        (READ, TEMP, True),
        (TEMP, TEMP, True),
        (TEMP, RDWR, False),
    ],
)
def test_one_writes_or_several_read(
    disks: Disks, path: Path, ours: dict[str, object], theirs: dict[str, object], both: bool
) -> None:
    disk = disks.open(path, **ours)  # type: ignore[arg-type]
    said = other(path, **theirs)
    assert said == "" if both else said.startswith(f"disk {path}: {LOCKED}")
    if not both:
        here = refused(Disks(lambda call: call()), path, **theirs)
        assert here.startswith(LOCKED), "another machine of this process as well"
    disk.close()
    assert other(path, **theirs) == ""


QEMU = ["qemu-system-x86_64", "-M", "pc", "-accel", "tcg", "-S", "-display", "none", "-monitor", "stdio", "-drive"]


@contextmanager
def qemu(path: Path, readonly: bool) -> Iterator[str]:
    """QEMU with a disk, its guest stopped: what it says where it does not start, else nothing."""
    drive = f"file={path},format=raw,if=virtio,readonly={'on' if readonly else 'off'}"
    with subprocess.Popen(
        [*QEMU, drive], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write("info block\n")
        process.stdin.flush()
        said = ""
        while "#block" not in said and (more := process.stdout.read(1)):
            said += more
        yield "" if "#block" in said else process.stderr.read()
        process.communicate("quit\n")


@needs_qemu
@pytest.mark.parametrize(
    ("ours", "readonly", "both"),
    [(RDWR, False, False), (RDWR, True, False), (READ, False, False), (READ, True, True), (TEMP, True, True)],
)
def test_qemu_and_we_see_each_other(
    disks: Disks, path: Path, ours: dict[str, object], readonly: bool, both: bool
) -> None:
    disk = disks.open(path, **ours)  # type: ignore[arg-type]
    with qemu(path, readonly) as said:
        assert ("lock" in said) != both
        disk.close()
    with qemu(path, readonly) as said:
        assert said == ""
        if both:
            disks.open(path, **ours)  # type: ignore[arg-type]
        else:
            assert refused(disks, path, **ours).startswith(LOCKED)
    disks.open(path, **ours)  # type: ignore[arg-type]


def test_a_lock_on_all_of_it_counts_too(disks: Disks, path: Path) -> None:
    """As Cloud Hypervisor has it."""
    with path.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, image_lock(fcntl.F_WRLCK))
        assert refused(disks, path, readonly=True) == LOCKED
    disks.open(path)


def image_lock(kind: int) -> bytes:
    from pyvmm.backends.locks import _FLOCK

    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def test_a_file_system_without_locks(disks: Disks, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> bytes:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("pyvmm.backends.locks.fcntl.fcntl", refuse)
    assert isinstance(disks.open(path), Disk)


def test_looking_takes_no_lock_and_makes_nothing(disks: Disks, path: Path, tmp_path: Path) -> None:
    disks.open(path)
    looking = Disks(lambda call: call(), look_only=True)
    looking.open(path).close()
    with pytest.raises(UserError, match="there is no such file"):
        looking.open(tmp_path / "new.img")
    disk = looking.open(tmp_path / "new.img", size="1M")
    assert disk.size == 1 << 20
    disk.close()
    assert not (tmp_path / "new.img").exists()


# What the kernel does not do at once


def test_short_reads_and_writes_go_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:700]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, [views[0][:700]], at))
    file = image.FileImage(path, write=True)
    data = bytes(range(256)) * 16
    views = [memoryview(data)[n : n + 1000] for n in range(0, 4096, 1000)]
    file.write(views, 512)
    found = bytearray(4096)
    file.read([memoryview(found)[:100], memoryview(found)[100:]], 512)
    assert found == data
    file.close()


def test_buffers_that_direct_io_does_not_take(path: Path) -> None:
    file = image.FileImage(path, write=True, cache="none")
    data = memoryview(bytearray(os.urandom(4096 + 3)))
    file.write([data[3:1000], data[1000:]], 4096)
    found = memoryview(bytearray(4096 + 5))
    file.read([found[5:77], found[77:]], 4096)
    assert found[5:] == data[3:]
    file.close()
    assert path.read_bytes()[4096:8192] == data[3:]


def test_of_flushes_at_once_none_is_told_that_all_is_well_where_one_failed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells each open file once: the second fdatasync returns before the first has raised."""
    file = image.FileImage(path, write=True)
    calls, second_returned = list[int](), threading.Event()

    def fdatasync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            second.start()
            second_returned.wait(60)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        second_returned.set()

    def flush() -> None:
        try:
            file.flush()
            ends.append(None)
        except OSError as error:
            ends.append(error.errno)

    ends: list[int | None] = []
    second = threading.Thread(target=flush)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    flush()
    second.join()
    assert len(calls) == 2 and ends == [errno.EIO] * 2
    file.close()


def test_flushes_do_not_wait_for_one_another_to_begin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, meet = image.FileImage(path, write=True), threading.Barrier(4)
    monkeypatch.setattr(os, "fdatasync", lambda fd: meet.wait(60))
    others = [threading.Thread(target=file.flush) for _ in range(3)]
    for other in others:
        other.start()
    file.flush()
    for other in others:
        other.join()
    assert not file._flushes
    file.close()
