"""/dev/kvm itself and the objects around its descriptors: capabilities, clock, devices, opening and closing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kvm_cffi import KvmError, System, constants, pages
from kvm_cffi.exits import Intr
from tests.rig.rig import Rig, interrupted_after

KVM_DEV_VFIO_GROUP = 1
KVM_DEV_VFIO_GROUP_ADD = 1


def descriptors() -> set[str]:
    return {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_capabilities() -> None:
    with System() as kvm, kvm.create_vm() as vm:
        assert kvm.check_extension("KVM_CAP_USER_MEMORY") == 1
        assert kvm.check_extension("KVM_CAP_MAX_VCPUS") >= 2
        assert vm.check_extension("KVM_CAP_NR_MEMSLOTS") >= 32
        assert vm.check_extension("KVM_CAP_IRQ_ROUTING") >= 1024
        with pytest.raises(AttributeError):
            kvm.check_extension("KVM_CAP_NO_SUCH_THING")


def test_enable_cap() -> None:
    with System() as kvm, kvm.create_vm() as vm:
        vm.enable_cap("KVM_CAP_X2APIC_API", constants.KVM_X2APIC_API_USE_32BIT_IDS)
        with pytest.raises(KvmError, match="KVM_ENABLE_CAP: Invalid argument"):
            vm.enable_cap("KVM_CAP_X2APIC_API", 1 << 40)
        with pytest.raises(KvmError, match="KVM_ENABLE_CAP"):
            vm.enable_cap("KVM_CAP_USER_MEMORY")


def test_constants_are_the_headers() -> None:
    assert constants.KVM_EXIT_IO == 2
    assert constants.KVM_CAP_IRQCHIP == 0
    with pytest.raises(AttributeError):
        _ = constants.KVM_NO_SUCH_THING
    with pytest.raises(AttributeError):
        _ = constants.something


def test_a_file_that_is_not_kvm(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(FileNotFoundError):
        System(str(tmp_path / "none"))
    with pytest.raises(KvmError, match="KVM_GET_API_VERSION: Inappropriate ioctl for device"):
        System("/dev/null")
    assert open_files() == before


def test_clock() -> None:
    with System() as kvm, kvm.create_vm() as vm:
        assert vm.get_clock() < 10**9, "from the making of the VM"
        vm.set_clock(10**15)
        assert 10**15 <= vm.get_clock() < 10**15 + 10**10


def test_device() -> None:
    with System() as kvm, kvm.create_vm() as vm:
        device = vm.create_device(constants.KVM_DEV_TYPE_VFIO)
        assert device.has_attr(KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD)
        assert not device.has_attr(KVM_DEV_VFIO_GROUP, 99)
        with pytest.raises(KvmError, match="KVM_SET_DEVICE_ATTR: Bad file descriptor"):
            device.set_attr(KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, (-1).to_bytes(4, "little", signed=True))
        with pytest.raises(KvmError, match="KVM_GET_DEVICE_ATTR"):
            device.get_attr(KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, 4)
        device.close()
        device.close()
        with pytest.raises(KvmError, match="KVM_CREATE_DEVICE"):
            vm.create_device(99)


def test_no_vcpu_twice() -> None:
    with System() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0), pytest.raises(KvmError, match="KVM_CREATE_VCPU"):
        vm.create_vcpu(0)


def test_closing_gives_every_descriptor_back() -> None:
    before = open_files()
    for _ in range(20):
        with Rig("pio", irqchip="kernel", pit=True) as rig:
            rig.create_vcpu(local_apic=True)
            rig.run()
    assert open_files() == before
    rig.close()
    assert open_files() == before, "a second time does no harm"
    assert not any(name.startswith(("/dev/kvm", "anon_inode:kvm")) for name in descriptors())


def test_a_closed_vcpu_is_an_error_and_no_crash() -> None:
    with Rig("pio") as rig:
        vcpu = rig.vcpu
    vcpu.immediate_exit = True
    vcpu.close()
    for use in (vcpu.run, vcpu.last_exits, lambda: list(vcpu.coalesced_writes()), lambda: vcpu.if_flag):
        with pytest.raises((TypeError, AttributeError)):
            use()
    with pytest.raises(KvmError, match="KVM_GET_REGS: Bad file descriptor"):
        vcpu.get_regs()
    with pytest.raises(KvmError, match="KVM_CREATE_VCPU: Bad file descriptor"):
        rig.vm.create_vcpu(1)


def test_descriptors_do_not_outlive_an_exec() -> None:
    with Rig() as rig:
        for fd in (rig.system.fd, rig.vm.fd, rig.vcpu.fd):
            assert not os.get_inheritable(fd)


def test_a_vm_made_while_signals_arrive() -> None:
    """KVM_CREATE_VM is EINTR where a signal falls into it; the caller never sees that."""
    with System() as kvm, interrupted_after(0.02):
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            kvm.create_vm().close()
    with Rig("pio") as rig, interrupted_after(0.005):
        result = [exit for exit in rig.exits(lambda exit: 0) if exit != Intr()]
        assert len(result) == 9, "an interrupted KVM_RUN loses no access"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_page_size() -> None:
    assert os.sysconf("SC_PAGE_SIZE") == pages.PAGE_SIZE
