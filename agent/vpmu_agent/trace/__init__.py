"""Takes a stream of calls; gives lines and recordings."""
