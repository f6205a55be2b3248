"""Boot sectors that want a processor's own interrupts, in protected and in long mode, by our BIOS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig import boot_sector
from tests.rig.boot_sectors import COMMON, INTERRUPTS


@pytest.mark.parametrize(("name", "shows"), list(zip(INTERRUPTS, ("33", "63"), strict=True)))
def test_interrupts_in_other_modes(tmp_path: Path, name: str, shows: str) -> None:
    image = boot_sector.sector(COMMON + INTERRUPTS[name], tmp_path)
    ours = boot_sector.pyvmm(image, tmp_path)
    assert ours.lines == [shows]
