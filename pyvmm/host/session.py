"""What connects one machine to this host while it runs: console, display, captured devices, scripted typing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvmm import guests
from pyvmm.clock import NS_PER_SECOND
from pyvmm.config import HostConfig
from pyvmm.errors import UserError
from pyvmm.host.capture.options import parse_input_option, x11_wanted
from pyvmm.host.commands import perform, take_snapshot
from pyvmm.host.console import Console
from pyvmm.host.hints import SilentSerial, UnheardKeys
from pyvmm.host.nonblocking import Output
from pyvmm.host.terminal_port import TerminalPort
from pyvmm.host.tty import in_foreground
from pyvmm.input.keymap import KeyTextError, split_script, split_sending
from pyvmm.input.typist import After, SendAfter, TypeAfter
from pyvmm.machine.event import MachineEvent
from pyvmm.machine.machine import Machine
from pyvmm.machine.outcome import End, Outcome
from pyvmm.machine.snapshot import Snapshot

if TYPE_CHECKING:
    from pyvmm.host.capture.evdev import EvdevCapture
    from pyvmm.host.display.terminal import TerminalScreen
    from pyvmm.host.repl.terminal import TerminalPrompt
    from pyvmm.host.streams import Streams
    from pyvmm.host.writer import SnapshotWriter
    from pyvmm.virtio.console_ports import ConsolePorts

LOOK_NS = NS_PER_SECOND // 60
"""How often --type-after and the like look at the screen."""
FOREGROUND_NS = NS_PER_SECOND // 4
"""How often a process that was stopped and continues in the background looks whether it is in the foreground."""


class Session:
    """A context manager around a machine's run: everything it opens is closed, whatever happens. Raises UserError."""

    def __init__(self, machine: Machine, host: HostConfig, console: Console, streams: Streams | None = None) -> None:
        self.machine = machine
        self.snapshot: Snapshot | None = None
        """The last that was taken with Ctrl-A w."""
        self.writer: SnapshotWriter | None = None
        self._host = host
        self._console = console
        self._streams = streams
        self._open = ExitStack()
        self._errors = Output(2)
        self._screen: TerminalScreen | None = None
        self._captured: EvdevCapture | None = None
        self._prompt: TerminalPrompt | None = None
        self._hvc: ConsolePorts | None = None
        """The console whose hvc0 has the terminal."""
        self._port = TerminalPort(machine.board.com1, console.write)
        """Where what is typed goes."""
        self._look_again = machine.life.loop.timer(self.take_again)
        with ExitStack() as undo:
            undo.callback(self._errors.close)
            undo.callback(self._open.close)
            self._connect()
            undo.pop_all()

    def _connect(self) -> None:
        machine, host = self.machine, self._host
        keyboard = parse_input_option("--keyboard", host.keyboard)
        mouse = parse_input_option("--mouse", host.mouse)
        x11_keyboard, x11_mouse = x11_wanted(keyboard, host.display), x11_wanted(mouse, host.display)
        keys: Callable[[bytes], None] | None = None
        if host.display == "x11":
            self._show_window(x11_keyboard, x11_mouse)
        elif host.display == "text":
            keys = self._show_text()
        if keyboard.kind == "evdev" or mouse.kind == "evdev":
            self._capture(
                (keyboard.path or "") if keyboard.kind == "evdev" else None,
                (mouse.path or "") if mouse.kind == "evdev" else None,
            )
        if host.type_after:
            self._type_after()
        if host.send_after:
            self._send_after()
        if host.save is not None:
            self._save(host.save)
        if self._streams is not None:
            self._streams.attach(machine.life.loop, machine.end, machine.life.fail)
            self._open.callback(self._streams.detach)
        elif host.display == "none":
            silent = SilentSerial(machine.board.vga, machine.life.loop, self._tell)
            self._open.callback(silent.close)
            self._open.callback(machine.serial.add(silent.serial_output).remove)
        notes = self._screen.note if self._screen else None
        self._give_terminal()
        self._console.attach(
            machine.life.loop,
            self._port,
            self._hold,
            lambda letter: perform(letter, self),
            keys,
            notes,
        )
        self._open.callback(self._port.give, None)
        self._open.callback(self._console.detach)
        self._open.callback(machine.events.add(self._event).remove)
        self._follow_foreground()

    def _hold(self, held: bool) -> None:
        """Keep back all that is shown while it has nowhere to go, or let it come."""
        self.machine.life.cpus.throttle(held)
        self._port.hold(held)

    def _give_terminal(self) -> None:
        """To the hvc0 that there is now, if there is one. Under the machine lock once the machine runs."""
        hvc = self._find_hvc()
        if hvc is not self._hvc:
            self._hvc = hvc
            self._port.give(None if hvc is None else hvc.terminal)
            self.resized()

    def _find_hvc(self) -> ConsolePorts | None:
        if "pyvmm.virtio.console_ports" not in sys.modules:  # which nobody has asked for
            return None
        from pyvmm.virtio.console_ports import ConsolePorts

        consoles = (device for device in self.machine.board.devices.values() if isinstance(device, ConsolePorts))
        return next((console for console in consoles if console.terminal is not None), None)

    def resized(self) -> None:
        """The terminal may have another size. Under the machine lock."""
        if self._hvc is not None:
            try:
                size = os.get_terminal_size(1)
            except OSError:
                return
            self._hvc.resize(size.columns, size.lines)

    def _event(self, event: MachineEvent) -> None:
        if event.kind == "pause-failed":
            self.say(f"pyvmm: the machine runs on: {event.message}")
        elif event.kind == "io-error":
            self.say(f"pyvmm: {event.message}")
        elif event.kind in ("plugged", "unplugged"):
            self._give_terminal()

    def _show_window(self, keyboard: bool, mouse: bool) -> None:
        from pyvmm.host.display.x11 import X11Window

        machine = self.machine
        window = X11Window(
            machine.board.vga,
            machine.life.loop,
            lambda why: machine.end(Outcome(End.QUIT, message=why)),
            machine.board.router,
            keyboard=keyboard,
            mouse=mouse,
            title=_title(machine),
            scale=self._host.scale,
            trace=machine.trace.channel("x11"),
        )
        self._open.callback(window.close)
        self._open.callback(machine.events.add(lambda event: window.set_state(machine.state)).remove)
        machine.life.loop.add(window.fileno(), window.process)
        self._open.callback(machine.life.loop.remove, window.fileno())
        window.start()

    def _show_text(self) -> Callable[[bytes], None]:
        """The guest's screen in the terminal; what is typed there goes to the guest's keyboard."""
        from pyvmm.host.capture.terminal_keys import TerminalKeys
        from pyvmm.host.display.terminal import TerminalScreen

        screen = TerminalScreen(self.machine.board.vga, self.machine.life.loop)
        self._open.callback(screen.close)
        self._screen = screen
        screen.start()
        keys = TerminalKeys(self.machine.typist)

        def typed(data: bytes) -> None:
            if data:
                screen.clear_note()
            keys.feed(data)

        return typed

    def _capture(self, keyboard: str | None, mouse: str | None) -> None:
        from pyvmm.host.capture.evdev import EvdevCapture

        machine = self.machine
        capture = EvdevCapture.of_host(
            machine.board.router,
            keyboard=keyboard,
            mouse=mouse,
            notify=self._tell,
            trace=machine.trace.channel("evdev"),
        )
        self._open.callback(capture.close)
        self._captured = capture
        machine.life.loop.add(capture.fileno(), capture.process)
        self._open.callback(machine.life.loop.remove, capture.fileno())

    def _type_after(self) -> None:
        machine = self.machine
        try:
            steps = [split_script(text) for text in self._host.type_after]
        except KeyTextError as error:
            raise UserError(f"--type-after: {error}") from None
        unheard = UnheardKeys(machine.board.vga, machine.life.loop, self._tell)
        self._open.callback(unheard.close)
        self._open.callback(machine.serial.add(unheard.serial_output).remove)
        self._follow(TypeAfter(steps, machine.typist, machine.trace.channel("input"), unheard.typed))

    def _send_after(self) -> None:
        machine = self.machine
        try:
            steps = [split_sending(text) for text in self._host.send_after]
        except KeyTextError as error:
            raise UserError(f"--send-after: {error}") from None

        def send(data: bytes) -> None:
            machine.life.loop.post(lambda: self._console.send(data))  # later: the port is writing what was waited for

        self._follow(SendAfter(steps, send, machine.trace.channel("input")))

    def _save(self, path: Path) -> None:
        machine, host = self.machine, self._host
        end = host.save_after is not None and host.quit

        def written(error: UserError | None) -> None:
            if end and error is not None:
                machine.life.fail(error)
            elif end:
                machine.end(Outcome(End.SAVED, message=str(path)))

        from pyvmm.host.writer import SnapshotWriter

        self.writer = SnapshotWriter(path, machine.life.loop, self._tell, written)
        if host.save_after is not None:
            failed = machine.life.fail if host.quit else lambda error: self._tell(str(error))
            self._follow(After([(host.save_after, None)], lambda _: take_snapshot(self, failed)))

    def _follow(self, script: After[Any]) -> None:
        """Show *script* what the guest shows."""
        machine = self.machine
        self._open.callback(machine.serial.add(script.serial_output).remove)
        seen = -1

        def look() -> None:
            nonlocal seen
            generation = machine.board.vga.generation()
            if generation != seen:
                from pyvmm.screen.screen import Screen

                seen = generation
                script.screen_changed(Screen.of(machine.board.vga).text())
            if not script.done:
                timer.arm(machine.life.loop.now() + LOOK_NS)

        timer = machine.life.loop.timer(look)
        timer.arm(machine.life.loop.now())

    def screenshot(self) -> Path:
        """Write the screen to the file of --screenshot, and return its path; raises UserError."""
        path = self._host.screenshot or Path("pyvmm.png")
        try:
            self.machine.screen.png(os.fspath(path))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        return path

    def prompt(self) -> None:
        """Python on the terminal, which is the guest's again when the user leaves. Under the machine lock."""
        from pyvmm.host.repl.terminal import TerminalPrompt

        loop = self.machine.life.loop
        self.give_back()
        try:
            self._prompt = TerminalPrompt(self.machine, 0, lambda: loop.post(self._prompt_left))
        except (OSError, RuntimeError) as error:
            self.take_again()
            self.say(f"pyvmm: there is no prompt: {error}")

    def _prompt_left(self) -> None:
        self._prompt = None
        self.take_again()

    def _tell(self, line: str) -> None:
        """A line on standard error, which may be a terminal that is raw by now, or shows the guest's screen; where it
        takes nothing, nothing."""
        if self._screen is not None and self._screen.visible and os.isatty(2):
            self.say(f"pyvmm: {line}")
            return
        end = "\r\n" if os.isatty(2) else "\n"
        try:
            self._errors.write(f"pyvmm: {line}{end}".encode(errors="backslashreplace"))
        except OSError:
            pass

    def say(self, text: str) -> None:
        """Lines to the user on the terminal where the guest's output or screen is. Under the machine lock."""
        lines = f"\n{text}\n".replace("\n", "\r\n")
        self._console.say(lines.encode(errors="backslashreplace"))

    def ask(self, question: str, answer: Callable[[str | None], None]) -> None:
        """Let the user type a line on that terminal. Under the machine lock."""
        self._console.ask(question, answer)

    def give_back(self) -> None:
        """Let the user have terminal and devices; the process is about to stop. Under the machine lock."""
        for lent in (self._captured, self._screen, self._console):
            if lent is not None:
                lent.give_back()

    def take_again(self) -> None:
        """The process continues: in the foreground, or in the background until the user asks for it. Under the machine
        lock."""
        self._console.take_again()
        if self._streams is not None:
            self._streams.take_again()
        if self._screen is not None:
            self._screen.take_again()
        if self._follow_foreground() and self._captured is not None:
            self._captured.take_again()

    def _follow_foreground(self) -> bool:
        """Whether the terminal is ours; else look again later, for no signal tells a process that runs."""
        ours = in_foreground(0) and in_foreground(1)
        if not ours:
            self._look_again.arm(self.machine.life.loop.now() + FOREGROUND_NS)
        return ours

    def close(self) -> None:
        outcome = self.machine.outcome
        if self.writer is not None:
            self.writer.close(give_up=outcome is None or outcome.end in (End.QUIT, End.SIGNAL, End.TIMEOUT))
        if self._prompt is not None:
            self._prompt.close()
        self._open.close()
        if self._host.screenshot is not None:
            try:
                self.screenshot()
            except UserError as error:
                self._tell(str(error))
        self._errors.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _title(machine: Machine) -> str:
    """Which guest a window shows."""
    config = machine.config
    return (config.kernel or Path(config.guest or guests.DEFAULT)).name
