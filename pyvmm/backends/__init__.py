"""What is behind a device on this host: files, and the threads that wait for them. It knows no device."""
