/* Reads and writes a block device past the page cache, so many requests at once, for two seconds each way, and prints a line a way:

       blk WAY DEPTH REQUESTS-A-SECOND

   WAY is read or write, 4 KiB at random places of the first 16 MiB, or read-on and write-on, 1 MiB one after the other.
   usage: blk-io DEVICE
   Asynchronous I/O by the kernel's own calls (linux/aio_abi.h), for no library need be in the guest. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SIZE (16 << 20)
#define MOST 32
#define LARGE (1 << 20)
#define SECONDS 2.0

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void measure(aio_context_t context, int fd, char *buffers, const char *way, int write, int depth, int length, int in_turn)
{
    struct iocb requests[MOST] = {0}, *list[1];
    struct io_event events[MOST];
    uint32_t random = 1;
    long begun = 0, ended = 0;
    double start = now(), end = start + SECONDS, last = start;
    int under_way = 0, free_ones[MOST], free_count = 0;
    for (int n = 0; n < depth; n++)
        free_ones[free_count++] = n;
    for (;;) {
        while (free_count && last < end) {
            int n = free_ones[--free_count];
            random = random * 1664525 + 1013904223;
            uint32_t block = (in_turn ? (uint32_t)begun : random >> 8) % (SIZE / length);
            requests[n] = (struct iocb){
                .aio_data = n, .aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD, .aio_fildes = fd,
                .aio_buf = (uintptr_t)buffers + (size_t)n * LARGE, .aio_nbytes = length, .aio_offset = (long long)block * length,
            };
            list[0] = &requests[n];
            if (syscall(SYS_io_submit, context, 1, list) != 1)
                fail("io_submit");
            begun++;
            under_way++;
        }
        if (!under_way)
            break;
        long got = syscall(SYS_io_getevents, context, 1, MOST, events, NULL);
        if (got < 1)
            fail("io_getevents");
        for (long n = 0; n < got; n++) {
            if (events[n].res != length)
                fail("a request");
            free_ones[free_count++] = events[n].data;
        }
        under_way -= got;
        ended += got;
        last = now();
    }
    printf("blk %s %d %.1f\n", way, depth, ended / (last - start));
    fflush(stdout);
}

int main(int count, char **words)
{
    aio_context_t context = 0;
    void *buffers;
    int fd = count > 1 ? open(words[1], O_RDWR | O_DIRECT) : -1;
    if (fd < 0 || syscall(SYS_io_setup, MOST, &context) || posix_memalign(&buffers, 4096, (size_t)MOST * LARGE))
        fail("blk-io");
    measure(context, fd, buffers, "read", 0, 1, 4096, 0);
    measure(context, fd, buffers, "write", 1, 1, 4096, 0);
    measure(context, fd, buffers, "read", 0, 32, 4096, 0);
    measure(context, fd, buffers, "write", 1, 32, 4096, 0);
    measure(context, fd, buffers, "read-on", 0, 4, LARGE, 1);
    measure(context, fd, buffers, "write-on", 1, 4, LARGE, 1);
    return 0;
}
