"""The features that CPUID tells of: their names, and the bits that say them.

Names are those of /proc/cpuinfo; a bit that Linux does not show there has the name of its X86_FEATURE_ constant. AMD
repeats some of leaf 1 in leaf 8000_0001H: such a feature has two bits. What XSAVE can save (leaf 0DH, XCR0 and
IA32_XSS) counts as features too, named xstate:COMPONENT.
Sources: Intel SDM volume 2, CPUID, and volume 1, 13.1; AMD APM volume 3, appendix E;
Linux arch/x86/include/asm/cpufeatures.h, arch/x86/kernel/cpu/scattered.c, arch/x86/kvm/reverse_cpuid.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from kvm_cffi import CpuidEntry

Register = Literal["eax", "ebx", "ecx", "edx"]


class Bit(NamedTuple):
    leaf: tuple[int, int]
    """Function and index: EAX and ECX of the CPUID instruction."""
    register: Register
    mask: int


REGISTERS: Final[Mapping[tuple[int, int, Register], str]] = {
    (1, 0, "ecx"): (
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 "
        "sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor"
    ),
    (1, 0, "edx"): (
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse "
        "sse2 ss ht tm ia64 pbe"
    ),
    (6, 0, "eax"): (
        "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req - - - hwp_highest_perf_change "
        "- - - hfi"
    ),
    (6, 0, "ecx"): "aperfmperf - - epb",
    (7, 0, "ebx"): (
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a "
        "avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni "
        "avx512bw avx512vl"
    ),
    (7, 0, "ecx"): (
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni "
        "avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid aeskle bus_lock_detect cldemote - movdiri "
        "movdir64b enqcmd sgx_lc pks"
    ),
    (7, 0, "edx"): (
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - "
        "tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile "
        "amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd"
    ),
    (7, 1, "eax"): (
        "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs "
        "wrmsrns - amx_fp16 - avx_ifma - - lam - - - - movrs"
    ),
    (7, 1, "ebx"): "intel_ppin",
    (7, 1, "ecx"): "- - - - - msr_imm",
    (7, 1, "edx"): (
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti - - - - avx10 - apx"
    ),
    (7, 2, "edx"): "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    (0xD, 0, "eax"): (
        "xstate:x87 xstate:sse xstate:avx xstate:bndregs xstate:bndcsr xstate:opmask xstate:zmm_hi256 "
        "xstate:hi16_zmm - xstate:pkru - - - - - - - xstate:xtilecfg xstate:xtiledata xstate:apx"
    ),
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0xD, 1, "ecx"): (
        "- - - - - - - - xstate:pt - xstate:pasid xstate:cet_u xstate:cet_s xstate:hdc xstate:uintr xstate:lbr "
        "xstate:hwp"
    ),
    (0x12, 0, "eax"): "sgx1 sgx2 - - - - - - - - - sgx_edeccssa",
    (0x1E, 1, "eax"): "amx_int8 amx_bf16 amx_complex amx_fp16 amx_fp8 - amx_tf32 amx_avx512 amx_movrs",
    (0x80000001, 0, "ecx"): (
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp "
        "fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx"
    ),
    (0x80000001, 0, "edx"): (
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr "
        "fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"
    ),
    (0x80000007, 0, "ebx"): "overflow_recov succor cppc_perf_prio smca",
    (0x80000007, 0, "edx"): "- - - - - - - hw_pstate nonstop_tsc cpb - proc_feedback acc_power",
    (0x80000008, 0, "ebx"): (
        "clzero irperf xsaveerptr invlpgb rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - "
        "amd_stibp_always_on - amd_ibrs_same_mode efer_lmsle_mbz - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc "
        "amd_psfd btc_no amd_ibpb_ret brs"
    ),
    (0x8000000A, 0, "edx"): (
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold "
        "avic - v_vmsave_vmload vgif gmet x2avic - v_spec_ctrl - - - - vnmi - - svme_addr_chk bus_lock_threshold "
        "idle_hlt"
    ),
    (0x8000001F, 0, "eax"): (
        "sme sev vm_page_flush sev_es sev_snp - - - snp_secure_tsc v_tsc_aux sme_coherent - - - debug_swap - - - - - "
        "- rmpread - segmented_rmp - - - allowed_sev_features svsm - hv_inuse_wr_allowed"
    ),
    (0x80000021, 0, "eax"): (
        "no_nested_data_bp wrmsr_xx_base_ns lfence_rdtsc - tlbsync_sfw_no verw_clear null_sel_clr_base - autoibrs "
        "no_smm_ctl_msr - - - - - - - gp_on_user_cpuid - - prefetchi - - avx512_bmm eraps - - sbpb ibpb_brtype "
        "srso_no srso_user_kernel_no srso_bp_spec_reduce"
    ),
    (0x80000021, 0, "ecx"): "- tsa_sq_no tsa_l1_no",
    (0x80000022, 0, "eax"): "perfmon_v2 amd_lbr_v2 amd_lbr_pmc_freeze",
    (0xC0000001, 0, "edx"): "- - rng rng_en - - ace ace_en ace2 ace2_en phe phe_en pmm pmm_en",
}
"""(function, index, register): the names of its bits from 0 up, - where there is none."""

SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "ibrs": ("spec_ctrl", "amd_ibrs"),
    "ibpb": ("spec_ctrl", "amd_ibpb"),
    "stibp": ("intel_stibp", "amd_stibp"),
    "ssbd": ("spec_ctrl_ssbd", "amd_ssbd", "virt_ssbd"),
    "constant_tsc": ("nonstop_tsc",),
    "user_shstk": ("shstk",),
}
"""What /proc/cpuinfo shows, and Linux makes of other bits: Intel's and AMD's for the same, mostly."""

LEAVES: Final[Mapping[int, str]] = {
    0x5: "monitor",
    0xD: "xsave",
    0xF: "cqm",
    0x10: "rdt_a",
    0x12: "sgx",
    0x14: "intel_pt",
    0x19: "aeskle",
    0x1C: "arch_lbr",
    0x1D: "amx_tile",
    0x1E: "amx_tile",
    0x24: "avx10",
    0x8000000A: "svm",
    0x8000001B: "ibs",
    0x8000001C: "lwp",
    0x8000001D: "topoext",
    0x8000001E: "topoext",
}
"""Leaves that read as zero on a processor without the feature."""


def _bits() -> dict[str, list[Bit]]:
    features: dict[str, list[Bit]] = {}
    for (function, index, register), names in REGISTERS.items():
        for number, name in enumerate(names.split()):
            if name != "-":
                features.setdefault(name, []).append(Bit((function, index), register, 1 << number))
    return features


FEATURES: Final[Mapping[str, list[Bit]]] = _bits()


def present(entries: Iterable[CpuidEntry]) -> set[str]:
    """The features that a CPUID table tells of."""
    table = {(e.function, e.index): e for e in entries}
    return {
        name
        for name, bits in FEATURES.items()
        if any(getattr(entry, bit.register) & bit.mask for bit in bits if (entry := table.get(bit.leaf)) is not None)
    }


def clear(entries: Iterable[CpuidEntry], names: Iterable[str]) -> None:
    """Take features out of a CPUID table, in place, and with them the leaves that tell about them alone."""
    gone = set(names)
    table = {(e.function, e.index): e for e in entries}
    for name in gone:
        for bit in FEATURES[name]:
            if (entry := table.get(bit.leaf)) is not None:
                setattr(entry, bit.register, getattr(entry, bit.register) & ~bit.mask)
    for entry in table.values():
        if LEAVES.get(entry.function) in gone:
            entry.eax = entry.ebx = entry.ecx = entry.edx = 0
