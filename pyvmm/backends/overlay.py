"""What a guest writes to a disk that is to stay as it is: kept in a file without a name, which ends with the machine.

The disk is cut into clusters. A map says of each where it is: in the disk itself, all zero, or in slot n of the file.
What a snapshot has must stay: slots that were in use when one was taken are never written again, and a cluster that is
written to after that gets a new one. So a snapshot is a copy of the map, and to go back to it is to copy it back.
"""

from __future__ import annotations

import array
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, Final, cast

from pyvmm.backends.image import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, SECTOR, DiskImage, Views, fallocate
from pyvmm.state import Plain, StateError
from pyvmm.units import KIB, MIB

CLUSTER: Final = 64 * KIB
MOST_IN_A_FILE: Final = 128 * MIB
"""Bytes that were written to one disk and go into the file of a snapshot."""
_BASE, _ZERO, _FIRST_SLOT = 0, 1, 2


class Overlay:
    """A DiskImage on top of *base*, which is not written to."""

    def __init__(self, base: DiskImage, name: str) -> None:
        self._base = base
        self.name = name
        self.size = -(-base.size // SECTOR) * SECTOR
        self.block = base.block
        self._file = _nameless_file()
        self._fd = self._file.fileno()
        self._clusters = -(-self.size // CLUSTER)
        self._map = memoryview(mmap.mmap(-1, 4 * self._clusters)).cast("I")
        self._next = _FIRST_SLOT
        """The slots from here on are free."""
        self._frozen = _FIRST_SLOT
        """Those below are some snapshot's."""
        self._lock = threading.Lock()
        """Whoever changes the map or writes has it."""
        self._saved: bytes | None = bytes(self._map)
        """The map as a snapshot has it, while it is still that."""

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(where, from which byte there, how many): as few as can be."""
        end = offset + length
        where, start, count = -1, 0, 0
        while offset < end:
            entry, within = self._map[offset // CLUSTER], offset % CLUSTER
            piece = min(CLUSTER - within, end - offset)
            kind = min(entry, _FIRST_SLOT)
            at = (entry - _FIRST_SLOT) * CLUSTER + within if kind == _FIRST_SLOT else offset
            if kind == where and at == start + count:
                count += piece
            else:
                if count:
                    yield where, start, count
                where, start, count = kind, at, piece
            offset += piece
        if count:
            yield where, start, count

    def read(self, views: Views, offset: int) -> None:
        cut = _Cut(views)
        for where, at, count in self._runs(offset, sum(map(len, views))):
            piece = cut.take(count)
            if where == _BASE:
                self._base.read(piece, at)
            elif where == _ZERO:
                for view in piece:
                    view[:] = bytes(len(view))
            else:
                _read_all(self._fd, piece, at)

    def write(self, views: Views, offset: int) -> None:
        cut = _Cut(views)
        end = offset + sum(map(len, views))
        with self._lock:
            self._saved = None
            while offset < end:
                count = min(CLUSTER - offset % CLUSTER, end - offset)
                self._write_cluster(offset // CLUSTER, offset % CLUSTER, cut.take(count), count)
                offset += count

    def _write_cluster(self, cluster: int, within: int, piece: list[memoryview], count: int) -> None:
        slot = self._map[cluster]
        if slot >= self._frozen:
            _write_all(self._fd, piece, (slot - _FIRST_SLOT) * CLUSTER + within)
            return
        size = min(CLUSTER, self.size - cluster * CLUSTER)
        if count < size:
            whole = memoryview(bytearray(size))
            self.read([whole], cluster * CLUSTER)
            for view in piece:
                whole[within : within + len(view)] = view
                within += len(view)
            piece = [whole]
        self._use_new_slot(cluster, piece)

    def _use_new_slot(self, cluster: int, piece: list[memoryview]) -> None:
        slot = self._next
        _write_all(self._fd, piece, (slot - _FIRST_SLOT) * CLUSTER)
        self._next = slot + 1
        self._map[cluster] = slot

    def zero(self, offset: int, length: int, unmap: bool = True) -> None:
        end = offset + length
        with self._lock:
            self._saved = None
            while offset < end:
                cluster, within = divmod(offset, CLUSTER)
                count = min(CLUSTER - within, end - offset)
                slot = self._map[cluster]
                if slot >= self._frozen and self._punch((slot - _FIRST_SLOT) * CLUSTER + within, count):
                    pass
                elif slot < self._frozen and count == min(CLUSTER, self.size - cluster * CLUSTER):
                    self._map[cluster] = _ZERO
                else:
                    self._write_cluster(cluster, within, [memoryview(bytes(count))], count)
                offset += count

    def _punch(self, at: int, count: int) -> bool:
        with suppress(OSError):
            fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, count)
            return True
        return False

    def discard(self, offset: int, length: int) -> None:
        self.zero(offset, length)

    def flush(self) -> None:
        """No loss of power leaves anything of it."""

    # Snapshots, while no request is under way

    def save(self) -> bytes:
        """The map; what it leads to stays there."""
        if self._saved is None:
            self._saved = bytes(self._map)
        self._frozen = self._next
        return self._saved

    def load(self, saved: Plain) -> None:
        """Be what save() or portable() was of. Raises StateError."""
        if saved is self._saved:
            return
        if isinstance(saved, bytes) and len(saved) == self._map.nbytes:
            self._begin_again()
            self._map.cast("B")[:] = saved
            self._saved = saved
        elif isinstance(saved, dict):
            self._load_portable(saved)
        else:
            raise self._damaged()

    def _begin_again(self) -> None:
        """Nothing is written; slots that no snapshot has are free."""
        self._map.cast("B")[:] = bytes(self._map.nbytes)
        self._next, self._saved = self._frozen, None
        os.ftruncate(self._fd, (self._frozen - _FIRST_SLOT) * CLUSTER)

    def portable(self, saved: bytes) -> dict[Plain, Plain]:
        """What save() gave with what it leads to, for another process; from any thread. Raises StateError."""
        entries = memoryview(saved).cast("I")
        written = [cluster for cluster, entry in enumerate(entries) if entry >= _FIRST_SLOT]
        if len(written) * CLUSTER > MOST_IN_A_FILE:
            raise StateError(
                f"the guest has written {len(written) * CLUSTER // MIB} MiB to disk {self.name}, which is temporary: "
                f"a file of a snapshot takes {MOST_IN_A_FILE // MIB} MiB of that"
            )
        data = bytearray()
        for cluster in written:
            piece = bytearray(min(CLUSTER, self.size - cluster * CLUSTER))
            try:
                _read_all(self._fd, [memoryview(piece)], (entries[cluster] - _FIRST_SLOT) * CLUSTER)
            except OSError as error:
                raise StateError(f"what was written to disk {self.name} is lost: {error.strerror}") from None
            data += piece
        zero = [cluster for cluster, entry in enumerate(entries) if entry == _ZERO]
        return {
            "zero": array.array("I", zero).tobytes(),
            "written": array.array("I", written).tobytes(),
            "data": bytes(data),
        }

    def _load_portable(self, saved: dict[Plain, Plain]) -> None:
        zero, written, data = (saved.get(name) for name in ("zero", "written", "data"))
        if not (isinstance(zero, bytes) and isinstance(written, bytes) and isinstance(data, bytes)):
            raise self._damaged()
        if len(zero) % 4 or len(written) % 4:
            raise self._damaged()
        zeros, clusters = memoryview(zero).cast("I"), memoryview(written).cast("I")
        sizes = [min(CLUSTER, self.size - cluster * CLUSTER) for cluster in clusters]
        if len({*zeros, *clusters}) < len(zeros) + len(clusters) or sum(sizes) != len(data):
            raise self._damaged()
        if any(cluster >= self._clusters for cluster in (*zeros, *clusters)):
            raise self._damaged()
        self._begin_again()
        for cluster in zeros:
            self._map[cluster] = _ZERO
        view, at = memoryview(data), 0
        try:
            for cluster, size in zip(clusters, sizes, strict=True):
                self._use_new_slot(cluster, [view[at : at + size]])
                at += size
        except OSError as error:
            raise StateError(f"no room for what was written to disk {self.name}: {error.strerror}") from None

    def _damaged(self) -> StateError:
        return StateError(f"what was written to disk {self.name} is damaged")

    def close(self) -> None:
        self._file.close()
        self._base.close()


class _Cut:
    """Takes views apart, from their start."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._index = 0
        self._done = 0
        """Bytes of views[index]."""

    def take(self, count: int) -> list[memoryview]:
        taken = []
        while count:
            view = self._views[self._index]
            piece = view[self._done : self._done + count]
            taken.append(piece)
            count -= len(piece)
            self._done += len(piece)
            if self._done == len(view):
                self._index, self._done = self._index + 1, 0
        return taken


def _nameless_file() -> BinaryIO:
    """Where large files may go: /tmp is often memory."""
    import tempfile  # with all that it can do

    directory = os.environ.get("TMPDIR") or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else None)
    return cast(BinaryIO, tempfile.TemporaryFile(buffering=0, dir=directory, prefix="pyvmm-"))


def _read_all(fd: int, views: list[memoryview], offset: int) -> None:
    """What was never written behind the end of a slot is zero."""
    for view in views:
        while view:
            got = os.preadv(fd, [view], offset)
            if not got:
                view[:] = bytes(len(view))
                offset += len(view)
                break
            view, offset = view[got:], offset + got


def _write_all(fd: int, views: list[memoryview], offset: int) -> None:
    for view in views:
        while view:
            done = os.pwritev(fd, [view], offset)
            view, offset = view[done:], offset + done
