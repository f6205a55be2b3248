/* The flat 32-bit start: checks that CR0 has PE and not PG, that EIP and the segments are 32 bits wide and start at 0, and
   that memory above 1 MiB is there. Ends with 0, or with the number of the check that failed. No interrupts: software-backed
   KVM cannot do a 32-bit iret. */
#include "common.h"

        .set    CR0_PE, 1
        .set    CR0_PG, 0x80000000

        .code32
        .text
        .globl  _start
_start: cli
        cld
        movl    $0x80000, %esp
        movl    %cr0, %eax
        andl    $CR0_PE | CR0_PG, %eax
        movb    $1, %bl
        cmpl    $CR0_PE, %eax
        jne     fail

        movb    $2, %bl                 /* EIP is where it was linked, so CS has base 0 */
        call    1f
1:      popl    %eax
        cmpl    $1b, %eax
        jne     fail

        movb    $3, %bl                 /* DS, ES and SS show the same bytes */
        movl    $0x12345678, %eax
        movl    $0x200000, %edi
        stosl
        cmpl    %eax, %ds:0x200000
        jne     fail
        cmpl    %eax, %ss:0x200000
        jne     fail

        movb    $4, %bl                 /* which are not those at address 0 */
        cmpl    %eax, 0
        je      fail
        movb    $0, %bl
fail:   movb    %bl, %al
        EXIT_AL
