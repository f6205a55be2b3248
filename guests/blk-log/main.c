#include "../include/blk.h"

extern volatile uint32_t batch, flush;

static void tell(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        outb(DEBUG_CONSOLE, "0123456789abcdef"[value >> shift & 15]);
    outb(DEBUG_CONSOLE, '\n');
}

/* Wait for so many requests; whether they all went well */
static int finished(uint32_t wanted)
{
    blk_kick();
    while (wanted) {
        int n;
        blk_wait();
        while ((n = blk_used()) >= 0) {
            if (statuses[n])
                return 0;
            wanted--;
        }
    }
    return 1;
}

int guest_main(void)
{
    int missing = blk_start(VIRTIO_RING_F_EVENT_IDX | (flush ? VIRTIO_BLK_F_FLUSH : 0));
    if (missing)
        return missing;
    uint32_t sectors = blk_sectors(), size = batch;
    if (!size || size > REQUESTS)
        return 5;
    for (uint32_t number = 0; (number + 1) * size <= sectors; number++) {
        for (uint32_t n = 0; n < size; n++) {
            uint32_t sector = number * size + n;
            for (int word = 0; word < 128; word += 2) {
                data[n][word] = number;
                data[n][word + 1] = sector;
            }
            blk_add(n, VIRTIO_BLK_T_OUT, sector, 512);
        }
        if (!finished(size))
            return 6;
        if (features & VIRTIO_BLK_F_FLUSH) {
            blk_add(0, VIRTIO_BLK_T_FLUSH, 0, 0);
            if (!finished(1))
                return 6;
        }
        tell(number);
    }
    return 0;
}
