/* What is too hot for Python: KVM_RUN, the decoding of the two frequent exits, and string I/O item by item.
 *
 * cffi releases the GIL around every call into this file, so a vCPU runs while other Python threads work.
 * Source: Documentation/virt/kvm/api.rst, section 5 (the kvm_run structure). */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include <linux/kvm.h>
#include <linux/vfio.h>
#include <linux/vhost.h>

static int kvm_cffi_ioctl(int fd, unsigned long request, void *argument)
{
    return ioctl(fd, request, argument);
}

static int kvm_cffi_ioctl_value(int fd, unsigned long request, unsigned long value)
{
    return ioctl(fd, request, value);
}

static void ignore_signal(int signal)
{
    (void)signal;
}

/* Gives the signal a handler that does nothing, without SA_RESTART: its delivery makes KVM_RUN return EINTR. */
static int kvm_cffi_catch_signal(int signal)
{
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = ignore_signal;
    return sigaction(signal, &action, NULL);
}

static int kvm_cffi_timerfd(void)
{
    return timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
}

/* deadline: nanoseconds of CLOCK_MONOTONIC, not 0. */
static int kvm_cffi_timerfd_set(int fd, uint64_t deadline)
{
    struct itimerspec when = { .it_value = { deadline / 1000000000, deadline % 1000000000 } };

    return timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* The kernel's sigset_t is 8 bytes here, whatever the C library's is. */
static int kvm_cffi_signal_mask(int fd, uint64_t mask, int set)
{
    struct { struct kvm_signal_mask head; uint8_t sigset[8]; } argument;

    argument.head.len = 8;
    memcpy(argument.head.sigset, &mask, 8);
    return ioctl(fd, KVM_SET_SIGNAL_MASK, set ? &argument.head : NULL);
}

/* Maps size bytes at a multiple of alignment, which is a power of two: anonymous memory of this process alone, or with
 * fd >= 0 that file from *offset* on, shared or to be copied on a write. A child does not inherit it: copy-on-write would
 * move pages under the guest. NULL and errno where the kernel refuses. */
static char *kvm_cffi_map(size_t size, size_t alignment, int fd, int64_t offset, int shared)
{
    size_t room = size + alignment, before;
    int flags = shared ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
    char *reserved, *memory;
    int error;

    if (room < size) {
        errno = ENOMEM;
        return NULL;
    }
    reserved = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED)
        return NULL;
    before = -(uintptr_t)reserved & (alignment - 1);
    memory = mmap(reserved + before, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, offset);
    if (memory == MAP_FAILED) {
        error = errno;
        munmap(reserved, room);
        errno = error;
        return NULL;
    }
    if (before)
        munmap(reserved, before);
    munmap(memory + size, room - before - size);
    madvise(memory, size, MADV_HUGEPAGE); /* a kernel without huge pages says EINVAL, and does without */
    madvise(memory, size, MADV_DONTFORK);
    return memory;
}

static int kvm_cffi_unmap(char *memory, size_t size)
{
    return munmap(memory, size);
}

/* Any change of protection makes KVM drop what it has mapped of these pages (its MMU notifier). One that only allows more,
 * and back, is none that another vCPU or thread could trip over in between. 0, or -1 and errno. */
static int kvm_cffi_drop_translations(char *memory, size_t size)
{
    if (mprotect(memory, size, PROT_READ | PROT_WRITE | PROT_EXEC))
        return -1;
    return mprotect(memory, size, PROT_READ | PROT_WRITE);
}

/* Snapshots of guest memory, a page at a time. A bitmap has one bit a page, in whole 64-bit words; what holds the pages of
 * a snapshot is as large as the memory, and only what was copied there takes any. */

#define PAGE ((size_t)4096)
#define CHUNK_PAGES ((size_t)512)

static int is_zero(const char *page)
{
    const uint64_t *word = (const uint64_t *)page, *end = (const uint64_t *)(page + PAGE);

    for (; word < end; word += 8)
        if (word[0] | word[1] | word[2] | word[3] | word[4] | word[5] | word[6] | word[7])
            return 0;
    return 1;
}

/* Of each 64-bit entry of /proc/self/pagemap (Linux admin-guide/mm/pagemap.rst): the page is there, in swap, of a file. */
#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_SWAPPED (1ULL << 62)
#define PAGEMAP_FILE (1ULL << 61)

/* Copy each of *pages* from page *start* on that is not zero, with *zeros* those too, from *memory* to *store*, and set its
 * bit in *own*. With *pagemap*, an open /proc/self/pagemap, pages that this process has none of its own for are not looked
 * at: nobody has written them, and looking would have the host give them. -1 looks at all. How many were copied, or -1 and
 * errno. */
static int64_t kvm_cffi_copy_touched(const char *memory, size_t pages, char *store, uint64_t *own, size_t start, int pagemap,
                                     int zeros)
{
    uint64_t entries[CHUNK_PAGES];
    int64_t copied = 0;
    size_t first, page, count;
    ssize_t got;

    for (first = start; first < start + pages; first += CHUNK_PAGES) {
        count = start + pages - first < CHUNK_PAGES ? start + pages - first : CHUNK_PAGES;
        if (pagemap >= 0) {
            got = pread(pagemap, entries, count * 8, (off_t)((uintptr_t)(memory + first * PAGE) / PAGE * 8));
            if (got != (ssize_t)(count * 8)) {
                errno = got < 0 ? errno : EIO;
                return -1;
            }
        }
        for (page = first; page < first + count; page++) {
            if (pagemap >= 0 && (!(entries[page - first] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) ||
                                 entries[page - first] & PAGEMAP_FILE))
                continue;
            if (!zeros && is_zero(memory + page * PAGE))
                continue;
            memcpy(store + page * PAGE, memory + page * PAGE, PAGE);
            own[page / 64] |= 1ULL << page % 64;
            copied++;
        }
    }
    return copied;
}

/* Or the dirty log of *slot* into *dirty*, and begin a new one: KVM_GET_DIRTY_LOG, which protects the pages again. */
static int kvm_cffi_harvest(int fd, uint32_t slot, uint64_t *dirty, uint64_t *scratch, size_t pages)
{
    struct kvm_dirty_log log;
    size_t word;

    memset(&log, 0, sizeof(log));
    log.slot = slot;
    log.dirty_bitmap = scratch;
    if (ioctl(fd, KVM_GET_DIRTY_LOG, &log) < 0)
        return -1;
    for (word = 0; word < (pages + 63) / 64; word++)
        dirty[word] |= scratch[word];
    return 0;
}

/* Copy the pages of *dirty* from *memory* to *store*. How many. */
static int64_t kvm_cffi_copy_dirty(const uint64_t *dirty, const char *memory, size_t pages, char *store)
{
    int64_t copied = 0;
    size_t word, page;
    uint64_t bits;

    for (word = 0; word < (pages + 63) / 64; word++)
        for (bits = dirty[word]; bits; bits &= bits - 1) {
            page = word * 64 + __builtin_ctzll(bits);
            if (page >= pages)
                break;
            memcpy(store + page * PAGE, memory + page * PAGE, PAGE);
            copied++;
        }
    return copied;
}

/* Put the pages of *dirty* back into *memory*, each from the first of the *count* levels that has it, a zero page where none
 * does; then *dirty* is clear. How many. */
static int64_t kvm_cffi_put_back(uint64_t *dirty, char *memory, size_t pages, char **stores, uint64_t **owns, size_t count)
{
    int64_t copied = 0;
    size_t word, page, level;
    uint64_t bits, bit;

    for (word = 0; word < (pages + 63) / 64; word++) {
        for (bits = dirty[word]; bits; bits &= bits - 1) {
            page = word * 64 + __builtin_ctzll(bits);
            if (page >= pages)
                break;
            bit = bits & -bits;
            for (level = 0; level < count && !(owns[level][word] & bit); level++)
                ;
            if (level < count)
                memcpy(memory + page * PAGE, stores[level] + page * PAGE, PAGE);
            else
                memset(memory + page * PAGE, 0, PAGE);
            copied++;
        }
        dirty[word] = 0;
    }
    return copied;
}

/* A piece of guest RAM, and where it is here. */
struct kvm_cffi_ram {
    uint64_t gpa, size;
    char *memory;
};

/* Where *length* bytes of guest memory are here; NULL where they are not wholly in one piece of RAM, or none. */
static char *find_ram(const struct kvm_cffi_ram *ram, size_t pieces, uint64_t address, uint32_t length)
{
    for (; pieces; pieces--, ram++)
        if (address >= ram->gpa && address - ram->gpa < ram->size && length <= ram->size - (address - ram->gpa))
            return length ? ram->memory + (address - ram->gpa) : NULL;
    return NULL;
}

#define RING_MOST 1024
#define RING_WRITE 2 /* VRING_DESC_F_WRITE, alone: no chain goes on, none is indirect */

/* A chain of one descriptor, and how many bytes are written to it. */
struct ring_chain {
    char *to;
    uint32_t id, length;
};

/* Spread *size* bytes over *chains*, which have room for them; with count_at >= 0 *count* is stored there in the first. 0, and
 * nothing written, where there is no room for that. */
static uint32_t spread(struct ring_chain *chains, uint32_t count, const char *data, size_t size, int count_at)
{
    uint16_t told = (uint16_t)count;
    uint32_t i;

    if (count == 0 || (count_at >= 0 && chains[0].length < (uint32_t)count_at + 2))
        return 0;
    for (i = 0; i < count; i++) {
        if (size < chains[i].length)
            chains[i].length = (uint32_t)size;
        memcpy(chains[i].to, data, chains[i].length);
        data += chains[i].length;
        size -= chains[i].length;
    }
    if (count_at >= 0)
        memcpy(chains[0].to + count_at, &told, sizeof(told));
    return count;
}

/* Spread *size* bytes over what a driver has made available in a split virtqueue of *entries* (virtio 1.2, section 2.7), from
 * index *avail_at* on, in chains of one descriptor that the device may write, *most* of them at most; then their used elements,
 * from *used_at* on: the used index is for the caller to set. With count_at >= 0 the number of chains is stored there in the
 * first, as 16 bits. How many chains that were; 0, and nothing written, where there are too few, or one is of another kind or
 * not wholly in one piece of RAM. */
static int kvm_cffi_ring_fill(const char *desc, const volatile uint16_t *avail, char *used, uint32_t entries, uint16_t avail_at,
                              uint16_t used_at, const struct kvm_cffi_ram *ram, size_t pieces, const char *data, size_t size,
                              uint32_t most, int count_at)
{
    struct ring_chain chains[RING_MOST];
    uint16_t ready = avail[1] - avail_at;
    uint32_t count = 0, i, element[2];
    const volatile uint64_t *one; /* struct vring_desc: addr; len, flags from bit 32 on, next */
    uint64_t address, rest;
    size_t room = 0;

    if (most > RING_MOST)
        most = RING_MOST;
    if (ready > entries)
        return 0;
    for (; room < size; count++) {
        if (count >= ready || count >= most)
            return 0;
        chains[count].id = avail[2 + (uint16_t)(avail_at + count) % entries];
        if (chains[count].id >= entries)
            return 0;
        one = (const volatile uint64_t *)(desc + 16 * (size_t)chains[count].id);
        address = one[0]; /* each once: it may change while it is judged */
        rest = one[1];
        if ((uint16_t)(rest >> 32) != RING_WRITE)
            return 0;
        chains[count].length = (uint32_t)rest;
        chains[count].to = find_ram(ram, pieces, address, chains[count].length);
        if (!chains[count].to)
            return 0;
        room += chains[count].length;
    }
    count = spread(chains, count, data, size, count_at);
    for (i = 0; i < count; i++) {
        element[0] = chains[i].id;
        element[1] = chains[i].length;
        memcpy(used + 4 + 8 * ((uint16_t)(used_at + i) % entries), element, sizeof(element));
    }
    return (int)count;
}

#define RING_AVAIL 0x0080u /* 1 << VRING_PACKED_DESC_F_AVAIL */
#define RING_USED 0x8000u  /* 1 << VRING_PACKED_DESC_F_USED */
#define RING_WRAP 0x8000u  /* of an index: 1 << VRING_PACKED_EVENT_F_WRAP_CTR, the wrap counter that goes with it */

struct packed_desc { /* struct vring_packed_desc */
    uint64_t address;
    uint32_t length;
    uint16_t id, flags;
};

/* The index after *at*, with its wrap counter, in a packed ring of *entries*. */
static uint32_t after(uint32_t at, uint32_t entries)
{
    return (at & ~RING_WRAP) + 1 < entries ? at + 1 : (at & RING_WRAP) ^ RING_WRAP;
}

/* As kvm_cffi_ring_fill, in a packed virtqueue of *entries* (section 2.8): both indices have their wrap counter in bit 15. Each
 * descriptor but the first is marked as used; the driver, which looks at them in order, sees none until the caller marks that. */
static int kvm_cffi_packed_fill(char *desc, uint32_t entries, uint32_t avail_at, uint32_t used_at, const struct kvm_cffi_ram *ram,
                                size_t pieces, const char *data, size_t size, uint32_t most, int count_at)
{
    struct packed_desc *ring = (struct packed_desc *)desc, *one;
    struct ring_chain chains[RING_MOST];
    uint32_t count = 0, i;
    uint64_t address;
    uint16_t flags;
    size_t room = 0;

    if (most > RING_MOST)
        most = RING_MOST;
    if ((avail_at & ~RING_WRAP) >= entries || (used_at & ~RING_WRAP) >= entries)
        return 0;
    if (most > entries)
        most = entries; /* a driver that makes them available as fast as we look brings us no further than once round */
    for (; room < size; count++) {
        if (count >= most)
            return 0;
        one = &ring[avail_at & ~RING_WRAP];
        flags = __atomic_load_n(&one->flags, __ATOMIC_ACQUIRE); /* what else it has is there once this says so */
        if (flags != (RING_WRITE | (avail_at & RING_WRAP ? RING_AVAIL : RING_USED)))
            return 0;
        address = __atomic_load_n(&one->address, __ATOMIC_RELAXED); /* each once: it may change while it is judged */
        chains[count].length = __atomic_load_n(&one->length, __ATOMIC_RELAXED);
        chains[count].id = __atomic_load_n(&one->id, __ATOMIC_RELAXED);
        chains[count].to = find_ram(ram, pieces, address, chains[count].length);
        if (!chains[count].to)
            return 0;
        room += chains[count].length;
        avail_at = after(avail_at, entries);
    }
    count = spread(chains, count, data, size, count_at);
    for (i = 0; i < count; i++, used_at = after(used_at, entries)) {
        one = &ring[used_at & ~RING_WRAP];
        one->length = chains[i].length;
        one->id = (uint16_t)chains[i].id;
        flags = RING_WRITE | (used_at & RING_WRAP ? RING_AVAIL | RING_USED : 0);
        if (i)
            __atomic_store_n(&one->flags, flags, __ATOMIC_RELEASE);
    }
    return (int)count;
}

enum { KVM_CFFI_ERRNO, KVM_CFFI_PIO_OUT, KVM_CFFI_PIO_IN, KVM_CFFI_MMIO_WRITE, KVM_CFFI_MMIO_READ, KVM_CFFI_OTHER,
       KVM_CFFI_PIO_INS };

#define KVM_CFFI_RECORDS 32
#define KVM_CFFI_COALESCED 0x80 /* or-ed to the kind: coalesced writes wait, older than this exit */

/* One exit, kept for the report on a dead guest. */
struct kvm_cffi_record {
    uint64_t address, data;
    uint32_t reason, count;
    uint8_t size, write;
};

struct kvm_cffi_vcpu {
    uint64_t address, data;      /* of the exit that kvm_cffi_run returned, when it was MMIO */
    uint64_t result;             /* what the read that was handed out last gives the guest */
    uint64_t exits;              /* how often KVM_RUN has returned */
    int32_t error;
    int fd;
    size_t run_size;
    struct kvm_run *run;
    struct kvm_coalesced_mmio_ring *ring;
    uint8_t *items;              /* the exit being handed out item by item, and how far we are */
    uint32_t index, count, item_size;
    int reading;                 /* the last item handed out waits for its result */
    struct kvm_cffi_record records[KVM_CFFI_RECORDS];
};

static struct kvm_cffi_vcpu *kvm_cffi_vcpu_new(int fd, size_t run_size, size_t ring_offset)
{
    struct kvm_cffi_vcpu *vcpu = calloc(1, sizeof(*vcpu));

    if (!vcpu)
        return NULL;
    vcpu->fd = fd;
    vcpu->run_size = run_size;
    vcpu->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (vcpu->run == MAP_FAILED) {
        free(vcpu);
        return NULL;
    }
    if (ring_offset)
        vcpu->ring = (struct kvm_coalesced_mmio_ring *)((char *)vcpu->run + ring_offset);
    return vcpu;
}

static void kvm_cffi_vcpu_free(struct kvm_cffi_vcpu *vcpu)
{
    munmap(vcpu->run, vcpu->run_size);
    free(vcpu);
}

static uint64_t load(const uint8_t *from, uint32_t size)
{
    uint64_t value = 0;

    memcpy(&value, from, size);
    return value;
}

/* The item at vcpu->index, packed for Python: kind in bits 0-7, size in 8-15, port in 16-31, datum of PIO in 32-63. The
 * first of several that are to be read is KVM_CFFI_PIO_INS: all may be answered at once. */
static uint64_t item(struct kvm_cffi_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    uint32_t size = vcpu->item_size;
    uint8_t *at = vcpu->items + (size_t)vcpu->index * size;

    if (run->exit_reason == KVM_EXIT_IO) {
        uint64_t packed = (uint64_t)size << 8 | (uint64_t)run->io.port << 16;

        vcpu->reading = run->io.direction == KVM_EXIT_IO_IN;
        if (vcpu->reading)
            return packed | (vcpu->index == 0 && vcpu->count > 1 ? KVM_CFFI_PIO_INS : KVM_CFFI_PIO_IN);
        return packed | load(at, size) << 32 | KVM_CFFI_PIO_OUT;
    }
    vcpu->address = run->mmio.phys_addr + (uint64_t)vcpu->index * size;
    vcpu->reading = !run->mmio.is_write;
    if (vcpu->reading)
        return (uint64_t)size << 8 | KVM_CFFI_MMIO_READ;
    vcpu->data = load(at, size);
    return (uint64_t)size << 8 | KVM_CFFI_MMIO_WRITE;
}

static void remember(struct kvm_cffi_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    struct kvm_cffi_record *record = &vcpu->records[vcpu->exits++ % KVM_CFFI_RECORDS];

    record->reason = run->exit_reason;
    if (run->exit_reason == KVM_EXIT_IO) {
        record->address = run->io.port;
        record->size = run->io.size;
        record->count = run->io.count;
        record->write = run->io.direction == KVM_EXIT_IO_OUT;
        record->data = record->write ? load((uint8_t *)run + run->io.data_offset, run->io.size) : 0;
    } else if (run->exit_reason == KVM_EXIT_MMIO) {
        record->address = run->mmio.phys_addr;
        record->size = run->mmio.len;
        record->count = 1;
        record->write = run->mmio.is_write;
        record->data = record->write ? load(run->mmio.data, run->mmio.len) : 0;
    } else {
        record->address = record->data = 0;
        record->size = record->write = record->count = 0;
    }
}

#define RING_ENTRIES ((uint32_t)((4096 - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio)))

/* How many coalesced writes wait. */
static uint32_t kvm_cffi_coalesced_count(struct kvm_cffi_vcpu *vcpu)
{
    if (!vcpu->ring)
        return 0;
    return (__atomic_load_n(&vcpu->ring->last, __ATOMIC_ACQUIRE) + RING_ENTRIES - vcpu->ring->first) % RING_ENTRIES;
}

static int coalesced(struct kvm_cffi_vcpu *vcpu)
{
    return kvm_cffi_coalesced_count(vcpu) ? KVM_CFFI_COALESCED : 0;
}

static uint64_t first_item(struct kvm_cffi_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;

    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        vcpu->items = (uint8_t *)run + run->io.data_offset;
        vcpu->item_size = run->io.size;
        vcpu->count = run->io.count;
        return item(vcpu);
    case KVM_EXIT_MMIO:
        /* An access that crosses a page comes in fragments of 1 to 8 bytes; devices know 1, 2, 4 and 8 only. */
        vcpu->items = run->mmio.data;
        vcpu->item_size = run->mmio.len & (run->mmio.len - 1) ? 1 : run->mmio.len;
        vcpu->count = run->mmio.len / vcpu->item_size;
        return item(vcpu);
    default:
        return KVM_CFFI_OTHER;
    }
}

/* All that a KVM_CFFI_PIO_INS reads, count items: none is handed out any more. */
static void kvm_cffi_answer_string(struct kvm_cffi_vcpu *vcpu, const uint8_t *data)
{
    memcpy(vcpu->items, data, (size_t)vcpu->count * vcpu->item_size);
    vcpu->records[(vcpu->exits - 1) % KVM_CFFI_RECORDS].data = load(vcpu->items, vcpu->item_size);
    vcpu->reading = 0;
    vcpu->index = vcpu->count - 1;
}

/* Give the guest the result of the read that was handed out last, then hand out the next item: of the exit that is
 * being taken apart, or else of the next exit. */
static uint64_t kvm_cffi_run(struct kvm_cffi_vcpu *vcpu)
{
    if (vcpu->reading) {
        memcpy(vcpu->items + (size_t)vcpu->index * vcpu->item_size, &vcpu->result, vcpu->item_size);
        if (vcpu->index == 0)
            vcpu->records[(vcpu->exits - 1) % KVM_CFFI_RECORDS].data = vcpu->result;
        vcpu->reading = 0;
    }
    if (++vcpu->index < vcpu->count)
        return item(vcpu);
    vcpu->count = 0;
    if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
        vcpu->error = errno;
        return KVM_CFFI_ERRNO | coalesced(vcpu);
    }
    remember(vcpu);
    vcpu->index = 0;
    return first_item(vcpu) | coalesced(vcpu);
}

/* The record of exit number *exit* (from 0), 0 if it is no longer kept. */
static int kvm_cffi_record(struct kvm_cffi_vcpu *vcpu, uint64_t exit, struct kvm_cffi_record *record)
{
    if (exit >= vcpu->exits || vcpu->exits - exit > KVM_CFFI_RECORDS)
        return 0;
    *record = vcpu->records[exit % KVM_CFFI_RECORDS];
    return 1;
}

static void kvm_cffi_set_immediate_exit(struct kvm_cffi_vcpu *vcpu, int value)
{
    __atomic_store_n(&vcpu->run->immediate_exit, (uint8_t)value, __ATOMIC_SEQ_CST);
}

static void kvm_cffi_set_request_interrupt_window(struct kvm_cffi_vcpu *vcpu, int value)
{
    vcpu->run->request_interrupt_window = (uint8_t)value;
}

/* Bit 0: KVM_INTERRUPT would be taken now; bit 1: the guest's interrupt flag. */
static int kvm_cffi_interrupt_state(struct kvm_cffi_vcpu *vcpu)
{
    return (vcpu->run->ready_for_interrupt_injection ? 1 : 0) | (vcpu->run->if_flag ? 2 : 0);
}

static uint64_t kvm_cffi_cr8(struct kvm_cffi_vcpu *vcpu)
{
    return vcpu->run->cr8;
}

struct kvm_cffi_exit {
    uint32_t reason;
    uint64_t hardware_reason;
    uint32_t hardware_cpu;
    uint32_t suberror, ndata;
    uint64_t data[16];
    uint32_t insn_size;
    uint8_t insn_bytes[15];
    struct kvm_debug_exit_arch debug;
    uint32_t event_type, event_ndata;
    uint64_t event_data[16];
    uint32_t exception, error_code;
    uint8_t vector;
};

static void kvm_cffi_exit_details(struct kvm_cffi_vcpu *vcpu, struct kvm_cffi_exit *out)
{
    struct kvm_run *run = vcpu->run;
    uint32_t i;

    memset(out, 0, sizeof(*out));
    out->reason = run->exit_reason;
    switch (run->exit_reason) {
    case KVM_EXIT_UNKNOWN:
        out->hardware_reason = run->hw.hardware_exit_reason;
        break;
    case KVM_EXIT_FAIL_ENTRY:
        out->hardware_reason = run->fail_entry.hardware_entry_failure_reason;
        out->hardware_cpu = run->fail_entry.cpu;
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        out->suberror = run->internal.suberror;
        out->ndata = run->internal.ndata < 16 ? run->internal.ndata : 16;
        for (i = 0; i < out->ndata; i++)
            out->data[i] = run->internal.data[i];
        if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION && run->emulation_failure.ndata >= 1 &&
            run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) {
            out->insn_size = run->emulation_failure.insn_size;
            if (out->insn_size > 15)
                out->insn_size = 15;
            memcpy(out->insn_bytes, run->emulation_failure.insn_bytes, 15);
        }
        break;
    case KVM_EXIT_DEBUG:
        out->debug = run->debug.arch;
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        out->event_type = run->system_event.type;
        out->event_ndata = run->system_event.ndata < 16 ? run->system_event.ndata : 16;
        for (i = 0; i < out->event_ndata; i++)
            out->event_data[i] = run->system_event.data[i];
        break;
    case KVM_EXIT_EXCEPTION:
        out->exception = run->ex.exception;
        out->error_code = run->ex.error_code;
        break;
    case KVM_EXIT_IOAPIC_EOI:
        out->vector = run->eoi.vector;
        break;
    }
}

struct kvm_cffi_coalesced {
    uint64_t address, data;
    uint32_t size, pio;
};

/* Takes the oldest coalesced write; the ring is the VM's, so callers hold a lock. */
static int kvm_cffi_coalesced_next(struct kvm_cffi_vcpu *vcpu, struct kvm_cffi_coalesced *out)
{
    struct kvm_coalesced_mmio_ring *ring = vcpu->ring;
    struct kvm_coalesced_mmio *entry;

    if (!kvm_cffi_coalesced_count(vcpu))
        return 0;
    entry = &ring->coalesced_mmio[ring->first % RING_ENTRIES];
    out->address = entry->phys_addr;
    out->size = entry->len <= 8 ? entry->len : 8;
    out->data = load(entry->data, out->size);
    out->pio = entry->pio;
    __atomic_store_n(&ring->first, (ring->first + 1) % RING_ENTRIES, __ATOMIC_RELEASE);
    return 1;
}

struct kvm_cffi_vcpu_events {
    uint8_t exception_injected, exception_nr, exception_has_error_code;
    uint32_t exception_error_code;
    uint8_t interrupt_injected, interrupt_nr, interrupt_soft, interrupt_shadow;
    uint8_t nmi_injected, nmi_pending, nmi_masked;
    uint32_t sipi_vector, flags;
    uint8_t smm, smi_pending, smm_inside_nmi, latched_init;
};

static int kvm_cffi_get_vcpu_events(int fd, struct kvm_cffi_vcpu_events *out)
{
    struct kvm_vcpu_events events;

    memset(&events, 0, sizeof(events));
    if (ioctl(fd, KVM_GET_VCPU_EVENTS, &events) < 0)
        return -1;
    out->exception_injected = events.exception.injected;
    out->exception_nr = events.exception.nr;
    out->exception_has_error_code = events.exception.has_error_code;
    out->exception_error_code = events.exception.error_code;
    out->interrupt_injected = events.interrupt.injected;
    out->interrupt_nr = events.interrupt.nr;
    out->interrupt_soft = events.interrupt.soft;
    out->interrupt_shadow = events.interrupt.shadow;
    out->nmi_injected = events.nmi.injected;
    out->nmi_pending = events.nmi.pending;
    out->nmi_masked = events.nmi.masked;
    out->sipi_vector = events.sipi_vector;
    out->flags = events.flags;
    out->smm = events.smi.smm;
    out->smi_pending = events.smi.pending;
    out->smm_inside_nmi = events.smi.smm_inside_nmi;
    out->latched_init = events.smi.latched_init;
    return 0;
}

/* What is not in *in* (a triple fault) stays as the kernel has it. */
static int kvm_cffi_set_vcpu_events(int fd, const struct kvm_cffi_vcpu_events *in)
{
    struct kvm_vcpu_events events;

    memset(&events, 0, sizeof(events));
    if (ioctl(fd, KVM_GET_VCPU_EVENTS, &events) < 0)
        return -1;
    events.exception.injected = in->exception_injected;
    events.exception.nr = in->exception_nr;
    events.exception.has_error_code = in->exception_has_error_code;
    events.exception.error_code = in->exception_error_code;
    events.interrupt.injected = in->interrupt_injected;
    events.interrupt.nr = in->interrupt_nr;
    events.interrupt.soft = in->interrupt_soft;
    events.interrupt.shadow = in->interrupt_shadow;
    events.nmi.injected = in->nmi_injected;
    events.nmi.pending = in->nmi_pending;
    events.nmi.masked = in->nmi_masked;
    events.sipi_vector = in->sipi_vector;
    events.flags = in->flags;
    events.smi.smm = in->smm;
    events.smi.pending = in->smi_pending;
    events.smi.smm_inside_nmi = in->smm_inside_nmi;
    events.smi.latched_init = in->latched_init;
    return ioctl(fd, KVM_SET_VCPU_EVENTS, &events);
}
