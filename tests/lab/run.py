"""Runs the lab tests: `python -m tests.lab.run [pytest arguments]` boots one VM and runs pytest in it."""

from __future__ import annotations

import argparse
import sys

from . import vm

TESTS = "tests/lab"
SERVICE_TESTS = "tests/lab/service"  # with systemd as PID 1
# One test boots two Linux guests under an emulated KVM: 120 s, pyproject's limit, is short for that.
TEST_TIMEOUT_S = 420


def main() -> int:
    """Exits with pytest's status, or 1 if the VM dies or hangs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.run",
        description="Runs the lab tests in one VM; other arguments go to pytest.",
    )
    vm.add_options(parser, timeout_s=4200.0)
    parser.add_argument(
        "--systemd", action="store_true", help=f"with systemd as PID 1, and only {SERVICE_TESTS}"
    )
    arguments, for_pytest = parser.parse_known_args()
    if arguments.systemd and arguments.machine == vm.BOCHS:
        parser.error("the service's tests run in QEMU only")
    if not any(word.startswith(TESTS) for word in for_pytest):
        for_pytest.append(SERVICE_TESTS if arguments.systemd else TESTS)

    def action() -> int:
        target = vm.chosen(arguments)
        print(f"lab: booting {target}", flush=True)
        return vm.run(
            pytest_command(*for_pytest),
            target=target,
            timeout_s=arguments.timeout,
            systemd=arguments.systemd,
            machine=arguments.machine,
            warm=pytest_command("--collect-only", "-q", TESTS),
        )

    return vm.exit_status(action)


def pytest_command(*arguments: str) -> list[str]:
    """Pytest in the VM."""
    # The plugins that pytest would find on its own take seconds to import in the VM; one is used.
    return [
        "env",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1",
        "python3",
        "-m",
        "pytest",
        "-p",
        "pytest_timeout",
        "-p",
        "no:cacheprovider",
        "-o",
        f"timeout={TEST_TIMEOUT_S}",
        *arguments,
    ]


if __name__ == "__main__":
    sys.exit(main())
