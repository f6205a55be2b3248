/* The least that runs a guest: KVM_RUN in a loop, and no handler for anything. It is what pyvmm's exits are compared with.
 *
 * usage: pio-loop IMAGE RESULT...     loads IMAGE at 0x7C00 in real mode, ends when the guest writes to port 0xF4, prints the
 *                                     8-byte values at the guest addresses RESULT and how often KVM_RUN came back
 * Source: Documentation/virt/kvm/api.rst. The VM is made as pyvmm makes its own: irqchip and PIT in the kernel. */

#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY (1 << 20)
#define DEBUG_EXIT 0xF4

static int check(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

int main(int argc, char **argv)
{
    struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
    struct kvm_userspace_memory_region region = { .memory_size = MEMORY };
    struct kvm_regs regs = { .rip = 0x7C00, .rsp = 0x7000, .rflags = 2 };
    struct kvm_sregs sregs;
    struct kvm_run *run;
    unsigned long exits = 0;
    int kvm, vm, vcpu, image;
    char *memory;

    if (argc < 2)
        return 2;
    kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    check(ioctl(vm, KVM_SET_TSS_ADDR, 0xFFFBD000UL), "KVM_SET_TSS_ADDR");
    check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    check(ioctl(vm, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    image = check(open(argv[1], O_RDONLY), argv[1]);
    if (memory == MAP_FAILED || read(image, memory + 0x7C00, 0x8000) <= 0)
        return 1;
    region.userspace_addr = (uint64_t)memory;
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    run = mmap(NULL, check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"), PROT_READ | PROT_WRITE,
               MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        return 1;
    check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

    do {
        check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
        exits++;
        if (run->exit_reason != KVM_EXIT_IO) {
            fprintf(stderr, "exit %u\n", run->exit_reason);
            return 1;
        }
        if (run->io.direction == KVM_EXIT_IO_IN)
            memset((char *)run + run->io.data_offset, 0xFF, run->io.size);
    } while (run->io.port != DEBUG_EXIT);

    for (int i = 2; i < argc; i++) {
        uint64_t address = strtoull(argv[i], NULL, 0), value;

        if (address > MEMORY - sizeof(value))
            return 2;
        memcpy(&value, memory + address, sizeof(value));
        printf("%" PRIu64 " ", value);
    }
    printf("%lu\n", exits);
    return 0;
}
