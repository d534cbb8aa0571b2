"""The ground that all commands stand on: files, processes, devices, signals, and the terminal they talk to."""
