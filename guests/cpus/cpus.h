/* What assembly and C have in common. */
#define CPUS 8                   /* CPUs that there is room for */
#define TRAMPOLINE 0x60000       /* a page below 1 MiB; the SIPI vector is its number */
