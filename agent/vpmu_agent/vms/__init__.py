"""Which VM a process is, and how KVM gives it its PMU. Imports nothing of the other rooms."""
