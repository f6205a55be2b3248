"""Records on their way to the trace: a file without a name, for a guest may make more of them than memory should hold.

Making protobuf messages of a record takes several times as long as recording it, and Python does one of both at a time.
So records are put aside here as fast as the guest goes, and made into messages while it rests, or at the end.
"""

from __future__ import annotations

import marshal
import tempfile
from pathlib import Path
from typing import Final

from pyvmm.control.timeline.record import Record

FORMAT: Final = 2
"""Of marshal: later ones look for what comes twice, which takes longer."""


class Spool:
    """A queue of lists of records in a file beside *path*, which vanishes with the process. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - until close()
        self._read = 0
        self._written = 0

    @property
    def waiting(self) -> int:
        """Bytes that nobody has taken out."""
        return self._written - self._read

    def put(self, records: list[Record]) -> None:
        data = marshal.dumps(records, FORMAT)
        self._file.seek(self._written)
        self._file.write(len(data).to_bytes(4, "little") + data)
        self._written += 4 + len(data)

    def take(self) -> list[Record]:
        """The oldest list; an empty one where there is none."""
        if self._read == self._written:
            return []
        self._file.seek(self._read)
        length = int.from_bytes(self._file.read(4), "little")
        records: list[Record] = marshal.loads(self._file.read(length))
        self._read += 4 + length
        if self._read == self._written:  # begin anew, so that it does not grow for ever
            self._file.seek(0)
            self._file.truncate()
            self._read = self._written = 0
        return records

    def close(self) -> None:
        self._file.close()
