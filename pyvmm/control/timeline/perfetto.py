"""What is needed of Perfetto's package, which few machines want: its messages, imported when a timeline is."""

from __future__ import annotations

from types import ModuleType

from pyvmm.errors import UserError


def messages() -> ModuleType:
    """perfetto/trace/perfetto_trace.proto as Python; UserError where the package is not there."""
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError:
        raise UserError("a timeline needs the package perfetto: pip install 'pyvmm-kvm[timeline]'") from None
    module: ModuleType = perfetto_trace_pb2
    return module
