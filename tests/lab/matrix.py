"""All of the lab on all hosts: `python -m tests.lab.matrix [--host H] [--kernel K]`; writes docs/kernels.md.

What came of each host and kernel is kept, so that a part of them can be run again; the page is made of all
that is kept. It exits with 0 if every row of it is there and green.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from tests.support import debian

from . import hosts, places, run, vm
from .checks import AUTO, TRIED
from .hosts import HOSTS, Target

VENDORS = {vm.QEMU: "AMD", vm.BOCHS: "Intel"}
"""Whose virtualization each machine emulates."""
ON_INTEL = (("debian12", "stock"), ("debian12", "grouped"))
"""The hosts and kernels that are tried in Bochs too, by those tests only that have to do with it."""

PAGE = places.REPO / "docs" / "kernels.md"
LIMIT_S = 4200.0

# In the userland: what the agent is compiled, loaded and run by.
_VERSIONS = """
import ctypes, platform
from vpmu_agent.loader.program import toolchain
libbpf = ctypes.CDLL("libbpf.so.1")
version = f"{libbpf.libbpf_major_version()}.{libbpf.libbpf_minor_version()}"
print(f"{toolchain()}, libbpf {version}, Python {platform.python_version()}")
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one host and kernel."""

    host: str
    kernel: str
    release: str
    versions: str
    attached: str
    """How the agent attached when it could choose, and what else was tried."""
    passed: int
    failed: int
    skipped: int
    service: str
    """The service's tests under systemd: passed of all; empty where they are not run."""
    minutes: float
    date: str
    commit: str
    machine: str = vm.QEMU

    @property
    def is_green(self) -> bool:
        """Whether all that there is passed; what was skipped did not."""
        passed, _, total = (self.service or "1 of 1").partition(" of ")
        return not self.failed and not self.skipped and self.passed > 0 and passed == total != "0"


def main() -> int:
    """Runs what the options name, and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.matrix", description=__doc__)
    parser.add_argument("--host", choices=HOSTS, help="only this host")
    parser.add_argument("--kernel", help="only this kernel of each host")
    parser.add_argument("--machine", choices=vm.MACHINES, help="only on this machine")
    parser.add_argument("--page", action="store_true", help="run nothing, make the page of what is kept")
    arguments = parser.parse_args()

    def action() -> int:
        for host, kernel, machine in [] if arguments.page else list(_places()):
            wanted = (arguments.host, arguments.kernel, arguments.machine)
            if all(want in (None, it) for want, it in zip(wanted, (host, kernel, machine), strict=True)):
                row = _run(hosts.target(host, kernel), machine)
                kept_as = _kept(host, kernel, machine)
                kept_as.parent.mkdir(parents=True, exist_ok=True)
                kept_as.write_text(json.dumps(asdict(row), indent=1))
        kept = [path for each in _places() if (path := _kept(*each)).exists()]
        rows = [Row(**json.loads(path.read_text())) for path in kept]
        missing = [" ".join(each) for each in _places() if not _kept(*each).exists()]
        PAGE.write_text(page(rows, missing))
        red = [f"{row.host} {row.kernel} {row.machine}" for row in rows if not row.is_green]
        print(f"wrote {PAGE.relative_to(places.REPO)}: {len(rows) - len(red)} green", end="")
        print(f", not green: {', '.join(red) or 'none'}; not run: {', '.join(missing) or 'none'}")
        return int(bool(red or missing))

    return vm.exit_status(action)


_HEAD = """\
<!-- Written by `make lab-matrix` (tests/lab/matrix.py). -->

# Where it was proved

All of the lab's tests, on each host that the lab has: a real KVM with real guests, whose counts the agent's
are held against ([tests/lab/README.md](../tests/lab/README.md)). A host is a userland and a kernel: bcc and
the compiler in the one decide what the other's verifier sees. *Attached* is how the agent attached its probes
when it could choose, and then what else was tried. *Service* is the Debian package under systemd, tried once
for each userland.

*Vendor* is whose virtualization KVM uses. AMD's is emulated by QEMU and Intel's by Bochs, which is so slow
that only those tests run there that have to do with the vendor.

| kernel | userland | vendor | attached | tests passed | service | date | commit |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

_TAIL = """
## What a kernel must have

- BTF (`/sys/kernel/btf/vmlinux`, and `kvm` where KVM is a module) with KVM's types and the six functions
  `perf_event_create_kernel_counter`, `perf_event_enable`, `perf_event_pause` and `perf_event_release_kernel`.
- `is_paused` in `struct kvm_pmc` (in mainline since Linux 5.15): a KVM without it pauses what is paused
  already, which the model does not describe. The agent refuses such a kernel by this name.
- Kprobes, or fentry and fexit with `bpf_get_func_arg()` (Linux 5.17).

Debian 11's 5.10 lacks the first two. `vpmu-agent doctor` says of any kernel what it lacks, and where it says
that tracing can work it has attached the real probes.
"""


def page(rows: list[Row], missing: list[str]) -> str:
    """docs/kernels.md."""
    table = "".join(f"| {' | '.join(_cells(row))} |\n" for row in rows)
    not_run = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    return _HEAD + table + not_run + _TAIL


def _cells(row: Row) -> Iterator[str]:
    yield row.release + (" (grouped events)" if row.kernel == "grouped" else "")
    yield f"{row.host}: {row.versions}"
    yield VENDORS[row.machine]
    yield row.attached
    tests = f"{row.passed} of {row.passed + row.failed + row.skipped}"
    yield tests if row.is_green else f"{tests} **(not green)**"
    yield row.service or "not here"
    yield row.date
    yield row.commit


def _places() -> Iterator[tuple[str, str, str]]:
    for host in HOSTS.values():
        for kernel in host.kernels:
            yield host.name, kernel, vm.QEMU
            if (host.name, kernel) in ON_INTEL:
                yield host.name, kernel, vm.BOCHS


def _kept(host: str, kernel: str, machine: str) -> Path:
    name = f"{host}-{kernel}" if machine == vm.QEMU else f"{host}-{kernel}-{machine}"
    return places.lab_dir() / "matrix" / f"{name}.json"


def _run(target: Target, machine: str) -> Row:
    started = time.monotonic()
    print(f"matrix: {target}, {machine}", flush=True)
    lab, service = _suite(target, run.TESTS, machine=machine), ""
    # What systemd does with the package is the userland's affair: one kernel will do, the last in the table.
    if machine == vm.QEMU and target.kernel_name == list(target.host.kernels)[-1]:
        print(f"matrix: {target}, the service", flush=True)
        of_service = _suite(target, run.SERVICE_TESTS, systemd=True)
        service = f"{_passed(of_service)} of {_number(of_service, 'tests')}"
    attached, tried = _properties(lab, AUTO), _properties(lab, TRIED)
    return Row(
        host=target.host.name,
        kernel=target.kernel_name,
        release=target.kernel.release,
        versions=_versions(target),
        attached=", ".join([*sorted(attached), *sorted(tried - attached)]) or "not at all",
        passed=_passed(lab),
        failed=_number(lab, "failures") + _number(lab, "errors"),
        skipped=_number(lab, "skipped"),
        service=service,
        minutes=round((time.monotonic() - started) / 60, 1),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        commit=_commit(),
        machine=machine,
    )


def _suite(
    target: Target, tests: str, *, machine: str = vm.QEMU, systemd: bool = False
) -> ElementTree.Element:
    """Pytest's report; empty if the VM died before there was one."""
    with places.new_results_dir() as results:
        report = results / "report.xml"
        vm.run(
            run.pytest_command("-q", f"--junitxml={report}", "-o", "junit_family=xunit1", tests),
            target=target,
            timeout_s=LIMIT_S,
            results=results,
            systemd=systemd,
            machine=machine,
            warm=run.pytest_command("--collect-only", "-q", run.TESTS),
        )
        if not report.exists():
            return ElementTree.Element("testsuite", tests="0", errors="1")
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        return suite


def _number(suite: ElementTree.Element, name: str) -> int:
    return int(suite.get(name) or 0)


def _passed(suite: ElementTree.Element) -> int:
    return _number(suite, "tests") - sum(_number(suite, name) for name in ("failures", "errors", "skipped"))


def _properties(suite: ElementTree.Element, name: str) -> set[str]:
    return {each.get("value", "") for each in suite.iter("property") if each.get("name") == name}


def _versions(target: Target) -> str:
    tree = str(places.REPO)
    env = {"PYTHONPATH": f"{tree}/agent"}
    with debian.writable(target.userland) as root:
        return root.run("python3", "-c", _VERSIONS, binds={places.REPO: tree}, env=env).stdout.strip()


def _commit() -> str:
    """Return the commit that is checked out, "-dirty" after it if files differ, but for the page itself."""
    page = PAGE.relative_to(places.REPO)
    named = _git("describe", "--always")
    differs = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){page}")
    return (f"{named}-dirty" if differs else named) or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=places.REPO, capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
