"""What a Linux kernel knows of itself, for a drgn program that has no debugging information, or not all of it.

Its symbols are in kallsyms (which VMCOREINFO leads to since Linux 6.0), its types in BTF (CONFIG_DEBUG_INFO_BTF), its
stack frames in ORC tables (CONFIG_UNWINDER_ORC, which drgn reads by itself). BTF has no types of variables but of those
that each processor has its own of; those that drgn's helpers ask for are here, as the kernel declares them. Each is
read when it is first asked for: it is some megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Generic, TypeVar

from drgn import (
    FindObjectFlags,
    Object,
    Program,
    Symbol,
    SymbolIndex,
    Type,
    TypeKindSet,
    filename_matches,
)
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms, module_kallsyms
from drgn.helpers.linux.module import for_each_module

from pyvmm.control.drgn.btf import Btf, BtfKind
from pyvmm.control.drgn.btf_types import BtfTypes
from pyvmm.report import vmcoreinfo
from pyvmm.report.symbols import LIMIT
from pyvmm.units import MIB

NAME: Final = "pyvmm"
"""Of our finders, in drgn's lists of them."""
BTF_LIMIT: Final = 64 * MIB
"""Bytes of types that are read; a kernel with everything built in has some 10 MiB."""
MODULES_LIMIT: Final = 4096
"""Modules whose symbols are read."""
VARIABLES: Final = {
    "__cpu_online_mask": "struct cpumask",
    "__cpu_possible_mask": "struct cpumask",
    "__cpu_present_mask": "struct cpumask",
    "__per_cpu_offset": "unsigned long []",
    "cgrp_dfl_root": "struct cgroup_root",
    "file_systems": "struct file_system_type *",
    "init_mm": "struct mm_struct",
    "init_net": "struct net",
    "init_nsproxy": "struct nsproxy",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "init_uts_ns": "struct uts_namespace",
    "iomem_resource": "struct resource",
    "ioport_resource": "struct resource",
    "jiffies": "volatile unsigned long",
    "jiffies_64": "u64",
    "linux_banner": "const char []",
    "modules": "struct list_head",
    "net_namespace_list": "struct list_head",
    "nr_cpu_ids": "unsigned int",
    "pci_root_buses": "struct list_head",
    "prb": "struct printk_ringbuffer *",
    "root_task_group": "struct task_group",
    "saved_command_line": "char *",
    "slab_caches": "struct list_head",
    "super_blocks": "struct list_head",
}
"""Variables of the kernel by name, and their types (include/linux, kernel, mm, fs)."""


T = TypeVar("T")


class _Once(Generic[T]):
    """What *make* makes when it is first asked for; *nothing* to who asks while it is being made, and where it cannot
    be."""

    def __init__(self, make: Callable[[], T], nothing: T) -> None:
        self._make = make
        self._made = nothing
        self._asked = False
        self.busy = False

    def __call__(self) -> T:
        if not self._asked:
            self._asked = self.busy = True
            try:
                self._made = self._make()
            # A kernel that is too old, or damaged; libdrgn has many kinds of these, plain Exception too.
            except Exception:
                pass
            finally:
                self.busy = False
        return self._made


class Kernel:
    """The kernel that *program* is about, which says of itself what is in *info*, its VMCOREINFO."""

    def __init__(self, program: Program, info: bytes) -> None:
        self._program = program
        self._lines = vmcoreinfo.parse(info)
        self._symbols: _Once[SymbolIndex] = _Once(self._read_symbols, SymbolIndex([]))
        self._loaded: list[int] = []
        self._modules: _Once[SymbolIndex] = _Once(self._read_modules, SymbolIndex([]))
        self._types: _Once[BtfTypes | None] = _Once(self._read_types, None)

    def register(self) -> None:
        """Let *program* ask here for what nobody else knows."""
        last = -1
        self._program.register_symbol_finder(NAME, self._find_symbol, enable_index=last)
        self._program.register_type_finder(NAME, self._find_type, enable_index=last)
        self._program.register_object_finder(NAME, self._find_object, enable_index=last)

    def place(self) -> None:
        """Tell *program* where the code of the kernel and of the modules that are loaded is, unless debugging
        information has: else it unwinds no stack by ORC."""
        kernel = self._program.main_module("kernel", create=True)
        start, end = self._address("_stext"), self._address("_end")
        if kernel.address_ranges is None and start is not None and end is not None and start < end:
            kernel.address_ranges = [(start, end)]
        try:
            self._program.create_loaded_modules()
        except Exception:  # it is not that far yet, has no types, or its list is damaged
            pass

    def _read_symbols(self) -> SymbolIndex:
        at = vmcoreinfo.symbol(self._lines, "kallsyms_num_syms")
        if at is None or self._program.read_u32(at) > LIMIT:
            raise LookupError("this kernel does not say where its kallsyms is")
        return load_vmlinux_kallsyms(self._program)

    def _read_types(self) -> BtfTypes | None:
        start, stop = self._address("__start_BTF"), self._address("__stop_BTF")
        if start is None or stop is None or not 0 < stop - start <= BTF_LIMIT:
            return None
        return BtfTypes(self._program, Btf(self._program.read(start, stop - start)))

    def _address(self, name: str) -> int | None:
        found = self._symbols()(self._program, name, None, True)
        return found[0].address if found else None

    def _module_list(self) -> list[Object]:
        return list(islice(for_each_module(self._program), MODULES_LIMIT))

    def _read_modules(self) -> SymbolIndex:
        modules = self._module_list()
        self._loaded = [module.value_() for module in modules]
        return SymbolIndex(symbol for module in modules for symbol in module_kallsyms(module))

    def _of_modules(self) -> SymbolIndex:
        """As they are now: a module may have come since it was last asked."""
        if not self._modules.busy:
            try:
                if [module.value_() for module in self._module_list()] != self._loaded:
                    self._modules = _Once(self._read_modules, SymbolIndex([]))
            except Exception:  # without types there is no list
                pass
        return self._modules()

    # What drgn calls

    def _find_symbol(self, program: Program, name: str | None, address: int | None, one: bool) -> Sequence[Symbol]:
        found: Sequence[Symbol] = self._symbols()(program, name, address, one)
        return found if one and found else [*found, *self._of_modules()(program, name, address, one)]

    def _known_types(self, filename: str | None) -> BtfTypes | None:
        """None to who asks for those of a source file, and to what reads the symbols, which are needed first."""
        return self._types() if filename_matches(None, filename) and not self._symbols.busy else None

    def _find_type(self, program: Program, kinds: TypeKindSet, name: str, filename: str | None) -> Type | None:
        types = self._known_types(filename)
        return None if types is None else types.find(kinds, name)

    def _find_object(self, program: Program, name: str, flags: FindObjectFlags, filename: str | None) -> Object | None:
        types = self._known_types(filename)
        if types is None:
            return None
        constant = types.enumerator(name) if flags & FindObjectFlags.CONSTANT else None
        if constant is not None:
            return constant
        declared: Type | str | None = None
        if flags & FindObjectFlags.VARIABLE:
            declared = VARIABLES.get(name) or types.declared(name, BtfKind.VAR)
        if declared is None and flags & FindObjectFlags.FUNCTION:
            declared = types.declared(name, BtfKind.FUNC)
        address = None if declared is None else self._address(name)
        return None if declared is None or address is None else Object(program, declared, address=address)
