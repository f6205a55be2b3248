"""BTF that is being written."""

from __future__ import annotations

import struct

from pyvmm.control.drgn.btf import BtfKind

SIGNED, BOOL = 1, 4


class Table:
    """Each method returns the number of the type that it adds."""

    def __init__(self) -> None:
        self.types: list[bytes] = []
        self.strings = bytearray(b"\0")

    def text(self, name: str) -> int:
        if not name:
            return 0
        self.strings += name.encode() + b"\0"
        return len(self.strings) - len(name) - 1

    def add(
        self, kind: int, name: str = "", size: int = 0, rest: bytes = b"", vlen: int = 0, flag: bool = False
    ) -> int:
        self.types.append(struct.pack("<III", self.text(name), flag << 31 | kind << 24 | vlen, size) + rest)
        return len(self.types)

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(BtfKind.INT, name, size, struct.pack("<I", encoding << 24 | 8 * size))

    def array(self, element: int, count: int) -> int:
        return self.add(BtfKind.ARRAY, rest=struct.pack("<III", element, 1, count))

    def composite(self, kind: BtfKind, name: str, size: int, *members: tuple[str, int, int], flag: bool = False) -> int:
        rest = b"".join(struct.pack("<III", self.text(member), number, offset) for member, number, offset in members)
        return self.add(kind, name, size, rest, len(members), flag)

    def pairs(self, kind: BtfKind, name: str, size: int, *pairs: tuple[str, int], flag: bool = False) -> int:
        form = "<Iq" if kind == BtfKind.ENUM64 else "<Ii"
        rest = b"".join(struct.pack(form, self.text(each), value) for each, value in pairs)
        return self.add(kind, name, size, rest, len(pairs), flag)

    def bytes(self) -> bytes:
        types = b"".join(self.types)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings))
        return header + types + bytes(self.strings)


def kernel_like() -> Table:
    table = Table()
    char, number = table.integer("char", 1, SIGNED), table.integer("unsigned int", 4)
    table.integer("_Bool", 1, BOOL)
    text = table.array(char, 16)
    task = table.composite(
        BtfKind.STRUCT, "task_struct", 32, ("pid", number, 0), ("comm", text, 32), ("next", len(table.types) + 2, 192)
    )
    assert table.add(BtfKind.PTR, size=task) == task + 1
    table.add(BtfKind.TYPEDEF, "task_t", task)
    table.composite(BtfKind.UNION, "both", 4, ("a", number, 0), ("b", char, 0))
    table.composite(
        BtfKind.STRUCT, "bits", 4, ("low", number, 3 << 24), ("high", number, 5 << 24 | 3), flag=True
    )  # fmt: skip
    table.pairs(BtfKind.ENUM, "pid_type", 4, ("PIDTYPE_PID", 0), ("PIDTYPE_MAX", 4))
    table.pairs(BtfKind.ENUM, "below", 4, ("BELOW", -1), flag=True)
    table.pairs(BtfKind.ENUM64, "large", 8, ("LARGE", 1 << 40))
    table.add(BtfKind.FLOAT, "double", 8)
    constant = table.add(BtfKind.CONST, size=table.add(BtfKind.VOLATILE, size=number))
    table.add(BtfKind.TYPEDEF, "fixed", constant)
    table.add(BtfKind.VAR, "runqueues", task, struct.pack("<I", 1))
    prototype = table.pairs(BtfKind.FUNC_PROTO, "", number, ("task", task + 1), ("", 0))
    table.add(BtfKind.FUNC, "printk", prototype)
    table.add(BtfKind.TYPEDEF, "elsewhere_t", table.add(BtfKind.FWD, "elsewhere"))
    table.add(BtfKind.TYPEDEF, "ahead_t", table.add(BtfKind.FWD, "both", flag=True))
    table.add(BtfKind.DECL_TAG, "tag", task, struct.pack("<i", -1))
    table.add(BtfKind.DATASEC, ".data..percpu", 0, struct.pack("<III", 1, 0, 32), 1)
    table.add(BtfKind.TYPEDEF, "tagged", table.add(BtfKind.TYPE_TAG, "user", number))
    table.add(BtfKind.TYPEDEF, "flexible", table.array(number, 0))
    table.add(BtfKind.TYPEDEF, "kept_t", table.add(BtfKind.RESTRICT, size=task + 1))
    return table
