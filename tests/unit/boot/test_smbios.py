"""The SMBIOS table as the specification has it, and as dmidecode reads it (Debian: dmidecode)."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot.smbios import FIELDS, entry_point_at, parse_smbios, smbios_table, write_smbios
from pyvmm.memory import GuestMemory
from pyvmm.units import GIB, KIB, MIB

RAM = [(0, 512 * MIB)]


class Structure(NamedTuple):
    kind: int
    handle: int
    area: bytes
    """With its header."""
    strings: list[str]

    def string(self, offset: int) -> str:
        number = self.area[offset]
        return self.strings[number - 1] if number else ""


def structures(table: bytes) -> list[Structure]:
    """As a reader walks them: to type 127, which ends the table."""
    found: list[Structure] = []
    at = 0
    while not found or found[-1].kind != 127:
        kind, length, handle = struct.unpack_from("<BBH", table, at)
        end = table.index(b"\0\0", at + length)
        strings = table[at + length : end].split(b"\0") if end > at + length else []
        found.append(Structure(kind, handle, table[at : at + length], [one.decode() for one in strings]))
        at = end + 2
    assert at == len(table)
    return found


def by_type(*texts: str, cpus: int = 1, regions: list[tuple[int, int]] = RAM) -> dict[int, Structure]:
    _, table = smbios_table(parse_smbios(texts), cpus=cpus, regions=regions)
    return {one.kind: one for one in structures(table)}


def dmidecode(tmp_path: Path, *texts: str, cpus: int = 1, regions: list[tuple[int, int]] = RAM) -> str:
    anchor, table = smbios_table(parse_smbios(texts), cpus=cpus, regions=regions)
    dump = tmp_path / "dump"
    dump.write_bytes(entry_point_at(anchor, 32).ljust(32, b"\0") + table)
    try:
        done = subprocess.run(
            ("dmidecode", "--from-dump", dump), capture_output=True, text=True, check=True, timeout=60
        )
    except FileNotFoundError:
        pytest.fail("dmidecode is missing: install it")
    assert not re.search(r"BAD|OUT OF SPEC|[Ww]rong|[Ii]nvalid|[Uu]nknown type|#.*not", done.stdout + done.stderr)
    return done.stdout


def test_dmidecode_is_content(tmp_path: Path) -> None:
    told = dmidecode(
        tmp_path,
        "type=1,product=Box,, large,serial=42,uuid=00112233-4455-6677-8899-aabbccddeeff",
        "type=11,value=one,value=two",
        cpus=255,
        regions=[(0, 3 * GIB), (4 * GIB, 5 * GIB)],
    )
    for line in (
        "SMBIOS 2.8 present.",
        "Manufacturer: pyvmm",
        "Product Name: Box, large",
        "Serial Number: 42",
        "UUID: 00112233-4455-6677-8899-aabbccddeeff",
        "System is a virtual machine",
        "Core Count: 255",
        "String 2: two",
        "Maximum Capacity: 8 GB",
        "Size: 8 GB",
        "Ending Address: 0x000BFFFFFFF",
        "Starting Address: 0x00100000000",
        "End Of Table",
    ):
        assert line in told


@pytest.mark.parametrize(("size", "shown"), [(MIB, "1 MB"), (512 * MIB, "512 MB"), (64 << 40, "64 TB")])
def test_dmidecode_knows_how_much_memory_there_is(size: int, shown: str, tmp_path: Path) -> None:
    low = min(size, 3 * GIB)
    regions = [(0, low), (4 * GIB, size - low)] if size > low else [(0, low)]
    told = dmidecode(tmp_path, regions=regions)
    assert f"\tSize: {shown}\n" in told and f"Maximum Capacity: {shown}" in told


def test_the_processors_firmware_says_who_it_is() -> None:
    """So there is no structure of the BIOS, unless the user wants one."""
    said = parse_smbios(["type=0,vendor=me"])
    kinds = [[one.kind for one in structures(smbios_table(v, cpus=1, regions=RAM, bios=False)[1])] for v in ({}, said)]
    assert 0 not in kinds[0] and kinds[1].count(0) == 1


values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40)
what_is_said = st.lists(
    st.sampled_from([kind for kind in FIELDS if kind != 11]).flatmap(
        lambda kind: st.tuples(
            st.just(kind), st.sampled_from([name for name in FIELDS[kind] if name != "uuid"]), values
        )
    ),
    max_size=12,
)


@given(said=what_is_said, oem=st.lists(values, max_size=5), cpus=st.integers(1, 255))
def test_whatever_the_user_says_is_in_the_table(said: list[tuple[int, str, str]], oem: list[str], cpus: int) -> None:
    texts = [f"type={kind},{name}={value.replace(',', ',,')}" for kind, name, value in said]
    texts += ["type=11," + ",".join(f"value={value.replace(',', ',,')}" for value in oem)] if oem else []
    anchor, table = smbios_table(parse_smbios(texts), cpus=cpus, regions=RAM)
    found = structures(table)
    last = {(kind, name): value for kind, name, value in said}
    for (kind, _), value in last.items():
        assert value in next(one for one in found if one.kind == kind).strings
    assert [one.strings for one in found if one.kind == 11] == ([oem] if oem else [])
    assert [one.handle for one in found] == list(range(len(found)))
    handles = {one.kind: one.handle for one in found}
    kinds = {one.kind: one for one in found}
    assert struct.unpack_from("<H", kinds[2].area, 0x0B)[0] == handles[3], "the board is in the chassis"
    for kind, offset in ((17, 4), (19, 0x0C)):
        assert struct.unpack_from("<H", kinds[kind].area, offset)[0] == handles[16], "of the memory array"
    assert kinds[4].area[0x23] == cpus
    length, _, count = struct.unpack_from("<HIH", anchor, 0x16)
    largest = max(len(one.area) + sum(len(s) + 1 for s in one.strings) + (1 if one.strings else 2) for one in found)
    assert (length, count, struct.unpack_from("<H", anchor, 8)[0]) == (len(table), len(found), largest)


@given(gpa=st.integers(0xF0000, 0xF7FFF), end=st.just(0xFE000))
def test_it_is_found_where_a_reader_looks(gpa: int, end: int) -> None:
    memory = GuestMemory.of_size(MIB)
    after = write_smbios(memory, gpa, end, *smbios_table({}, cpus=2, regions=RAM))
    assert gpa < after <= end
    found = [at for at in range(0xF0000, MIB, 16) if memory.read(at, 4) == b"_SM_"]
    anchor = memory.read(found[0], 31)
    length, address = struct.unpack_from("<HI", anchor, 0x16)
    assert len(found) == 1 and found[0] >= gpa and anchor[0x10:0x15] == b"_DMI_" and anchor[5] == 31
    assert sum(anchor) & 0xFF == 0 and sum(anchor[0x10:]) & 0xFF == 0
    assert structures(memory.read(address, length)) and address + length == after


def test_what_has_no_room_is_refused() -> None:
    large = parse_smbios(["type=11," + ",".join(["value=" + "x" * 1000] * 60)])
    with pytest.raises(ValueError, match="say less"):
        write_smbios(GuestMemory.of_size(MIB), 0xF2000, 0xFE000, *smbios_table(large, cpus=1, regions=RAM))
    larger = parse_smbios(["type=11," + ",".join(["value=" + "x" * 1000] * 70)])
    with pytest.raises(ValueError, match="more than 64 KiB"):
        smbios_table(larger, cpus=1, regions=RAM)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "begins with type=N, N being one of 0, 1, 2, 3, 4, 11, 17"),
        ("product=PC", "begins with type=N"),
        ("type=9,product=PC", "begins with type=N"),
        ("type=1,colour=red", "type 1 has no 'colour': it has manufacturer, product"),
        ("type=1,serial=", "serial is a text"),
        ("type=1,serial=ä", "serial is a text"),
        ("type=1,uuid=1", "'1' is no UUID"),
        ("type=11," + ",".join(["value=x"] * 256), "at most 255 OEM strings"),
    ],
)
def test_mistakes(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_smbios([text])


@given(st.text())
def test_any_text_is_understood_or_refused(text: str) -> None:
    for one in (text, f"type=1,{text}", f"type=11,value={text}"):
        try:
            said = parse_smbios([one])
        except ValueError:
            continue
        smbios_table(said, cpus=1, regions=[(0, 640 * KIB)])


def test_the_last_of_a_field_counts() -> None:
    assert by_type("type=1,serial=1,sku=a", "type=1,serial=2")[1].string(7) == "2"
