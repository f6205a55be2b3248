"""gdb on small guests: it stops them, steps, breaks, looks, changes, and leaves without a trace."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as count_up
from itertools import pairwise
from pathlib import Path

import pytest

from pyvmm import Machine, MachineConfig, guests
from pyvmm.control.gdb.debugger import Debugger
from pyvmm.control.gdb.packets import PACKET_LIMIT
from pyvmm.control.gdb.server import GdbServer
from pyvmm.control.gdb.stub import Stub
from pyvmm.errors import UserError
from pyvmm.machine.outcome import End
from tests.rig.board import count, counting
from tests.rig.gdb_client import GdbClient, gdb
from tests.rig.rig import EMULATED

IRQCHIPS = ["kernel", "split", "user"]
PROMPT = "> "
HOST_ADDRESSES = re.compile(r"(?<=host virtual )0x\w+(, host physical 0x\w+)?")
"""They are others each time; root alone is told of the second."""
_words = count_up()


@contextmanager
def debugged(guest: str = "keyboard", *, wait: bool = False, **config: object) -> Iterator[tuple[Machine, GdbServer]]:
    made = MachineConfig(guest=guest, **config)  # type: ignore[arg-type]
    with Machine(made) as machine, GdbServer(machine, "127.0.0.1:0", wait=wait) as server:
        machine.start()
        yield machine, server


def types(machine: Machine) -> None:
    """The guest reads keys and answers."""
    assert machine.wait(lambda: "> " in machine.screen, 60)  # what is typed earlier its driver throws away
    word = f"word{next(_words)}"
    machine.keyboard.type(f"echo {word}\n")
    assert machine.wait(lambda: any(row.rstrip() == word for row in machine.screen.text()), 60)


def test_what_the_manual_shows() -> None:
    """Each command of docs/debugging.md, and each line that is to come of it, in its order."""
    text = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text()
    shown = [line.strip() for line in text.split("    (gdb) target remote :1234\n")[1].split("\n\n")[0].splitlines()]
    commands = [line.removeprefix("(gdb) ") for line in shown if line.startswith("(gdb) ")]
    with debugged(wait=True) as (_machine, server):
        said = HOST_ADDRESSES.sub("", gdb(server.address, *commands))
    at = 0
    for line in (HOST_ADDRESSES.sub("", line) for line in shown):
        if not line.startswith("(gdb) "):
            assert line in said[at:], f"{line!r} after {said[:at]!r}: {said[at:]!r}"
            at = said.index(line, at) + len(line)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_gdb_itself(irqchip: str) -> None:
    """Registers, code, memory and breakpoints in a guest that waits before its first instruction."""
    with debugged(wait=True, irqchip=irqchip) as (machine, server):
        said = gdb(
            server.address,
            "info registers rip",
            "x/i $pc",
            "stepi",
            "hbreak *0x100028",
            "continue",
            "delete",
            "stepi",
            "print/x *(char (*)[4]) 0x100018",
            "set $r15 = 0x123456789abcdef0",
            "print/x $r15",
            "set {int} 0x500 = 0x55aa77ee",
            "print/x {int} 0x500",
            "print $xmm3",
            "print $cr0 & 1",
            "info threads",
            "monitor x/i 0x100018 2",
            "monitor nothing",
            "detach",
        )
        for line in (
            "rip            0x100000            0x100000",
            "=> 0x100000:\tjmp    0x100018",
            "0x0000000000100018 in ?? ()",
            "Breakpoint 1, 0x0000000000100028 in ?? ()",
            "0x000000000010002f in ?? ()",
            "$1 = {0xfa, 0xfc, 0xbc, 0x0}",
            "$2 = 0x123456789abcdef0",
            "$3 = 0x55aa77ee",
            "v4_float = {0, 0, 0, 0}",
            "$5 = 1",
            "Thread 1 (vCPU 0, running)",
            "   0x100018: cli \n   0x100019: cld \n",
            "there is no 'nothing'",
            "detached",
        ):
            assert line in said, said
        assert machine.wait(lambda: PROMPT in machine.screen, 60)
        types(machine)


def test_a_guest_in_real_mode() -> None:
    with debugged("timer", wait=True) as (machine, server), GdbClient(server.address) as client:
        assert client.ask("?") == "T05thread:1;"
        places = [client.register("rip")]
        for _ in range(3):
            assert client.ask("s").startswith("T05")
            places.append(client.register("rip"))
        assert places == [0x7C00, 0x7C18, 0x7C19, 0x7C1B]
        assert "0x7c1d: mov es, ax" in client.monitor("x/i 0x7c1d")
        assert "real mode" in client.monitor("registers")
        assert client.set_register("ds", 0x1234) == "OK"
        assert machine.vcpus[0].get_sregs().ds.base == 0x12340
        assert client.set_register("ds", 0) == "OK"
        assert client.ask("D") == "OK"
        assert machine.run(60).end is End.DEBUG_EXIT


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_interrupts_come_to_a_guest_that_has_halted_and_in_no_other_step(irqchip: str) -> None:
    symbols = guests.load("timer").symbols
    with debugged("timer", guest_parameters=(("count", 500),), irqchip=irqchip) as (machine, server):

        def ticks() -> int:
            return machine.memory.read_int(symbols["ticks"], 4)

        assert machine.wait(lambda: ticks() > 3, 60)
        with GdbClient(server.address) as client:
            code = bytes.fromhex(client.ask("m7c18,80"))
            halted = 0x7C18 + code.index(b"\xfb\xf4") + 2  # after sti; hlt
            handler = machine.memory.read_int(0x80, 2)
            before, places = ticks(), [client.register("rip")]
            while places.count(halted) < 4:
                reply = client.ask("s")
                assert reply.startswith("T05"), reply
                places.append(client.register("rip"))
                assert len(places) < 200, [hex(place) for place in places]
            # A software-backed KVM stops in the handler, behind its first instruction, a processor behind all of it.
            loop = halted + 2 + int.from_bytes(code[halted - 0x7C18 + 1 : halted - 0x7C18 + 2], "little", signed=True)
            for was, place in pairwise(places):
                assert was != halted or place in (handler + 1, loop), [hex(place) for place in places]
                assert was == halted or place != handler + 1, [hex(place) for place in places]
            assert ticks() > before, "halts ended by interrupts"
            assert client.ask("D") == "OK"
        seen = ticks()
        assert machine.wait(lambda: ticks() > seen + 3, 60)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_interrupted_and_gone_on(irqchip: str) -> None:
    with debugged(irqchip=irqchip) as (machine, server):
        assert machine.wait(lambda: PROMPT in machine.screen, 60)
        with GdbClient(server.address) as client:
            assert machine.state == "paused", "it stops for who connects"
            for _ in range(5):
                client.send("c")
                types(machine)
                assert client.interrupt() == "T02thread:1;"
                assert machine.state == "paused"
            client.send("vCont;c")
            assert client.ask("g") == "E01", "it runs: there is nothing to look at"
            assert client.interrupt() == "T02thread:1;"
        assert machine.wait(lambda: True, 60)
        types(machine)


def test_more_breakpoints_than_debug_registers(tmp_path: Path) -> None:
    """Where INT3 does not stop, those without a register are looked for after each instruction."""
    with debugged(wait=True) as (machine, server), GdbClient(server.address) as client:
        wanted = [0x100018, 0x100019, 0x10001A, 0x10001F, 0x100026, 0x100028, 0x10002F]
        for address in wanted:
            assert client.ask(f"Z0,{address:x},1") == "OK"
            assert client.ask(f"m{address:x},1") != "cc", "what is there, and not what we have put there"
        found = []
        for _ in wanted:
            assert client.ask("c").startswith("T05")
            at = client.register("rip")
            found.append(at)
            assert client.ask(f"z0,{at:x},1") == "OK"
        assert found == wanted
        assert client.ask("D") == "OK"
        assert machine.wait(lambda: PROMPT in machine.screen, 60)


def test_each_processor_is_a_thread() -> None:
    trampoline = 0x60000
    with debugged("smp", cpus=3, wait=True) as (machine, server), GdbClient(server.address) as client:
        assert client.ask("qfThreadInfo") == "m1,2,3"
        assert bytes.fromhex(client.ask("qThreadExtraInfo,2")) == b"vCPU 1, not started"
        assert client.ask("vCont?") == "vCont;c;C;s;S"
        if EMULATED:  # no debug registers, and a processor that is started makes no steps
            assert client.ask("D") == "OK"
            return
        assert client.ask(f"Z1,{trampoline:x},1") == "OK"
        stops = set()
        for _ in range(2):
            reply = client.ask("vCont;c")
            assert reply.startswith("T05thread:") and reply.endswith(";hwbreak:;"), reply
            thread = int(reply[10], 16)
            assert client.ask("qC") == f"QC{thread}"
            assert client.register("rip") == 0 and client.register("cs") == trampoline >> 4
            stops.add(thread)
            assert client.ask(f"z1,{trampoline:x},1") == "OK"
            stepped = client.ask(f"vCont;s:{thread}")
            assert stepped == f"T05thread:{thread};"
            assert client.register("rip") > 0
            assert client.ask(f"Z1,{trampoline:x},1") == "OK"
        assert stops == {2, 3}
        assert client.ask("Hg1") == "OK" and client.register("rip") > 0x100000
        assert client.ask("vCont;s:1;c").startswith("T05thread:1"), "one steps and the others run"
        assert client.ask("D") == "OK"
        outcome = machine.run(60)
        assert (outcome.end, outcome.value) == (End.DEBUG_EXIT, 3)


def test_a_client_that_vanishes_leaves_nothing(tmp_path: Path) -> None:
    with counting(tmp_path) as machine, GdbServer(machine, str(tmp_path / "gdb")) as server:
        assert machine.wait(lambda: count(machine) > 1000, 60)
        for way in ("stopped", "breakpoints", "running", "stepping"):
            client = GdbClient(server.address)
            address = client.register("rip")
            if way == "breakpoints":
                for offset in range(8):
                    client.ask(f"Z0,{address + 0x1000 + offset:x},1")
            elif way == "running":
                client.send("c")
            elif way == "stepping":
                client.send("s")
            client.close()
            before = machine.call(lambda: count(machine))
            assert machine.wait(lambda n=before: count(machine) > n + 1000, 60), way  # type: ignore[misc]
            # One that went while the guest ran has it stopped once more, to take away what it left.
            assert machine.wait(lambda: machine.state == "running", 60), way
    assert not (tmp_path / "gdb").exists()


def test_a_server_that_nobody_came_to_lets_the_guest_go() -> None:
    with debugged(wait=True) as (machine, server):
        assert machine.state == "paused"
        server.close()
        assert machine.wait(lambda: PROMPT in machine.screen, 60)


def test_the_next_client_waits_for_the_first(tmp_path: Path) -> None:
    with counting(tmp_path) as machine, GdbServer(machine, "127.0.0.1:0") as server:
        machine.start()
        for _ in range(3):
            with GdbClient(server.address) as client:
                assert client.ask("qAttached") == "1"
                assert client.ask("D") == "OK"


def test_reset_snapshot_and_restore_while_it_is_stopped() -> None:
    with debugged() as (machine, server):
        assert machine.wait(lambda: PROMPT in machine.screen, 60)
        with GdbClient(server.address) as client:
            assert client.monitor("snapshot there") == "kept as there\n"
            at = client.register("rip")
            assert client.monitor("reset") == "reset\n"
            assert client.register("rip") == 0x100000
            assert client.ask("Z1,100028,1") == "OK"
            assert client.ask("c") == "T05thread:1;hwbreak:;"
            assert client.ask("z1,100028,1") == "OK"
            assert client.monitor("restore there") == "restored\n"
            assert client.register("rip") == at
            assert "take one first" in client.monitor("restore")
            assert "PML4[0]" in client.monitor("translate 0x100000")
            assert client.ask("D") == "OK"
        types(machine)


def test_a_breakpoint_stays_over_a_reset() -> None:
    with debugged(wait=True) as (machine, server), GdbClient(server.address) as client:
        assert client.ask("Z1,100028,1") == "OK"
        assert client.ask("c") == "T05thread:1;hwbreak:;"
        assert client.ask("z1,100028,1") == "OK" and client.ask("s") == "T05thread:1;"  # past it, as gdb does
        assert client.ask("Z1,100028,1") == "OK"
        client.send("c")
        assert machine.wait(lambda: machine.state == "running", 60)
        machine.reset()
        assert client.receive() == "T05thread:1;hwbreak:;"
        assert client.register("rip") == 0x100028


def test_memory_by_linear_and_by_physical_address() -> None:
    with debugged(wait=True) as (machine, server), GdbClient(server.address) as client:
        assert client.ask("M600,4:01020304") == "OK"
        assert client.ask(b"X604,4:\x7d\x03\x23\x24") == "OK"
        assert machine.memory.read(0x600, 8) == bytes.fromhex("010203047d032324")
        assert client.ask("m600,8") == "010203047d032324"
        top = machine.config.ram_size
        assert client.ask(f"m{top - 2:x},4") == machine.memory.read(top - 2, 2).hex(), "as far as it goes"
        assert client.ask("mffff800000000000,4") == "E01"
        assert client.ask("Mffff800000000000,1:00") == "E01"
        assert client.ask("qqemu.PhyMemMode") == "0"
        assert client.ask("Qqemu.PhyMemMode:1") == "OK"
        assert client.ask("m600,4") == "01020304"
        assert client.ask("mfee00000,4") == "E01", "no device is read"


def test_the_end_is_told() -> None:
    with debugged("hlt", wait=True) as (machine, server), GdbClient(server.address) as client:
        client.send("c")
        machine.end()
        assert client.receive() == "W07"
    with debugged(wait=True) as (machine, server), GdbClient(server.address) as client:
        client.send("k")
        assert machine.run(60).end is End.QUIT


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (":99999", "99999 is no port: 0 to 65535"),
        (":" + "1" * 5000, "is no port: 0 to 65535"),
        ("/nonexistent/gdb", "No such file"),
        (__file__, "there is a file of that name"),
    ],
)
def test_where_nothing_can_listen(where: str, why: str) -> None:
    with Machine(MachineConfig(guest="hello")) as machine, pytest.raises(UserError, match=why):
        GdbServer(machine, where)


def test_a_path_may_have_a_colon(tmp_path: Path) -> None:
    where = str(tmp_path / "a:b")
    with Machine(MachineConfig(guest="hello")) as machine:
        GdbServer(machine, where).close()


def test_the_command(tmp_path: Path) -> None:
    """It says where gdb connects, and waits for it; the socket is gone afterwards."""
    path = tmp_path / "gdb"
    words = [sys.executable, "-m", "pyvmm", "run", "timer", "--gdb", f"{path},wait"]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"pyvmm: waiting for gdb: target remote {path}\n".encode()
        said = gdb(str(path), "info registers rip", "continue")
        assert "0x7c00" in said and "exited with code 020" in said, said
        assert process.wait(60) == 16
    assert not path.exists()
    ran = subprocess.run([*words[:-1], "/nonexistent/gdb"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("pyvmm: --gdb: socket /nonexistent/gdb: No such file or directory")
    assert ran.stderr.count("\n") == 1


def test_hostile_packets() -> None:
    """None raises, whatever it holds; the guest may be changed by it, and by nothing else."""
    rng = random.Random(7)
    hexadecimal = "0123456789abcdefABCDEFg-,;:=.p"
    names = (
        "qSupported qXfer:features:read: vCont; vCont qRcmd, Qqemu.PhyMemMode: qThreadExtraInfo, qC vKill qfThreadInfo"
    )
    names += " vMustReplyEmpty target.xml Hg Hc Z0, Z1, Z2, Z3, Z4, z0, z1, m M X g G p P H T c s C S ? ! \0"

    def digits() -> str:
        if rng.random() < 0.5:
            return f"{rng.choice([0, 1, 2, 0x600, 0x100000, 1 << 32, rng.getrandbits(64)]):x}"
        return "".join(rng.choices(hexadecimal, k=rng.randrange(12)))

    with debugged(cpus=2, wait=True) as (machine, _server):
        woken = threading.Event()
        debugger = Debugger(machine, woken.set)
        stub = Stub(debugger, debugger.attach())
        for _ in range(int(os.environ.get("PYVMM_SOAK_PACKETS", "20000"))):
            packet = rng.choice(names.split(" ")) + rng.choice(",;:=").join(digits() for _ in range(rng.randrange(4)))
            if rng.random() < 0.01:
                packet += "0" * rng.randrange(2000)
            if packet.startswith("qRcmd,72657365") or "snap" in packet:
                continue
            answer = stub.answer(packet.encode("latin-1"))
            assert answer is None or len(answer) <= PACKET_LIMIT
            if answer is None and debugger.running:
                debugger.interrupt()
            assert not debugger.running
        debugger.detach()
        assert machine.outcome is None or machine.outcome.end is not End.INTERNAL_ERROR


def test_descriptors_and_threads_end() -> None:
    def there() -> tuple[int, int]:
        ours = [thread for thread in threading.enumerate() if thread.name.startswith(("gdb", "vcpu", "machine"))]
        return len(os.listdir("/proc/self/fd")), len(ours)

    first = there()
    assert first[1] == 0
    for _ in range(3):
        with debugged(wait=True) as (_machine, server), GdbClient(server.address) as client:
            assert client.ask("s").startswith("T05")
    assert there() == first
