"""Which feature needs which: no processor has AVX without XSAVE, and software that found the one counts on the other.

KVM tells of every bit that it can do anything about; where the host's processor, or KVM, has not all of them, guests
would use what faults.
Sources: Intel SDM volume 1, chapters 13 to 18 (how software detects AVX, AVX-512, AMX, CET), and volume 2, CPUID;
Linux arch/x86/kernel/cpu/cpuid-deps.c; the SSE and AVX chains are those that GCC's and LLVM's -m options imply, which
compiled code takes for granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pyvmm.vcpu.features import FEATURES, LEAVES

REQUIRES: Final[Mapping[str, str]] = {
    # x87, MMX and SSE
    "mmx": "fpu",
    "mmxext": "mmx",
    "3dnow": "mmx",
    "3dnowext": "3dnow",
    "fxsr": "fpu",
    "fxsr_opt": "fxsr",
    "sse": "fxsr",
    "misalignsse": "sse",
    "sse2": "sse",
    "pni": "sse2",
    "sse4a": "pni",
    "ssse3": "pni",
    "sse4_1": "ssse3",
    "sse4_2": "sse4_1",
    "aes": "sse2",
    "aeskle": "sse2",
    "gfni": "sse2",
    "pclmulqdq": "sse2",
    "sha_ni": "sse2",
    # XSAVE, and what it must be able to save
    "xsave": "fxsr xstate:x87 xstate:sse",
    "xsaveopt": "xsave",
    "xsavec": "xsave",
    "xgetbv1": "xsave",
    "xsaves": "xsave",
    "xfd": "xsaves xgetbv1",
    "lwp": "xsave",
    "mpx": "xsave xstate:bndregs xstate:bndcsr",
    "pku": "xsave xstate:pkru lm",
    "ospke": "pku",
    "osxsave": "xsave",
    "apx": "xsave xstate:apx lm",
    "enqcmd": "xsaves xstate:pasid",
    "uintr": "xsaves xstate:uintr lm",
    "shstk": "xsaves xstate:cet_u",
    "ibt": "xsaves xstate:cet_u",
    "xstate:sse": "sse",
    "xstate:avx": "avx",
    "xstate:bndregs": "mpx",
    "xstate:bndcsr": "mpx",
    "xstate:opmask": "avx512f",
    "xstate:zmm_hi256": "avx512f",
    "xstate:hi16_zmm": "avx512f",
    "xstate:pkru": "pku",
    "xstate:xtilecfg": "amx_tile",
    "xstate:xtiledata": "amx_tile",
    "xstate:apx": "apx",
    "xstate:pt": "xsaves intel_pt",
    "xstate:pasid": "enqcmd",
    "xstate:cet_u": "xsaves shstk|ibt",
    "xstate:cet_s": "xsaves shstk|ibt",
    "xstate:hdc": "xsaves",
    "xstate:uintr": "uintr",
    "xstate:lbr": "xsaves arch_lbr",
    "xstate:hwp": "xsaves hwp",
    # AVX
    "avx": "sse4_2 xsave xstate:avx",
    "f16c": "avx",
    "fma": "avx",
    "fma4": "avx",
    "xop": "avx",
    "avx2": "avx",
    "vaes": "avx aes",
    "vpclmulqdq": "avx pclmulqdq",
    "sm3": "avx",
    "sm4": "avx2",
    "sha512": "avx2",
    "avx_ifma": "avx2",
    "avx_ne_convert": "avx2",
    "avx_vnni": "avx2",
    "avx_vnni_int16": "avx2",
    "avx_vnni_int8": "avx2",
    "avx512f": "avx2 f16c fma xstate:opmask xstate:zmm_hi256 xstate:hi16_zmm",
    "avx512_4fmaps": "avx512f",
    "avx512_4vnniw": "avx512f",
    "avx512_bmm": "avx512f",
    "avx512_vpopcntdq": "avx512f",
    "avx512bw": "avx512f",
    "avx512cd": "avx512f",
    "avx512dq": "avx512f",
    "avx512er": "avx512f",
    "avx512ifma": "avx512f",
    "avx512pf": "avx512f",
    "avx512vbmi": "avx512f",
    "avx512vl": "avx512f",
    "avx512_bf16": "avx512vl",
    "avx512_bitalg": "avx512vl",
    "avx512_vbmi2": "avx512vl",
    "avx512_vnni": "avx512vl",
    "avx512_vp2intersect": "avx512vl",
    "avx512_fp16": "avx512bw avx512vl",
    "avx10": "avx512vl",
    # AMX
    "amx_tile": "xfd xstate:xtilecfg xstate:xtiledata lm",
    "amx_avx512": "amx_tile avx512f",
    "amx_bf16": "amx_tile",
    "amx_complex": "amx_tile",
    "amx_fp16": "amx_tile",
    "amx_fp8": "amx_tile",
    "amx_int8": "amx_tile",
    "amx_movrs": "amx_tile",
    "amx_tf32": "amx_tile",
    # 64-bit mode, paging, system calls
    "pse36": "pse",
    "sep": "msr",
    "syscall": "msr",
    "nx": "msr pae",
    "lm": "msr pae",
    "lahf_lm": "lm",
    "cx16": "cx8 lm",
    "fsgsbase": "lm",
    "la57": "lm",
    "pdpe1gb": "lm",
    "pcid": "lm",
    "invpcid": "pcid",
    "pks": "msr lm",
    "lam": "lm",
    "lass": "smap lm",
    "lkgs": "lm",
    "fred": "lkgs",
    # Time, interrupts, machine check
    "tsc_adjust": "tsc msr",
    "rdtscp": "tsc msr",
    "nonstop_tsc": "tsc",
    "x2apic": "apic msr",
    "tsc_deadline_timer": "apic msr tsc",
    "mtrr": "msr",
    "pat": "msr",
    "mca": "mce msr",
    # The rest, by what it belongs to
    "cmp_legacy": "ht",
    "dtes64": "dts",
    "ds_cpl": "dts",
    "sgx_lc": "sgx",
    "sgx1": "sgx",
    "sgx2": "sgx1",
    "spec_ctrl_ssbd": "spec_ctrl",
    "amd_stibp_always_on": "amd_stibp",
    "amd_ibrs_same_mode": "amd_ibrs",
    "perfmon_v2": "perfctr_core",
    "amd_lbr_pmc_freeze": "amd_lbr_v2 perfmon_v2",
    "sev": "svm",
    "sev_es": "sev",
    "sev_snp": "sev_es",
}
"""What must all be there, of a|b one. A feature in a leaf of features.LEAVES needs that leaf's too."""


def _requirements() -> dict[str, list[frozenset[str]]]:
    needs = {name: [frozenset(need.split("|")) for need in text.split()] for name, text in REQUIRES.items()}
    for name, bits in FEATURES.items():
        owner = LEAVES.get(bits[0].leaf[0])
        if owner is not None:
            needs.setdefault(name, []).append(frozenset([owner]))
    return needs


REQUIREMENTS: Final[Mapping[str, list[frozenset[str]]]] = _requirements()


def missing(name: str, features: set[str]) -> list[str]:
    """What *name* needs itself and *features* lack; of alternatives the first by name."""
    return [min(need) for need in REQUIREMENTS.get(name, ()) if need.isdisjoint(features)]


def closed(features: Iterable[str]) -> set[str]:
    """The most of *features* that can be together: each has what it needs."""
    kept = set(features)
    while alone := [name for name in kept if missing(name, kept)]:
        kept.difference_update(alone)
    return kept
