"""What goes wrong in the lab, in a sentence that says what to do."""


class LabError(Exception):
    """The lab itself cannot go on; the message is for the person who runs it."""
