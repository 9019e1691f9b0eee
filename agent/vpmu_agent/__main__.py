"""`python -m vpmu_agent`."""

from vpmu_agent.cli.main import main

if __name__ == "__main__":
    main()
