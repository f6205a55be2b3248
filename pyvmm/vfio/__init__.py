"""A PCI device of the host for the guest: VFIO."""
