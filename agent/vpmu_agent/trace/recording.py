"""Recordings: files with one JSON object per line: header, calls, end mark, a summary for each VM."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from io import BytesIO, FileIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from vpmu_agent.model.call import Call
from vpmu_agent.system.files import create_private_file
from vpmu_agent.system.ready import is_writable
from vpmu_agent.system.stdout import OutputError
from vpmu_agent.trace.call_json import SCHEMA, CallReader, dumps, summary_json
from vpmu_agent.trace.tally import Tally, Unchecked, counted_as
from vpmu_agent.vms.clean import clean_name

UNREAD_S = 30.0
"""Seconds to wait for the reader of a pipe that is recorded to; no call is taken meanwhile."""

MAX_LINE = 16 * 1024
"""Bytes. A call's line has about 600; a longer line than this is not ours."""


class RecordingError(Exception):
    """A recording cannot be read or written; the message is for the user and names the file."""


@dataclass(frozen=True, slots=True)
class Header:
    """The origin of a recording, and the filters that were on: it lacks the calls that they left out.

    `cpu_vendor` is the host's, "" if it is not known: agents before 0.4 did not record it.
    """

    agent: str
    kernel: str
    attach: str
    filters: Mapping[str, list[Any]]
    cpu_vendor: str = ""


class Recorder:
    """A recording that is being written. The file has half a line only for as long as one write takes.

    Only the user can read it. An existing file of theirs is overwritten, as by tcpdump -w and strace -o; what
    another user made is not written to (system/files.py). Raises RecordingError if the file cannot be
    created, and OutputError if a later write fails, or if it is a pipe whose reader takes nothing for
    UNREAD_S: the file then ends with the last whole line.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self._calls = 0
        try:
            self._file = FileIO(create_private_file(path), "wb")
        except OSError as error:
            raise RecordingError(f"{path}: cannot record to it: {error.strerror}") from error
        self._write([dumps({"schema": SCHEMA, "kind": "recording", **asdict(header)})])

    def write(self, calls: list[str]) -> None:
        """Append calls in the form that `call_json()` returns."""
        self._write(calls)
        self._calls += len(calls)

    def end(self, tally: Tally, lost: int) -> None:
        """Write the end mark, which shows that the recording is whole, and the summaries; close the file."""
        end = {"schema": SCHEMA, "kind": "end", "calls": self._calls, "lost": lost}
        self._write([dumps(end), *summary_json(tally, lost)])
        self._file.close()

    def _write(self, lines: list[str]) -> None:
        data = memoryview("".join(f"{line}\n" for line in lines).encode())
        good = 0
        try:
            while data[good:]:
                written = self._file.write(data[good:])
                if written is None and not is_writable(self._file, UNREAD_S):
                    raise TimeoutError(errno.ETIMEDOUT, f"its reader has taken nothing for {UNREAD_S:.0f} s")
                good += written or 0
        except OSError as error:
            self._cut(bytes(data[:good]))
            raise OutputError(
                f"{self.path}: the recording stopped after {self._calls} calls: {error.strerror}"
            ) from error

    def _cut(self, written: bytes) -> None:
        """Remove the part of a line that was still written."""
        half = len(written) - (written.rfind(b"\n") + 1)
        # A pipe or a device cannot be truncated, and need not be.
        with contextlib.suppress(OSError):
            self._file.truncate(self._file.tell() - half)
        self._file.close()


_CHUNK = 1 << 16  # bytes
_TOO_LONG = f"longer than {MAX_LINE} bytes, so not a line of a recording"


class Recording:
    """A recording that is being read, a chunk at a time.

    The constructor raises RecordingError if the file is not a recording of ours, and `batches()` where it is
    damaged. If it only ends early, its whole calls are read and `cut_short` then says so in a sentence.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.cut_short = ""
        self.lost: int | None = None
        """The total of lost records according to the end mark; None until that is read."""
        self.unchecked: dict[str, Unchecked] = {}
        """The calls that are not checked, by VM, according to the summaries, where these have them."""
        self._file = file
        self._line = 0
        self._calls = 0
        self._read_call = CallReader()
        self._lines = self._read_lines()
        first = next(self._lines, [])
        self.header = self._read_header(first)
        self._lines = chain([first[1:]], self._lines)

    def batches(self) -> Iterator[list[Call]]:
        """Yield the calls, in lists of as many as one read of the file gave."""
        for lines in self._lines:
            calls: list[Call] = []
            damage = None
            try:
                self._read(lines, calls)
            except RecordingError as error:
                damage = error
            # The calls before the damage are good, and show where it is.
            if calls:
                yield calls
            if damage:
                raise damage
        if self.lost is None and not self.cut_short:
            self.cut_short = f"{self.name}: cut short after line {self._line}: there is no end mark"

    def _read_lines(self) -> Iterator[list[bytes]]:
        """Yield the file's lines by chunk, with newlines; set `cut_short` if the last line has none."""
        # read1(): what comes through a pipe is shown at once, not when a chunk is full.
        read: Callable[[int], bytes] = getattr(self._file, "read1", self._file.read)
        rest = b""
        while True:
            try:
                chunk = read(_CHUNK)
            except OSError as error:
                raise RecordingError(f"{self.name}: cannot be read: {error.strerror}") from error
            if not chunk:
                break
            # Not split(): it takes five times as long.
            lines = BytesIO(rest + chunk).readlines()
            rest = b"" if chunk.endswith(b"\n") else lines.pop()
            if lines:
                yield lines
            if len(rest) > MAX_LINE:
                self._line += 1
                self._refuse(_TOO_LONG)
        if rest:
            self.cut_short = f"{self.name}: cut short within line {self._line + 1}"

    def _read_header(self, lines: list[bytes]) -> Header:
        self._line = 1
        if not lines:
            self._refuse("empty, or ends within its header: not a recording")
        value = self._parse(lines[0])
        if value.get("kind") != "recording":
            self._refuse("not the header of a recording (trace --record FILE makes one)")
        texts = ("agent", "kernel", "attach")
        if not all(type(value.get(key)) is str for key in texts) or type(value.get("filters")) is not dict:
            self._refuse("the header must have agent, kernel, attach and filters")
        vendor = value.get("cpu_vendor", "")
        if type(vendor) is not str:
            self._refuse("'cpu_vendor' of the header must be a text")
        return Header(**{key: value[key] for key in (*texts, "filters")}, cpu_vendor=vendor)

    def _parse(self, line: bytes) -> dict[str, Any]:
        if len(line) > MAX_LINE + len(b"\n"):
            self._refuse(_TOO_LONG)
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):
            self._refuse("not JSON" + (": binary data" if b"\0" in line else ""))
        if type(value) is not dict:
            self._refuse("not a JSON object")
        schema = value.get("schema")
        if type(schema) is not int:
            self._refuse("an object without a schema number")
        if schema != SCHEMA:
            self._refuse(f"schema {schema}; this agent reads schema {SCHEMA} only")
        return value

    def _read(self, lines: list[bytes], calls: list[Call]) -> None:
        at = 0
        while at < len(lines):
            if self.lost is None:
                written = self._read_call.written(islice(lines, at, None))
                calls += written
                self._calls += len(written)
                self._line += len(written)
                at += len(written)
            if at < len(lines):
                self._line += 1
                self._read_line(lines[at], calls)
                at += 1

    def _read_line(self, line: bytes, calls: list[Call]) -> None:
        value = self._parse(line)
        kind = value.get("kind")
        if self.lost is not None:
            if kind != "summary":
                self._refuse("comes after the end mark, where only summaries may be")
            self._read_summary(value)
        elif kind == "call":
            try:
                calls.append(self._read_call(value))
            except ValueError as error:
                self._refuse(str(error))
            self._calls += 1
        elif kind == "end":
            if value.get("calls") != self._calls:
                self._refuse(f"the end mark counts {value.get('calls')!r} calls; {self._calls} were read")
            lost = value.get("lost")
            if type(lost) is not int or not 0 <= lost < 2**63:
                self._refuse("the end mark does not say how many records were lost")
            self.lost = lost
        else:
            self._refuse(f"kind {kind!r:.40} is not one that recordings have")

    def _read_summary(self, value: dict[str, Any]) -> None:
        unchecked = value.get("unchecked")
        if unchecked is None:  # agents before 0.4 did not count them
            return
        vm, names = value.get("vm"), [each.name for each in fields(Unchecked)]
        if type(vm) is not str or vm == "" or clean_name(vm) != vm:
            self._refuse("'vm' of a summary must be a VM's name")
        numbers = [unchecked.get(name) for name in names] if type(unchecked) is dict else [None]
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
            self._refuse(f"'unchecked' of a summary must have {', '.join(names)}")
        name = counted_as(vm, self.unchecked)
        self.unchecked[name] = self.unchecked.get(name, Unchecked()) + Unchecked(*numbers)

    def _refuse(self, what: str) -> NoReturn:
        raise RecordingError(f"{self.name}: line {self._line}: {what}")
