"""The guest's screen in an X11 window: what changed is drawn, up to sixty times a second.

A run of characters that share their colours is one PutImage of a bitmap, so that the server needs no font of ours and
a full screen is some forty kilobytes. The window has the size of the picture, 8x16 pixels a cell; closing it asks the
machine to stop. One thread, one descriptor: `process` when it is readable, `refresh` by a timer that `start` arms.

Import this only when a window is wanted: python-xlib takes its time.

Source: X Window System Protocol, X11R7.7, PutImage (XYBitmap); ICCCM 4.1.2.3 (WM_NORMAL_HINTS), 4.2.8.1
(WM_DELETE_WINDOW).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from Xlib import X, Xutil, display, error

from pyvmm.clock import NS_PER_SECOND, Clock
from pyvmm.devices.vga_text import VgaText
from pyvmm.errors import UserError
from pyvmm.host.capture.x11_keys import EVENT_MASK, X11Input
from pyvmm.input.router import Router
from pyvmm.screen.font import GLYPH_HEIGHT, GLYPH_WIDTH
from pyvmm.screen.screen import Rgb, Run, ScreenFollower, SeenScreen, cursor_box, scan_lines
from pyvmm.trace import OFF, Channel

FRAME_NS: Final = NS_PER_SECOND // 60
_LSB_FIRST: Final = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
_GRABBED: Final = " - both Ctrl keys release the mouse"


def open_display(name: str | None = None) -> Any:
    """Connect to the X server *name* (else DISPLAY); raises UserError with one line."""
    name = name or os.environ.get("DISPLAY")
    instead = "use --display text or --display none"
    if not name:
        raise UserError(f"no X display: DISPLAY is not set; set it, or {instead}")
    try:
        return display.Display(name)
    except error.DisplayNameError:
        raise UserError(f"no X display: {name!r} is not a display's name such as :0; or {instead}") from None
    except (error.DisplayConnectionError, error.ConnectionClosedError, error.XauthError, OSError) as failure:
        reason = " ".join(str(getattr(failure, "msg", failure)).split()) or type(failure).__name__
        raise UserError(f"cannot open X display {name!r}: {reason}; or {instead}") from None


def true_colour_masks(screen: Any) -> tuple[int, int, int] | None:
    """Where red, green and blue are in a pixel of the screen's root visual; None where it has a map of colours."""
    for depth in screen.allowed_depths:
        for visual in depth.visuals:
            if visual.visual_id == screen.root_visual and visual.visual_class == X.TrueColor:
                return visual.red_mask, visual.green_mask, visual.blue_mask
    return None


class X11Window:
    """A window that shows *vga* and, with a *router*, is the guest's keyboard and mouse.

    *on_close* is called once, when the user closes the window or the server goes away. Raises UserError where there is
    no server.
    """

    def __init__(
        self,
        vga: VgaText,
        clock: Clock,
        on_close: Callable[[], None],
        router: Router | None = None,
        *,
        keyboard: bool = True,
        mouse: bool = True,
        title: str = "pyvmm",
        display_name: str | None = None,
        trace: Channel = OFF,
    ) -> None:
        self._follower = ScreenFollower(vga)
        self._clock = clock
        self._timer = clock.timer(self._frame)
        self._on_close = on_close
        self._title = title
        self._trace = trace
        self._width, self._height = vga.columns * GLYPH_WIDTH, vga.rows * GLYPH_HEIGHT
        self._pixels: dict[Rgb, int] = {}
        self._colours = (-1, -1)
        self._closed = False
        self._started = False

        self._display = open_display(display_name)
        self._display.set_error_handler(self._on_error)
        self._display.display.socket.setblocking(False)  # a server that does not read must not stop the machine
        # Our own descriptor of the connection: the library closes its when the server goes, while a loop may hold it.
        self._fd = os.dup(self._display.fileno())
        info = self._display.display.info
        self._lsb_first = info.bitmap_format_bit_order == X.LSBFirst
        self._pad = info.bitmap_format_scanline_pad // 8
        screen = self._display.screen()
        self._colormap = screen.default_colormap
        self._masks = true_colour_masks(screen)
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
            background_pixel=screen.black_pixel,
            event_mask=EVENT_MASK | X.ExposureMask,
        )
        self._window.set_wm_protocols([self._delete_window])
        self._window.set_wm_class("pyvmm", "Pyvmm")
        self._window.set_wm_hints(flags=Xutil.InputHint, input=True)
        self._gc = self._window.create_gc(graphics_exposures=False)
        self._set_title(False)
        self._set_size(self._width, self._height)
        self._input = (
            X11Input(
                self._display,
                self._window,
                router,
                lambda: (self._width, self._height),
                keyboard=keyboard,
                mouse=mouse,
                on_grab=self._set_title,
            )
            if router is not None
            else None
        )
        self._window.map()
        self._display.flush()

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
        self.refresh()
        if self._started and not self._closed:
            now = self._clock.now()
            # A guest that changes every cell's colours all the time gets a quarter of our time, not all of it.
            self._timer.arm(now + max(FRAME_NS, 3 * (now - start)))

    def refresh(self) -> None:
        """Draw what changed. While the server has yet to read the last frame, nothing is added to it."""
        if self._closed:
            return
        try:
            if not self._display.display.data_send:
                frame = self._follower.next(self._clock.now())
                if frame is not None:
                    self._draw(*frame)
            self._receive()  # sends, and drawing may have read events into the library's queue
        except (error.ConnectionClosedError, OSError):
            self._lost()

    def process(self) -> None:
        """Take what the server sent; never waits."""
        if self._closed:
            return
        try:
            self._receive()
        except (error.ConnectionClosedError, OSError):
            self._lost()

    def _receive(self) -> None:
        events = []
        while self._display.pending_events():
            events.append(self._display.next_event())
        for event in events:
            if event.type == X.Expose and event.count == 0:
                self._follower.redraw()
            elif (
                event.type == X.ClientMessage
                and event.client_type == self._protocols
                and event.data[1][0] == self._delete_window
            ):
                self._on_close()
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

    def _lost(self) -> None:
        if self._trace.enabled:
            self._trace("the X server has closed the connection")
        self._forget()
        self._on_close()

    def _forget(self) -> None:
        self._closed = True
        self._timer.cancel()
        if self._input is not None:
            self._input.close()

    def _on_error(self, problem: object, request: object) -> None:
        if self._trace.enabled:
            self._trace(f"X error: {problem}")

    def _set_title(self, grabbed: bool) -> None:
        self._window.set_wm_name(self._title + _GRABBED if grabbed else self._title)

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

    def _draw(self, seen: SeenScreen, runs: list[Run]) -> None:
        size = (seen.screen.columns * GLYPH_WIDTH, seen.screen.rows * GLYPH_HEIGHT)
        if size != (self._width, self._height):
            self._set_size(*size)
        for run in runs:
            self._draw_run(run, seen)
        if seen.cursor is not None:
            left, top, right, bottom = cursor_box(seen.cursor, seen.screen.cell_height)
            self._set_colours(self._pixel(seen.palette[seen.cursor_colour()]), 0)
            self._window.fill_rectangle(self._gc, left, top, right - left, bottom - top)

    def _draw_run(self, run: Run, seen: SeenScreen) -> None:
        length = len(run.characters)
        x, y = run.column * GLYPH_WIDTH, run.row * GLYPH_HEIGHT
        foreground, background = self._pixel(seen.palette[run.foreground]), self._pixel(seen.palette[run.background])
        if not run.characters.strip(b" \0"):
            self._set_colours(background, foreground)
            self._window.fill_rectangle(self._gc, x, y, length * GLYPH_WIDTH, GLYPH_HEIGHT)
            return
        padding = bytes(-length % self._pad)
        bits = b"".join(line + padding for line in scan_lines(run.characters))
        if self._lsb_first:
            bits = bits.translate(_LSB_FIRST)
        self._set_colours(foreground, background)
        self._window.put_image(self._gc, x, y, length * GLYPH_WIDTH, GLYPH_HEIGHT, X.XYBitmap, 1, 0, bits)

    def _set_colours(self, foreground: int, background: int) -> None:
        if (foreground, background) != self._colours:
            self._colours = (foreground, background)
            self._gc.change(foreground=foreground, background=background)

    def _pixel(self, colour: Rgb) -> int:
        pixel = self._pixels.get(colour)
        if pixel is None:
            if len(self._pixels) >= 4096:  # a guest may cycle its palette for ever
                self._pixels.clear()
            pixel = self._pixels[colour] = self._new_pixel(colour)
        return pixel

    def _new_pixel(self, colour: Rgb) -> int:
        if self._masks is None:  # then the server is asked, and waited for
            return int(self._colormap.alloc_color(*(level * 257 for level in colour)).pixel)
        pixel = 0
        for level, mask in zip(colour, self._masks, strict=True):
            unit = mask & -mask
            pixel |= level * (mask // unit) // 255 * unit
        return pixel
