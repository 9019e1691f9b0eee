"""A kernel whose KVM creates grouped events, built from Debian's sources; see README.md."""
