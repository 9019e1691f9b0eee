"""The configuration file of `vpmu-agent run`: TOML, whose keys are the command's own parameters.

Every flag is a key, with the same default and the same checks; there is no second list.
"""

from __future__ import annotations

import errno
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

from vpmu_agent.system.files import read_file
from vpmu_agent.trace.call_json import SCHEMA, dumps

MAX_SIZE = 16 * 1024
"""Bytes. A longer file was not meant to be a configuration file."""

MAX_PARTS = 32
"""Parts of a dotted key. No setting has two, and tomllib's time goes with the square of their number."""

_NO_KEYS = {"config", "duration", "compile_only"}  # the file itself; what is for one run and not for a host

# The click type of a parameter, the types of its value in TOML, and what to write. The last one fits all.
_TYPES: tuple[tuple[type, tuple[type, ...], str], ...] = (
    (click.types.BoolParamType, (bool,), "true or false"),
    (click.types.IntParamType, (int,), "a whole number"),
    (click.types.FloatParamType, (int, float), "a number"),
    (click.ParamType, (str,), "a string in quotes"),
)
_FOUND: dict[type, str] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file: its value as written, its value as the command takes it, and its line."""

    written: Any
    value: Any
    line: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in the file: what was found, and what to do."""

    message: str
    line: int | None = None
    key: str | None = None


class ConfigError(Exception):
    """The file cannot be used; the message has a line for each mistake."""

    def __init__(self, path: Path, *mistakes: Mistake) -> None:
        super().__init__("\n".join(mistakes_text(path, mistakes)))
        self.mistakes: Sequence[Mistake] = mistakes


def keys(command: click.Command) -> dict[str, click.Parameter]:
    """Return the keys that this command's file may have, with their parameters, in the order of its help."""
    return {param.name: param for param in command.params if param.name and param.name not in _NO_KEYS}


def read(path: Path, command: click.Command) -> dict[str, Setting]:
    """Read the file, checked as the command checks its flags. Raise ConfigError with all mistakes."""
    try:
        return _read(path, command)
    except ConfigError:
        raise
    except Exception as error:  # whatever the file did: it must not end a daemon that reloads it
        message = f"cannot be used: {type(error).__name__}: {error}; please report this"
        raise ConfigError(path, Mistake(message)) from error


def _read(path: Path, command: click.Command) -> dict[str, Setting]:
    text = _text(path)
    statements = list(_statements(text))
    for statement in statements:
        if statement.parts > MAX_PARTS:
            found = f"a key of {statement.parts} parts is no setting; the keys are {', '.join(keys(command))}"
            raise ConfigError(path, Mistake(found, statement.line))
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(path, _syntax_mistake(text, error)) from error
    lines = _lines(statements)
    known = keys(command)
    context = click.Context(command)
    settings, mistakes = {}, []
    for key, written in values.items():
        try:
            settings[key] = Setting(written, _checked(key, written, known, context), lines[key])
        except click.BadParameter as error:
            mistakes.append(Mistake(error.message.rstrip("."), lines[key], key))
    if mistakes:
        raise ConfigError(path, *mistakes)
    return settings


# Rendering


def settings_text(path: Path, settings: Mapping[str, Setting], command: click.Command) -> Iterator[str]:
    """Yield the settings that `run` would use, as lines of TOML, each with its origin in a comment."""
    for key, value, line in _in_use(settings, command):
        # What is printable is the same in TOML as in JSON.
        written = f"# {key} =" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"
        origin = f"{path}:{line}" if line else "default"
        yield f"{written:<31} # {origin}"


def settings_json(path: Path, settings: Mapping[str, Setting], command: click.Command) -> Iterator[str]:
    """Yield the same, a JSON object for each key."""
    for key, value, line in _in_use(settings, command):
        yield dumps(
            {
                "schema": SCHEMA,
                "kind": "setting",
                "key": key,
                "value": value,
                "from": "file" if line else "default",
                "file": str(path) if line else None,
                "line": line,
            }
        )


def mistakes_text(path: Path, mistakes: Iterable[Mistake]) -> Iterator[str]:
    """Yield a line for each mistake, as compilers write them."""
    for mistake in mistakes:
        place = f"{path}:{mistake.line}" if mistake.line else str(path)
        if mistake.key is not None:
            place += f": {_shown(mistake.key)}"
        yield f"{place}: {mistake.message}"


def mistakes_json(path: Path, mistakes: Iterable[Mistake]) -> Iterator[str]:
    """Yield a JSON object for each mistake."""
    for mistake in mistakes:
        yield dumps(
            {
                "schema": SCHEMA,
                "kind": "mistake",
                "file": str(path),
                "line": mistake.line,
                "key": mistake.key,
                "message": mistake.message,
            }
        )


def _in_use(settings: Mapping[str, Setting], command: click.Command) -> Iterator[tuple[str, Any, int | None]]:
    """Yield each key with its value as it is or would be written, and its line if the file has it."""
    for key, param in keys(command).items():
        if key in settings:
            yield key, settings[key].written, settings[key].line
        else:
            # Not param.default: where there is none, newer versions of click keep a sentinel there.
            yield key, param.to_info_dict()["default"], None


def _shown(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else ascii(key)


# Reading


def _text(path: Path) -> str:
    try:
        data = read_file(path, MAX_SIZE)
    except OSError as error:
        todo = {
            errno.EACCES: f"; make it readable for uid {os.geteuid()}, which this runs as",
            errno.EFBIG: "; check that this is a configuration file",
        }
        message = f"cannot be read: {error.strerror}{todo.get(error.errno or 0, '')}"
        raise ConfigError(path, Mistake(message)) from error
    try:
        # Without the byte order mark with which some editors begin a file. The newline: without one, tomllib
        # has no line for what is wrong with the last.
        return data.decode("utf-8-sig") + "\n"
    except UnicodeDecodeError as error:
        message = f"not UTF-8: found the byte {data[error.start]:#04x}; save the file as UTF-8"
        raise ConfigError(path, Mistake(message, data.count(b"\n", 0, error.start) + 1)) from error


def _syntax_mistake(text: str, error: Exception) -> Mistake:
    """Return what tomllib found. In Python 3.11 the line is only in its message, which ends in `(at …)`."""
    what, _, where = str(error).partition(" (at ")
    line = re.match(r"line (\d+),", where)
    last = text.count("\n") if where else None  # the end of the document, or of what Python can do
    todo = "write each key once, strings in quotes, and true or false in small letters"
    return Mistake(f"not TOML: {what}; {todo}", int(line[1]) if line else last)


@dataclass(frozen=True, slots=True)
class _Statement:
    """A key with its value, or the header of a table: the line where it begins, and its text."""

    line: int
    text: str
    is_header: bool
    parts: int
    """How many parts its key has: `a.b` has two."""


# The pieces of TOML that can have a newline, a bracket or a dot in them, or that are one.
_PIECE = re.compile(
    r'''
    """(?:[^\\]|\\.)*?"{3,5}       # strings of several lines, which may end with two quotes of their own
    | \'\'\'.*?\'{3,5}
    | "(?:[^"\\\n]|\\.)*"
    | \'[^\'\n]*\'
    | \#[^\n]*
    | [][{}\n=.]
    | [^][{}\n=."\'\#]+
    | .                           # a quote without an end, which is not TOML
    ''',
    re.DOTALL | re.VERBOSE,
)


def _statements(text: str) -> Iterator[_Statement]:
    """Yield what valid TOML consists of, without blank lines and comments, in one pass.

    A statement ends with the first newline that is in no string and in no bracket.
    """
    line, begin, depth, parts, pieces = 1, 1, 0, 1, list[str]()
    in_key = True
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece == "\n" and depth <= 0:
            if written := "".join(pieces).strip():
                yield _Statement(begin, written, written.startswith("["), parts)
            begin, depth, parts, in_key = line + 1, 0, 1, True
            pieces.clear()
        elif not piece.startswith("#"):
            pieces.append(piece)
            in_key &= piece != "="
            parts += in_key and piece == "."
            depth += (piece in ("[", "{")) - (piece in ("]", "}"))
        line += piece.count("\n")


def _lines(statements: Iterable[_Statement]) -> dict[str, int]:
    """Return the line on which each top-level key begins.

    After the first header of a table, only headers are top-level.
    """
    lines: dict[str, int] = {}
    in_table = False
    for statement in statements:
        in_table |= statement.is_header
        if statement.is_header or not in_table:
            for name in tomllib.loads(statement.text):
                lines.setdefault(name, statement.line)
    return lines


def _checked(key: str, written: Any, known: Mapping[str, click.Parameter], context: click.Context) -> Any:
    """Return the value as the command takes it. Raise BadParameter that names what is wrong with it."""
    if key not in known:
        close = get_close_matches(key.replace("-", "_"), known, n=1)
        todo = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
        what = "table" if isinstance(written, dict) else "key"
        raise click.BadParameter(f"unknown {what}; {todo}")
    param = known[key]
    types, wanted = next(rest for kind, *rest in _TYPES if isinstance(param.type, kind))
    if type(written) not in types:  # bool is an int, but not here
        raise click.BadParameter(f"found {_FOUND.get(type(written), 'a date or time')}; write {wanted}")
    if isinstance(written, str) and not written.isprintable():
        raise click.BadParameter(f"found control characters in {written!a}; write it without them")
    return param.process_value(context, written)
