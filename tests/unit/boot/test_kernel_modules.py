"""modules.dep and the files beside it, what a module needs, and how its file is compressed."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.error import BootError
from pyvmm.boot.kernel_modules import KernelModules, module_name, parse_dependencies, plain, read_module

DEP = """\
kernel/a-b.ko.xz: kernel/sub/c.ko.xz kernel/d.ko
kernel/sub/c.ko.xz: kernel/d.ko
kernel/d.ko:
kernel/crc32c_generic.ko:
kernel/soft.ko:
"""
ALIAS = "# Aliases\nalias pci:v00001B36d*sv* a_b\nalias crc32c crc32c_generic\nalias gone nowhere\n"
SOFT = "# Soft dependencies\nsoftdep soft pre: crc32c nosuch post: d\nsoftdep cifs gcm\n"


@pytest.fixture
def modules(tmp_path: Path) -> KernelModules:
    for name, text in (
        ("modules.dep", DEP),
        ("modules.alias", ALIAS),
        ("modules.softdep", SOFT),
        ("modules.builtin", "kernel/fs/ext4/ext4.ko\n"),
    ):
        (tmp_path / name).write_text(text)
    return KernelModules(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (["a_b"], ["d", "c", "a_b"]),
        (["a-b"], ["d", "c", "a_b"]),
        (["d", "c", "d"], ["d", "c"]),
        (["ext4"], []),
        (["pci:v00001B36d00000011sv1AF4"], ["d", "c", "a_b"]),
        (["soft"], ["crc32c_generic", "soft"]),
        ([], []),
    ],
)
def test_each_after_what_it_needs(modules: KernelModules, wanted: list[str], order: list[str]) -> None:
    assert modules.closure(wanted) == order


@pytest.mark.parametrize(
    ("name", "says"), [("crc32c_generci", ": did you mean crc32c_generic?"), ("gone", ""), ("qqqq", "")]
)
def test_a_module_that_is_not_there(modules: KernelModules, name: str, says: str) -> None:
    with pytest.raises(BootError) as error:
        modules.closure([name])
    assert str(error.value) == f"module {name}: not among those in {modules.folder}{says}"


def test_what_the_guests_modprobe_reads(modules: KernelModules) -> None:
    assert modules.dependencies(["d", "c"]) == "kernel/d.ko:\nkernel/sub/c.ko: kernel/d.ko\n"
    assert modules.inside("a_b") == "kernel/a-b.ko"
    assert modules.path("a_b") == modules.folder / "kernel/a-b.ko.xz"


graphs = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefghz"), max_size=4), min_size=1)


@given(graphs, st.randoms())
def test_any_graph(graph: dict[str, list[str]], random: object) -> None:
    """Of one without circles each module comes after those that it needs; one with circles ends."""
    text = "".join(f"k/{name}.ko: {' '.join(f'k/{other}.ko' for other in needs)}\n" for name, needs in graph.items())
    parsed = parse_dependencies(text)
    assert parsed.paths == {name: f"k/{name}.ko" for name in graph}
    modules = KernelModules.__new__(KernelModules)
    modules.folder, modules._dependencies, modules._builtin = Path("/nowhere"), parsed, set()
    modules._aliases, modules._soft = [], {}
    order = modules.closure(graph)
    assert sorted(order) == sorted(graph)
    reach = {name: set(needs) & graph.keys() for name, needs in graph.items()}
    for _ in graph:
        reach = {name: needs.union(*(reach[other] for other in needs)) for name, needs in reach.items()}
    for name in graph:
        for other in graph[name]:
            if other in graph and name not in reach[other]:  # of a circle nobody is first
                assert order.index(other) < order.index(name)


@given(st.text(max_size=200) | st.text("abk/.:o \n-_", max_size=80))
def test_any_text_is_some_dependencies(text: str) -> None:
    parsed = parse_dependencies(text)
    assert parsed.paths.keys() == parsed.needs.keys()
    for name, path in parsed.paths.items():
        assert module_name(path) == name and "-" not in name
        assert plain(path).endswith(".ko") and not plain(path).startswith("/")


texts = st.text(max_size=100) | st.text("aliasoftdep pre:*[]\n", max_size=60).map(
    "softdep a pre: b\nalias * b\n".__add__
)


@given(texts, st.sampled_from(["a", "b", "x"]))
def test_any_text_beside_it(text: str, name: str) -> None:
    modules = KernelModules.__new__(KernelModules)
    modules.folder, modules._dependencies, modules._builtin = (
        Path("/x"),
        parse_dependencies("a.ko:\nb.ko: a.ko\n"),
        set(),
    )
    modules._aliases = modules._soft = None
    modules._text = lambda name, needed=False: text  # type: ignore[method-assign]
    try:
        order = modules.closure([name])
    except BootError as error:
        assert name == "x" and "\n" not in str(error)
    else:
        assert set(order) <= {"a", "b"} and len(set(order)) == len(order)


CODE = b"\x7fELF" + bytes(range(256)) * 20


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
def test_compressed(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x.ko{ending}"
    match ending:
        case ".gz":
            file.write_bytes(gzip.compress(CODE))
        case ".xz":
            file.write_bytes(lzma.compress(CODE, check=lzma.CHECK_CRC32))
        case ".zst":
            file.write_bytes(subprocess.run(["zstd", "-c"], input=CODE, capture_output=True, check=True).stdout)
        case _:
            file.write_bytes(CODE)
    assert read_module(file) == CODE


@pytest.mark.parametrize("head", [b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"])
def test_a_damaged_file(tmp_path: Path, head: bytes) -> None:
    file = tmp_path / "x.ko"
    file.write_bytes(head + b"\xff" * 40)
    with pytest.raises(BootError, match=rf"module {file}: damaged: ") as error:
        read_module(file)
    assert "\n" not in str(error.value)


@given(st.sampled_from([b"\x1f\x8b\x08", b"\xfd7zXZ\0"]), st.binary(max_size=60))
def test_any_bytes_are_code_or_one_line(head: bytes, rest: bytes) -> None:
    from pyvmm.boot.kernel_modules import _decompressed

    try:
        assert isinstance(_decompressed(Path("x"), head + rest), bytes)
    except (OSError, EOFError, ValueError) as error:
        assert "\n" not in str(error)


def test_without_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.ko.zst"
    file.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BootError, match="needs the program zstd: install zstd"):
        read_module(file)


def test_no_folder_of_modules(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"no modules\.dep there: it is /lib/modules/RELEASE of a kernel"):
        KernelModules(tmp_path)
    with pytest.raises(BootError, match="No such file"):
        read_module(tmp_path / "x.ko")
