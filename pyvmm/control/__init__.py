"""Who holds a machine from another program: clients of pyvmm.machine.machine.Machine, none of which adds to it."""
