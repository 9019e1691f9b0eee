"""What every lab test has: KVM's vPMU live, and a test PMU that refuses nothing."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import agent, live, places, pmu, programs
from .grouped import control
from .vendor import IS_INTEL

# On another kernel these tests are not skipped, they are not there; nor where groups make no difference.
collect_ignore: list[str] = []
if places.in_vm():
    if not live.knows_mediated_vpmu():
        collect_ignore.append("test_mediated.py")
    if not live.has_global_control():
        collect_ignore.append("test_global_control.py")
    if control.is_grouped_kernel():
        collect_ignore += ["test_switched_off.py", "test_everywhere.py"]
    if not live.is_intel():
        collect_ignore.append("intel")

SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
SYS_PERF_EVENT_OPEN = 298  # x86-64
PERF_TYPE_HARDWARE = 0
PERF_FLAG_FD_CLOEXEC = 8


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves those marked `intel` where KVM is kvm_intel: Bochs takes minutes for what is AMD's as well."""
    if not IS_INTEL:
        return
    chosen = [item for item in items if item.get_closest_marker("intel")]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_runtest_setup() -> None:
    # A failure and no skip: `make test` must not pass without these.
    if not places.in_vm():
        pytest.fail("lab tests run in the lab VM only: make lab", pytrace=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Makes the vPMU live, and compiles what most tests attach: no test's time is an emulated compiler's."""
    if session.config.option.collectonly or not places.in_vm():
        return
    live.make_live()
    if _compiles():
        subprocess.run([*agent.COMMAND, "run", "--compile-only"], check=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leaves what was compiled to the next VM."""
    if places.in_vm() and not session.config.option.collectonly and _compiles():
        programs.leave()


def _compiles() -> bool:
    """The service has its own programs; and Bochs has them from QEMU (programs.py)."""
    return not SYSTEMD.exists() and not live.is_intel()


@pytest.fixture(autouse=True)
def _willing_pmu() -> Iterator[None]:
    """Ends what a test told the test PMU to refuse."""
    yield
    pmu.set_room(0)
    pmu.fail_creation(0)
    pmu.set_capabilities(0)


@pytest.fixture
def host_event() -> Iterator[int]:
    """A cycles event of an ordinary perf user, opened by this process on itself."""
    attr = struct.pack("=IIQ", PERF_TYPE_HARDWARE, 64, 0).ljust(64, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    event = libc.syscall(SYS_PERF_EVENT_OPEN, attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC)
    assert event >= 0, os.strerror(ctypes.get_errno())
    yield event
    os.close(event)
