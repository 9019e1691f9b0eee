"""What writes files that others use: run by make, never by the agent."""
