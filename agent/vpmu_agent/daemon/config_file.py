"""The configuration file of `vpmu-agent run`: TOML, and its keys are the command's own parameters.

So whatever is a flag is a key, with the same default and the same checks, and there is no second list.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from vpmu_agent.trace.call_json import SCHEMA, dumps

MAX_SIZE = 16 * 1024
"""Bytes. A file that is longer was not meant to be one of these."""

_NO_KEYS = {"config", "duration"}  # the file itself, and an end that is for one run and not for a host

# click's type of a parameter, what its value is in TOML, and how to say that. The last one fits the rest.
_TYPES: tuple[tuple[type, tuple[type, ...], str], ...] = (
    (click.types.BoolParamType, (bool,), "true or false"),
    (click.types.IntParamType, (int,), "a whole number"),
    (click.types.FloatParamType, (int, float), "a number"),
    (click.ParamType, (str,), "a string in quotes"),
)
_FOUND: dict[type, str] = {
    **{bool: "a boolean", int: "a number", float: "a number", str: "a string"},
    **{list: "an array", dict: "a table"},
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What the file says of one key: as it is written, as the command takes it, and in which line."""

    written: Any
    value: Any
    line: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with the file: what was found, and what to do."""

    message: str
    line: int | None = None
    key: str | None = None


class ConfigError(Exception):
    """The file cannot be used; the message has a line for each mistake."""

    def __init__(self, path: Path, *mistakes: Mistake) -> None:
        super().__init__("\n".join(mistakes_text(path, mistakes)))
        self.mistakes: Sequence[Mistake] = mistakes


def keys(command: click.Command) -> dict[str, click.Parameter]:
    """What the file of this command may hold, in the order of its help."""
    return {param.name: param for param in command.params if param.name and param.name not in _NO_KEYS}


def read(path: Path, command: click.Command) -> dict[str, Setting]:
    """What the file says, by key, checked as the command checks its flags. ConfigError has all mistakes."""
    text = _text(path)
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, _syntax_mistake(text, error)) from error
    lines = _lines(text)
    known = keys(command)
    context = click.Context(command)
    settings, mistakes = {}, []
    for key, written in found.items():
        try:
            settings[key] = Setting(written, _checked(key, written, known, context), lines[key])
        except click.BadParameter as error:
            mistakes.append(Mistake(error.message.rstrip("."), lines[key], key))
    if mistakes:
        raise ConfigError(path, *mistakes)
    return settings


# Rendering


def settings_text(path: Path, settings: Mapping[str, Setting], command: click.Command) -> Iterator[str]:
    """What `run` would use, as TOML, each with where it is from."""
    for key, value, line in _in_use(settings, command):
        # What is printable is the same in TOML as in JSON.
        said = f"# {key} =" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"
        yield f"{said:<31} # {f'{path}:{line}' if line else 'default'}"


def settings_json(path: Path, settings: Mapping[str, Setting], command: click.Command) -> Iterator[str]:
    """The same, an object for each key."""
    for key, value, line in _in_use(settings, command):
        source = {"from": "file" if line else "default", "file": str(path) if line else None, "line": line}
        said = {"key": key, "value": value, **source}
        yield dumps({"schema": SCHEMA, "kind": "setting", **said})


def mistakes_text(path: Path, mistakes: Iterable[Mistake]) -> Iterator[str]:
    """A line for each, as compilers write them."""
    for mistake in mistakes:
        place = f"{path}:{mistake.line}" if mistake.line else str(path)
        yield f"{place}: {'' if mistake.key is None else f'{_shown(mistake.key)}: '}{mistake.message}"


def mistakes_json(path: Path, mistakes: Iterable[Mistake]) -> Iterator[str]:
    """An object for each."""
    for mistake in mistakes:
        said = {"file": str(path), "line": mistake.line, "key": mistake.key, "message": mistake.message}
        yield dumps({"schema": SCHEMA, "kind": "mistake", **said})


def _in_use(settings: Mapping[str, Setting], command: click.Command) -> Iterator[tuple[str, Any, int | None]]:
    """Each key with its value, as it is or would be written, and its line in the file if it is from there."""
    for key, param in keys(command).items():
        if key in settings:
            yield key, settings[key].written, settings[key].line
        else:
            # Not param.default, which newer versions of click have a mark of their own in if there is none.
            yield key, param.to_info_dict()["default"], None


def _shown(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else ascii(key)


# Reading


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        if isinstance(error, PermissionError):
            message += f"; let uid {os.geteuid()} read it, which this runs as"
        raise ConfigError(path, Mistake(message)) from error
    if len(data) > MAX_SIZE:
        raise ConfigError(path, Mistake(f"longer than {MAX_SIZE // 1024} KiB; name a configuration file"))
    try:
        # The newline: without one, tomllib has no line for what is wrong with the last.
        return data.decode() + "\n"
    except UnicodeDecodeError as error:
        message = f"not UTF-8: found the byte {data[error.start]:#04x}; save the file as UTF-8"
        raise ConfigError(path, Mistake(message, data.count(b"\n", 0, error.start) + 1)) from error


def _syntax_mistake(text: str, error: Exception) -> Mistake:
    """What tomllib says. In Python 3.11 the line is only in its message, which ends in `(at …)`."""
    what, _, where = str(error).partition(" (at ")
    line = re.match(r"line (\d+),", where)
    last = text.count("\n") if where else None  # the end of the document, or of what Python can do
    todo = "write each key once, strings in quotes, and true or false in small letters"
    return Mistake(f"not TOML: {what}; {todo}", int(line[1]) if line else last)


def _lines(text: str) -> dict[str, int]:
    """The line in which each key at the top begins, of text that is TOML.

    A statement is the fewest lines that parse. From the first table on, only headers are at the top.
    """
    lines: dict[str, int] = {}
    statement, begin, in_table = "", 1, False
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        try:
            names = tomllib.loads(statement)
        except ValueError:
            continue
        is_header = statement.lstrip().startswith("[")
        in_table |= is_header
        if is_header or not in_table:
            lines = dict.fromkeys(names, begin) | lines
        statement, begin = "", number + 1
    return lines


def _checked(key: str, written: Any, known: Mapping[str, click.Parameter], context: click.Context) -> Any:
    """The value as the command takes it. BadParameter says what is wrong with it."""
    if key not in known:
        close = get_close_matches(key.replace("-", "_"), known, n=1)
        todo = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
        what = "table" if isinstance(written, dict) else "key"
        raise click.BadParameter(f"there is no such {what}; {todo}")
    param = known[key]
    types, wanted = next(rest for kind, *rest in _TYPES if isinstance(param.type, kind))
    if type(written) not in types:  # bool is an int, but not here
        raise click.BadParameter(f"found {_FOUND.get(type(written), 'a date or time')}; write {wanted}")
    if isinstance(written, str) and not written.isprintable():
        raise click.BadParameter(f"found control characters in {written!a}; write it without them")
    return param.process_value(context, written)
