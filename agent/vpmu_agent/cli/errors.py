"""How a command ends: the exit statuses, and what to tell the user of an error."""

from __future__ import annotations

from typing import IO, Any

import click

from vpmu_agent.system.stdout import OutputError, UnreadError

SUCCESS, PROBLEM, USAGE, CANNOT_RUN = 0, 1, 2, 3  # exit statuses


class Problem(click.ClickException):
    """A problem was found, of the kind that the command looks for."""

    exit_code = PROBLEM


class BadInput(click.ClickException):
    """Wrong usage, or a file that is not what it should be."""

    exit_code = USAGE


class BadConfig(BadInput):
    """A line for each mistake, as compilers write them."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print them as they are."""
        click.echo(self.message, file, err=True)


class CannotRun(click.ClickException):
    """The command cannot run here, or cannot go on."""

    exit_code = CANNOT_RUN


class Commands(click.Group):
    """Turns what can go wrong outside of this program into a sentence and a status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if explained := _explained(error):
                raise explained from error
            raise


def _explained(error: Exception) -> click.ClickException | None:
    """Return what to tell the user of this error; None if it is a bug, or click's to handle."""
    from vpmu_agent.daemon.config_file import ConfigError
    from vpmu_agent.kernel.errors import KernelError
    from vpmu_agent.top.sources import SourceError
    from vpmu_agent.trace.recording import RecordingError
    from vpmu_agent.web.address import ListenError
    from vpmu_agent.web.errors import WebConfigError

    match error:
        case UnreadError():
            return None
        case KernelError() | ListenError() | OutputError() | SourceError():
            return CannotRun(str(error))
        case RecordingError() | WebConfigError():
            return BadInput(str(error))
        case ConfigError():
            return BadConfig(str(error))
    return None
