"""The machine: its public surface, its life, what it boots and how it ended."""
