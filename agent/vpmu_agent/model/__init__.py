"""What KVM should do with a counter's events, and whether a call is that. Pure: no I/O, no clock."""
