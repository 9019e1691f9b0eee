"""Compiles and attaches the BPF programs. Short-lived, privileged, and the only room that imports bcc."""
