"""KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG: break-points, watch-points, single steps; and what else a debugger asks."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvm_cffi import Debugregs, KvmError, Translation, constants
from kvm_cffi.exits import Debug, InternalError, Shutdown
from pyvmm.vcpu.cpuid import phys_bits
from pyvmm.vcpu.paging import CR0_PG, CR4_PAE, CR4_PSE, EFER_NXE, NX, PS, P, U, W, walk
from tests.rig.rig import EMULATED, HARDWARE, Rig

DB, BP = 1, 3
"""Exception vectors."""
TRAPS_INT3 = HARDWARE and not EMULATED
BREAKS_AT_CODE = not EMULATED
BREAKS_AT_DATA = HARDWARE and not EMULATED
"""What a KVM can: the emulator of a software-backed one breaks at instructions only, QEMU's SVM at nothing."""
DR6_BS = 1 << 14
DR6_FIXED = 0xFFFF0FF0
DR7_G0, DR7_G1 = 1 << 1, 1 << 3
DR7_WRITE_0 = 1 << 16
DR7_LEN_4_0 = 3 << 18
ENABLE = constants.KVM_GUESTDBG_ENABLE
STEP = ENABLE | constants.KVM_GUESTDBG_SINGLESTEP
HARDWARE_BREAKPOINTS = ENABLE | constants.KVM_GUESTDBG_USE_HW_BP
SOFTWARE_BREAKPOINTS = ENABLE | constants.KVM_GUESTDBG_USE_SW_BP


def test_hardware_breakpoint_each_time_round() -> None:
    with Rig("debug") as rig:
        vcpu, watched = rig.vcpu, rig.symbol("watched")
        for turns in range(16):
            vcpu.set_guest_debug(HARDWARE_BREAKPOINTS, (watched, 0, 0, 0, 0, 0, 0, DR7_G0))
            if not BREAKS_AT_CODE:
                break
            exit = vcpu.run()
            assert isinstance(exit, Debug)
            assert (exit.exception, exit.pc) == (DB, watched)
            assert exit.dr6 & 0xF == 1, "break-point 0"
            assert (vcpu.get_regs().rip, vcpu.get_regs().rcx) == (watched, 16 - turns)
            assert rig.value("variable") == turns
            vcpu.set_guest_debug(STEP)  # past it, as a debugger does
            assert isinstance(vcpu.run(), Debug)
        vcpu.set_guest_debug(0)
        assert rig.run() == ([], 0), "taken back, a break-point stops nobody"
        assert rig.value("variable") == 16


def test_which_of_two_breakpoints_it_was() -> None:
    with Rig("debug") as rig:
        watched = rig.symbol("watched")
        rig.vcpu.set_guest_debug(HARDWARE_BREAKPOINTS, (0x9000, watched, 0, 0, 0, 0, 0, DR7_G0 | DR7_G1))
        if BREAKS_AT_CODE:
            exit = rig.vcpu.run()
            assert isinstance(exit, Debug)
            assert exit.dr6 & 0xF == 2
        assert rig.vcpu.get_debugregs().db == (0, 0, 0, 0), "the guest's own are not touched"


def test_watchpoint() -> None:
    with Rig("debug") as rig:
        control = DR7_G0 | DR7_WRITE_0 | DR7_LEN_4_0
        rig.vcpu.set_guest_debug(HARDWARE_BREAKPOINTS, (rig.symbol("variable"), 0, 0, 0, 0, 0, 0, control))
        for turn in range(1, 17 if BREAKS_AT_DATA else 1):
            exit = rig.vcpu.run()
            assert isinstance(exit, Debug)
            assert exit.exception == DB
            assert exit.dr6 & 0xF == 1
            assert exit.pc == rig.vcpu.get_regs().rip
            assert rig.value("variable") == turn, "a trap: the write has happened"
        if EMULATED:
            rig.vcpu.set_guest_debug(0)
        assert rig.run() == ([], 0)


def test_single_steps() -> None:
    """nop; incl; loop: three steps a turn."""
    with Rig("debug") as rig:
        vcpu, watched = rig.vcpu, rig.symbol("watched")
        vcpu.set_guest_debug(STEP)
        while vcpu.get_regs().rip != watched:
            assert isinstance(vcpu.run(), Debug)
        places = []
        for _ in range(9):
            exit = vcpu.run()
            assert isinstance(exit, Debug)
            assert exit.exception == DB
            assert exit.dr6 & DR6_BS
            assert exit.pc == vcpu.get_regs().rip
            places.append(exit.pc)
        assert places == [watched + 1, watched + 6, watched] * 3
        assert rig.value("variable") == 3
        vcpu.set_guest_debug(0)
        assert rig.run() == ([], 0)
        assert not vcpu.get_regs().rflags & 1 << 8, "no TF left behind"


def test_software_breakpoint() -> None:
    """INT3 is an exit where the processor traps it; QEMU's emulated SVM does not, nor does software-backed KVM, whose
    emulator gives it to a guest in real mode and cannot in long mode."""
    with Rig("int3") as rig:
        rig.vcpu.set_guest_debug(SOFTWARE_BREAKPOINTS)
        if not TRAPS_INT3:
            assert rig.run() == ([], 0)
            assert rig.value("taken") == 1
            return
        exit = rig.vcpu.run()
        assert isinstance(exit, Debug)
        assert (exit.exception, exit.pc) == (BP, rig.symbol("breakpoint"))
        assert rig.vcpu.get_regs().rip == rig.symbol("breakpoint"), "a monitor would put the instruction back"
        assert rig.value("taken") == 0


def test_software_breakpoint_in_long_mode() -> None:
    with Rig() as rig:
        rig.code("90 cc", mode="long")
        rig.vcpu.set_guest_debug(SOFTWARE_BREAKPOINTS)
        exit = rig.vcpu.run()
        if TRAPS_INT3:
            assert isinstance(exit, Debug)
            assert (exit.exception, exit.pc) == (BP, 0x1001)
        elif HARDWARE:
            assert exit == Shutdown(), "there is no IDT"
        else:
            assert isinstance(exit, InternalError)
            assert exit.insn_bytes[:1] == b"\xcc"


def test_int3_is_the_guests_own_where_nobody_asked() -> None:
    with Rig("int3") as rig:
        assert rig.run() == ([], 0)
        assert rig.value("taken") == 1


def test_the_guests_own_debug_registers() -> None:
    with Rig() as rig:
        wanted = Debugregs((0x1111, 0x2222, 0x3333, 0x4444), DR6_FIXED | 2, 0x400 | DR7_G1)
        rig.vcpu.set_debugregs(wanted)
        assert rig.vcpu.get_debugregs() == wanted
        with pytest.raises(KvmError, match="KVM_SET_DEBUGREGS"):
            rig.vcpu.set_debugregs(Debugregs((0, 0, 0, 0), DR6_FIXED | 1 << 32, 0x400))


def test_translate_walks_the_guests_page_tables() -> None:
    with Rig() as rig:
        rig.code("f4", mode="long")
        assert rig.vcpu.translate(0x1234) == Translation(0x1234, True, True, False)
        assert rig.vcpu.translate(0xFFFFF000) == Translation(0xFFFFF000, True, True, False), "the tables end at 4 GiB"
        assert not rig.vcpu.translate(1 << 32).valid
        tables = rig.vcpu.get_sregs().cr3
        rig.memory.write_int(tables + 2 * 4096, 8, 0x600000 | 0x80 | 1)  # the first 2 MiB: at 6 MiB, read-only
        rig.vcpu.set_sregs(rig.vcpu.get_sregs())
        moved = rig.vcpu.translate(0x1234)
        assert (moved.physical_address, moved.valid) == (0x601234, True)


def test_translate_without_paging() -> None:
    with Rig() as rig:
        rig.code("f4")
        found = rig.vcpu.translate(0xABCDE)
        assert (found.physical_address, found.valid) == (0xABCDE, True)


# Our own walk, beside KVM's

TRIES = 50 if HARDWARE else 500
TABLES, DEEPER = 0x200000, (0x201000, 0x202000, 0x203000)
ENTRY = st.builds(
    lambda table, flags: table | flags,
    st.sampled_from([*DEEPER, 0x400000, 0x40000000, 0x3000, 1 << 40]),
    st.sampled_from([P | W | U, P | W | U | PS, P, P | PS, 0, P | W | NX, P | 1 << 14 | PS, P | 1 << 12 | PS]),
)
LINEAR = st.builds(
    lambda indices, offset, high: sum(i << s for i, s in zip(indices, (12, 21, 30, 39), strict=True)) | offset | high,
    st.tuples(*[st.integers(0, 3)] * 4),
    st.integers(0, 0xFFF),
    st.sampled_from([0, 0, 0, 0x1FFFF << 47]),  # canonical: KVM_TRANSLATE looks at the tables alone
)


def tables(rig: Rig, entries: list[int], size: int) -> None:
    for i, table in enumerate((TABLES, *DEEPER)):
        for j in range(4):
            rig.memory.write_int(table + size * j, size, entries[4 * i + j])


@pytest.mark.parametrize("mode", ["pae", "32", "32 without pse"] if HARDWARE else ["long"])
def test_the_walk_is_kvms(mode: str) -> None:
    """A KVM without a processor for it knows no paging but long mode's; where there is one, the lab is slow."""
    size = 4 if mode.startswith("32") else 8
    with Rig() as rig:
        cpuid = rig.system.get_supported_cpuid()
        bits = phys_bits(cpuid)
        pdpe1gb = any(entry.function == 0x80000001 and entry.edx >> 26 & 1 for entry in cpuid)
        rig.code("f4", mode="long" if mode == "long" else "protected")
        state = rig.vcpu.get_sregs()
        state.cr3 = TABLES
        if mode != "long":
            state.cr0 |= CR0_PG | 1
            state.cr4 = {"pae": CR4_PAE, "32": CR4_PSE}.get(mode, 0)
        if size == 8:
            state.efer |= EFER_NXE
        agreed: set[bool] = set()

        @given(st.lists(ENTRY, min_size=16, max_size=16), LINEAR)
        @settings(max_examples=TRIES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def compare(entries: list[int], linear: int) -> None:
            if size == 4:
                linear = sum((linear >> s & 3) << to for s, to in ((12, 12), (21, 22))) | linear & 0xFFF
            elif mode == "pae":
                linear &= 0xFFFFFFFF
                entries = [entry & ~0x1E6 & ~NX & ~(1 << 40) if i < 4 else entry for i, entry in enumerate(entries)]
            tables(rig, entries, size)
            rig.vcpu.set_sregs(state)  # KVM forgets what it has kept of the tables, and reads PAE's four anew
            theirs = rig.vcpu.translate(linear)
            ours = walk(rig.memory.read_int, state, linear, bits, pdpe1gb)
            assert (ours.physical is not None) == theirs.valid, ours
            if theirs.valid:
                assert ours.physical == theirs.physical_address, ours
            agreed.add(theirs.valid)

        compare()
        assert agreed == {True, False}
