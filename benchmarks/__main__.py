"""scripts/bench: run what is asked for, in turn, and write the tables."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks import (
    blk,
    blk_lab,
    boot,
    boot_disk,
    document,
    doorbell,
    exits,
    grub,
    host,
    keys,
    net_lab,
    pio,
    pytests,
    reset,
    restore,
    start,
    timeline,
    vfio,
    virtio,
)
from benchmarks.programs import PYTHON, ROOT, BenchError, say

DOCUMENT = ROOT / "docs" / "benchmarks.md"
HERE: Final[dict[str, Callable[[int], str]]] = {
    "pio": lambda rounds: pio.measure(rounds, pio.Load(20000, 10000), goal=1.35),
    "start": start.measure,
    "keys": keys.measure,
    "doorbell": doorbell.measure,
    "timeline": timeline.measure,
    "blk": blk.measure,
    "reset": reset.measure,
    "restore": restore.measure,
    "boot-disk": boot_disk.measure,
    "pytest": pytests.measure,
}
"""What is measured on this machine, by the name of its place in the document."""
IN_LAB: Final[dict[str, Callable[[int], str]]] = {
    "pio-lab": lambda rounds: pio.measure(rounds, pio.Load(5000, 2000), goal=2.0),
    "boot-lab": boot.measure,
    "boot-exits": exits.measure,
    "grub-lab": grub.measure,
    "virtio-lab": virtio.measure,
    "blk-lab": blk_lab.measure,
    "net-lab": net_lab.measure,
    "vfio-lab": vfio.measure,
}
"""What is measured in the lab, each in a boot of its own."""
PREPARE: Final[dict[str, Callable[[], None]]] = {
    "virtio-lab": virtio.prepare,
    "blk-lab": blk_lab.prepare,
    "grub-lab": grub.prepare,
    "net-lab": net_lab.prepare,
    "vfio-lab": vfio.prepare,
}
"""What is done before the lab boots."""
OPTIONS: Final[dict[str, Sequence[str]]] = {"net-lab": net_lab.LAB, "vfio-lab": vfio.LAB}
"""What scripts/lab is asked for."""
ROUNDS: Final = 5
LAB_FAILED: Final = 125
TRIES: Final = 3


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure, and write the results into docs/benchmarks.md. Without a name: everything.",
        epilog="As root it runs at high priority. Nothing else should run on the machine.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*HERE, *IN_LAB]))
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"runs of each, at least 5 ({ROUNDS})")
    parser.add_argument("--print", action="store_true", help="print the tables and leave the document as it is")
    parser.add_argument("--json", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in HERE and name not in IN_LAB:
            parser.error(f"there is no {name}; there are {', '.join([*HERE, *IN_LAB])}")
    if options.rounds < 1 or (options.rounds < ROUNDS and not options.print and not options.json):
        parser.error(f"--rounds {options.rounds}: a median wants {ROUNDS} at least (fewer go with --print)")
    return options


def measure(names: list[str], rounds: int) -> dict[str, str]:
    """The results of measurements made where this process is."""
    results = {}
    for name in names:
        say(f"{name} …")
        results[name] = (HERE | IN_LAB)[name](rounds)
    return results


def measure_in_lab(name: str, rounds: int) -> tuple[str, str]:
    """What was measured in one lab boot, and what the lab says it is. A lab that dies has said nothing."""
    lab = [str(ROOT / "scripts" / "lab")]
    if name in PREPARE:
        PREPARE[name]()
    lab += OPTIONS.get(name, ())
    with tempfile.TemporaryDirectory() as directory:
        command = [*lab, "--out", directory, "--", str(PYTHON), "-m", "benchmarks", name]
        command += ["--rounds", str(rounds), "--json", "/run/lab/out/results.json"]
        for _ in range(TRIES):
            ran = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL)
            if ran.returncode != LAB_FAILED:
                break
        if ran.returncode != 0:
            raise BenchError(f"{name}: the measurement in the lab failed")
        results = json.loads((Path(directory) / "results.json").read_text())
    return results["results"][name], results["machine"]


def heading(name: str, rounds: int, machine: str) -> str:
    """What a table says of itself: the command, the day, the machine."""
    day = datetime.date.today().isoformat()
    return f"`scripts/bench {name}`, {day}, medians of {rounds} rounds.\nMachine: {machine}.\n\n"


def run(options: argparse.Namespace) -> int:
    names = options.names or [*HERE, *IN_LAB]
    machine = host.describe()
    if options.json:
        results = measure(names, options.rounds)
        options.json.write_text(json.dumps({"results": results, "machine": machine}))
        return 0
    tables = {}
    for name, text in measure([name for name in names if name in HERE], options.rounds).items():
        tables[name] = heading(name, options.rounds, machine) + text
    for name in [name for name in names if name in IN_LAB]:
        text, lab = measure_in_lab(name, options.rounds)
        tables[name] = heading(name, options.rounds, f"the lab ({lab}) on {machine}") + text
    if options.print:
        print("\n\n".join(tables.values()))
        return 0
    contents = DOCUMENT.read_text()
    for name, text in tables.items():
        contents = document.replace(contents, name, text)
    DOCUMENT.write_text(contents)
    say(f"written to {DOCUMENT.relative_to(ROOT)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        return run(options)
    except (BenchError, document.DocumentError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
