"""A MachineConfig from Python: each wrong value is one line in Python's names; the command line has its own."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.cli.flags import in_flags
from pyvmm.config import _CHOICES, _KINDS, ConfigError, MachineConfig, Module
from pyvmm.errors import UserError
from pyvmm.units import GIB, MIB

FIELDS = [field.name for field in fields(MachineConfig)]
ANYTHING: list[Any] = [
    None, True, False, 0, 1, -1, 5, 1 << 70, 1.5, "", "x", "a\0b", "\udcff", b"x", object(), int, Path("x"),
    Path("a\0b"), (), ("x",), (1,), (("x", 1),), (("x", True),), [], ["x"], {}, {"x": 1}, set(), {"x"},
    frozenset(), frozenset({"irq"}), frozenset({"nope"}), frozenset({1}), frozenset({"a", 1}),
    Module("x"), Module(1), Module("x", 1), (Module("x"), "x"), (Path("x"), Path("y")),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "says", "flags"),
    [
        ({"irqchip": "usr"}, "MachineConfig(irqchip='usr'): there are kernel, split, user", "--irqchip usr: there are"),
        ({"cpus": 0}, "MachineConfig(cpus=0): a machine has 1 to 255 vCPUs", "-c 0: a machine"),
        ({"cpus": 256}, "MachineConfig(cpus=256): a machine has 1 to 255 vCPUs", "-c 256: a machine"),
        ({"cpus": True}, "MachineConfig(cpus=True): cpus is an int", "-c: cpus is"),
        ({"memory": 100}, "MachineConfig(memory=100): RAM is 1M to 64T, in bytes", "-m 100: RAM is"),
        ({"memory": 0}, "MachineConfig(memory=0): RAM is 1M to 64T, in bytes", "-m 0: RAM is"),
        (
            {"memory": 5 * MIB + 1},
            "MachineConfig(memory=5242881): RAM is 1M to 64T, in bytes a multiple of 4096",
            "-m 5242881:",
        ),
        (
            {"memory": "512M"},
            "MachineConfig(memory='512M'): memory is an int, in bytes, such as 512 << 20",
            "-m 512M: memory",
        ),
        ({"memory": 1e9}, "MachineConfig(memory=1000000000.0): memory is an int", "-m 1000000000.0: memory"),
        (
            {"devices": "x.py:X"},
            "MachineConfig(devices='x.py:X'): devices is a tuple of str, such as",
            "--device x.py:X: devices",
        ),
        ({"devices": ["x.py:X"]}, "MachineConfig(devices=['x.py:X']): devices is a tuple of str", "--device ["),
        ({"devices": (1,)}, "MachineConfig(devices=(1,)): each is a str", "--device 1:"),
        ({"kernel": "bzImage"}, "MachineConfig(kernel='bzImage'): kernel is a pathlib.Path or None", "-k bzImage:"),
        ({"kernel": Path("k"), "initrd": "x"}, "MachineConfig(initrd='x'): initrd is a pathlib.Path", "-i x:"),
        ({"kernel": Path("k"), "initrd": ("x", 1)}, "MachineConfig(initrd=('x', 1)): each is a", "-i 1,x:"),
        ({"tablet": 1}, "MachineConfig(tablet=1): tablet is a bool", "--tablet"),
        (
            {"tablet": True},
            "MachineConfig(tablet=True): there are no virtio input devices: add virtio_input='standard'",
            "--tablet: there are no virtio input devices: add --virtio-input standard",
        ),
        (
            {"input": "virtio"},
            "MachineConfig(input='virtio'): there are no virtio input devices: add virtio_input=",
            "--input virtio:",
        ),
        ({"root_ports": 5}, "MachineConfig(root_ports=5): there are at most 4 of them", "--root-ports 5:"),
        ({"trace": {"irq"}}, "MachineConfig(trace={'irq'}): trace is a frozenset of str", "--trace"),
        ({"guest_parameters": {"count": 3}}, "MachineConfig(guest_parameters={'count': 3}): guest_param", "--set"),
        (
            {"guest_parameters": (("count", "3"),)},
            "MachineConfig(guest_parameters=(('count', '3'),)): each is a tuple of a name and an",
            "--set",
        ),
        (
            {"cpus": 2, "irqchip": "user"},
            "MachineConfig(cpus=2, irqchip='user'): a PIC serves one CPU: ask for one",
            "-c 2 --irqchip user:",
        ),
        (
            {"initrd": Path("x")},
            "MachineConfig(initrd=PosixPath('x')): it goes with a kernel: add kernel='FILE'",
            "-i x: it goes with a kernel: add -k FILE",
        ),
        ({"kernel": Path("a\0b")}, "MachineConfig(kernel=PosixPath('a\\x00b')): there is a zero byte in it", "-k"),
        (
            {"memory_hugetlb": 4096},
            "MachineConfig(memory_hugetlb=4096): the host's huge pages are of 2M or 1G",
            "-m hugetlb=4K:",
        ),
        (
            {"memory": 3 * MIB, "memory_hugetlb": 2 * MIB},
            "MachineConfig(memory=3145728, memory_hugetlb=2097152): the size is no multiple of 2M",
            "-m 3M,hugetlb=2M: the size is no multiple of 2M",
        ),
        (
            {"memory_slots": 33, "max_memory": GIB},
            "MachineConfig(memory_slots=33): there are at most 32 of them",
            "-m SIZE,slots=33: there are at most 32 of them",
        ),
        (
            {"memory_slots": 2},
            "MachineConfig(memory_slots=2): they need to know how much memory there will be: add max_memory='SIZE'",
            "-m SIZE,slots=2: they need to know how much memory there will be: add -m SIZE,max=SIZE",
        ),
        (
            {"max_memory": GIB},
            "MachineConfig(max_memory=1073741824): memory is plugged into slots: add memory_slots='N'",
            "-m SIZE,max=1G: memory is plugged into slots: add -m SIZE,slots=N",
        ),
        (
            {"memory": GIB, "memory_slots": 1, "max_memory": GIB + 64 * MIB},
            "MachineConfig(memory=1073741824, max_memory=1140850688): there is no room for 128M more: ask",
            "-m 1G,max=1088M: there is no room for 128M more: ask for a larger max",
        ),
        (
            {"memory_slots": 1, "max_memory": 65 << 40},
            "MachineConfig(max_memory=71468255805440): it is up to 64T",
            "-m SIZE,max=66560G: it is up to 64T",
        ),
        ({"cmdline": "x" * 1000}, "MachineConfig(cmdline='xxx", "-p x"),
    ],
)
def test_what_is_wrong(wrong: dict[str, Any], says: str, flags: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MachineConfig(**wrong).check()
    assert str(caught.value).startswith(says), str(caught.value)
    assert in_flags(caught.value).startswith(flags), in_flags(caught.value)
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"memory": 64 << 40, "cpus": 255},
        {"memory": GIB, "memory_shared": True, "memory_hugetlb": GIB},
        {"memory": GIB, "memory_slots": 32, "max_memory": 64 << 40},
        {
            "kernel": Path("k"),
            "initrd": (Path("a"), Module(b"bytes", "args"), Module("path")),
            "cmdline": "x",
            "flat": "32",
        },
        {
            "guest": "pio",
            "guest_parameters": (("port", 1),),
            "devices": ("x.py:X",),
            "trace": frozenset({"all", "irq"}),
        },
        {"virtio_input": "aero", "tablet": True, "input": "virtio", "root_ports": 4, "irqchip": "split", "rng": True},
    ],
)
def test_what_is_right(right: dict[str, Any]) -> None:
    MachineConfig(**right).check()


def test_every_field_is_checked() -> None:
    assert sorted([*_KINDS, *_CHOICES]) == sorted(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_anything_in_each_field(field: str) -> None:
    """Nothing else than a ConfigError comes out, here and where the command line spells it."""
    for value in ANYTHING:
        try:
            MachineConfig(**{field: value}).check()
        except ConfigError as error:
            assert str(error).startswith("MachineConfig("), value
            assert re.match(r"-|GUEST", in_flags(error)), value


@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(ANYTHING)))
def test_anything_together(values: dict[str, Any]) -> None:
    try:
        MachineConfig(**values).check()
    except ConfigError as error:
        assert "\n" not in str(error) + in_flags(error)


def test_other_errors_are_as_they_were() -> None:
    assert in_flags(UserError("no -c here")) == "no -c here"


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2Jb", "\u202eb", "a\udcffb"])
def test_what_was_typed_is_made_printable(text: str) -> None:
    wrong: tuple[dict[str, Any], ...] = ({"guest": text}, {"kernel": Path(text), "guest": "hello"}, {"trace": text})
    for wrongly in wrong:
        with pytest.raises(UserError) as caught:
            MachineConfig(**wrongly).complete()
        assert in_flags(caught.value).isprintable()
