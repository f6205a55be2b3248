"""Keys and pointers of this host: evdev devices, the X server, the terminal."""
