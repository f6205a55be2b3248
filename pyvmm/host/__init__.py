"""What ties a machine to this host: its console, display, captured devices, trace."""
