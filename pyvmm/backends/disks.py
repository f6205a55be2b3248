"""A disk as a device has it: requests go in, and come out in any order, some at a time, when the host has done them.

    disk = disks.open(Path("root.img"))
    disk.completed = show                       # under the machine lock, with a batch of requests
    disk.submit(Request(READ, offset, views))   # threads of the disk's own read into the views

A device that takes `disks: Disks` is given the service; no device starts a thread or waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pyvmm.clock import NS_PER_SECOND
from pyvmm.errors import UserError, printable
from pyvmm.state import Plain, StateError
from pyvmm.units import MIB

if TYPE_CHECKING:
    from pyvmm.backends.image import DiskImage, FileImage
    from pyvmm.backends.worker import RunHere

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = range(5)
_NAMES: Final = ("read", "write", "flush", "discard", "write of zeroes")
PIECE: Final = MIB
"""Bytes of a request that are read or written at once: after each it may have been given up."""
_CLOCK_REALTIME_COARSE: Final = 5
"""linux/time.h: the clock that files get their times from, which moves in steps of some milliseconds."""

Cache = Literal["writeback", "none", "unsafe"]


class Request:
    """One thing to do. *owner* is whoever wants to know it again."""

    __slots__ = ("error", "length", "offset", "operation", "owner", "ranges", "through", "views")

    def __init__(
        self,
        operation: int,
        offset: int = 0,
        views: Sequence[memoryview] = (),
        *,
        ranges: Sequence[tuple[int, int, bool]] = (),
        through: bool = False,
        owner: Any = None,
    ) -> None:
        """*views* are read into or written from; *ranges*, of DISCARD and WRITE_ZEROES, are (offset, length, whether
        the host's blocks may go). *through*: done only once a loss of power does not undo it."""
        self.operation = operation
        self.offset = offset
        self.views = views
        self.length = sum(map(len, views))
        self.ranges = ranges
        self.through = through
        self.owner = owner
        self.error: OSError | None = None
        """Why it failed, once it has."""


def _is_long(request: Request) -> bool:
    """Whether the host's disk is waited for in any case."""
    return request.operation >= FLUSH or request.through


class Disk:
    """An image with threads that serve it. All of it under the machine lock, but portable()."""

    STATE = ()  # save() and load() have it

    def __init__(
        self,
        image: DiskImage,
        file: FileImage,
        *,
        readonly: bool,
        temporary: bool,
        post: Callable[[Callable[[], None]], None],
        tell: Callable[[str], None],
        run_here: RunHere | None = None,
    ) -> None:
        """*file* is what *image* is, or stands on. *tell* says a line to the user."""
        from pyvmm.backends.worker import Worker

        self.name = f"disk {file.name}"
        self.readonly = readonly
        self.temporary = temporary
        self.completed: Callable[[list[Request]], None] = lambda requests: None
        self._image = image
        self._file = file
        self._tell = tell
        self._told: set[tuple[int, int | None]] = set()
        self._worker: Worker[Request] = Worker(
            self.name, self._work, self._ended, post, run_here=run_here, is_long=_is_long
        )
        self._given_up = False
        """Nobody waits any more for what is under way."""
        self._opened = os.urandom(16)
        """This opening of it, and no other."""
        self._writes = 0
        """Requests that may have changed it since then."""
        self.closed = False

    @property
    def size(self) -> int:
        """In bytes, as it was opened or measured."""
        return self._image.size

    @property
    def block(self) -> int:
        """Bytes of which offsets and lengths are multiples."""
        return self._image.block

    def is_of(self, path: Path) -> bool:
        """Whether it is open still, and its file is *path*'s."""
        try:
            return not self.closed and os.path.samestat(os.fstat(self._file.fd), os.stat(path))
        except (OSError, ValueError):
            return False

    @property
    def writes(self) -> bool:
        """Whether its file may be written to."""
        return not self.readonly and not self.temporary

    def measure(self) -> bool:
        """Look how large the file is now; whether that is new. A temporary disk stays as large as it was."""
        before = self._file.size
        if not self.temporary:
            self._file.measure()
        return self._file.size != before

    # Requests

    def doorbell(self, look: Callable[[], None]) -> int | None:
        """An eventfd for a guest to ring: *look* is called for it, under the machine lock, to submit what there is, by
        a thread of the disk's that then goes on to do it. None where whoever hears the guest is to call it."""
        return self._worker.watch(look)

    def submit(self, *requests: Request) -> None:
        """Have them done; `completed` will have them. Several at once wake a thread once."""
        self._given_up = False
        try:
            self._worker.submit(*requests)
        except (RuntimeError, OSError) as error:
            for request in requests:
                request.error = OSError(None, f"no thread to do it: {error}")
            self._ended(list(requests))

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return self._worker.pending > 0

    def give_up(self) -> list[Request]:
        """Nobody waits for the requests any more. What no thread has begun is returned, and undone; the rest ends soon,
        perhaps half done, and `completed` has it."""
        self._given_up = True
        return self._worker.drop()

    def drain(self) -> None:
        """Wait until all is done. Raises UserError where the host does not answer."""
        self._worker.drain()

    def _work(self, request: Request) -> None:
        """In a thread."""
        operation, image = request.operation, self._image
        if operation != READ and operation != FLUSH:
            self._writes += 1
        try:
            if operation == READ:
                self._transfer(image.read, request)
            elif operation == WRITE:
                self._transfer(image.write, request)
            elif operation != FLUSH:
                self._clear(request)
            if operation == FLUSH or request.through:
                image.flush()
        except OSError as error:
            request.error = error

    def _clear(self, request: Request) -> None:
        for offset, length, unmap in request.ranges:
            if self._given_up:
                return
            if request.operation == DISCARD:
                self._image.discard(offset, length)
            else:
                self._image.zero(offset, length, unmap)

    def _transfer(self, move: Callable[[Sequence[memoryview], int], None], request: Request) -> None:
        if request.length <= PIECE:
            if request.length:
                move(request.views, request.offset)
            return
        offset, piece, size = request.offset, [], 0
        for whole in request.views:
            view = whole
            while view:
                part = view[: PIECE - size]
                piece.append(part)
                size += len(part)
                view = view[len(part) :]
                if size == PIECE:
                    if self._given_up:
                        return
                    move(piece, offset)
                    offset, piece, size = offset + size, [], 0
        if piece:
            move(piece, offset)

    def _ended(self, batch: list[Request]) -> None:
        for request in batch:
            if request.error is not None:
                self._complain(request, request.error)
        self.completed(batch)

    def _complain(self, request: Request, error: OSError) -> None:
        """Of each thing that fails for a reason the first: a full disk has thousands."""
        if (request.operation, error.errno) not in self._told and not self.closed:
            self._told.add((request.operation, error.errno))
            what = _NAMES[request.operation]
            if request.length:
                what += f" of {request.length} bytes at {request.offset:#x}"
            self._tell(f"{self.name}: a {what} failed: {error.strerror or error}: the guest hears of an I/O error")

    # What a snapshot has of it: which state of the file it goes with, and all that a temporary one has on top

    def save(self) -> Plain:
        if not self._file.is_block_device:  # a write from now on has another time
            while 0 <= self._file.modified - time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) < NS_PER_SECOND:
                time.sleep(0.001)
        return {
            "size": self._file.size,
            "modified": self._file.modified,
            "opened": self._opened,
            "writes": self._writes if not self.temporary else 0,
            "overlay": self._image.save() if self.temporary else None,  # type: ignore[attr-defined]
        }

    def check_saved(self, saved: Plain) -> None:
        """Raises StateError where the file is not what it was then."""
        if not isinstance(saved, dict) or (saved.get("overlay") is None) == self.temporary:
            raise StateError(
                f"{self.name} was {'not ' if self.temporary else ''}temporary in this snapshot, and must be"
            )
        if saved.get("size") != self._file.size:
            raise StateError(f"{self.name} has another size than in this snapshot: put back the file of then")
        same_opening = saved.get("opened") == self._opened
        told_apart = same_opening or not self._file.is_block_device or self.readonly or self.temporary
        if not told_apart:
            raise StateError(
                f"{self.name} is a block device, which does not tell what was written since: use temporary"
            )
        written = same_opening and not self.temporary and saved.get("writes") != self._writes
        if written or saved.get("modified") != self._file.modified:
            raise StateError(
                f"{self.name} was written to since this snapshot was made, so the guest would find another disk than "
                "it knows: put back the file of then, or use temporary"
            )

    def load(self, saved: Plain) -> None:
        self.check_saved(saved)
        if self.temporary and isinstance(saved, dict):
            if isinstance(saved["overlay"], bytes) and saved.get("opened") != self._opened:
                raise StateError(f"{self.name}: what was written to it is in another process")
            self._image.load(saved["overlay"])  # type: ignore[attr-defined]

    def portable(self, saved: Plain) -> Plain:
        """What save() gave, as another process can load it; from any thread. Raises StateError."""
        if isinstance(saved, dict) and isinstance(saved.get("overlay"), bytes):
            overlay: Plain = self._image.portable(saved["overlay"])  # type: ignore[attr-defined]
            return saved | {"overlay": overlay}
        return saved

    def close(self) -> None:
        """End the threads and let the file and its locks go; once is enough."""
        if not self.closed:
            self.closed = True
            self.give_up()
            self._worker.close()
            self._image.close()


class OnDisk:
    """A device with a Disk, whose STATE has it as "disk": what a snapshot asks of that, and its end."""

    STATE: ClassVar[tuple[str, ...]] = ()

    disk: Disk

    def check_saved(self, saved: Plain) -> None:
        """Raises StateError where the disk is not what it was."""
        if isinstance(saved, dict):
            self.disk.check_saved(saved.get("disk"))

    def portable(self, saved: Plain) -> Plain:
        """What was saved, for another process."""
        return saved | {"disk": self.disk.portable(saved.get("disk"))} if isinstance(saved, dict) else saved

    def close(self) -> None:
        self.disk.close()


class Disks:
    """Opens disks for the devices of one machine, and closes them all."""

    def __init__(
        self,
        post: Callable[[Callable[[], None]], None],
        tell: Callable[[str], None] = lambda line: None,
        look_only: bool = False,
        run_here: RunHere | None = None,
    ) -> None:
        """*post* gives the loop a call, which *run_here* may do at once; *tell* is what a disk has to say to the user;
        with *look_only* the machine is not to run, and nothing is locked or made."""
        self._post = post
        self._tell = tell
        self._look_only = look_only
        self._run_here = None if look_only else run_here
        self._open: list[Disk] = []

    def open(
        self,
        path: Path,
        *,
        readonly: bool = False,
        cache: Cache = "writeback",
        size: str | None = None,
        temporary: bool = False,
        raw: bool = False,
    ) -> Disk:
        """The file or block device *path*; see docs/disks.md for the words. Raises UserError."""
        from pyvmm.backends.image import FileImage

        write = not readonly and not temporary
        if any(other.is_of(path) and (write or other.writes) for other in self._open):
            raise UserError(
                f"disk {printable(str(path))}: this machine has it already: name another file, or let both be readonly "
                "or temporary"
            )
        if temporary and cache == "unsafe":
            cache = "writeback"  # of what is only read nothing is lost
        file = FileImage(path, write=write, cache=cache, size=size, raw=raw, look_only=self._look_only)
        image: DiskImage = file
        try:
            if readonly and temporary:
                raise file.error("readonly and temporary do not go together: leave one away")
            if temporary and cache == "none":
                raise file.error("cache=none and temporary do not go together: leave one away")
            if temporary:
                from pyvmm.backends.overlay import Overlay

                image = Overlay(file, file.name)
        except UserError:
            file.close()
            raise
        except OSError as error:
            file.close()
            raise file.error(f"no place for what is written to it: {error.strerror}") from None
        disk = Disk(
            image,
            file,
            readonly=readonly,
            temporary=temporary,
            post=self._post,
            tell=self._tell,
            run_here=self._run_here,
        )
        self._open = [*(other for other in self._open if not other.closed), disk]
        return disk

    def drain(self) -> None:
        """Wait until no disk has anything to do. Raises UserError."""
        for disk in self._open:
            disk.drain()

    def close(self) -> None:
        """Close all that are open still. Raises what the first raised that did, when all are closed."""
        errors: list[BaseException] = []
        for disk in self._open:
            try:
                disk.close()
            except Exception as error:
                errors.append(error)
        self._open.clear()
        if errors:
            raise errors[0]
