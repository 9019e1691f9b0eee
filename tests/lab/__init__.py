"""The lab: an unmodified KVM with real guests, in a VM on this machine. See README.md."""
