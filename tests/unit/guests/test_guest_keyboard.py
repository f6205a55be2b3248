"""The keyboard driver of guests/keyboard: kbd.c as it is, built for this host, with ports and interrupts of a test."""

from __future__ import annotations

import ctypes
import subprocess
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCE = Path(__file__).resolve().parents[3] / "guests/keyboard"
SIZE = 128
CTRL_C, CTRL_D = 3, 4
EOF, KILLED = -1, -2
SHIFT, RIGHT_SHIFT, CTRL, CAPS = 0x2A, 0x36, 0x1D, 0x3A
RELEASED = 0x80

HOST = r"""
#include "io.h"
#include "kbd.h"
#include "screen.h"

static uint8_t codes[1 << 16];      /* what the keyboard will send */
static int first, last, locked, faults, echoed, writes;
static uint8_t echo[1 << 16];
static uint32_t written[16];
static uint8_t more_status;
static struct { uint8_t before[64]; struct kbd kbd; uint8_t after[64]; } guarded;

uint8_t inb(uint16_t port)
{
    if (port == 0x64)
        return (first < last) | more_status;
    if (port != 0x60 || first == last) {
        faults++;
        return 0xFF;
    }
    return codes[first++];
}
void outb(uint16_t port, uint8_t value) { if (writes < 16) written[writes++] = port << 8 | value; }
void lock(void) { locked = 1; }
void unlock(void) { locked = 0; }
void wait_for_interrupt(void)
{
    if (!locked)
        faults++;
    if (first < last)
        kbd_handler(&guarded.kbd);
    else                            /* nobody will ever type again: end what waits, and say so */
        faults++, kbd_input(&guarded.kbd, 4), kbd_input(&guarded.kbd, 3);
}
void kputc(char c) { if (echoed < (int)sizeof echo) echo[echoed++] = c; }
void kputs(const char *text) { while (*text) kputc(*text++); }

struct kbd *start(void)
{
    first = last = locked = faults = echoed = writes = more_status = 0;
    for (unsigned i = 0; i < sizeof guarded.before; i++)
        guarded.before[i] = guarded.after[i] = 0xA5;
    kbd_init(&guarded.kbd, 0x60);
    return &guarded.kbd;
}
void send(int code) { codes[last++] = code; }
void interrupt(void) { kbd_handler(&guarded.kbd); first = last = 0; }
void status(int bits) { more_status = bits; }
int unread(void) { return last - first; }
int is_locked(void) { return locked; }
uint32_t nth_write(int i) { return i < writes ? written[i] : 0; }
int echo_length(void) { return echoed; }
uint8_t echo_at(int i) { return echo[i]; }
int wrong(void)
{
    for (unsigned i = 0; i < sizeof guarded.before; i++)
        faults += guarded.before[i] != 0xA5 || guarded.after[i] != 0xA5;
    return faults;
}
unsigned kbd_size(void) { return sizeof(struct kbd); }
"""


class Kbd(ctypes.Structure):
    """struct kbd of kbd.h"""

    base: int
    head: int
    tail: int
    data: int
    room: int
    killed: int
    dropped: int
    _fields_ = (
        ("base", ctypes.c_uint16),
        ("buf", ctypes.c_uint8 * SIZE),
        ("head", ctypes.c_int),
        ("tail", ctypes.c_int),
        ("data", ctypes.c_int),
        ("room", ctypes.c_int),
        ("killed", ctypes.c_int),
        ("dropped", ctypes.c_uint),
        ("shift", ctypes.c_uint8),
        ("ctrl", ctypes.c_uint8),
        ("caps", ctypes.c_uint8),
        ("extended", ctypes.c_uint8),
        ("skip", ctypes.c_uint8),
    )


class Driver:
    """The driver just initialized, at the end of a wire that the test sends scan codes over."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.start.restype = ctypes.POINTER(Kbd)
        self.pointer = library.start()
        self.kbd: Kbd = self.pointer.contents

    def interrupt(self, *codes: int) -> None:
        """One interrupt for each of the codes."""
        for code in codes:
            self.library.send(code)
            self.library.interrupt()

    def send(self, *codes: int) -> None:
        """Codes that come while kgetc sleeps."""
        for code in codes:
            self.library.send(code)

    def getc(self) -> int:
        return int(self.library.kgetc(self.pointer))

    def gets(self, size: int) -> tuple[int, bytes]:
        line = ctypes.create_string_buffer(b"\xee" * (size + 8), size + 8)
        length = self.library.kgets(self.pointer, line, size)
        assert line.raw[size:] == b"\xee" * 8
        return length, line.raw[: line.raw.index(b"\0")]

    @property
    def echo(self) -> bytes:
        return bytes(self.library.echo_at(i) & 0xFF for i in range(self.library.echo_length()))

    def check(self) -> None:
        kbd = self.kbd
        assert kbd.data + kbd.room == SIZE
        assert 0 <= kbd.data <= SIZE
        assert 0 <= kbd.head < SIZE
        assert 0 <= kbd.tail < SIZE
        assert (kbd.head - kbd.tail - kbd.data) % SIZE == 0
        assert not self.library.is_locked()
        assert self.library.wrong() == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("kbd")
    (folder / "host.c").write_text(HOST)
    shared = folder / "libkbd.so"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-DHOSTED", "-shared", "-fPIC"]
    sources = [str(SOURCE / "kbd.c"), str(folder / "host.c")]
    subprocess.run(["gcc", *flags, f"-I{SOURCE}", *sources, "-o", str(shared)], check=True)
    library = ctypes.CDLL(str(shared))
    assert library.kbd_size() == ctypes.sizeof(Kbd)
    return library


KEYS: dict[str, tuple[int, bool]] = {" ": (0x39, False), "\n": (0x1C, False), "\b": (0x0E, False), "\t": (0x0F, False)}
"""Character -> key of a US keyboard, and whether with shift."""
for base, plain, shifted in (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
):
    KEYS |= {c: (base + i, False) for i, c in enumerate(plain)} | {c: (base + i, True) for i, c in enumerate(shifted)}


def press(key: int) -> list[int]:
    return [key, key | RELEASED]


def typed(text: str, shift: int = SHIFT) -> list[int]:
    codes = []
    for c in text:
        key, with_shift = KEYS[c]
        codes += [shift, *press(key), shift | RELEASED] if with_shift else press(key)
    return codes


def control(letter: str) -> list[int]:
    return [CTRL, *press(KEYS[letter][0]), CTRL | RELEASED]


texts = st.text(st.sampled_from(sorted(KEYS)), max_size=SIZE)


def test_init_empties_the_controller_and_turns_its_interrupt_on(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    assert (driver.kbd.base, driver.kbd.data, driver.kbd.room) == (0x60, 0, SIZE)
    assert [library.nth_write(i) for i in range(3)] == [0x6460, 0x6045, 0]
    driver.send(1, 2, 3)
    library.kbd_init(driver.pointer, 0x60)
    assert library.unread() == 0
    driver.check()


def test_every_key_of_the_table(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    for c in KEYS:
        driver.interrupt(*typed(c))
        assert chr(driver.getc()) == c
    driver.check()


@settings(max_examples=60, deadline=None)
@given(texts, st.sampled_from([SHIFT, RIGHT_SHIFT]), st.booleans())
def test_what_is_typed_is_what_is_read(library: ctypes.CDLL, text: str, shift: int, asleep: bool) -> None:
    driver = Driver(library)
    (driver.send if asleep else driver.interrupt)(*typed(text, shift))
    assert [chr(driver.getc()) for _ in text] == list(text)
    driver.check()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.sampled_from("abcXYZ 1!"), st.just("full")), max_size=60))
def test_order_is_kept_and_what_finds_no_room_is_dropped(library: ctypes.CDLL, steps: list[str | None]) -> None:
    driver = Driver(library)
    model: deque[str] = deque()
    dropped = 0
    for step in steps:
        if step is None:
            if model:
                assert chr(driver.getc()) == model.popleft()
            continue
        for c in "0123456789" * 12 if step == "full" else step:
            driver.interrupt(*typed(c))
            if len(model) < SIZE:
                model.append(c)
            else:
                dropped += 1
        assert (driver.kbd.data, driver.kbd.dropped) == (len(model), dropped)
        driver.check()
    while model:
        assert chr(driver.getc()) == model.popleft()
    assert driver.kbd.data == 0
    driver.check()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_leave_the_driver_whole(library: ctypes.CDLL, noise: bytes) -> None:
    driver = Driver(library)
    driver.interrupt(*noise)
    driver.check()
    while driver.kbd.data:
        assert 0 < driver.getc() < 128
    driver.check()
    # whatever was half-sent or held ends, and it types again
    driver.interrupt(0, 0, 0, *(key | RELEASED for key in (SHIFT, RIGHT_SHIFT, CTRL)), 0xE0, CTRL | RELEASED)
    driver.interrupt(*typed("1"))
    assert chr(driver.getc()) == "1"


def test_both_shifts_caps_lock_and_what_has_no_character(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    a = press(KEYS["a"][0])
    driver.interrupt(SHIFT, RIGHT_SHIFT, SHIFT | RELEASED, *a, RIGHT_SHIFT | RELEASED, *a)
    driver.interrupt(*press(CAPS), *a, SHIFT, *a, SHIFT | RELEASED, *press(KEYS["1"][0]), *press(CAPS), *a)
    left, pause = [0xE0, 0x4B, 0xE0, 0x4B | RELEASED], [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]
    print_screen = [0xE0, 0x2A, 0xE0, 0x37, 0xE0, 0xB7, 0xE0, 0xAA]
    driver.interrupt(*left, *pause, *print_screen, *press(0x3B), *a, SHIFT, 0xE0, 0x35, SHIFT | RELEASED, 0xE0, 0x1C)
    assert "".join(chr(driver.getc()) for _ in range(9)) == "AaAa1aa/\n"
    assert driver.kbd.data == 0
    driver.check()


def test_an_interrupt_without_a_byte_and_a_byte_of_the_mouse(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    library.interrupt()
    driver.check()
    library.status(0x20)
    driver.interrupt(KEYS["a"][0])
    assert driver.kbd.data == 0
    library.status(0)
    driver.interrupt(KEYS["a"][0])
    assert driver.getc() == ord("a")
    driver.check()


def test_control_c_throws_away_what_was_typed_ahead_and_finds_room(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    driver.interrupt(*typed("x" * (SIZE + 5)))
    assert (driver.kbd.room, driver.kbd.dropped) == (0, 5)
    driver.interrupt(*control("c"), *typed("ab"))
    assert driver.kbd.killed == 1
    assert [driver.getc() for _ in range(3)] == [CTRL_C, ord("a"), ord("b")]
    driver.check()


def test_right_control_is_one_too(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    driver.interrupt(0xE0, CTRL, *press(KEYS["d"][0]), 0xE0, CTRL | RELEASED, *press(KEYS["d"][0]))
    assert [driver.getc(), driver.getc()] == [CTRL_D, ord("d")]


def test_gets_echoes_a_line_and_edits_it(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    driver.send(*typed("\bLs -x\b\bl\n"))
    assert driver.gets(20) == (4, b"Ls l")
    assert driver.echo == b"Ls -x\b \b\b \bl\n"
    driver.check()


def test_gets_keeps_to_its_size(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    driver.send(*typed("abcdefgh\b\n"))
    assert driver.gets(5) == (3, b"abc")
    driver.check()


def test_gets_ends_by_control_c_and_control_d(library: ctypes.CDLL) -> None:
    driver = Driver(library)
    driver.send(*typed("abc"), *control("c"))
    assert driver.gets(20) == (KILLED, b"")
    assert driver.kbd.killed == 0
    driver.send(*typed("abc"), *control("d"))
    assert driver.gets(20) == (3, b"abc")
    driver.send(*control("d"))
    assert driver.gets(20) == (EOF, b"")
    driver.check()


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 40))
def test_gets_gives_the_line_that_was_typed(library: ctypes.CDLL, text: str, size: int) -> None:
    driver = Driver(library)
    line = ""
    for c in text.partition("\n")[0]:
        if c == "\b":
            line = line[:-1]
        elif c != "\t" and len(line) < size - 1:
            line += c
    driver.send(*typed(text.partition("\n")[0] + "\n"))
    assert driver.gets(size) == (len(line), line.encode())
    driver.check()
