"""Type to a guest and read its screen, from Python: .venv/bin/python docs/examples/type.py"""

from pyvmm.config import MachineConfig
from pyvmm.machine.machine import Machine
from pyvmm.units import MIB

with Machine(MachineConfig(guest="keyboard", memory=16 * MIB)) as machine:
    assert machine.wait(lambda: "> " in machine.screen)
    machine.keyboard.type("echo Hello from Python\n")
    assert machine.wait(lambda: "\nHello from Python\n>" in machine.screen)
    print("\n".join(row.rstrip() for row in machine.screen.text()[:4]))
    machine.keyboard.type("exit\n")
    print(machine.run(timeout=5))
