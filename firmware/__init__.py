"""Guest code that runs before the guest's own."""
