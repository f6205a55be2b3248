#include "../include/blk.h"

extern volatile uint32_t count, depth, write, blocks;
extern volatile uint32_t interrupts;

static void print(uint64_t value, char end)
{
    for (int shift = 60; shift >= 0; shift -= 4) {
        while (!(inb(UART_LSR) & UART_LSR_THRE))
            ;
        outb(UART_THR, "0123456789abcdef"[value >> shift & 15]);
    }
    while (!(inb(UART_LSR) & UART_LSR_THRE))
        ;
    outb(UART_THR, end);
}

int guest_main(void)
{
    uint32_t random = 1, begun = 0, ended = 0, type = write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
    uint32_t mask = blocks - 1, most = count;
    int missing = blk_start(VIRTIO_RING_F_EVENT_IDX | VIRTIO_BLK_F_FLUSH), n;
    if (missing)
        return missing;
    if (blk_sectors() / (BLOCK / 512) < blocks)
        return 5;
    uint64_t start = rdtsc();
    for (; begun < depth && begun < REQUESTS && begun < most; begun++) {
        random = random * 1664525 + 1013904223;
        blk_add(begun, type, (random >> 8 & mask) * (BLOCK / 512), BLOCK);
        blk_kick();
    }
    while (ended < most) {
        blk_wait();
        while ((n = blk_used()) >= 0) {
            if (statuses[n])
                return 6;
            ended++;
            if (begun < most) {
                random = random * 1664525 + 1013904223;
                blk_add(n, type, (random >> 8 & mask) * (BLOCK / 512), BLOCK);
                blk_kick();
                begun++;
            }
        }
    }
    uint64_t cycles = rdtsc() - start;
    print(cycles, ' ');
    print(interrupts, ' ');
    print(kicks, '\n');
    return 0;
}
