"""The lab VM: everything the lab needs is built, the kernel is booted, one command runs in it.

    python -m tests.lab.vm -- COMMAND...     the command's output and exit status are this program's
    python -m tests.lab.vm --shell           a shell in the VM

KVM is not loaded there yet: `python -m tests.lab.live` loads it with its vPMU live.
"""

from __future__ import annotations

import argparse
import compileall
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from . import boot, build, guests, kernel, live, places
from .errors import LabError
from .grouped.build import grouped_kernel
from .kernel import Kernel


def run(
    command: Sequence[str],
    *,
    which: Kernel,
    timeout_s: float,
    results: Path | None = None,
    output: Callable[[bytes], None] | None = None,
    systemd: bool = False,
) -> int:
    """Runs `command` in the repository's folder in a VM that boots `which`; see boot.run().

    What it writes to places.results_dir() is in `results` afterwards, or gone where that is not given.
    """
    with ExitStack() as stack:
        return boot.run(
            command,
            which=which,
            results=results or stack.enter_context(places.new_results_dir()),
            timeout_s=timeout_s,
            env=_prepare(which),
            output=output,
            systemd=systemd,
        )


def add_options(parser: argparse.ArgumentParser, *, timeout_s: float) -> None:
    """The options that every command of the lab takes."""
    parser.add_argument(
        "--kernel", type=Path, help="bzImage to boot (default: the newest Debian kernel in /boot)"
    )
    parser.add_argument(
        "--grouped", action="store_true", help="boot the kernel whose KVM groups events; builds it if need be"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=timeout_s,
        metavar="SECONDS",
        help="when to kill the VM (default: %(default)s)",
    )


def chosen_kernel(arguments: argparse.Namespace) -> Kernel:
    """The kernel that the options name."""
    if arguments.kernel:
        return kernel.read(arguments.kernel)
    return grouped_kernel() if arguments.grouped else kernel.newest_stock()


def exit_status(action: Callable[[], int]) -> int:
    """What a command of the lab exits with: its action's status, or 1 and a sentence on stderr."""
    try:
        return action()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _prepare(which: Kernel) -> dict[str, str]:
    """Builds what the VM needs; returns where that is, as the VM's environment."""
    built = build.build(which)
    # The VM cannot keep bytecode (its root is read-only) and compiles 20 times slower.
    for sources in ("agent", "tests"):
        compileall.compile_dir(places.REPO / sources, quiet=1)
    return {
        live.TEST_PMU: str(built.test_pmu),
        **guests.environment(built.guest_a, which.image, built.guest_b_initramfs),
    }


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

    def action() -> int:
        which = chosen_kernel(arguments)
        if arguments.shell:
            with places.new_results_dir() as results:
                return boot.shell(which, results=results, env=_prepare(which))
        return run(arguments.command, which=which, timeout_s=arguments.timeout, systemd=arguments.systemd)

    return exit_status(action)


if __name__ == "__main__":
    sys.exit(main())
