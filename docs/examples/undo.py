"""Take a snapshot of a guest, let it go on, and go back: .venv/bin/python docs/examples/undo.py"""

from pyvmm import Machine, MachineConfig

with Machine(MachineConfig(guest="keyboard", memory=16 << 20)) as machine:
    assert machine.wait(lambda: "> " in machine.screen)
    snapshot = machine.snapshot()
    print(f"{snapshot.size >> 10} KiB of RAM were not zero")
    for word in ("one", "two", "three"):
        machine.keyboard.type(f"echo {word}\n")
        assert machine.wait(lambda: f"\n{word}\n>" in machine.screen)  # noqa: B023
        machine.restore(snapshot)
        print(word, "is undone:", word not in machine.screen)
