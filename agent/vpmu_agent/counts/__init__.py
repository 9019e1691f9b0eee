"""What is known about all VMs at one moment."""
