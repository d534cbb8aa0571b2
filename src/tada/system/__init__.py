"""What all commands use of the operating system: files, locks, processes, devices, signals, and the terminal."""
