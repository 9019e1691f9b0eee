"""The agent from the image, with the documented flags, on a host without bcc: names right, calls complete.

The image stands unpacked in the host's root, where podman takes it with --rootfs: to load an archive takes
minutes where every instruction is emulated, and shows nothing that tests/package/test_image.py does not.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.image import bundle
from tests.lab import agent, pmu
from tests.lab.guests import guest_a
from tests.lab.scrape import scrape_until, total
from tools.image.build import UID

LISTEN = "127.0.0.1:9775"
ROOT = Path("/") / bundle.IN_LAYER
AGENT = "/usr/bin/vpmu-agent"
LIMIT_S = 180
# The VM has no systemd that would make cgroups for podman.
CONTAINERS_CONF = '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
# With --rootfs podman knows nothing of the image's own configuration. The host's network, because another one
# takes modules and programs that say nothing about the agent.
OPTIONS = ("--rm", f"--user={UID}:{UID}", "--network=host", "--rootfs", str(ROOT))


@pytest.fixture(scope="session", autouse=True)
def _podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], check=True)
    # podman's storage is overlays, which cannot lie on the overlay that is this VM's root.
    storage = Path("/var/lib/containers")
    storage.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", storage], check=True)
    configuration = tmp_path_factory.mktemp("podman") / "containers.conf"
    configuration.write_text(CONTAINERS_CONF)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(configuration))
        yield


def podman_run(*options: str) -> tuple[str, ...]:
    """packaging/podman-run as it stands, of the unpacked image."""
    return (str(bundle.PACKAGING / "podman-run"), *options, *OPTIONS, AGENT)


@pytest.fixture
def in_podman(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "COMMAND", podman_run())


@pytest.fixture
def as_daemonset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Kubernetes' runtime would start it: root with six capabilities."""
    words = [AGENT, "run", "--listen", LISTEN, "--wait", "--user", "vpmu-agent"]
    monkeypatch.setattr(agent, "COMMAND", tuple(bundle.command(ROOT, words, bundle.of_daemonset(), tmp_path)))


def doctor(*options: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [*podman_run(*options), "doctor", "--output", "json"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_this_host_has_no_bcc() -> None:
    assert find_spec("bcc") is None


def test_the_doctor_says_that_it_works() -> None:
    *checks, summary = doctor()
    failed = [check for check in checks if check["status"] == "fail"]
    assert not failed
    assert summary["can_trace"]


@pytest.mark.usefixtures("in_podman")
def test_podman_counts_every_call_of_every_vm_by_name() -> None:
    with agent.run(LISTEN, "--wait") as running:
        counted()
        assert running.stop().status == 0


@pytest.mark.usefixtures("as_daemonset")
def test_a_pod_counts_every_call_of_every_vm_by_name() -> None:
    with agent.Agent() as running:
        counted()
        (parent,) = psutil.Process(running.process.pid).children()
        (daemon,) = parent.children()
        assert set(daemon.uids()) == {UID}
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        assert re.search(r"^CapPrm:\s+0+$", status, re.MULTILINE)
        os.kill(parent.pid, signal.SIGTERM)
        assert running.process.wait(timeout=60) == 0


def counted() -> None:
    """Two VMs, of which each has its own name and as many calls as the test PMU has seen of it."""
    for name, rounds in (("web01", 2), ("db01", 3)):
        with guest_a(name, rounds=rounds) as guest:
            guest.finish()
            counts = pmu.kvm_counts(guest.tgid)
        metrics = scrape_until(
            LISTEN,
            lambda now, vm=name, all=counts.destroyed: (
                total(  # type: ignore[misc]
                    now, "vpmu_calls_total", vm=vm, call="release"
                )
                >= all
            ),
        )
        assert counts.initialised == counts.destroyed >= 4 * rounds
        assert total(metrics, "vpmu_calls_total", vm=name, call="create") == counts.initialised
        assert total(metrics, "vpmu_calls_total", vm=name, call="release") == counts.destroyed
        assert total(metrics, "vpmu_divergences_total", vm=name) == 0
    assert total(metrics, "vpmu_agent_lost_records_total") == 0


def test_without_the_hosts_processes_it_refuses_and_says_why() -> None:
    done = subprocess.run(
        [*podman_run("--pid=private"), "run", "--listen", LISTEN],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "PID namespace" in done.stderr
    assert "--pid=host" in done.stderr


def test_without_a_tmp_it_refuses_and_says_why() -> None:
    done = subprocess.run(
        [*podman_run("--read-only-tmpfs=false"), "run", "--listen", LISTEN],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "--tmpfs=/tmp" in done.stderr
