"""Writes the model's rules as Python, as C and as a document; `make generate` runs it, nothing else does."""
