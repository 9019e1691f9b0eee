"""Follows what KVM does for its guests' virtual performance counters, and checks it against a model."""
