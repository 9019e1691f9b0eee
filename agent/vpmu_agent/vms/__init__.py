"""Which VM a process runs, and which PMU KVM gives it. Imports no other room."""
