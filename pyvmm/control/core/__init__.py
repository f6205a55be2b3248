"""A guest's memory and registers in an ELF core file, for gdb, drgn and crash."""
