"""A stream of calls in, lines and recordings out."""
