"""The lab VM: everything the lab needs is built, a host is booted, one command runs in it.

    python -m tests.lab.vm -- COMMAND...     the command's output and exit status are this program's
    python -m tests.lab.vm --shell           a shell in the VM

KVM is not loaded there yet: `python3 -m tests.lab.live` loads it with its vPMU live.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.debian import RootError

from . import bochs, boot, build, guests, hosts, live, places, programs
from .errors import LabError
from .hosts import HOSTS, Target

# The machines: QEMU emulates AMD's SVM, Bochs Intel's VMX.
QEMU, BOCHS = MACHINES = ("qemu", "bochs")

COMPILE_LIMIT_S = 600.0

# All of the agent, so that what it imports is compiled too.
_IMPORT_AGENT = """
import bcc, importlib, pkgutil, tests.lab.live, vpmu_agent
for module in pkgutil.walk_packages(vpmu_agent.__path__, "vpmu_agent."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def run(
    command: Sequence[str],
    *,
    target: Target,
    timeout_s: float,
    results: Path | None = None,
    output: Callable[[bytes], None] | None = None,
    systemd: bool = False,
    warm: Sequence[str] = (),
    shares: Mapping[str, Path] | None = None,
    counted: bool = False,
    machine: str = QEMU,
) -> int:
    """Runs `command` in the repository's folder in a VM that boots `target`; see boot.run() and bochs.run().

    What it writes to places.results_dir() is in `results` afterwards, or gone where that is not given.
    `warm` is a command that compiles Python which `command` will run; it is run in the same root before the
    VM is. `systemd`, `shares` and `counted` are for QEMU only: LabError.
    """
    if machine == BOCHS:
        if systemd or shares or counted:
            raise LabError(
                "Bochs runs a command only, without systemd, shared folders or counted instructions"
            )
        programs.compile_once(target, lambda: run(programs.COMPILE, target=target, timeout_s=COMPILE_LIMIT_S))
    with ExitStack() as stack:
        prepared = stack.enter_context(_prepared(target, warm))
        results = results or stack.enter_context(places.new_results_dir())
        if not systemd:  # the service's first start is a test of its own
            programs.put(target, prepared.changed)
        if machine == BOCHS:
            return bochs.run(
                command,
                target=target,
                changed=prepared.changed,
                results=results,
                timeout_s=timeout_s,
                env=prepared.env,
                output=output,
            )
        status = boot.run(
            command,
            target=target,
            layers=(prepared.changed, *target.layers),
            shares=shares or {},
            results=results,
            timeout_s=timeout_s,
            env=prepared.env,
            output=output,
            systemd=systemd,
            counted=counted,
        )
        programs.take(target, results)
        return status


def add_options(parser: argparse.ArgumentParser, *, timeout_s: float) -> None:
    """The options that every command of the lab takes."""
    parser.add_argument(
        "--host", choices=HOSTS, default=next(iter(HOSTS)), help="whose userland (default: %(default)s)"
    )
    kernels = sorted({name for host in HOSTS.values() for name in host.kernels})
    parser.add_argument(
        "--kernel",
        choices=kernels,
        help="which of its kernels: the release's own (the default), the newest of its backports, or the one "
        "whose KVM groups events, which is built if need be",
    )
    parser.add_argument(
        "--machine",
        choices=MACHINES,
        default=QEMU,
        help="what the host is: QEMU has AMD's virtualization, Bochs Intel's (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=timeout_s,
        metavar="SECONDS",
        help="when to kill the VM (default: %(default)s)",
    )


def chosen(arguments: argparse.Namespace) -> Target:
    """What the options name. Raises LabError and RootError."""
    return hosts.target(arguments.host, arguments.kernel)


def exit_status(action: Callable[[], int]) -> int:
    """What a command of the lab exits with: its action's status, or 1 and a sentence on stderr."""
    try:
        return action()
    except (LabError, RootError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@dataclass(frozen=True, slots=True)
class _Prepared:
    changed: Path
    """What is laid over the target's own root file system."""
    env: Mapping[str, str]


@contextmanager
def _prepared(target: Target, warm: Sequence[str]) -> Iterator[_Prepared]:
    """Builds what the VM needs, and yields where that is.

    Python compiles 20 times slower there, so this has the host's own Python do it here.
    """
    built = build.build(target)
    tree = str(places.REPO)
    env = {"PYTHONPYCACHEPREFIX": places.PYCACHE, "PYTHONPATH": f"{tree}/agent"}
    compile_all = ["python3", "-m", "compileall", "-q", "-j", "2", f"{tree}/agent", f"{tree}/tests"]
    with debian.writable(target.userland) as root:
        for command in (compile_all, ["python3", "-c", _IMPORT_AGENT], list(warm)):
            if command:
                script = ["sh", "-euc", 'cd "$1"; shift; exec "$@"', "sh", tree, *command]
                root.run(*script, binds={places.REPO: tree}, env=env, status=None)
        yield _Prepared(
            root.upper,
            {
                live.TEST_PMU: root.put(built.test_pmu),
                **guests.environment(
                    root.put(built.guest_a), target.kernel.release, root.put(built.guest_b_initramfs)
                ),
            },
        )


def main() -> int:
    """Runs one command, or a shell, in the VM."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.vm", description="Runs a command in the lab VM."
    )
    add_options(parser, timeout_s=600.0)
    parser.add_argument("--systemd", action="store_true", help="with systemd as PID 1")
    parser.add_argument("--shell", action="store_true", help="give me a shell in the VM")
    parser.add_argument("command", nargs="*", help="what to run in the VM")
    arguments = parser.parse_args()
    if bool(arguments.command) == arguments.shell or (arguments.shell and arguments.systemd):
        parser.error("give either a command, which alone goes with --systemd, or --shell")
    if arguments.machine == BOCHS and (arguments.shell or arguments.systemd):
        parser.error("Bochs runs commands only, without --shell or --systemd")

    def action() -> int:
        target = chosen(arguments)
        if arguments.shell:
            with places.new_results_dir() as results, _prepared(target, ()) as prepared:
                return boot.shell(
                    target, layers=(prepared.changed, *target.layers), results=results, env=prepared.env
                )
        return run(
            arguments.command,
            target=target,
            timeout_s=arguments.timeout,
            systemd=arguments.systemd,
            machine=arguments.machine,
        )

    return exit_status(action)


if __name__ == "__main__":
    sys.exit(main())
