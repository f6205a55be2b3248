"""virtio 1.x over PCI: the transport, the virtqueues, and one device a file."""
