"""The commands: arguments in, calls of the other rooms out."""
