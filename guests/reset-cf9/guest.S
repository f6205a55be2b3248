/* Reset by the chipset's reset control register, port 0xCF9: first the kind, then the bit that does it. Started again, it
   ends with 0; where the reset did nothing, with 1. */
#include "real.h"

        REAL_START
        REAL_BEGIN
        END_IF_RESET
        OUT8_DX RESET_CONTROL, RESET_SYS_RST
        OUT8_DX RESET_CONTROL, RESET_SYS_RST | RESET_RST_CPU
        EXIT    1
        BOOT_SIGNATURE
