"""What is known of all VMs now."""
