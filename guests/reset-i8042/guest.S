/* Reset by the keyboard controller: command 0xFE on port 0x64 pulses its output port's bit 0, which is the CPU's reset
   line. Started again, it ends with 0; where the reset did nothing, with 1. */
#include "real.h"

        REAL_START
        REAL_BEGIN
        END_IF_RESET
        I8042_WAIT
        OUT8    I8042_CMD, I8042_CMD_PULSE_RESET
        movl    $10000, %ecx            /* a real one takes its time */
1:      inb     $I8042_STATUS, %al
        addr32 loop 1b
        EXIT    1
        BOOT_SIGNATURE
