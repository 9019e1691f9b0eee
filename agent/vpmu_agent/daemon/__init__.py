"""`vpmu-agent run`: what lives for as long as the host does."""
