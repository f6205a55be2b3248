"""The kernel's ABI of KVM, VFIO and vhost, taken from its headers by the C compiler (cffi API mode), and a C shim.

Nothing here is retyped from the headers: constants are `#define NAME ...` and structs end in `...;`, so the compiler
fills in values, offsets and sizes of the header it finds. The shim holds what is too hot for Python: running a vCPU
and taking string I/O apart.
"""

from cffi import FFI

IOCTLS = """
KVM_GET_API_VERSION KVM_CREATE_VM KVM_CHECK_EXTENSION KVM_GET_VCPU_MMAP_SIZE KVM_GET_SUPPORTED_CPUID
KVM_GET_MSR_INDEX_LIST KVM_CREATE_VCPU KVM_SET_USER_MEMORY_REGION KVM_GET_DIRTY_LOG KVM_SET_TSS_ADDR
KVM_SET_IDENTITY_MAP_ADDR KVM_CREATE_IRQCHIP KVM_CREATE_PIT2 KVM_IRQ_LINE KVM_GET_IRQCHIP KVM_SET_IRQCHIP
KVM_SET_GSI_ROUTING KVM_SIGNAL_MSI KVM_IRQFD KVM_IOEVENTFD KVM_REGISTER_COALESCED_MMIO
KVM_UNREGISTER_COALESCED_MMIO KVM_ENABLE_CAP KVM_CREATE_DEVICE KVM_SET_DEVICE_ATTR KVM_GET_DEVICE_ATTR
KVM_HAS_DEVICE_ATTR KVM_GET_CLOCK KVM_SET_CLOCK KVM_GET_PIT2 KVM_SET_PIT2 KVM_RUN KVM_GET_REGS KVM_SET_REGS
KVM_GET_SREGS KVM_SET_SREGS KVM_GET_FPU KVM_SET_FPU KVM_GET_XSAVE KVM_SET_XSAVE KVM_GET_MSRS KVM_SET_MSRS
KVM_GET_LAPIC KVM_SET_LAPIC KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS KVM_GET_MP_STATE KVM_SET_MP_STATE
KVM_GET_DEBUGREGS KVM_SET_DEBUGREGS KVM_SET_CPUID2 KVM_GET_CPUID2 KVM_INTERRUPT KVM_NMI KVM_SET_GUEST_DEBUG
KVM_TRANSLATE KVM_SET_SIGNAL_MASK KVM_GET_TSC_KHZ KVM_SET_TSC_KHZ KVM_GET_XCRS KVM_SET_XCRS KVM_KVMCLOCK_CTRL
KVM_GET_STATS_FD KVM_GET_NESTED_STATE KVM_SET_NESTED_STATE VFIO_GET_API_VERSION VFIO_CHECK_EXTENSION VFIO_SET_IOMMU
VFIO_GROUP_GET_STATUS VFIO_GROUP_SET_CONTAINER VFIO_GROUP_GET_DEVICE_FD VFIO_DEVICE_GET_INFO
VFIO_DEVICE_GET_REGION_INFO VFIO_DEVICE_GET_IRQ_INFO VFIO_DEVICE_SET_IRQS VFIO_DEVICE_RESET VFIO_IOMMU_GET_INFO
VFIO_IOMMU_MAP_DMA VFIO_IOMMU_UNMAP_DMA VFIO_DEVICE_GET_PCI_HOT_RESET_INFO VFIO_DEVICE_PCI_HOT_RESET
VHOST_GET_FEATURES VHOST_SET_FEATURES VHOST_SET_OWNER VHOST_SET_MEM_TABLE
VHOST_SET_VRING_NUM VHOST_SET_VRING_ADDR VHOST_SET_VRING_BASE VHOST_GET_VRING_BASE VHOST_SET_VRING_KICK
VHOST_SET_VRING_CALL VHOST_NET_SET_BACKEND VHOST_VSOCK_SET_GUEST_CID VHOST_VSOCK_SET_RUNNING
"""

CONSTANTS = """
KVM_API_VERSION KVM_CAP_IRQCHIP KVM_CAP_HLT KVM_CAP_USER_MEMORY KVM_CAP_SET_TSS_ADDR KVM_CAP_EXT_CPUID
KVM_CAP_CLOCKSOURCE KVM_CAP_NR_VCPUS KVM_CAP_MAX_VCPUS KVM_CAP_NR_MEMSLOTS KVM_CAP_PIT2 KVM_CAP_MP_STATE
KVM_CAP_COALESCED_MMIO KVM_CAP_COALESCED_PIO KVM_CAP_DESTROY_MEMORY_REGION_WORKS KVM_CAP_USER_NMI
KVM_CAP_SET_GUEST_DEBUG KVM_CAP_SET_GUEST_DEBUG2 KVM_CAP_IRQ_ROUTING KVM_CAP_ASSIGN_DEV_IRQ
KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
KVM_CAP_IRQFD KVM_CAP_IRQFD_RESAMPLE KVM_CAP_IOEVENTFD KVM_CAP_IOEVENTFD_ANY_LENGTH
KVM_CAP_SET_IDENTITY_MAP_ADDR KVM_CAP_INTERNAL_ERROR_DATA KVM_CAP_VCPU_EVENTS KVM_CAP_X86_ROBUST_SINGLESTEP
KVM_CAP_DEBUGREGS KVM_CAP_XSAVE KVM_CAP_XCRS KVM_CAP_TSC_CONTROL KVM_CAP_GET_TSC_KHZ KVM_CAP_SIGNAL_MSI
KVM_CAP_READONLY_MEM KVM_CAP_SPLIT_IRQCHIP KVM_CAP_IMMEDIATE_EXIT KVM_CAP_ADJUST_CLOCK
KVM_CAP_TSC_DEADLINE_TIMER KVM_CAP_MAX_VCPU_ID KVM_CAP_SYNC_REGS KVM_CAP_X2APIC_API
KVM_CAP_EXIT_ON_EMULATION_FAILURE KVM_CAP_DEVICE_CTRL KVM_CAP_X86_DISABLE_EXITS KVM_CAP_ENABLE_CAP_VM
KVM_CAP_DIRTY_LOG_RING KVM_CAP_X86_USER_SPACE_MSR KVM_MSR_EXIT_REASON_UNKNOWN
KVM_X2APIC_API_USE_32BIT_IDS KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
KVM_MEM_LOG_DIRTY_PAGES KVM_MEM_READONLY KVM_PIT_SPEAKER_DUMMY KVM_IRQCHIP_PIC_MASTER KVM_IRQCHIP_PIC_SLAVE
KVM_IRQCHIP_IOAPIC KVM_IRQ_ROUTING_IRQCHIP KVM_IRQ_ROUTING_MSI KVM_IRQFD_FLAG_DEASSIGN KVM_IRQFD_FLAG_RESAMPLE
KVM_IOEVENTFD_FLAG_DATAMATCH KVM_IOEVENTFD_FLAG_PIO KVM_IOEVENTFD_FLAG_DEASSIGN
KVM_CPUID_FLAG_SIGNIFCANT_INDEX KVM_GUESTDBG_ENABLE KVM_GUESTDBG_SINGLESTEP KVM_GUESTDBG_USE_HW_BP
KVM_GUESTDBG_USE_SW_BP KVM_GUESTDBG_INJECT_DB KVM_GUESTDBG_INJECT_BP KVM_GUESTDBG_BLOCKIRQ
KVM_MP_STATE_RUNNABLE KVM_MP_STATE_UNINITIALIZED
KVM_MP_STATE_INIT_RECEIVED KVM_MP_STATE_HALTED KVM_MP_STATE_SIPI_RECEIVED KVM_EXIT_UNKNOWN KVM_EXIT_EXCEPTION
KVM_EXIT_IO KVM_EXIT_HYPERCALL KVM_EXIT_DEBUG KVM_EXIT_HLT KVM_EXIT_MMIO KVM_EXIT_IRQ_WINDOW_OPEN
KVM_EXIT_SHUTDOWN KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR KVM_EXIT_SET_TPR KVM_EXIT_TPR_ACCESS
KVM_EXIT_INTERNAL_ERROR KVM_EXIT_SYSTEM_EVENT KVM_EXIT_IOAPIC_EOI KVM_EXIT_NMI KVM_EXIT_X86_RDMSR
KVM_EXIT_X86_WRMSR KVM_EXIT_HYPERV KVM_EXIT_DIRTY_RING_FULL KVM_EXIT_X86_BUS_LOCK KVM_EXIT_NOTIFY
KVM_EXIT_IO_IN KVM_EXIT_IO_OUT KVM_INTERNAL_ERROR_EMULATION KVM_INTERNAL_ERROR_SIMUL_EX
KVM_INTERNAL_ERROR_DELIVERY_EV KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES KVM_SYSTEM_EVENT_SHUTDOWN KVM_SYSTEM_EVENT_RESET
KVM_SYSTEM_EVENT_CRASH KVM_NR_INTERRUPTS KVM_VCPU_TSC_CTRL KVM_VCPU_TSC_OFFSET KVM_DEV_TYPE_VFIO
KVM_VCPUEVENT_VALID_NMI_PENDING KVM_VCPUEVENT_VALID_SIPI_VECTOR KVM_VCPUEVENT_VALID_SHADOW
KVM_VCPUEVENT_VALID_SMM KVM_CAP_NESTED_STATE KVM_STATE_NESTED_FORMAT_SVM KVM_STATE_NESTED_GIF_SET
KVM_DEV_VFIO_GROUP KVM_DEV_VFIO_GROUP_ADD KVM_DEV_VFIO_GROUP_DEL
VFIO_API_VERSION VFIO_TYPE1_IOMMU VFIO_TYPE1v2_IOMMU VFIO_GROUP_FLAGS_VIABLE VFIO_GROUP_FLAGS_CONTAINER_SET
VFIO_DEVICE_FLAGS_RESET VFIO_DEVICE_FLAGS_PCI VFIO_REGION_INFO_FLAG_READ VFIO_REGION_INFO_FLAG_WRITE
VFIO_REGION_INFO_FLAG_MMAP VFIO_REGION_INFO_FLAG_CAPS VFIO_REGION_INFO_CAP_SPARSE_MMAP
VFIO_REGION_INFO_CAP_MSIX_MAPPABLE VFIO_IRQ_INFO_EVENTFD VFIO_IRQ_INFO_MASKABLE VFIO_IRQ_INFO_AUTOMASKED
VFIO_IRQ_INFO_NORESIZE VFIO_IRQ_SET_DATA_NONE VFIO_IRQ_SET_DATA_EVENTFD VFIO_IRQ_SET_ACTION_MASK
VFIO_IRQ_SET_ACTION_UNMASK VFIO_IRQ_SET_ACTION_TRIGGER VFIO_PCI_BAR0_REGION_INDEX VFIO_PCI_ROM_REGION_INDEX
VFIO_PCI_CONFIG_REGION_INDEX VFIO_PCI_INTX_IRQ_INDEX VFIO_PCI_MSI_IRQ_INDEX VFIO_PCI_MSIX_IRQ_INDEX
VFIO_PCI_ERR_IRQ_INDEX VFIO_PCI_REQ_IRQ_INDEX VFIO_IOMMU_INFO_PGSIZES VFIO_IOMMU_INFO_CAPS
VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE VFIO_DMA_MAP_FLAG_READ VFIO_DMA_MAP_FLAG_WRITE
"""

STRUCTS = """
struct kvm_segment { uint64_t base; uint32_t limit; uint16_t selector; uint8_t type, present, dpl, db, s, l, g, avl;
    uint8_t unusable; ...; };
struct kvm_dtable { uint64_t base; uint16_t limit; ...; };
struct kvm_regs { uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags; ...; };
struct kvm_sregs { struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt; struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base; unsigned long long interrupt_bitmap[...]; ...; };
struct kvm_fpu { uint8_t fpr[8][16]; uint16_t fcw, fsw; uint8_t ftwx; uint16_t last_opcode; uint64_t last_ip, last_dp;
    uint8_t xmm[16][16]; uint32_t mxcsr; ...; };
struct kvm_xsave { uint32_t region[1024]; ...; };
struct kvm_xcrs { uint32_t nr_xcrs, flags; ...; };
struct kvm_lapic_state { char regs[...]; ...; };
struct kvm_mp_state { uint32_t mp_state; ...; };
struct kvm_debugregs { unsigned long long db[4]; uint64_t dr6, dr7, flags; ...; };
struct kvm_msr_entry { uint32_t index; uint32_t reserved; uint64_t data; ...; };
struct kvm_msrs { uint32_t nmsrs; uint32_t pad; struct kvm_msr_entry entries[]; ...; };
struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; ...; };
struct kvm_cpuid_entry2 { uint32_t function, index, flags, eax, ebx, ecx, edx; ...; };
struct kvm_cpuid2 { uint32_t nent; uint32_t padding; struct kvm_cpuid_entry2 entries[]; ...; };
struct kvm_userspace_memory_region { uint32_t slot, flags;
    uint64_t guest_phys_addr, memory_size, userspace_addr; ...; };
struct kvm_dirty_log { uint32_t slot; void *dirty_bitmap; ...; };
struct kvm_pit_config { uint32_t flags; ...; };
struct kvm_irq_level { uint32_t irq; uint32_t level; ...; };
struct kvm_irqchip { uint32_t chip_id; union { char dummy[512]; } chip; ...; };
struct kvm_irq_routing_irqchip { uint32_t irqchip, pin; };
struct kvm_irq_routing_msi { uint32_t address_lo, address_hi, data, pad; };
struct kvm_irq_routing_entry { uint32_t gsi, type, flags;
    union { struct kvm_irq_routing_irqchip irqchip; struct kvm_irq_routing_msi msi; uint32_t pad[8]; } u; ...; };
struct kvm_irq_routing { uint32_t nr, flags; struct kvm_irq_routing_entry entries[]; ...; };
struct kvm_msi { uint32_t address_lo, address_hi, data, flags; ...; };
struct kvm_irqfd { uint32_t fd, gsi, flags, resamplefd; ...; };
struct kvm_ioeventfd { uint64_t datamatch, addr; uint32_t len; int32_t fd; uint32_t flags; ...; };
struct kvm_coalesced_mmio_zone { uint64_t addr; uint32_t size; union { uint32_t pad; uint32_t pio; }; ...; };
struct kvm_enable_cap { uint32_t cap, flags; unsigned long long args[4]; ...; };
struct kvm_create_device { uint32_t type, fd, flags; ...; };
struct kvm_device_attr { uint32_t flags, group; uint64_t attr, addr; ...; };
struct kvm_clock_data { uint64_t clock; uint32_t flags; ...; };
struct kvm_pit_channel_state { uint32_t count; uint16_t latched_count; uint8_t count_latched, status_latched, status,
    read_state, write_state, write_latch, rw_mode, mode, bcd, gate; int64_t count_load_time; ...; };
struct kvm_pit_state2 { struct kvm_pit_channel_state channels[3]; uint32_t flags; ...; };
struct kvm_interrupt { uint32_t irq; ...; };
struct kvm_guest_debug_arch { unsigned long long debugreg[8]; ...; };
struct kvm_guest_debug { uint32_t control; struct kvm_guest_debug_arch arch; ...; };
struct kvm_translation { uint64_t linear_address, physical_address; uint8_t valid, writeable, usermode; ...; };
struct kvm_debug_exit_arch { uint32_t exception; uint64_t pc, dr6, dr7; ...; };
struct vfio_info_cap_header { uint16_t id, version; uint32_t next; ...; };
struct vfio_group_status { uint32_t argsz, flags; ...; };
struct vfio_device_info { uint32_t argsz, flags, num_regions, num_irqs; ...; };
struct vfio_region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; ...; };
struct vfio_region_sparse_mmap_area { uint64_t offset, size; ...; };
struct vfio_region_info_cap_sparse_mmap { uint32_t nr_areas; struct vfio_region_sparse_mmap_area areas[]; ...; };
struct vfio_irq_info { uint32_t argsz, flags, index, count; ...; };
struct vfio_irq_set { uint32_t argsz, flags, index, start, count; uint8_t data[]; ...; };
struct vfio_pci_dependent_device { uint32_t group_id; uint16_t segment; uint8_t bus, devfn; ...; };
struct vfio_pci_hot_reset_info { uint32_t argsz, flags, count; struct vfio_pci_dependent_device devices[]; ...; };
struct vfio_pci_hot_reset { uint32_t argsz, flags, count; int32_t group_fds[]; ...; };
struct vfio_iommu_type1_info { uint32_t argsz, flags; uint64_t iova_pgsizes; uint32_t cap_offset; ...; };
struct vfio_iova_range { uint64_t start, end; ...; };
struct vfio_iommu_type1_info_cap_iova_range { uint32_t nr_iovas; struct vfio_iova_range iova_ranges[]; ...; };
struct vfio_iommu_type1_dma_map { uint32_t argsz, flags; uint64_t vaddr, iova, size; ...; };
struct vfio_iommu_type1_dma_unmap { uint32_t argsz, flags; uint64_t iova, size; ...; };
struct vhost_vring_state { unsigned int index, num; ...; };
struct vhost_vring_file { unsigned int index; int fd; ...; };
struct vhost_vring_addr { unsigned int index, flags; uint64_t desc_user_addr, used_user_addr, avail_user_addr,
    log_guest_addr; ...; };
struct vhost_memory_region { uint64_t guest_phys_addr, memory_size, userspace_addr, flags_padding; ...; };
struct vhost_memory { uint32_t nregions, padding; struct vhost_memory_region regions[]; ...; };
"""

# Anonymous structs inside a struct cannot be left open in a cdef: events and the run area are read through the shim.
SHIM_CDEF = """
int kvm_cffi_ioctl(int fd, unsigned long request, void *argument);
int kvm_cffi_ioctl_value(int fd, unsigned long request, unsigned long value);
int kvm_cffi_catch_signal(int signal);
int kvm_cffi_timerfd(void);
int kvm_cffi_timerfd_set(int fd, uint64_t deadline);
int kvm_cffi_signal_mask(int fd, uint64_t mask, int set);
char *kvm_cffi_map(size_t size, size_t alignment, int fd, int64_t offset, int shared);
int kvm_cffi_unmap(char *memory, size_t size);
int kvm_cffi_drop_translations(char *memory, size_t size);
int64_t kvm_cffi_copy_touched(const char *memory, size_t pages, char *store, uint64_t *own, size_t start, int pagemap,
    int zeros);
int kvm_cffi_harvest(int fd, uint32_t slot, uint64_t *dirty, uint64_t *scratch, size_t pages);
int64_t kvm_cffi_copy_dirty(const uint64_t *dirty, const char *memory, size_t pages, char *store);
int64_t kvm_cffi_put_back(uint64_t *dirty, char *memory, size_t pages, char **stores, uint64_t **owns, size_t count);

struct kvm_cffi_ram { uint64_t gpa, size; char *memory; };
int kvm_cffi_ring_fill(const char *desc, const volatile uint16_t *avail, char *used, uint32_t entries,
    uint16_t avail_at, uint16_t used_at, const struct kvm_cffi_ram *ram, size_t pieces, const char *data, size_t size,
    uint32_t most, int count_at);
int kvm_cffi_packed_fill(char *desc, uint32_t entries, uint32_t avail_at, uint32_t used_at,
    const struct kvm_cffi_ram *ram, size_t pieces, const char *data, size_t size, uint32_t most, int count_at);

enum { KVM_CFFI_ERRNO, KVM_CFFI_PIO_OUT, KVM_CFFI_PIO_IN, KVM_CFFI_MMIO_WRITE, KVM_CFFI_MMIO_READ, KVM_CFFI_OTHER,
       KVM_CFFI_PIO_INS };
#define KVM_CFFI_RECORDS ...
#define KVM_CFFI_COALESCED ...

struct kvm_cffi_record { uint64_t address, data; uint32_t reason, count; uint8_t size, write; ...; };
struct kvm_cffi_vcpu { uint64_t address, data, result, exits; int32_t error; uint32_t count; ...; };

struct kvm_cffi_vcpu *kvm_cffi_vcpu_new(int fd, size_t run_size, size_t ring_offset);
void kvm_cffi_vcpu_free(struct kvm_cffi_vcpu *vcpu);
uint64_t kvm_cffi_run(struct kvm_cffi_vcpu *vcpu);
void kvm_cffi_answer_string(struct kvm_cffi_vcpu *vcpu, const uint8_t *data);
int kvm_cffi_record(struct kvm_cffi_vcpu *vcpu, uint64_t exit, struct kvm_cffi_record *record);
void kvm_cffi_set_immediate_exit(struct kvm_cffi_vcpu *vcpu, int value);
void kvm_cffi_set_request_interrupt_window(struct kvm_cffi_vcpu *vcpu, int value);
int kvm_cffi_interrupt_state(struct kvm_cffi_vcpu *vcpu);
uint64_t kvm_cffi_cr8(struct kvm_cffi_vcpu *vcpu);

struct kvm_cffi_exit { uint32_t reason; uint64_t hardware_reason; uint32_t hardware_cpu; uint32_t suberror, ndata;
    uint64_t data[16]; uint32_t insn_size; uint8_t insn_bytes[15]; struct kvm_debug_exit_arch debug;
    uint32_t event_type, event_ndata; uint64_t event_data[16]; uint32_t exception, error_code; uint8_t vector; ...; };
void kvm_cffi_exit_details(struct kvm_cffi_vcpu *vcpu, struct kvm_cffi_exit *out);

struct kvm_cffi_coalesced { uint64_t address, data; uint32_t size, pio; ...; };
uint32_t kvm_cffi_coalesced_count(struct kvm_cffi_vcpu *vcpu);
int kvm_cffi_coalesced_next(struct kvm_cffi_vcpu *vcpu, struct kvm_cffi_coalesced *out);

struct kvm_cffi_vcpu_events { uint8_t exception_injected, exception_nr, exception_has_error_code;
    uint32_t exception_error_code; uint8_t interrupt_injected, interrupt_nr, interrupt_soft, interrupt_shadow;
    uint8_t nmi_injected, nmi_pending, nmi_masked; uint32_t sipi_vector, flags;
    uint8_t smm, smi_pending, smm_inside_nmi, latched_init;  ...; };
int kvm_cffi_get_vcpu_events(int fd, struct kvm_cffi_vcpu_events *out);
int kvm_cffi_set_vcpu_events(int fd, const struct kvm_cffi_vcpu_events *in);
"""

ffibuilder = FFI()
ffibuilder.cdef("\n".join(f"#define {name} ..." for name in (IOCTLS + CONSTANTS).split()) + STRUCTS + SHIM_CDEF)
ffibuilder.set_source("kvm_cffi._kvm", '#include "shim.c"', include_dirs=["kvm_cffi"])

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
