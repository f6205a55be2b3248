"""A host whose IOMMU does not remap interrupts: refused in one line, unless its owner trusts every guest.

Run in a lab with such an IOMMU and an edu: scripts/test says with which options."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.rig.lab import PYVMM

EDU = "0000:00:08.0"
ALLOW = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")


def pyvmm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYVMM, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_interrupts_that_are_not_remapped() -> None:
    bound = pyvmm("vfio", "bind", EDU)
    assert (bound.returncode, bound.stdout) == (0, f"{EDU}: no driver -> vfio-pci\n"), bound
    refused = pyvmm("run", "--device", f"vfio,host={EDU}", "keyboard")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused
    assert "this host does not remap interrupts" in refused.stderr and "allow_unsafe_interrupts=1" in refused.stderr
    ALLOW.write_text("Y")
    assert "vfio_iommu_type1 has allow_unsafe_interrupts=Y" in pyvmm("doctor").stdout
    words: list[str | Path] = [PYVMM, "run", "--device", f"vfio,host={EDU}", "keyboard"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(1), "it runs"
        process.kill()
