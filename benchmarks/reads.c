/*
 * Random reads of 4 KiB from a disk, so many at a time (Linux AIO), each checked.
 *
 *   reads fill DISK BYTES           each block of 4 KiB begins with its own number
 *   reads DISK BYTES COUNT DEPTH    COUNT reads in the first BYTES, DEPTH under way; prints reads a second
 *
 * The exit status is 1 where a read fails or brings another block.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define FILL (64 * BLOCK)
#define MOST 64

static void die(const char *what)
{
    fprintf(stderr, "reads: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_disk(const char *path, int flags)
{
    int fd = open(path, flags | O_DIRECT);
    if (fd < 0)
        die(path);
    return fd;
}

static void *memory(size_t size)
{
    void *buffer;
    if (posix_memalign(&buffer, BLOCK, size))
        die("memory");
    return buffer;
}

static int fill(const char *path, uint64_t bytes)
{
    int fd = open_disk(path, O_WRONLY);
    char *buffer = memory(FILL);
    memset(buffer, 0, FILL);
    for (uint64_t at = 0; at + FILL <= bytes; at += FILL) {
        for (uint64_t offset = 0; offset < FILL; offset += BLOCK)
            *(uint64_t *)(buffer + offset) = (at + offset) / BLOCK;
        if (pwrite(fd, buffer, FILL, at) != FILL)
            die("write");
    }
    return fsync(fd);
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "fill"))
        return fill(argv[2], strtoull(argv[3], NULL, 0));
    if (argc != 5) {
        fprintf(stderr, "usage: reads fill DISK BYTES | reads DISK BYTES COUNT DEPTH\n");
        return 2;
    }
    int fd = open_disk(argv[1], O_RDONLY), depth = atoi(argv[4]);
    uint64_t blocks = strtoull(argv[2], NULL, 0) / BLOCK;
    long count = atol(argv[3]), begun = 0, ended = 0;
    if (depth < 1 || depth > MOST || !blocks)
        return 2;
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, MOST, &context))
        die("io_setup");
    char *buffers = memory((size_t)depth * BLOCK);
    struct iocb iocbs[MOST] = {0};
    struct io_event events[MOST];
    int idle[MOST], idle_count = depth;
    for (int i = 0; i < depth; i++)
        idle[i] = i;
    srandom(1);
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (ended < count) {
        struct iocb *batch[MOST];
        int size = 0;
        while (idle_count && begun < count) {
            int i = idle[--idle_count];
            iocbs[i] = (struct iocb){.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = fd, .aio_nbytes = BLOCK};
            iocbs[i].aio_buf = (uint64_t)(buffers + (size_t)i * BLOCK);
            iocbs[i].aio_offset = (uint64_t)random() % blocks * BLOCK;
            iocbs[i].aio_data = i;
            batch[size++] = &iocbs[i];
            begun++;
        }
        if (size && syscall(SYS_io_submit, context, size, batch) != size)
            die("io_submit");
        int done = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
        if (done < 1)
            die("io_getevents");
        for (int n = 0; n < done; n++) {
            int i = events[n].data;
            uint64_t number = *(uint64_t *)(buffers + (size_t)i * BLOCK), wanted = iocbs[i].aio_offset / BLOCK;
            if (events[n].res != BLOCK || number != wanted) {
                fprintf(stderr, "reads: block %llu: result %lld, it says it is %llu\n", (unsigned long long)wanted,
                        (long long)events[n].res, (unsigned long long)number);
                return 1;
            }
            idle[idle_count++] = i;
            ended++;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9;
    printf("%.0f\n", count / seconds);
    return 0;
}
