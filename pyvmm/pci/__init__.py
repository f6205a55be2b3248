"""PCI: configuration space, BARs, capabilities, INTx, MSI and MSI-X."""
