/*
 * INTx of QEMU's edu device, there and back: raise it, sleep in /dev/uio0 (uio_pci_generic), acknowledge, allow it again.
 *
 *   intx DEVICE COUNT     DEVICE is its directory in sysfs; prints the median of COUNT round trips, in microseconds
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "times.h"

#define RAISE (0x60 / 4)
#define ACKNOWLEDGE (0x64 / 4)
#define PCI_COMMAND 4
#define PCI_COMMAND_INTX_DISABLE 0x400

static int open_file(const char *directory, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR);
    if (fd < 0) {
        fprintf(stderr, "intx: %s: %s\n", path, strerror(errno));
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int count = atoi(argv[2]), config = open_file(argv[1], "config"), uio = open_file("/dev", "uio0");
    volatile uint32_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, open_file(argv[1], "resource0"), 0);
    double *took = calloc(count, sizeof *took);
    if (count < 1 || bar == MAP_FAILED || !took)
        return 1;
    for (int i = 0; i < count; i++) {
        uint16_t command;
        uint32_t events;
        if (pread(config, &command, 2, PCI_COMMAND) != 2)
            return 1;
        command &= ~PCI_COMMAND_INTX_DISABLE;
        if (pwrite(config, &command, 2, PCI_COMMAND) != 2)
            return 1;
        double start = microseconds();
        bar[RAISE] = 1;
        if (read(uio, &events, 4) != 4)
            return 1;
        bar[ACKNOWLEDGE] = 1;
        took[i] = microseconds() - start;
    }
    printf("%.0f\n", median_time(took, count));
    return 0;
}
