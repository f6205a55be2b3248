/* What an interrupt leaves on the BIOS's stack, for entry.S and C. */

#define FRAME_STACK 1024 /* bytes of stack that one interrupt has, and a program's handler of INT 1Ch in it */
#define FRAMES 8        /* as deep as interrupts nest */
#define FRAME_REGS 46   /* sizeof(struct regs) */
