"""The guest's screen on this host: an X11 window, the terminal."""
