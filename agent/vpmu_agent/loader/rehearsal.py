"""Does all that the loader does, in each way, and detaches the probes: nothing less proves that it works.

`python -m vpmu_agent.loader.rehearsal` is a process of its own for the same reason as the loader, and because
a broken bcc can crash the process that loads it. It writes one line, a JSON object, for each step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial

from vpmu_agent.kernel.container import require_host_pids
from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError, ProbeError
from vpmu_agent.kernel.layout import read_layout
from vpmu_agent.loader.attach import Kind, make_maps
from vpmu_agent.loader.image import with_placeholders
from vpmu_agent.loader.main import NoWayError, attached, compiled, constants
from vpmu_agent.loader.program import BROKEN_BCC_TODO, program_source, toolchain
from vpmu_agent.loader.reason import last_words
from vpmu_agent.probes import WAYS, Probes, Way
from vpmu_agent.probes.self_test import OwnTester, SelfTest
from vpmu_agent.system.privileges import end_with
from vpmu_agent.vms.names import Vms

BCC, HOST, VERIFIER = "bcc", "host", "verifier"
"""The steps besides those of WAYS: HOST only if this host's kernel cannot be read, VERIFIER only if it can
attach no program in any way."""

_TIMEOUT_S = 300
"""It takes about 1.5 s, and fifty times that in an emulated VM."""


class Outcome(StrEnum):
    """The result of a step."""

    WORKS = "works"
    NO_KVM = "no_kvm"  # cannot be tried until KVM is loaded
    NO_WAY = "no_way"  # the kernel attaches no program in this way
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a rehearsal: what was found, and what to do about it ("" for nothing)."""

    name: str
    outcome: Outcome
    found: str
    todo: str = ""


def rehearse() -> tuple[Step, ...]:
    """Compile, load, attach, test and detach the real program for this kernel in a child.

    Return the steps in order, up to the first whose failure makes the later ones pointless.
    """
    command = [sys.executable, "-P", "-m", "vpmu_agent.loader.rehearsal"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
        status, output, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        status, output, stderr = None, error.stdout or b"", error.stderr or b""
    # The last line may be cut off.
    steps = tuple(_read(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n"))
    if status == 0:
        return steps
    name = (BCC, *WAYS, VERIFIER)[min(len(steps), len(WAYS) + 1)]
    return (*steps, _cut_short(name, status, stderr.decode(errors="replace")))


def _read(line: bytes) -> Step:
    step = json.loads(line)
    return Step(step["name"], Outcome(step["outcome"]), step["found"], step["todo"])


def _cut_short(name: str, status: int | None, stderr: str) -> Step:
    """Return the step at which the process ended; `status` is None if it did not, within _TIMEOUT_S."""
    outcome, todo, words = Outcome.REFUSED, BROKEN_BCC_TODO, last_words(stderr)
    if status is None:
        outcome, how, todo = Outcome.UNKNOWN, f"it did not end within {_TIMEOUT_S} s", ""
    elif status < 0:
        how = f"the process that used bcc was killed by {signal.Signals(-status).name}"
    else:
        how = f"the process that used bcc ended with status {status}"
        words = words.rpartition("; ")[2]  # a traceback's last line is its exception
    return Step(name, outcome, f"{how} ({words})" if words else how, todo)


def main() -> None:
    """Write each step as soon as it is done."""
    for step in _steps():
        print(json.dumps(asdict(step)), flush=True)


def _steps() -> Iterator[Step]:
    yield (loaded := _made(BCC, toolchain))
    if loaded.outcome is not Outcome.WORKS:
        return
    try:
        require_host_pids()
        known = constants(read_layout())
    except KernelError as error:
        yield _failed(HOST, error)
        return
    tried = []
    for way in WAYS:
        tried.append(_made(way, partial(_attach_and_detach, way, known)))
        yield tried[-1]
    if all(step.outcome is Outcome.NO_WAY for step in tried):
        yield _made(VERIFIER, partial(_ask_verifier, known))


def _made(name: str, do: Callable[[], str]) -> Step:
    try:
        return Step(name, Outcome.WORKS, do())
    except KernelError as error:
        return _failed(name, error)


def _failed(name: str, error: KernelError) -> Step:
    outcome = Outcome.REFUSED
    if isinstance(error, KvmNotLoadedError):
        outcome = Outcome.NO_KVM
    elif isinstance(error, NoWayError):
        outcome = Outcome.NO_WAY
    return Step(name, outcome, error.found, error.todo)


def _attach_and_detach(way: Way, known: Mapping[str, int]) -> str:
    with Probes(attached(way, known), vms=Vms()) as probes:
        sight = SelfTest(OwnTester()).step(probes.self_tested)
    if sight.runs is False:
        raise ProbeError(sight.why, sight.todo)
    return "attached and detached" if sight.runs else f"attached and detached, but {sight.why}"


def _ask_verifier(known: Mapping[str, int]) -> str:
    """Compile and load the program without attaching it, for kernels that attach none."""
    constants, addresses = with_placeholders(known)
    loading = make_maps(compiled(program_source(constants)), addresses)
    for name in loading.image.programs:
        loading.load(name, Kind.PROBE)
    return "loaded, but not attached"


if __name__ == "__main__":
    end_with(os.getppid(), signal.SIGKILL)
    main()
    # Not sys.exit(): bcc's exit handler would detach what is detached already.
    os._exit(0)
