"""The container image on a host whose userland has no bcc: `python -m tests.lab.image.run ARCHIVE`.

Boots one VM with Debian 12's kernel and a Debian 12 that has podman and crun, but no bcc, and the image,
unpacked; runs the tests of this folder there.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.image import bundle
from tests.lab import hosts, kernel, vm
from tests.lab.hosts import Host, Target
from tests.lab.run import TEST_TIMEOUT_S
from tests.support import debian

TESTS = "tests/lab/image"
SUITE = "bookworm"
PACKAGES = (*hosts.BASE, *hosts.COMPILER, "crun", "podman", "python3-psutil", "python3-yaml")


@dataclass(frozen=True)
class WithImage(Target):
    """A host that has the image, unpacked, at bundle.IN_LAYER."""

    image: Path

    @property
    def layers(self) -> tuple[Path, ...]:
        """The image's folder, and the host's."""
        return self.image, *super().layers


def target(archive: Path) -> WithImage:
    """The host, made where that was not done yet."""
    userland = debian.base(SUITE, PACKAGES)
    root = bundle.unpacked(archive)
    host = Host("debian12-without-bcc", SUITE, {})
    return WithImage(
        host=host,
        kernel_name="stock",
        userland=userland,
        kernel=kernel.of_debian(SUITE, userland),
        image=root.parents[len(bundle.IN_LAYER.parts) - 1],
    )


def main() -> int:
    """Exits with pytest's status, or 1 if the VM dies or hangs."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.image.run")
    parser.add_argument("archive", type=Path, help="the image, as `make image` leaves it in dist/")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="when to kill the VM")
    arguments, for_pytest = parser.parse_known_args()
    pytest = ("python3", "-m", "pytest", "-p", "pytest_timeout", "-p", "no:cacheprovider")
    options = ("-o", f"timeout={TEST_TIMEOUT_S}", *for_pytest)
    command = ["env", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", *pytest, *options, TESTS]

    def action() -> int:
        chosen = target(arguments.archive)
        print(f"lab: booting {chosen}", flush=True)
        return vm.run(command, target=chosen, timeout_s=arguments.timeout)

    return vm.exit_status(action)


if __name__ == "__main__":
    sys.exit(main())
