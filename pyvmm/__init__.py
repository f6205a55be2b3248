"""pyvmm: a KVM virtual machine monitor whose machine is written in Python."""
