"""What this process asks of its own host: privileges, files, journal, service manager, signals, streams."""
