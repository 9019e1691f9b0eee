"""`make bench`: what the monitor costs, held against its goals. README.md says what is measured and how."""
