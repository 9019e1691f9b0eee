"""The container image: Debian's packages and the agent's own, as an OCI archive."""
