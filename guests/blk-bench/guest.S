/* Times `count` reads of 4 KiB, or writes with `write` set, at random places of a virtio disk, `depth` of them at once (at most
   32). It sleeps until the interrupt of one that came back. Prints on the serial port, in hexadecimal: cycles of the TSC,
   interrupts, doorbells. Ends with 0, or with what was missing: 1 to 4 of the disk (include/blk.h), 5 it is smaller than
   `blocks` of 4 KiB, 6 a request failed. */
#include "flat32.h"

        FLAT32_START
        VALUE   count, 1000             /* parameters */
        VALUE   depth, 1
        VALUE   write
        VALUE   blocks, 4096            /* a power of two */
        FLAT32_BEGIN guest_main
