"""What this process asks of its own host: privileges, journal, service manager, signals, streams."""
