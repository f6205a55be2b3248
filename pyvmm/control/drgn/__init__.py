"""drgn, a debugger whose commands are Python, on a machine's memory, in this process."""
