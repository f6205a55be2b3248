"""Where keys and motions come from on the host: X11, evdev, a script; and the router that carries them to the guest."""
