"""A VM that runs nothing: what a board is built on to find out what it would be, without a KVM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvm_cffi import DeviceFd, IrqchipRoute, MsiRoute, Vcpu, Vm

GSI_ROUTES = 4096
"""KVM_CAP_IRQ_ROUTING of today's kernels."""


class FakeVm(Vm):
    """Takes every call of a Vm that a board makes, and forgets it."""

    def __init__(self) -> None:
        self.fd = -1

    def close(self) -> None:
        pass

    def check_extension(self, capability: str) -> int:
        return GSI_ROUTES if capability == "KVM_CAP_IRQ_ROUTING" else 1

    def enable_cap(self, capability: str, *args: int) -> None:
        pass

    def set_user_memory_region(
        self, slot: int, gpa: int, buffer: Any, *, readonly: bool = False, log_dirty_pages: bool = False
    ) -> None:
        pass

    def get_dirty_log(self, slot: int, size: int) -> bytes:
        return b""

    def harvest_dirty_log(self, slot: int, dirty: bytearray, scratch: bytearray, size: int) -> None:
        pass

    def set_tss_addr(self, gpa: int) -> None:
        pass

    def set_identity_map_addr(self, gpa: int) -> None:
        pass

    def create_irqchip(self) -> None:
        pass

    def create_pit2(self, speaker_dummy: bool = True) -> None:
        pass

    def get_pit2(self) -> bytes:
        return bytes(112)  # struct kvm_pit_state2

    def set_pit2(self, state: bytes) -> None:
        pass

    def get_irqchip(self, chip: int) -> bytes:
        return bytes(512)

    def set_irqchip(self, chip: int, data: bytes) -> None:
        pass

    def irq_line(self, gsi: int, level: bool) -> None:
        pass

    def set_gsi_routing(self, routes: Iterable[IrqchipRoute | MsiRoute]) -> None:
        pass

    def signal_msi(self, address: int, data: int) -> bool:
        return False

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, deassign: bool = False) -> None:
        pass

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int,
        *,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        pass

    def register_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        pass

    def create_device(self, device_type: int) -> DeviceFd:
        return FakeDeviceFd(-1)

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        raise RuntimeError("this VM runs nothing")


class FakeDeviceFd(DeviceFd):
    """Takes every attribute, and forgets it."""

    def set_attr(self, group: int, attr: int, value: bytes) -> None:
        pass
