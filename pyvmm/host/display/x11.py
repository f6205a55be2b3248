"""The guest's screen in an X11 window: what changed is drawn, up to sixty times a second.

A run of characters that share their colours is one PutImage of a bitmap, so that the server needs no font of ours and
a full screen is some forty kilobytes; a row of many runs is one PutImage of pixels. A frame is drawn row by row, in
turns of at most WORK_NS, for all this is done under the machine lock and the guest decides how much it is. The window
has the size of the picture, 8x16 pixels a cell, times the scale; closing it asks the machine to stop. One thread, one
descriptor: `process` when it is readable, `refresh` by a timer that `start` arms.

Import this only when a window is wanted: python-xlib takes its time.

Source: X Window System Protocol, X11R7.7, PutImage (XYBitmap, ZPixmap); ICCCM 4.1.2.3 (WM_NORMAL_HINTS), 4.2.8.1
(WM_DELETE_WINDOW).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from Xlib import X, Xutil, display, error

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.devices.vga_frame import FRAME_WIDTH, VgaFrame
from pyvmm.devices.vga_text import VgaText
from pyvmm.errors import UserError
from pyvmm.host.capture.x11_keys import EVENT_MASK, X11Input
from pyvmm.host.display.x11_colours import COLOURS, colours_of
from pyvmm.host.display.x11_manager import ManagerHints
from pyvmm.input.router import Router
from pyvmm.screen.font import GLYPH_HEIGHT, GLYPH_WIDTH
from pyvmm.screen.frame import magnified
from pyvmm.screen.pixels import CellPixels
from pyvmm.screen.screen import Rgb, Run, ScreenFollower, SeenScreen, cursor_box, scan_lines
from pyvmm.trace import OFF, Channel

FRAME_NS: Final = NS_PER_SECOND // 60
WORK_NS: Final = NS_PER_SECOND // 100
"""A frame that takes longer than this goes on at a later turn of the loop."""
TURN_BYTES: Final = 256 << 10
"""So does one that has more to send: about what a socket takes at once."""
SOON_NS: Final = NS_PER_SECOND // 1000
MANY_RUNS: Final = 16
"""From here on the row is one image: python-xlib takes some 40 microseconds for a run."""
_PUT_IMAGE_SIZE: Final = 24
_LSB_FIRST: Final = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
INSTEAD: Final = "use --display text or --display none"
WINDOW_CLOSED: Final = "the window was closed"
_GRABBED: Final = " - both Ctrl keys release the mouse"


def _widened(scale: int) -> list[bytes]:
    """For each byte of a scan line, its bits *scale* times each."""
    return [int("".join(bit * scale for bit in f"{byte:08b}"), 2).to_bytes(scale, "big") for byte in range(256)]


def open_display(name: str | None = None) -> Any:
    """Connect to the X server *name* (else DISPLAY); raises UserError with one line."""
    name = name or os.environ.get("DISPLAY")
    if not name:
        raise UserError(f"no X display: DISPLAY is not set; set it, or {INSTEAD}")
    try:
        return display.Display(name)
    except error.DisplayNameError:
        raise UserError(f"no X display: {name!r} is not a display's name such as :0; or {INSTEAD}") from None
    except (error.DisplayConnectionError, error.ConnectionClosedError, error.XauthError, OSError) as failure:
        reason = " ".join(str(getattr(failure, "msg", failure)).split()) or type(failure).__name__
        raise UserError(f"cannot open X display {name!r}: {reason}; or {INSTEAD}") from None


class X11Window:
    """A window that shows *vga* and, with a *router*, is the guest's keyboard and mouse.

    *on_close* is called when the user closes the window, or somebody takes it away, or the server goes; with words that
    say which. Raises UserError where there is no server, or one that refuses.
    """

    def __init__(
        self,
        vga: VgaText,
        clock: Clock,
        on_close: Callable[[str], None],
        router: Router | None = None,
        *,
        keyboard: bool = True,
        mouse: bool = True,
        title: str = "",
        scale: int = 1,
        display_name: str | None = None,
        trace: Channel = OFF,
    ) -> None:
        self._follower = ScreenFollower(vga)
        self._clock = clock
        self._timer = clock.timer(self._frame)
        self._on_close = on_close
        self._title = title
        self._state = ""
        self._grabbed = False
        self._trace = trace
        self._scale = scale
        self._cell_width, self._cell_height = scale * GLYPH_WIDTH, scale * GLYPH_HEIGHT
        self._wide = _widened(scale)
        self._width, self._height = vga.columns * self._cell_width, vga.rows * self._cell_height
        self._left: tuple[SeenScreen, Iterator[list[Run]]] | None = None
        self._pixels: tuple[int, ...] = ()
        self._images: CellPixels | None = None
        self._frame_palette: tuple[Rgb, ...] = ()
        self._frame_pixels: list[bytes] = []
        self._gc_colours = (-1, -1)
        self._closed = False
        self._started = False
        self._display = open_display(display_name)
        self._name = self._display.get_display_name()
        try:
            self._open(router, keyboard, mouse)
        except (error.ConnectionClosedError, error.XError, OSError) as failure:
            self._display.display.socket.close()
            reason = type(failure).__name__ if isinstance(failure, error.XError) else failure
            raise UserError(f"X display {self._name} shows no window: {reason}; or {INSTEAD}") from None

    def _open(self, router: Router | None, keyboard: bool, mouse: bool) -> None:
        self._display.set_error_handler(self._on_error)
        self._display.display.socket.setblocking(False)  # a server that does not read must not stop the machine
        info, screen = self._display.display.info, self._display.screen()
        self._lsb_first = info.bitmap_format_bit_order == X.LSBFirst
        self._pad = info.bitmap_format_scanline_pad // 8
        formats = {f.depth: f.bits_per_pixel for f in info.pixmap_formats}
        self._depth = screen.root_depth
        self._pixel_bits = formats[self._depth]
        self._byte_order: Literal["little", "big"] = "little" if info.image_byte_order == X.LSBFirst else "big"
        self._most_bytes = 4 * info.max_request_length - _PUT_IMAGE_SIZE
        self._colours = colours_of(screen)
        self._delete_window = self._display.intern_atom("WM_DELETE_WINDOW")
        self._protocols = self._display.intern_atom("WM_PROTOCOLS")
        self._window = screen.root.create_window(
            0,
            0,
            self._width,
            self._height,
            0,
            screen.root_depth,
            X.InputOutput,
            X.CopyFromParent,
            background_pixel=self._colours.pixels([(0, 0, 0)] * COLOURS)[0],
            colormap=self._colours.colormap,
            event_mask=EVENT_MASK | X.ExposureMask | X.StructureNotifyMask,
        )
        self._window.set_wm_protocols([self._delete_window])
        self._hints = ManagerHints(self._display, self._window)
        self._window.set_wm_hints(flags=Xutil.InputHint, input=True)
        self._gc = self._window.create_gc(graphics_exposures=False)
        self._show_title()
        self._set_size(self._width, self._height)
        self._input = (
            X11Input(
                self._display,
                self._window,
                router,
                lambda: (self._width, self._height),
                keyboard=keyboard,
                mouse=mouse,
                on_grab=self._set_grabbed,
            )
            if router is not None
            else None
        )
        self._window.map()
        self._display.flush()
        # Our own descriptor of the connection: the library closes its when the server goes, while a loop may hold it.
        self._fd = os.dup(self._display.fileno())

    def start(self) -> None:
        """Draw from now on, sixty times a second at most."""
        self._started = True
        self._frame()

    def fileno(self) -> int:
        """The connection's descriptor, open until close(): call process() when it is readable."""
        return self._fd

    @property
    def window_id(self) -> int:
        """The window's X resource."""
        return int(self._window.id)

    def _frame(self) -> None:
        start = self._clock.now()
        goes_on = self.refresh()
        if self._started and not self._closed:
            now = self._clock.now()
            # A guest that changes every cell's colours all the time gets a quarter of our time, not all of it.
            self._timer.arm(now + max(SOON_NS if goes_on else FRAME_NS, 3 * (now - start)))

    def refresh(self) -> bool:
        """Draw what changed, or some rows of it. While the server has yet to read the last ones, nothing is added.

        True where it is worth going on soon: there is more to do, and the server reads.
        """
        if self._closed:
            return False
        connection = self._display.display
        sent = connection.data_sent_bytes
        with self._guarded():
            if not connection.data_send:
                self._draw()
            self._receive()  # sends, and drawing may have read events into the library's queue
        return bool(self._left or connection.data_send) and connection.data_sent_bytes != sent

    def process(self) -> None:
        """Take what the server sent; never waits."""
        if not self._closed:
            with self._guarded():
                self._receive()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever the server says to what is done inside, the machine goes on, or is told why there is no window."""
        try:
            yield
        except error.XError as problem:
            self._on_error(problem, None)
        except (error.ConnectionClosedError, OSError):
            if self._trace.enabled:
                self._trace("the X server has closed the connection")
            self._gone(f"X display {self._name}: the server has gone, or has closed our connection")

    def _receive(self) -> None:
        events = []
        while self._display.pending_events():
            events.append(self._display.next_event())
        for event in events:
            if event.type == X.Expose and event.count == 0:
                self._follower.redraw()
            elif event.type == X.DestroyNotify:
                self._gone(WINDOW_CLOSED)
                return
            elif (
                event.type == X.ClientMessage
                and event.client_type == self._protocols
                and event.data[1][0] == self._delete_window
            ):
                self._on_close(WINDOW_CLOSED)
        if self._input is not None:
            self._input.handle(events)

    def close(self) -> None:
        """Release the guest's keys and take the window away. The descriptor must be out of its loop by now."""
        if self._fd < 0:
            return
        if not self._closed:
            self._forget()
        os.close(self._fd)
        self._fd = -1
        try:
            self._display.close()
        except Exception:  # the server has gone; python-xlib tells of that in several ways
            pass

    def _gone(self, why: str) -> None:
        self._forget()
        self._on_close(why)

    def _forget(self) -> None:
        self._closed = True
        self._left = None
        self._timer.cancel()
        if self._input is not None:
            self._input.close()

    def _on_error(self, problem: object, request: object) -> None:
        if self._trace.enabled:
            self._trace(f"X error: {problem}")

    def set_state(self, state: str) -> None:
        """Show in the title that the machine is *state*: running, paused, ended."""
        if state != self._state and not self._closed:
            self._state = state
            with self._guarded():
                self._show_title()
                self._display.flush()

    def _set_grabbed(self, grabbed: bool) -> None:
        self._grabbed = grabbed
        self._show_title()

    def _show_title(self) -> None:
        words = [self._title, f"({self._state})" if self._state else "", "- pyvmm" if self._title else "pyvmm"]
        self._hints.title(" ".join(filter(None, words)) + (_GRABBED if self._grabbed else ""))

    def _set_size(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._window.set_wm_normal_hints(
            flags=Xutil.PMinSize | Xutil.PMaxSize,
            min_width=width,
            min_height=height,
            max_width=width,
            max_height=height,
        )
        self._window.configure(width=width, height=height)

    def _draw(self) -> None:
        """Draw rows, of the frame that was begun or of a new one, until the turn is over."""
        end = self._clock.now() + WORK_NS
        if self._left is None:
            self._left = self._follower.next(self._clock.now())
            if self._left is None:
                return
            self._begin(self._left[0])
        seen, rows = self._left
        for runs in rows:
            self._draw_row(runs, seen)
            if self._join_requests() >= TURN_BYTES or self._clock.now() >= end:
                return
        self._left = None

    def _begin(self, seen: SeenScreen) -> None:
        width, height = seen.screen.columns * self._cell_width, seen.screen.rows * self._cell_height
        if (width, height) != (self._width, self._height):
            self._set_size(width, height)
        pixels = self._colours.pixels(seen.palette)
        if pixels != self._pixels:
            self._pixels = pixels
            self._images = None
            if self._pixel_bits % 8 == 0:
                size = self._pixel_bits // 8
                self._images = CellPixels([pixel.to_bytes(size, self._byte_order) for pixel in pixels], self._scale)
        frame = seen.frame
        if frame is not None and frame.palette != self._frame_palette:
            self._frame_palette = frame.palette
            self._frame_pixels = []
            if self._images is not None and self._colours.many:  # else the likeness in sixteen colours has to do
                size = self._pixel_bits // 8
                pixels = self._colours.pixels(frame.palette)
                self._frame_pixels = [pixel.to_bytes(size, self._byte_order) for pixel in pixels]

    def _join_requests(self) -> int:
        """Put the requests that were made into what is to be sent, all at once: python-xlib appends them one by one,
        and copies everything for each. Returns how many bytes wait."""
        connection = self._display.display
        requests = connection.request_queue
        connection.data_send += b"".join([request._binary for request, _ in requests])
        connection.sent_requests += [request for request, awaited in requests if awaited]
        requests.clear()
        return len(connection.data_send)

    def _draw_row(self, runs: list[Run], seen: SeenScreen) -> None:
        if seen.frame is not None and self._frame_pixels:
            self._draw_band(runs[0].row, seen.frame)
            return
        if not (len(runs) >= MANY_RUNS and self._draw_image(runs)):
            for run in runs:
                self._draw_run(run)
        if seen.cursor is not None and seen.cursor.row == runs[0].row:
            left, top, right, bottom = (self._scale * n for n in cursor_box(seen.cursor, seen.screen.cell_height))
            self._set_gc_colours(self._pixels[seen.cursor_colour()], 0)
            self._window.fill_rectangle(self._gc, left, top, right - left, bottom - top)

    def _draw_band(self, row: int, frame: VgaFrame) -> None:
        """Eight lines of a frame, each pixel two by two: a VGA shows its 200 lines twice. In as many requests as it
        takes."""
        width = FRAME_WIDTH * 2 * self._scale
        image = magnified(frame, row, self._frame_pixels, 2 * self._scale)
        line = width * self._pixel_bits // 8
        lines = max(1, self._most_bytes // line)
        for first in range(0, self._cell_height, lines):
            count = min(lines, self._cell_height - first)
            part, y = image[first * line : (first + count) * line], row * self._cell_height + first
            self._window.put_image(self._gc, 0, y, width, count, X.ZPixmap, self._depth, 0, part)

    def _draw_image(self, runs: list[Run]) -> bool:
        """The runs of a row as one image; False where the server's pixels are no whole bytes, or the row is too long
        for a request."""
        width, height = sum(len(run.characters) for run in runs) * self._cell_width, self._cell_height
        if self._images is None or width * height * self._pixel_bits // 8 > self._most_bytes:
            return False
        x, y = runs[0].column * self._cell_width, runs[0].row * height
        pixels = self._images.row(runs)  # 8 pixels of whole bytes: a cell's scan line needs no padding
        self._window.put_image(self._gc, x, y, width, height, X.ZPixmap, self._depth, 0, pixels)
        return True

    def _draw_run(self, run: Run) -> None:
        length = len(run.characters)
        width, height = length * self._cell_width, self._cell_height
        x, y = run.column * self._cell_width, run.row * height
        foreground, background = self._pixels[run.foreground], self._pixels[run.background]
        if not run.characters.strip(b" \0"):
            self._set_gc_colours(background, foreground)
            self._window.fill_rectangle(self._gc, x, y, width, height)
            return
        padding = bytes(-length * self._scale % self._pad)
        lines = scan_lines(run.characters)
        if self._scale > 1:
            lines = [wide for line in lines for wide in [b"".join([self._wide[byte] for byte in line])] * self._scale]
        bits = b"".join(line + padding for line in lines)
        if self._lsb_first:
            bits = bits.translate(_LSB_FIRST)
        self._set_gc_colours(foreground, background)
        self._window.put_image(self._gc, x, y, width, height, X.XYBitmap, 1, 0, bits)

    def _set_gc_colours(self, foreground: int, background: int) -> None:
        if (foreground, background) != self._gc_colours:
            self._gc_colours = (foreground, background)
            self._gc.change(foreground=foreground, background=background)
