"""`vpmu-agent doctor`: what on this host keeps vpmu-agent from tracing, and what to do about it."""
