"""Pause a guest, look at it, reset it: .venv/bin/python docs/examples/life.py"""

from pyvmm import Machine, MachineConfig

with Machine(MachineConfig(guest="keyboard", memory=16 << 20)) as machine:
    machine.events.add(lambda event: print(event.kind, event.message))
    assert machine.wait(lambda: "> " in machine.screen)
    with machine.paused("a look"):
        registers = machine.vcpus[0].get_regs()
        physical = machine.translate(registers.rip).physical_address
        print("executes", machine.memory.read(physical, 4).hex(" "))
    machine.keyboard.type("echo before\n")
    assert machine.wait(lambda: "\nbefore\n>" in machine.screen)
    machine.reset()
    assert machine.wait(lambda: "> " in machine.screen and "before" not in machine.screen)
    machine.keyboard.type("exit\n")
    machine.run(timeout=60)
