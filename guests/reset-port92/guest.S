/* Reset by system control port A, port 0x92: bit 0 going from 0 to 1. Started again, it ends with 0; where the reset did
   nothing, with 1. */
#include "real.h"

        REAL_START
        REAL_BEGIN
        END_IF_RESET
        inb     $PORT92, %al
        andb    $~PORT92_INIT_NOW, %al
        outb    %al, $PORT92
        orb     $PORT92_INIT_NOW, %al
        outb    %al, $PORT92
        EXIT    1
        BOOT_SIGNATURE
