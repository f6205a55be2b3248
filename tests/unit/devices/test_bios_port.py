"""The ports by which a BIOS is watched, and what its calls are in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.bios_calls import CALLS, REGISTERS, Registers, answered, asked
from pyvmm.devices.bios_port import CALL_RETURNS, DEEPEST, BiosCalls, BiosLog
from pyvmm.memory import GuestMemory
from pyvmm.trace import Channel

NOTHING = Registers(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x13, 0x7C10, 0, 0x202)


class Rig:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.channel = Channel("bios", lambda ns, name, line: self.lines.append(line))
        self.memory = GuestMemory.of_size(0x10000)
        self.calls = BiosCalls(self.memory, self.channel)
        self.log = BiosLog(self.channel)

    def call(self, where: int, registers: Registers, returns: bool = False) -> None:
        self.memory.write(where, REGISTERS.pack(*registers))
        self.calls.write(0, 4, where | (CALL_RETURNS if returns else 0))


def test_a_call_and_its_return() -> None:
    rig = Rig()
    read = NOTHING._replace(eax=0x0201, ebx=0x7E00, ecx=0x0543, edx=0x0180, vector=0x13)
    rig.call(0x1000, read)
    rig.call(0x1000, read._replace(eax=0x0401, flags=0x203), returns=True)
    assert rig.lines == [
        "INT 13h AH=02h: read 1 sectors of drive 80h from cylinder 261, head 1, sector 3 to 0000:7e00 (from 0000:7c10)",
        "INT 13h AH=02h returns CF=1 AX=0401h",
    ]


def test_a_packet_is_read() -> None:
    rig = Rig()
    rig.memory.write(0x500, bytes.fromhex("10 00 0300 0080 0020 0700000001000000"))
    rig.call(0x1000, NOTHING._replace(eax=0x4200, edx=0x80, esi=0x500))
    assert rig.lines[0].startswith("INT 13h AH=42h: extended read of drive 80h: 3 sectors from 4294967303, 2000:8000 (")
    rig.call(0x1000, NOTHING._replace(eax=0x4200, edx=0x80, ds=0xF000))
    assert "no packet" in rig.lines[1]


def test_functions_by_ax_and_by_none() -> None:
    def read(gpa: int, length: int) -> bytes:
        return bytes(length)

    assert asked(NOTHING._replace(vector=0x12), read) == "INT 12h: base memory (from 0000:7c10)"
    told = asked(NOTHING._replace(vector=0x15, eax=0xE820, es=0x50, edi=4, ebx=2), read)
    assert told == "INT 15h AX=e820h: memory map, entry 2 to 0050:0004 (from 0000:7c10)"
    assert asked(NOTHING._replace(vector=0x15, eax=0xEE12), read) == "INT 15h AH=eeh (from 0000:7c10)"
    key = NOTHING._replace(vector=0x16, eax=0x0100)
    assert answered(key, key._replace(flags=0x40)) == "INT 16h AH=01h returns CF=0 ZF=1"
    smap = NOTHING._replace(vector=0x15, eax=0xE820)
    assert answered(smap, smap._replace(eax=0x534D4150)) == "INT 15h AX=e820h returns CF=0 EAX=534d4150h"


def test_nothing_is_told_while_nobody_listens() -> None:
    rig = Rig()
    assert (rig.calls.read(0, 4), rig.log.read(0, 1)) == (1, 0xE9)
    rig.channel.enabled = False
    assert (rig.calls.read(0, 4), rig.log.read(0, 1)) == (0xFFFFFFFF, 0xFF)
    rig.call(0x1000, NOTHING)
    rig.log.write(0, 1, ord("x"))
    rig.channel.enabled = True
    rig.log.write(0, 1, ord("\n"))
    assert rig.lines == [""]


def test_a_log_is_lines() -> None:
    rig = Rig()
    for byte in b"SeaBIOS\x07\n" + b"a" * 250 + b"\n":
        rig.log.write(0, 1, byte)
    assert rig.lines == ["SeaBIOS.", "a" * 200, "a" * 50]


def test_calls_that_never_return_are_forgotten() -> None:
    rig = Rig()
    for n in range(DEEPEST + 1):
        rig.call(0x100 * n, NOTHING)
    rig.lines.clear()
    rig.call(0, NOTHING, returns=True)
    rig.call(0x100, NOTHING, returns=True)
    assert len(rig.lines) == 1


@given(st.binary(min_size=46, max_size=46), st.integers(0, 0xFFFFFFFF), st.sampled_from(sorted(CALLS, key=str)))
def test_whatever_the_guest_writes(data: bytes, where: int, call: tuple[int, int | None]) -> None:
    """Each call that there is, with registers of any value, at any address."""
    rig = Rig()
    vector, function = call
    rig.memory.write(0x1000, data)
    registers = Registers(*REGISTERS.unpack(data))
    function = 0 if function is None else function << 8 if function < 0x100 else function
    rig.call(0x1000, registers._replace(vector=vector, eax=registers.eax & 0xFFFF0000 | function))
    assert len(rig.lines) == 1
    rig.calls.write(0, 4, where)
    rig.calls.write(0, 4, 0x1000 | CALL_RETURNS)
    assert all("\n" not in line for line in rig.lines)
