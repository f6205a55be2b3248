"""What a value on the command line means: sizes, counts, times, short forms of --device; ValueError where nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvmm.config import MAX_CPUS, MAX_MEMORY, MAX_MEMORY_SLOTS, MIN_MEMORY
from pyvmm.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from pyvmm.config import FwCfgFile, Module

SUFFIXES = {"K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}

BUSES = {"virtio": "virtio-blk", "ata": "ata-disk"}
"""What --disk calls the ways to a disk, and the devices that have them."""
CARDS: Final = {"virtio": "virtio-net", "ne2k": "ne2k"}
"""What model= of --net says."""
FLOPPY_MOST: Final = 2880 * KIB
"""Bytes of the largest floppy that a PC's BIOS knows (36 sectors of 80 cylinders and two heads)."""
WAIT = ",wait"
"""Of --gdb WHERE."""


def parse_size(text: str) -> int:
    """512M, 2G, 2GiB, 1048576: bytes, a multiple of 4 KiB; ValueError says what is wrong. Each is 1024 of the next."""
    unit = text.upper()
    for end in ("IB", "B"):
        unit = unit.removesuffix(end)
    digits, factor = text, MIB
    if unit and unit[-1] in SUFFIXES:
        digits, factor = unit[:-1], SUFFIXES[unit[-1]]
    try:
        size = int(digits) * factor
    except ValueError:
        raise ValueError(f"{text!r} is no size: write it as 512M or 2G") from None
    if size < MIN_MEMORY:
        raise ValueError(f"{text!r} is too little: a PC needs 1M at least")
    if size > MAX_MEMORY:
        raise ValueError(f"{text!r} is more than the 64T that a guest can address")
    if size % 4096:
        raise ValueError(f"{text!r} is no multiple of 4 KiB")
    return size


class Memory(NamedTuple):
    """What -m says: sizes in bytes."""

    size: int | None
    shared: bool = False
    hugetlb: int | None = None
    """The size of the host's pages."""
    slots: int = 0
    most: int | None = None
    """With all that is plugged in."""


def parse_memory(text: str) -> Memory:
    """SIZE[,shared][,hugetlb[=2M|1G]][,slots=N,max=SIZE]; ValueError says what is wrong."""
    size, *options = text.split(",")
    _check_once(options)
    memory = Memory(parse_size(size))
    for option in options:
        match option:
            case "shared":
                memory = memory._replace(shared=True)
            case "hugetlb" | "hugetlb=2M":
                memory = memory._replace(hugetlb=2 * MIB)
            case "hugetlb=1G":
                memory = memory._replace(hugetlb=GIB)
            case _ if option.startswith("slots="):
                memory = memory._replace(slots=_slots(option.removeprefix("slots=")))
            case _ if option.startswith("max="):
                memory = memory._replace(most=parse_size(option.removeprefix("max=")))
            case _:
                raise ValueError(
                    f"{option!r} is nothing to say of RAM: shared, hugetlb (pages of 2 MiB) or hugetlb=1G, and "
                    "slots=N,max=SIZE"
                )
    return memory


def _check_once(options: list[str]) -> None:
    """ValueError where a key is there twice, of which only the last would count."""
    keys = [option.partition("=")[0] for option in options]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is there twice")


def _slots(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_MEMORY_SLOTS:
        raise ValueError(f"{text!r} is no number of slots for memory: 1 to {MAX_MEMORY_SLOTS}")
    return int(text)


def parse_count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= MAX_CPUS:
        raise ValueError(f"{text!r} is no number of vCPUs: 1 to {MAX_CPUS}")
    return count


class Cpus(NamedTuple):
    """What -c says."""

    present: int
    """From the start."""
    most: int | None = None


def parse_cpus(text: str) -> Cpus:
    """N[,max=M]; ValueError says what is wrong."""
    present, *options = text.split(",")
    _check_once(options)
    cpus = Cpus(parse_count(present))
    for option in options:
        key, _, value = option.partition("=")
        if key != "max":
            raise ValueError(f"{option!r} is nothing to say of vCPUs: N, or N,max=M where more may be plugged in")
        cpus = cpus._replace(most=parse_count(value))
    if cpus.most is not None and cpus.most < cpus.present:
        raise ValueError(f"{text!r}: there are more vCPUs than there may be")
    return cpus


def parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ValueError(f"{text!r} is no time: seconds, more than 0")
    return seconds


def parse_disk(text: str) -> str:
    """PATH[,KEY=VALUE...]: a virtio-blk, or with bus=ata an ata-disk, as --device has it. ValueError says what is
    wrong."""
    path, *words = text.split(",")
    if not path:
        raise ValueError(f"{text!r} names no file or block device: PATH[,readonly][,temporary]...")
    buses = [word.partition("=")[2] for word in words if word.partition("=")[0] == "bus"]
    if len(buses) > 1 or not {*buses} <= {*BUSES}:
        raise ValueError(f"{text!r}: bus= is one of {', '.join(BUSES)}")
    words = [word for word in words if word.partition("=")[0] != "bus"]
    return ",".join([f"{BUSES[buses[0] if buses else 'virtio']},path={path}", *words])


def parse_floppy(text: str) -> str:
    """PATH[,KEY=VALUE...]: a floppy as --device has it. ValueError says what is wrong."""
    if text.startswith(",") or not text:
        raise ValueError(f"{text!r} names no file or block device: PATH[,readonly][,temporary]...")
    return f"floppy,path={text}"


def is_disk_file(text: str) -> bool:
    """Whether what was written where a guest's name goes is a file or block device, which no guest is."""
    path = Path(text)
    return not text.replace("-", "").isalnum() and (path.is_file() or path.is_block_device())


def boot_disk(path: str) -> str:
    """The device that a file to boot is: a floppy where its size is one's, else a disk, as a block device is."""
    file = Path(path)
    return parse_floppy(path) if file.is_file() and file.stat().st_size <= FLOPPY_MOST else parse_disk(path)


def parse_net(text: str) -> str:
    """user|tap|socket:PATH[,KEY=VALUE...]: a network card as --device has it. ValueError says what is wrong."""
    to, *words = text.split(",")
    if not to:
        raise ValueError(f"{text!r} names no network: user, tap or socket:PATH")
    models = [word.removeprefix("model=") for word in words if word.startswith("model=")]
    model = models[-1] if models else "virtio"
    if model not in CARDS:
        raise ValueError(f"{text!r}: there is no card {model}: there are {', '.join(CARDS)}")
    rest = [word for word in words if not word.startswith("model=")]
    return ",".join([CARDS[model], f"to={to}", *rest])


def parse_module(text: str) -> Path | Module:
    """FILE, or FILE ARGUMENTS; a file whose name has spaces goes first. ValueError for a list as QEMU takes it."""
    from pyvmm.config import Module

    file, _, words = text.partition(" ")
    if not words or Path(text).exists():
        file, words = text, ""
    if "," in file and not Path(file).exists() and Path(file.partition(",")[0]).exists():
        raise ValueError(f"{text!r} is a list of files: give each its own -i")
    return Module(Path(file), words) if words else Path(file)


def parse_fw_cfg(text: str) -> FwCfgFile:
    """name=NAME,file=PATH or name=NAME,string=TEXT, with all that follows; ValueError says what is wrong."""
    from pyvmm.config import FwCfgFile

    name, _, rest = text.partition(",")
    kind, equals, value = rest.partition("=")
    if not name.startswith("name=") or kind not in ("file", "string") or not equals:
        raise ValueError(f"{text!r}: write it as name=opt/NAME,file=PATH or name=opt/NAME,string=TEXT")
    return FwCfgFile(name.removeprefix("name="), Path(value) if kind == "file" else os.fsencode(value))


def parse_gdb(text: str) -> tuple[str, bool]:
    """WHERE[,wait]: where gdb may connect, and whether the guest waits for it."""
    return text.removesuffix(WAIT), text.endswith(WAIT)
