"""The features of CPUID: the table of their bits, what they need of each other, and what a user may ask for."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvm_cffi import CpuidEntry
from pyvmm.cli.flags import in_flags
from pyvmm.errors import UserError, printable
from pyvmm.vcpu.cpuid import guest_cpuid, phys_bits
from pyvmm.vcpu.dependencies import REQUIREMENTS, REQUIRES, closed, missing
from pyvmm.vcpu.features import FEATURES, LEAVES, REGISTERS, SYNONYMS, clear, present
from pyvmm.vcpu.model import FOLLOWS, HOST, OTHER_NAMES, CpuModel

ALL = set(FEATURES)
features = st.sets(st.sampled_from(sorted(FEATURES)))

# (feature, what it depends on): Linux 6.12, arch/x86/kernel/cpu/cpuid-deps.c, but for FXSR of CMOV and MMX, which is a
# convenience of Linux's, and for the features that CPUID does not tell of.
LINUX = """
fxsr fpu; xsaveopt xsave; xsavec xsave; xsaves xsave; avx xsave; pku xsave; mpx xsave; xgetbv1 xsave; mmxext mmx;
fxsr_opt fxsr; xsave fxsr; sse fxsr; sse2 sse; pni sse2; sse4_1 sse2; sse4_2 sse2; pclmulqdq sse2; ssse3 sse2;
f16c sse2; aes sse2; sha_ni sse2; gfni sse2; fma avx; vaes avx; vpclmulqdq avx; avx2 avx; avx512f avx;
avx512ifma avx512f; avx512pf avx512f; avx512er avx512f; avx512cd avx512f; avx512dq avx512f; avx512bw avx512f;
avx512vl avx512f; avx512vbmi avx512f; avx512_vbmi2 avx512vl; avx512_vnni avx512vl; avx512_bitalg avx512vl;
avx512_4vnniw avx512f; avx512_4fmaps avx512f; avx512_vpopcntdq avx512f; avx512_vp2intersect avx512vl;
avx512_bf16 avx512vl; avx512_fp16 avx512bw; enqcmd xsaves; sgx_lc sgx; sgx1 sgx; sgx2 sgx1; xfd xsaves; xfd xgetbv1;
amx_tile xfd; shstk xsaves; fred lkgs; spec_ctrl_ssbd spec_ctrl; lass smap
"""


def entries(names: Iterable[str]) -> list[CpuidEntry]:
    """A CPUID table that tells of these features."""
    table = {(function, index): CpuidEntry(function, index) for function, index, _ in REGISTERS}
    for name in names:
        for bit in FEATURES[name]:
            entry = table[bit.leaf]
            setattr(entry, bit.register, getattr(entry, bit.register) | bit.mask)
    return list(table.values())


def needed(name: str) -> set[str]:
    """*name*, what it needs, and what that needs; of alternatives all."""
    found: set[str] = set()
    new = {name}
    while new:
        found |= new
        new = {n for f in new for need in REQUIREMENTS.get(f, ()) for n in need} - found
    return found


# The table


def test_each_register_has_32_bits() -> None:
    for where, names in REGISTERS.items():
        words = [word for word in names.split() if word != "-"]
        assert len(names.split()) <= 32 and len(set(words)) == len(words), where


@pytest.mark.parametrize(
    ("name", "leaf", "register", "bit"),
    [
        ("sse2", (1, 0), "edx", 26),
        ("hypervisor", (1, 0), "ecx", 31),
        ("xsave", (1, 0), "ecx", 26),
        ("avx", (1, 0), "ecx", 28),
        ("arat", (6, 0), "eax", 2),
        ("avx2", (7, 0), "ebx", 5),
        ("avx512f", (7, 0), "ebx", 16),
        ("avx512vl", (7, 0), "ebx", 31),
        ("pku", (7, 0), "ecx", 3),
        ("vpclmulqdq", (7, 0), "ecx", 10),
        ("la57", (7, 0), "ecx", 16),
        ("amx_tile", (7, 0), "edx", 24),
        ("arch_capabilities", (7, 0), "edx", 29),
        ("avx_vnni", (7, 1), "eax", 4),
        ("lam", (7, 1), "eax", 26),
        ("apx", (7, 1), "edx", 21),
        ("xstate:pkru", (0xD, 0), "eax", 9),
        ("xstate:xtiledata", (0xD, 0), "eax", 18),
        ("xsaves", (0xD, 1), "eax", 3),
        ("xstate:cet_u", (0xD, 1), "ecx", 11),
        ("topoext", (0x80000001, 0), "ecx", 22),
        ("lm", (0x80000001, 0), "edx", 29),
        ("nonstop_tsc", (0x80000007, 0), "edx", 8),
        ("amd_ssbd", (0x80000008, 0), "ebx", 24),
        ("vgif", (0x8000000A, 0), "edx", 16),
        ("sev_es", (0x8000001F, 0), "eax", 3),
        ("autoibrs", (0x80000021, 0), "eax", 8),
        ("perfmon_v2", (0x80000022, 0), "eax", 0),
    ],
)
def test_bits_of_the_manuals(name: str, leaf: tuple[int, int], register: str, bit: int) -> None:
    assert (leaf, register, 1 << bit) in FEATURES[name]


def test_all_names_are_features() -> None:
    assert set(LEAVES.values()) <= ALL
    assert REQUIRES.keys() <= ALL
    assert {name for needs in REQUIREMENTS.values() for need in needs for name in need} <= ALL
    assert {name for names in SYNONYMS.values() for name in names} <= ALL and not SYNONYMS.keys() & ALL
    assert FOLLOWS.keys() <= ALL
    assert set(OTHER_NAMES.values()) <= ALL and not OTHER_NAMES.keys() & ALL


@given(features, features)
def test_what_is_cleared_is_gone_and_nothing_else(there: set[str], gone: set[str]) -> None:
    table = entries(there)
    assert present(table) == there
    clear(table, gone)
    left = present(table)
    assert left <= there - gone
    assert all(LEAVES.get(FEATURES[name][0].leaf[0]) in gone for name in there - gone - left)


# Dependencies


@given(features)
@example(ALL)
@example(ALL - {"xsave"})
def test_no_feature_without_what_it_needs(there: set[str]) -> None:
    kept = closed(there)
    assert kept <= there
    assert not {name for name in kept if missing(name, kept)}
    assert closed(kept) == kept


@given(st.sampled_from(sorted(FEATURES)), features)
def test_no_more_goes_than_must(name: str, others: set[str]) -> None:
    assert name in closed(others | needed(name))


@given(features, features)
def test_who_has_more_keeps_more(some: set[str], more: set[str]) -> None:
    assert closed(some) <= closed(some | more)


def test_all_can_be_together() -> None:
    assert closed(ALL) == ALL


@pytest.mark.parametrize("pair", [pair.split() for pair in LINUX.split(";")], ids=" ".join)
def test_linux_has_nothing_to_clear(pair: list[str]) -> None:
    feature, depends = pair
    assert feature not in closed(ALL - {depends})


def test_without_xsave() -> None:
    """What a processor without XSAVE, or a KVM that does not offer it, takes from a guest."""
    gone = ALL - closed(ALL - {"xsave"})
    assert {"avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq", "pku", "avx512f", "avx512_fp16", "xsaves"} <= gone
    assert {"amx_tile", "shstk", "xop", "fma4", "avx_vnni", "xstate:x87", "xstate:avx"} <= gone
    assert gone.isdisjoint({"sse4_2", "aes", "pclmulqdq", "gfni", "sha_ni", "bmi1", "bmi2", "adx", "smap", "lm"})


@pytest.mark.parametrize(
    ("component", "feature"),
    [("avx", "avx"), ("zmm_hi256", "avx512f"), ("pkru", "pku"), ("xtiledata", "amx_tile"), ("cet_u", "shstk")],
)
def test_a_feature_whose_registers_cannot_be_saved(component: str, feature: str) -> None:
    """KVM offers AMX before the process may have its state: leaf 7 has it, leaf 0DH has not."""
    assert feature not in closed(ALL - {f"xstate:{component}"})


# The guest's table

LEAF_D = [
    CpuidEntry(0xD, 0, 1, eax=0x2E7, ebx=2696, ecx=2696),
    CpuidEntry(0xD, 1, 1, eax=0xF, ebx=2696, ecx=0x1900),
    CpuidEntry(0xD, 2, 1, eax=256, ebx=576),
    CpuidEntry(0xD, 5, 1, eax=64, ebx=1088),
    CpuidEntry(0xD, 6, 1, eax=512, ebx=1152),
    CpuidEntry(0xD, 7, 1, eax=1024, ebx=1664),
    CpuidEntry(0xD, 8, 1, eax=128, ecx=1),
    CpuidEntry(0xD, 9, 1, eax=8, ebx=2688),
    CpuidEntry(0xD, 11, 1, eax=16, ecx=1),
    CpuidEntry(0xD, 12, 1, eax=24, ecx=1),
]
"""XCR0: x87 to AVX-512 and PKRU; IA32_XSS: PT and CET."""


def server() -> list[CpuidEntry]:
    """An Intel server's table: all of its features and none of AMX, MPX and AMD's."""
    names = closed(ALL - {"amx_tile", "mpx", "apx", "uintr", "enqcmd", "svm", "topoext", "arch_lbr", "hwp"})
    table = [e for e in entries(names) if e.function != 0xD]
    next(e for e in table if e.function == 0x80000008).eax = 0x3934
    vendor = {"ebx": 0x756E6547, "edx": 0x49656E69, "ecx": 0x6C65746E}
    return [
        CpuidEntry(0, eax=0x20, **vendor),
        *table,
        *[CpuidEntry(**vars(e)) for e in LEAF_D],
        CpuidEntry(0x40000000, eax=0x40000001),
        CpuidEntry(0x40000001, eax=0x1007EFB),
        CpuidEntry(0x80000000, eax=0x80000022),
    ]


def made(text: str, host: list[CpuidEntry] | None = None, **options: bool) -> dict[tuple[int, int], CpuidEntry]:
    table = guest_cpuid(
        host or server(), 1, **{"local_apic": True, "tsc_deadline": True, **options}, model=CpuModel.parse(text)
    )
    return {(e.function, e.index): e for e in table}


@given(features, st.sets(st.sampled_from(sorted(n for n in FEATURES if ":" not in n and n not in FOLLOWS)), max_size=4))
def test_any_host_and_any_wish(host: set[str], removed: set[str]) -> None:
    model = CpuModel.parse(",".join(["host", *(f"-{name}" for name in sorted(removed))]))
    seen = present(guest_cpuid(entries(host), 1, local_apic=True, tsc_deadline=True, model=model))
    assert not {name for name in seen if missing(name, seen)}
    assert not seen & removed
    assert seen <= host | {"apic", "tsc_deadline_timer", "hypervisor"}


def test_a_consistent_host_stays_as_it_is() -> None:
    before = {(e.function, e.index): e for e in server()}
    after = made("host")
    for leaf in before.keys() - {(1, 0), (0x80000001, 0), (0x80000008, 0)}:
        assert after[leaf] == before[leaf], leaf
    assert present(before.values()) - present(after.values()) == {"ht", "cmp_legacy", "osxsave"}


@pytest.mark.parametrize(
    ("text", "xcr0", "xss", "size"),
    [
        ("host", 0x2E7, 0x1900, 2696),
        ("host,-avx512f", 0x207, 0x1900, 2696),
        ("host,-pku", 0xE7, 0x1900, 2688),
        ("host,-pku,-avx512f", 0x7, 0x1900, 832),
        ("host,-avx,-pku", 0x3, 0x1900, 576),
        ("host,-shstk", 0x2E7, 0x1900, 2696),
        ("host,-shstk,-ibt", 0x2E7, 0x100, 2696),
        ("host,-xsaves", 0x2E7, 0, 2696),
        ("host,-xsave", 0, 0, 0),
    ],
)
def test_leaf_d_says_what_can_be_saved(text: str, xcr0: int, xss: int, size: int) -> None:
    table = made(text)
    assert (table[0xD, 0].eax, table[0xD, 0].edx, table[0xD, 0].ecx) == (xcr0, 0, size)
    assert (table[0xD, 1].ecx, table[0xD, 1].edx) == (xss, 0)
    for component in (2, 5, 6, 7, 8, 9, 11, 12):
        leaf = table[0xD, component]
        assert bool(leaf.eax | leaf.ebx | leaf.ecx) == bool((xcr0 | xss) >> component & 1), component


def test_the_size_of_what_xsavec_saves_is_none_without_it() -> None:
    assert made("host,-xsaves")[0xD, 1].ebx == 2696
    assert made("host,-xsaves,-xsavec")[0xD, 1].ebx == 0


def test_no_hypervisor_no_leaves_of_one() -> None:
    assert {leaf for leaf in made("host") if leaf[0] >> 28 == 4} == {(0x40000000, 0), (0x40000001, 0)}
    table = made("host,-hypervisor")
    assert not any(function >> 28 == 4 for function, _ in table)
    assert not table[1, 0].ecx & 1 << 31


def test_synonyms_are_intels_bit_and_amds() -> None:
    table = made("host,-ssbd,-stibp,-ibrs")
    assert not present(table.values()) & {"spec_ctrl", "amd_ibrs", "intel_stibp", "amd_stibp", "amd_ssbd", "virt_ssbd"}
    assert "amd_ibpb" in present(table.values())
    assert made("host,+ssbd") == made("host")


@pytest.mark.parametrize("vendor", ["AuthenticAMD", "GenuineIntel", "pyvmm  pyvmm"])
def test_the_vendor(vendor: str) -> None:
    table = made(f"host,vendor={vendor}")
    for function in (0, 0x80000000):
        leaf = table[function, 0]
        said = b"".join(value.to_bytes(4, "little") for value in (leaf.ebx, leaf.edx, leaf.ecx))
        assert said == (bytes(12) if function and vendor == "GenuineIntel" else vendor.encode())
    assert table[0, 0].eax == 0x20 and table[0x80000000, 0].eax == 0x80000022


@pytest.mark.parametrize(
    ("eax", "text", "after", "bits"),
    [
        (0x3934, "host", 0x3934, 52),
        (0x3934, "host,phys-bits=40", 0x3928, 40),
        (0x3934, "host,phys-bits=32", 0x3920, 32),
        (0x303934, "host", 0x303934, 48),
        (0x303934, "host,phys-bits=48", 0x303930, 48),
        (0x303934, "host,phys-bits=36", 0x243924, 36),
    ],
)
def test_physical_address_bits(eax: int, text: str, after: int, bits: int) -> None:
    host = [CpuidEntry(0, eax=1), CpuidEntry(1), CpuidEntry(0x80000008, eax=eax)]
    table = made(text, host)
    assert table[0x80000008, 0].eax == after
    assert phys_bits(table.values()) == bits


def test_a_processor_that_does_not_tell_its_address_bits() -> None:
    assert phys_bits([CpuidEntry(0, eax=1)]) == 36


# The user's mistakes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no processor ''"),
        ("max", "there is no processor 'max': write host"),
        ("-avx", "there is no processor '-avx'"),
        ("host,", "'' is no change"),
        ("host,avx", "'avx' is no change: write +FLAG, -FLAG, phys-bits=N or vendor=TEXT"),
        ("host,+", "CPUID has no feature ''"),
        ("host,-avxx", "CPUID has no feature 'avxx'; did you mean avx"),
        ("host,-AVX", "CPUID has no feature 'AVX'; did you mean avx?"),
        ("host,-sse4.2", "did you mean sse4_2?"),
        ("host,-sse3", "did you mean pni?"),
        ("host,-tsc-deadline-timer", "did you mean tsc_deadline_timer?"),
        ("host,-qqqqqqqq", "names are those of /proc/cpuinfo"),
        ("host,-xstate:avx", "CPUID has no feature 'xstate:avx'"),
        ("host,-apic", "apic follows from the kind of irqchip"),
        ("host,+ht", "ht follows from the number of CPUs"),
        ("host,+avx,-avx", "both +avx and -avx"),
        ("host,cores=2", "there is no 'cores': there are phys-bits=N and vendor=TEXT"),
        ("host,phys-bits=", "phys-bits is a number, not ''"),
        ("host,phys-bits=-1", "phys-bits is a number, not '-1'"),
        ("host,phys-bits=0x20", "phys-bits is a number, not '0x20'"),
        ("host,phys-bits=40,phys-bits=41", "phys-bits is there twice"),
        ("host,vendor=Intel", "a vendor has 12 ASCII characters, such as GenuineIntel; 'Intel' has not"),
        ("host,vendor=Genuine\nntel", "a vendor has 12 ASCII characters"),
        ("host,vendor=Genuine€ntel", "a vendor has 12 ASCII characters"),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        CpuModel.parse(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert in_flags(error.value).startswith(f"--cpu {printable(text)}: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("host,+amx_tile", "this host's KVM does not support amx_tile"),
        ("host,+user_shstk,-xsaves", "user_shstk needs xsaves, which -xsaves takes away"),
        ("host,+fma,-avx", "fma needs avx, which -avx takes away"),
        ("host,+avx512_vnni,-xsave", "avx512_vnni needs xsave, which -xsave takes away"),
        ("host,phys-bits=31", "physical addresses have at most 52 bits on this host: ask for 32 to 52"),
        ("host,phys-bits=53", "at most 52 bits on this host: ask for 32 to 52"),
    ],
)
def test_what_there_is_not(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        made(text)
    assert says in str(error.value)


def test_a_flag_whose_ground_the_host_lacks() -> None:
    with pytest.raises(UserError, match=r"fma needs xsave, which this host's KVM does not support"):
        made("host,+fma", entries(ALL - {"xsave"}))
    with pytest.raises(UserError, match=r"avx needs xstate:avx, which this host's KVM does not support"):
        made("host,+avx", entries(ALL - {"xstate:avx"}))
    with pytest.raises(UserError, match=r"x2apic needs apic, which this machine does not have"):
        made("host,+x2apic", local_apic=False)


@given(st.text(st.sampled_from("host,+-=avx512fsep\n €")) | st.lists(st.text(max_size=9)).map(",".join))
def test_any_text_is_a_model_or_a_mistake(text: str) -> None:
    try:
        model = CpuModel.parse(text)
    except UserError:
        return
    assert model.text == text and text.startswith("host")


def test_the_default_changes_nothing() -> None:
    assert CpuModel.parse("host") == HOST
