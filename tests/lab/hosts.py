"""The hosts that the lab has: a userland, which is a Debian release, and its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian

from . import kernel
from .errors import LabError
from .grouped.build import grouped_kernel
from .kernel import Kernel

# What the agent runs with: the dependencies of its Debian package.
AGENT = (
    "libbpf1",
    "python3-bcrypt",
    "python3-bpfcc",
    "python3-click",
    "python3-prometheus-client",
    "python3-psutil",
    "python3-urwid",
    "python3-yaml",
)
# What boots, tests, and is a host of guests.
BASE = (
    "ca-certificates",
    "curl",
    "iproute2",
    "kmod",
    "openssl",
    "procps",
    "python3-pytest",
    "python3-pytest-timeout",
    "qemu-system-x86",
    "seabios",
    "systemd",
    "systemd-sysv",
    "udev",
)
# What the test PMU and the guests are compiled with.
COMPILER = ("cpio", "gcc", "libc6-dev", "libelf-dev", "make", "pahole", "xz-utils")


@dataclass(frozen=True, slots=True)
class Host:
    """One host: its name, its Debian release, and its kernels by name, the first one being the usual one."""

    name: str
    suite: str
    kernels: Mapping[str, Callable[[Path], Kernel]]

    def userland(self) -> Path:
        """Its root file system, which is made if it is not there."""
        return debian.base(self.suite, (*AGENT, *BASE, *COMPILER))


@dataclass(frozen=True, slots=True)
class Target:
    """What to boot: a host's root file system and a kernel."""

    host: Host
    kernel_name: str
    userland: Path
    kernel: Kernel

    @property
    def layers(self) -> tuple[Path, ...]:
        """The folders that make up its root file system, the topmost first."""
        return self.kernel.folder, self.userland

    def __str__(self) -> str:
        return f"{self.host.name} with Linux {self.kernel.release}"


def _of(suite: str) -> Callable[[Path], Kernel]:
    return lambda userland: kernel.of_debian(suite, userland)


HOSTS = {
    host.name: host
    for host in (
        Host(
            "debian12",
            "bookworm",
            {
                "stock": _of("bookworm"),
                "grouped": lambda _userland: grouped_kernel(),
                "backports": _of("bookworm-backports"),
            },
        ),
        Host("debian13", "trixie", {"stock": _of("trixie"), "backports": _of("trixie-backports")}),
        Host("sid", "sid", {"stock": _of("sid")}),
    )
}
"""By name. The first one is the usual one."""


def target(host: str | None = None, kernel_name: str | None = None) -> Target:
    """A host of the table with one of its kernels, fetched and built where that was not done yet.

    Raises LabError for a name that is not in the table, and where something cannot be had.
    """
    chosen = HOSTS[host] if host else next(iter(HOSTS.values()))
    kernel_name = kernel_name or next(iter(chosen.kernels))
    if kernel_name not in chosen.kernels:
        raise LabError(f"{chosen.name} has no kernel {kernel_name}; it has {', '.join(chosen.kernels)}")
    userland = chosen.userland()
    return Target(chosen, kernel_name, userland, chosen.kernels[kernel_name](userland))
