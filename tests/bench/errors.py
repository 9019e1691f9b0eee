"""What goes wrong in the benchmark, in a sentence that says what to do."""


class BenchError(Exception):
    """A part cannot be measured; the message is for the person who runs it."""
