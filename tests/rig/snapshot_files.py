"""Files of snapshots that were damaged on their way: what reads them says so in one line, and raises nothing else."""

from __future__ import annotations

import os
import random
import resource
import zlib
from pathlib import Path

from pyvmm.errors import UserError
from pyvmm.machine.saved import Saved
from pyvmm.machine.snapshot_file import HEADER, HEADER_SIZE, Section


def damaged(whole: bytes, seed: random.Random) -> bytes:
    """A mutant of what stands before RAM: bytes changed, left out, doubled; often with all checksums right again, and
    of the same length."""
    data = bytearray(whole)
    for _ in range(seed.choice((1, 1, 1, 2, 8))):
        start = seed.randrange(len(data)) if seed.random() < 0.7 else seed.randrange(HEADER_SIZE)
        length = seed.choice((1, 1, 2, 4, 8, 50))
        match seed.randrange(5):
            case 0:
                data[start : start + length] = seed.randbytes(length)
            case 1:
                data[start : start + 1] = bytes((data[start] ^ 1 << seed.randrange(8),))
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = data[start : start + length]
            case 4:
                data[start : start + 8] = seed.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1)).to_bytes(8, "little")
        data += bytes(max(0, HEADER_SIZE - len(data)))
    if seed.random() < 0.9:
        data = data[: len(whole)] + bytes(len(whole) - len(data[: len(whole)]))
    if seed.random() < 0.6:
        mend(data)
    return bytes(data)


def mend(data: bytearray) -> None:
    """Make the checksums of header and sections right, so that what is behind them is looked at."""
    if len(data) < HEADER_SIZE:
        return
    magic, version, *numbers = HEADER.unpack_from(data)
    fields = []
    for number in range(0, 12, 3):
        offset, length, crc = numbers[number : number + 3]
        if number < 9 and offset < len(data) and length < 1 << 20:
            crc = zlib.crc32(data[offset : offset + length])
        fields += [*Section(offset, length, crc)]
    packed = HEADER.pack(magic, version, *fields)
    data[:HEADER_SIZE] = packed + zlib.crc32(packed).to_bytes(4, "little")


def try_mutants(whole: Path, mutant: Path, number: int, seed: int) -> int:
    """Read *number* mutants of *whole*, by way of *mutant*; how many were refused. Anything but one line is raised."""
    chance, contents, refused = random.Random(seed), whole.read_bytes(), 0
    with Saved(str(whole)).file as file:
        before_ram = file.ram.offset
    grown_from = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mutant.write_bytes(contents)
    for count in range(number):
        beginning = damaged(contents[:before_ram], chance)
        if len(beginning) != before_ram:
            mutant.write_bytes(beginning + contents[before_ram:])
        else:  # a megabyte less to write
            with mutant.open("r+b") as stream:
                stream.write(beginning)
            os.truncate(mutant, len(contents))
        try:
            saved = Saved(str(mutant))
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(mutant)) or "cannot read" in str(error) or "MachineConfig" in str(error), (
                error
            )
            assert "\n" not in str(error)
            continue
        try:
            saved.file.check()
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        finally:
            saved.close()
        if count < number // 10:
            grown_from = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown_from
    assert grown < 64 << 10, f"{grown} KiB"
    return refused
