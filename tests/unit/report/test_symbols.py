"""Names for addresses: ELF files, System.map and kallsyms, and files that hold anything."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import UserError
from pyvmm.report.elf_symbols import ElfError, Symbol, read_symbols
from pyvmm.report.symbols import REACH, Symbols, load_symbols, parse_map

TEXT = 0xFFFFFFFF81000000
FUNC, OBJECT, FILE, GLOBAL = 2, 1, 4, 1 << 4


def elf(symbols: list[tuple[str, int, int, int, int]], *, wide: bool = True, kind: int = 2) -> bytes:
    """An ELF file with these symbols (name, address, size, info, section): 1 is .text, 2 .data, 3 and 4 their table."""
    names, table = bytearray(b"\0"), bytearray()
    for name, value, size, info, section in [("", 0, 0, 0, 0), *symbols]:
        at = len(names) if name else 0
        names += name.encode() + b"\0" if name else b""
        if wide:
            table += struct.pack("<IBBHQQ", at, info, 0, section, value, size)
        else:
            table += struct.pack("<IIIBBH", at, value, size, info, 0, section)
    head = 64 if wide else 52
    record = 24 if wide else 16
    sections = [(0, 0, 0, 0, 0, 0), (1, 6, 0, 0, 0, 0), (1, 3, 0, 0, 0, 0), (kind, 0, head, len(table), 4, record)]
    sections.append((3, 0, head + len(table), len(names), 0, 0))
    start = head + len(table) + len(names)
    form = "<IIQQQQIIQQ" if wide else "<10I"
    headers = b"".join(
        struct.pack(form, 0, kind, flags, 0, offset, size, link, 0, 1, each)
        for kind, flags, offset, size, link, each in sections
    )
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    fields = (2, 62 if wide else 3, 1, 0, 0, start, 0, head, 0, 0, struct.calcsize(form), len(sections), 4)
    header = struct.pack("<16sHHIQQQIHHHHHH" if wide else "<16sHHIIIIIHHHHHH", ident, *fields)
    return header + table + names + headers


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("kind", [2, 11])
def test_an_elf_file(wide: bool, kind: int) -> None:
    base = TEXT if wide else 0xC0100000
    data = elf(
        [
            ("main.c", 0, 0, FILE, 0xFFF1),
            ("start", base, 0x10, FUNC | GLOBAL, 1),
            ("label", base + 0x10, 0, 0, 1),
            ("counter", base + 0x1000, 8, OBJECT, 2),
            ("outside", 0, 0, GLOBAL, 0),
            ("constant", 5, 0, 0, 0xFFF1),
        ],
        wide=wide,
        kind=kind,
    )
    assert list(read_symbols(memoryview(data))) == [
        Symbol(base, "start", 0x10, True, True),
        Symbol(base + 0x10, "label", 0, True, False),
        Symbol(base + 0x1000, "counter", 8, False, False),
    ]


def test_a_real_elf_file() -> None:
    import kvm_cffi._kvm as module

    symbols = load_symbols(Path(module.__file__))
    address = symbols.linked("PyInit__kvm")
    assert address is not None
    assert symbols.describe(address) == "PyInit__kvm" and symbols.describe(address + 1) == "PyInit__kvm+0x1"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: b"", "no ELF file"),
        (lambda d: d[:4] + b"\x03" + d[5:], "not a little-endian one of 32 or 64 bits"),
        (lambda d: d[:5] + b"\x02" + d[6:], "not a little-endian one of 32 or 64 bits"),
        (lambda d: d[:40], "truncated in its header"),
        (lambda d: d[:60] + b"\0\0" + d[62:], "without sections"),
        (lambda d: d[:58] + b"\x20\0" + d[60:], "section headers of 32 bytes"),
        (lambda d: d[:-1], "section headers are behind its end"),
    ],
)
def test_a_damaged_elf_file(change, why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ElfError, match=why):
        list(read_symbols(memoryview(change(elf([("start", TEXT, 1, FUNC, 1)])))))


def test_a_stripped_elf_file() -> None:
    with pytest.raises(ElfError, match="not stripped"):
        list(read_symbols(memoryview(elf([("start", TEXT, 1, FUNC, 1)], kind=1))))


@given(st.data(), st.booleans())
@settings(max_examples=500, deadline=None)
def test_an_elf_file_with_anything_in_it(data: st.DataObject, wide: bool) -> None:
    whole = bytearray(elf([(f"f{n}", 0x1000 + n, n, FUNC, 1) for n in range(8)], wide=wide))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        symbols = Symbols(read_symbols(memoryview(whole[: data.draw(st.integers(0, len(whole)))])))
    except ElfError as error:
        assert str(error).isprintable()
    else:
        assert symbols.describe(data.draw(st.integers(0, (1 << 64) - 1))).isprintable()


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_an_elf_file_of_anything(data: bytes) -> None:
    for ident in (b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"):
        try:
            list(read_symbols(memoryview(ident + data)))
        except ElfError:
            pass


MAP = b"""\
0000000000000000 D __per_cpu_start
0000000000001000 A cpu_debug_store
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000040 t __pfx_helper
ffffffff81000050 t helper
ffffffff81000050 T helper_global
ffffffff81000100 D data_follows
ffffffff81000200 T last
ffffffffc0000000 t init\t[edu]
garbage
"""


def test_a_map() -> None:
    symbols = Symbols(parse_map(MAP))
    assert symbols.describe(TEXT) == "_text"
    assert symbols.describe(TEXT + 0x3F) == "_text+0x3f"
    assert symbols.describe(TEXT + 0x54) == "helper_global+0x4"
    assert symbols.describe(TEXT + 0x100) == "", "data"
    assert symbols.describe(TEXT - 1) == "" and symbols.describe(0x1234) == ""
    assert symbols.describe(0xFFFFFFFFC0000010) == "init [edu]+0x10"
    assert symbols.describe(0xFFFFFFFFC0000000 + REACH) == ""
    assert symbols.linked("helper") == TEXT + 0x50 and symbols.linked("nobody") is None
    assert symbols.start(TEXT + 0x210) == TEXT + 0x200


@pytest.mark.parametrize("shift", [0x1C000000, -0x200000 % (1 << 64)])
def test_a_guest_that_was_moved(shift: int) -> None:
    symbols = Symbols(parse_map(MAP))
    symbols.shift = shift
    at = TEXT + shift & (1 << 64) - 1
    assert symbols.describe(at + 0x54) == "helper_global+0x4"
    assert symbols.start(at + 0x54) == at + 0x50
    assert symbols.linked("last") == TEXT + 0x200


def test_names_do_not_reach_the_terminal_raw() -> None:
    symbols = Symbols(parse_map(b"ffffffff81000000 T \x1b[31mred\xff\n"))
    assert symbols.describe(TEXT) == "\\x1b[31mred\\xff"


@given(st.lists(st.binary(max_size=40)), st.integers(0, (1 << 64) - 1))
@settings(deadline=None)
def test_a_map_of_anything(lines: list[bytes], address: int) -> None:
    symbols = Symbols(parse_map(b"\n".join([*lines, b"ffffffff81000000 T _text\r"])))
    assert symbols.describe(address).isprintable()
    assert symbols.linked("_text") is not None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither an ELF file, nor System.map"),
        (b"\0" * 100, "neither an ELF file, nor System.map"),
        (
            b"ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n",
            "linux-image-VERSION-dbg",
        ),
        (b"0000000000000000 T _text\n" * 3, "kptr_restrict=0"),
        (elf([("data", 1, 1, OBJECT, 2)]), "no function in it"),
        (elf([("start", 1, 1, FUNC, 1)])[:100], "truncated"),
        (elf([("start", 1, 1, FUNC, 1)], kind=1), "not stripped"),
    ],
)
def test_a_file_that_has_none(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=why) as caught:
        load_symbols(tmp_path / "file")
    assert str(caught.value).startswith(f"symbols {tmp_path / 'file'}: ") and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=why):
            load_symbols(path)


def test_both_kinds_of_file(tmp_path: Path) -> None:
    for content in (MAP, elf([("_text", TEXT, 0x50, FUNC, 1)])):
        (tmp_path / "file").write_bytes(content)
        assert load_symbols(tmp_path / "file").describe(TEXT + 1) == "_text+0x1"
