"""Access to the machine: devices, processes, files, signals and the console."""
