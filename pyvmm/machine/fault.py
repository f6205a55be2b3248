"""Whose fault it is: which device a Python stack is in, and which access, timer or callback brought it there.

Nothing is noted while the machine runs, for an access must cost no more for it. What is asked is the stack itself, of
an exception or of a thread that does not come back: the frames of Bus.read and Bus.write hold who was asked for what.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Final

from kvm_cffi import KvmError
from pyvmm.board.doorbell import IoeventfdDoorbell
from pyvmm.bus import Bus
from pyvmm.errors import one_line
from pyvmm.loop import Loop
from pyvmm.machine.outcome import End, Outcome
from pyvmm.pci.device import PciDevice
from pyvmm.pci.host import ConfigPorts, Ecam, PciHost
from pyvmm.vcpu.thread import VcpuThread
from pyvmm.virtio.pci import VirtioPci

OURS: Final = ("pyvmm", "kvm_cffi")
_ACCESSES: Final = (Bus.read.__code__, Bus.write.__code__)
_SPLITS: Final = (Bus._read_bytes.__code__, Bus._write_bytes.__code__)
_CALLERS: Final[tuple[tuple[CodeType, str], ...]] = (
    (Loop.run_once.__code__, "callback"),
    (Loop.run_posted.__code__, "callback"),
    (Loop._run_timers.__code__, "timer"),
    (IoeventfdDoorbell._rung.__code__, "doorbell"),
    (VcpuThread._run_calls.__code__, "callback"),
    (PciHost.close.__code__, "close()"),
    (PciDevice.reset_function.__code__, "reset()"),
)

Stack = list[tuple[FrameType, int]]
"""(frame, line) from the outermost call to the innermost."""


@dataclass(frozen=True)
class Fault:
    """Where a device is, or was when it raised."""

    device: str
    """FILE:CLASS at BUS:SLOT.FUNCTION."""
    doing: str
    """The access, such as `read of 4 bytes at BAR 0+0x8`; or `timer`, `doorbell`, `callback`."""
    place: str
    """FILE:LINE in the device's code."""
    is_users: bool
    """The device, or a part of it, is no class of ours."""
    rip: int | None
    """The guest's RIP, where one of its accesses is under way: at a read, behind a write (KVM has finished that)."""
    answer: tuple[object] | None
    """What a read has returned already."""
    stack: Stack
    """From the device's first frame on; from the access on where it has none."""

    def line(self, what: str) -> str:
        """One line: who, what the guest did, *what* came of it, where."""
        place = f" ({self.place})" if self.place else ""
        rip = f", guest RIP {self.rip:#x}" if self.rip is not None else ""
        return f"device {self.device}: {self.doing} {what}{place}{rip}"


def stack_of(error: BaseException) -> Stack:
    """The frames that *error* went through."""
    return list(traceback.walk_tb(error.__traceback__))


def stack_at(frame: FrameType | None) -> Stack:
    """The frames of a thread whose innermost one is *frame* (sys._current_frames())."""
    return list(traceback.walk_stack(frame))[::-1]


def outcome_of(error: BaseException, pci: PciHost) -> Outcome | None:
    """How a machine ends by *error*, where it is a device of the user's fault; a device of ours is noted on it."""
    fault = find(stack_of(error), pci)
    if fault is None:
        return None
    if not fault.is_users:
        error.add_note(raised(fault, error))
        return None
    return Outcome(End.DEVICE_FAULT, message=raised(fault, error), report=its_traceback(fault, error))


def raised(fault: Fault, error: BaseException) -> str:
    """The line that says what became of a guest's access when *error* came out of it."""
    if fault.answer is not None:
        return fault.line(f"returned {_shown(fault.answer[0])}")
    return fault.line(f"raised {one_line(error)}")


def its_traceback(fault: Fault, error: BaseException) -> str:
    """The traceback for the device's author, without our frames around; empty where nothing was raised."""
    if fault.answer is not None:
        return ""
    first = fault.stack[0][0] if fault.stack else None
    tb: TracebackType | None = error.__traceback__
    while tb is not None and tb.tb_frame is not first:
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(error), error, tb)).rstrip()


def _shown(answer: object, limit: int = 200) -> str:
    try:
        text = repr(answer)
    except Exception:  # of its own __repr__
        text = f"a {type(answer).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}…"


def find(stack: Stack, pci: PciHost) -> Fault | None:
    """The device that *stack* is in; None where it is in none of a PCI function's, and in none on a bus."""
    for depth, (frame, _) in enumerate(stack):
        if frame.f_code in _ACCESSES and "offset" in frame.f_locals:
            if depth + 1 < len(stack) and stack[depth + 1][0].f_code in _SPLITS:
                continue
            return _of_access(stack, depth, pci)
    return _of_callback(stack, pci)


def _of_access(stack: Stack, depth: int, pci: PciHost) -> Fault | None:
    frame = stack[depth][0]
    local = frame.f_locals
    is_read = frame.f_code is Bus.read.__code__
    method = local["read" if is_read else "write"]
    address, offset, size = local["address"], local["offset"], local["size"]
    device = getattr(method, "__self__", None)
    if device is None:  # read or write is no method but a function that the device keeps
        device = next((who for start, end, who, _ in local["self"].ranges if start <= address < end), method)
    function: PciDevice | None = None
    if isinstance(device, (ConfigPorts, Ecam)):
        function, register = device.target(offset)
        where = f"configuration space {register:#x}"
    else:
        function, where = _bar_at(device, address, offset, pci)
    if not where:
        where = f"port {address:#x}" if local["self"].name == "PIO" else f"{address:#x}"
    unit = "byte" if size == 1 else "bytes"
    if is_read:
        doing = f"read of {size} {unit} at {where}"
    else:
        doing = f"write of {local['value']:#x}, {size} {unit}, at {where}"
    parts = _parts(function) if function is not None else [device]
    if device not in parts and not isinstance(device, (ConfigPorts, Ecam)):
        parts.append(device)
    answered = is_read and depth == len(stack) - 1 and "answer" in local
    inner = stack[depth + 1 :]
    names = ("config_read", "read") if is_read else ("config_write", "write")
    return Fault(
        _label(parts, function, pci),
        doing,
        _place(inner) or _defined(parts, names),
        any(_is_foreign(type(part)) for part in parts),
        _rip(stack),
        (local["answer"],) if answered else None,
        _from_foreign(inner) or inner or stack[depth:],
    )


def _bar_at(device: object, address: int, offset: int, pci: PciHost) -> tuple[PciDevice | None, str]:
    """The function that *device* answers a BAR of, and which: by the address where it answers several."""
    for function in pci.all_functions():
        bars = [bar for bar in function.bars.values() if bar.device is device]
        here = [bar for bar in bars if 0 <= address - bar.address(function.config) < bar.size]
        for bar in here or bars:
            return function, f"BAR {bar.index}+{offset:#x}"
    return None, ""


def _of_callback(stack: Stack, pci: PciHost) -> Fault | None:
    """A call that no access of a guest made: the first frame of a method of a function, or of code in its file."""
    calls = [(depth, word) for depth, (frame, _) in enumerate(stack) for code, word in _CALLERS if frame.f_code is code]
    if not calls:
        return None
    start, doing = calls[-1]
    owners = {id(part): function for function in pci.all_functions() for part in _parts(function)}
    files = {_file_of(type(part)): f for f in pci.all_functions() for part in _parts(f) if _is_foreign(type(part))}
    for depth, (frame, _) in enumerate(stack[start + 1 :], start + 1):
        function = owners.get(id(frame.f_locals.get("self"))) or files.get(frame.f_code.co_filename)
        if function is not None:
            inner, parts = stack[depth:], _parts(function)
            return Fault(
                _label(parts, function, pci),
                doing,
                _place(inner),
                any(_is_foreign(type(part)) for part in parts),
                None,
                None,
                _from_foreign(inner) or inner,
            )
    return None


def _parts(function: PciDevice) -> list[object]:
    """The objects that are the device: its function, what a virtio function carries, who answers its BARs."""
    parts: list[object] = [function]
    if isinstance(function, VirtioPci) and "device" in vars(function):
        parts.append(function.device)
    return parts + [bar.device for bar in function.bars.values() if all(bar.device is not part for part in parts)]


def _is_foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in OURS


def _file_of(kind: type) -> str:
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or ""


def _label(parts: list[object], function: PciDevice | None, pci: PciHost) -> str:
    ours = type(function.device if isinstance(function, VirtioPci) else parts[0])
    kind = next((type(part) for part in parts if _is_foreign(type(part))), ours)
    file = Path(_file_of(kind)).name
    name = f"{file}:{kind.__qualname__}" if file else kind.__qualname__
    place = pci.place_of(function) if function is not None else None
    return name if place is None else f"{name} at {place}"


def _foreign_frames(stack: Stack) -> Iterator[int]:
    """The depths at which code runs that is no module of ours."""
    for depth, (frame, _) in enumerate(stack):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in OURS:
            yield depth


def _from_foreign(stack: Stack) -> Stack:
    return next((stack[depth:] for depth in _foreign_frames(stack)), [])


def _place(stack: Stack) -> str:
    """The innermost line of the file that the first foreign frame is in."""
    inner = _from_foreign(stack)
    if not inner:
        return ""
    file = inner[0][0].f_code.co_filename
    line = [line for frame, line in inner if frame.f_code.co_filename == file][-1]
    return f"{Path(file).name}:{line}"


def _defined(parts: list[object], names: tuple[str, ...]) -> str:
    """Where the foreign one of *parts* defines the first of *names*: all that is known of a function that returned."""
    for part in parts:
        for name in names:
            code = getattr(getattr(type(part), name, None), "__code__", None)
            if isinstance(code, CodeType) and _is_foreign(type(part)) and not _in_ours(code):
                return f"{Path(code.co_filename).name}:{code.co_firstlineno}"
    return ""


def _in_ours(code: CodeType) -> bool:
    return Path(__file__).parents[1] in Path(code.co_filename).parents


def _rip(stack: Stack) -> int | None:
    for frame, _ in stack:
        if frame.f_code is VcpuThread._loop.__code__:
            try:
                return int(frame.f_locals["self"].vcpu.get_regs().rip)
            except KvmError:  # KVM has given the VM up
                return None
    return None


def describe_stack(stack: Stack) -> str:
    """*stack* as a traceback shows it, the innermost call last."""
    return "".join(traceback.StackSummary.extract(iter(stack)).format()).rstrip()
