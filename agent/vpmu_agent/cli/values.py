"""The values of options, checked: callbacks for click, which raise its BadParameter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vpmu_agent.system.user import User
    from vpmu_agent.web.address import Address


def in_a_directory(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Return a path whose folder is there; the file itself is made only when the probes are live."""
    if path and not path.parent.is_dir():
        raise click.BadParameter(f"there is no directory {str(path.parent)!r}")
    return path


def address(_ctx: click.Context, _param: click.Parameter, text: str) -> Address:
    """Return the address that the text names."""
    from vpmu_agent.web.address import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def hosts(_ctx: click.Context, _param: click.Parameter, text: str | None) -> frozenset[str]:
    """Return the host names that the text lists."""
    from vpmu_agent.web.hosts import parse_hosts

    try:
        return parse_hosts(text or "")
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def web_config(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Return the path of a file that was read, so that its mistakes are told with those of other settings."""
    if path:
        from vpmu_agent.web.config import check
        from vpmu_agent.web.errors import WebConfigError

        try:
            check(path)
        except WebConfigError as error:
            raise click.BadParameter(str(error)) from error
    return path


def daemon_url(_ctx: click.Context, _param: click.Parameter, url: str | None) -> str | None:
    """Return the URL if it is one."""
    if url is None:
        return None
    from vpmu_agent.top.sources import checked_url

    try:
        return checked_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def known_user(_ctx: click.Context, _param: click.Parameter, name: str) -> User:
    """Return the user of this name, who must not be root."""
    from vpmu_agent.system.user import find_user

    try:
        user = find_user(name)
    except (KeyError, ValueError) as error:  # ValueError: a name with a 0 in it
        raise click.BadParameter(f"there is no user {name!r}") from error
    if user.uid == 0:
        raise click.BadParameter(f"{name!r} is root, whose privileges are to be given up: name another user")
    return user
