"""`python -m vpmu_agent`, and what the installed command runs."""

import signal


def main() -> None:
    """Run the command that the arguments name."""
    # Until a command watches for it, Ctrl-C ends the process at once: nothing is open that it could harm.
    # Already here, because to import takes longer than many a command.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vpmu_agent.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
