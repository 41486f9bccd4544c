"""The machine below: devices, processes, files, signals and the console."""
