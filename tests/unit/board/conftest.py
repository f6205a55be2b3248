from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.rig.eventfd_board import EventfdBoard


@pytest.fixture
def board() -> Iterator[EventfdBoard]:
    with closing(EventfdBoard()) as board:
        yield board
