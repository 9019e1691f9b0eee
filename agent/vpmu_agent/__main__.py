"""`python -m vpmu_agent`."""

from vpmu_agent.cli import main

if __name__ == "__main__":
    main()
