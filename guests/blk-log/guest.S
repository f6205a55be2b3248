/* Writes batches of sectors to a virtio disk one after the other, and tells of each batch on the debug console, in hexadecimal,
   when a FLUSH behind it has come back: what it has told of is where no loss of the host reaches it. Batch n is sectors
   `batch` * n and on; each is full of 32-bit words, n and the sector's own number in turn. With `flush` 0 it does not agree
   to FLUSH, and each write is safe when it comes back. When the disk is full it ends with 0; with 1 to 4 where the disk was
   not found (include/blk.h), 5 where `batch` is none, 6 where a request failed. */
#include "flat32.h"

        FLAT32_START
        VALUE   batch, 4                /* parameters: 1 to 32 */
        VALUE   flush, 1
        FLAT32_BEGIN guest_main
