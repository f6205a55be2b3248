"""QEMU's machine protocol (QEMU, docs/interop/qmp-spec): JSON over a Unix socket, so that its tools hold a machine."""
