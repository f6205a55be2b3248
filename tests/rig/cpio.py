"""A reader of cpio archives of the format "newc", by its description alone (Linux' buffer-format.rst)."""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    mode: int
    data: bytes
    device: tuple[int, int]


def read_newc(archive: bytes) -> dict[str, Found]:
    """What is in it, in its order; AssertionError for what the kernel would refuse or pass over."""
    assert len(archive) % 4 == 0
    found: dict[str, Found] = {}
    numbers = set()
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        number, mode, user, group, _, _, size, _, _, major, minor, name_size, check = fields
        name_at = at + 110
        name = archive[name_at : name_at + name_size]
        assert name.endswith(b"\0") and b"\0" not in name[:-1]
        data_at = (name_at + name_size + 3) & ~3
        assert not any(archive[name_at + name_size : data_at])
        at = (data_at + size + 3) & ~3
        assert not any(archive[data_at + size : at])
        assert user == group == check == 0
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return found
        text = name[:-1].decode(errors="surrogateescape")
        above = text.rpartition("/")[0]
        assert text not in found and number not in numbers
        assert not above or found[above].mode & 0o170000 == 0o040000, "its folder comes first"
        numbers.add(number)
        found[text] = Found(mode, archive[data_at : data_at + size], (major, minor))
