"""Python at a machine that runs: `machine` at a prompt, on the terminal that the guest has or by a socket."""
