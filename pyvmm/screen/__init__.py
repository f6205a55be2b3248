"""The guest's screen on the host: a snapshot of it, a window, a terminal, a picture file."""
