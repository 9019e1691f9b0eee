"""What is generated from the code for its users: the table of metrics and the man page."""
