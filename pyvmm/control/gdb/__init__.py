"""gdb's remote serial protocol (the gdb manual, appendix E): `target remote` to a machine."""
