"""The container image: what it is, and that it runs with what packaging/ gives it, and with nothing less."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.image import bundle
from tests.image.bundle import Confinement
from tests.package.conftest import VERSION
from tests.support import debian
from tools.image.build import UID, build

MAX_MB = 140
AGENT = "/usr/bin/vpmu-agent"
RUN = [AGENT, "run", "--listen", "127.0.0.1:19775", "--wait"]
HELD = {"CAP_BPF": 39, "CAP_KILL": 5, "CAP_PERFMON": 38, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SYSLOG": 34}

AS = {"podman": bundle.of_podman_run(), "kubernetes": bundle.of_daemonset()}
every_way = pytest.mark.parametrize("confinement", AS.values(), ids=AS)

if os.geteuid():
    pytest.skip("to make the image and to run it needs root", allow_module_level=True)
if missing := [name for name in ("mmdebstrap", "crun", "podman") if not shutil.which(name)]:
    pytest.skip(f"no {' and no '.join(missing)} here: make image-test installs them", allow_module_level=True)


@pytest.fixture(scope="session")
def archive(
    request: pytest.FixtureRequest, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        yield build(package, tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def root(archive: Path) -> Path:
    return bundle.unpacked(archive)


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Any:
    def run(
        confinement: Confinement, *command: str, status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        done = bundle.run(root, list(command), confinement, tmp_path)
        assert status is None or done.returncode == status, done.stdout + done.stderr
        return done

    return run


def findings(text: str) -> dict[str, dict[str, Any]]:
    """What `doctor --output json` found, by check."""
    return {line["check"]: line for line in map(json.loads, text.splitlines()) if line["kind"] == "check"}


def test_it_is_small(archive: Path) -> None:
    assert archive.stat().st_size <= MAX_MB * 1e6


def test_the_same_sources_make_the_same_image(archive: Path, package: Path, tmp_path: Path) -> None:
    assert build(package, tmp_path).read_bytes() == archive.read_bytes()


def test_it_says_what_it_is(archive: Path) -> None:
    image = bundle.image_config(archive)
    labels = image["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.licenses"] == "GPL-2.0-only"
    assert labels["org.opencontainers.image.title"] == "vpmu-agent"
    assert labels["org.opencontainers.image.description"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels.get("org.opencontainers.image.revision", "0" * 40))
    assert image["config"]["User"] == f"{UID}:{UID}"
    assert image["config"]["StopSignal"] == "SIGTERM"
    assert "9775/tcp" in image["config"]["ExposedPorts"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", image["created"])


def test_there_is_nothing_in_it_that_nobody_needs(root: Path) -> None:
    for folder in ("var/lib/apt/lists", "var/cache/apt", "usr/share/man", "usr/share/locale", "var/log"):
        found = [path for path in (root / folder).rglob("*") if path.is_file()]
        assert not found, folder
    assert (root / "usr/share/doc/vpmu-agent/copyright").exists()
    assert (root / "usr/share/doc/python3-bpfcc/copyright").exists()


def test_nothing_in_it_is_the_building_machines(root: Path) -> None:
    for file in ("etc/hostname", "etc/resolv.conf", "etc/machine-id", "etc/apt/sources.list"):
        assert not (root / file).exists(), file


def test_podman_loads_and_runs_it(archive: Path) -> None:
    """With packaging/podman-run's flags, but for those that this machine may not let podman set."""
    image = f"localhost/vpmu-agent:{VERSION}"
    flags = [
        f"--{name}={value.replace('$here', str(bundle.PACKAGING))}" if value else f"--{name}"
        for name, values in bundle.podman_flags().items()
        if name in ("cap-drop", "cap-add", "security-opt", "read-only")
        for value in values
    ]
    # No limits above the machine's own, and no cgroup: podman then wants a PID namespace.
    flags += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--cgroups=disabled", "--network=none"]
    script = bundle.ONE_CGROUP.replace('exec "$@"', '"$@"')

    # podman wants a short path.
    with tempfile.TemporaryDirectory(prefix="podman") as folder:
        storage = ("--root", f"{folder}/storage", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
        podman = ("unshare", "--mount", "sh", "-euc", script, "sh", "podman", *storage)

        def do(*arguments: str | Path) -> str:
            done = subprocess.run(
                [*podman, *arguments], capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        do("load", "--input", archive)
        version = do("run", "--rm", *flags, image, "--version")
        shown = do("run", "--rm", *flags, "--entrypoint", "cat", image, "/proc/self/status")
    assert version == f"vpmu-agent, version {VERSION}\n"
    held = sum(1 << HELD[name] for name in AS["podman"].capabilities)
    for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(re.findall(rf"^{name}:\s*(\w+)", shown, re.MULTILINE)[0], 16) == held, name
    assert re.search(rf"^Uid:(\s+{UID}){{4}}$", shown, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", shown, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", shown, re.MULTILINE)


def test_quadlet_makes_a_service_of_the_unit() -> None:
    """Debian 13's; podman has none before 4.4, and so not Debian 12's."""
    with debian.writable(debian.base("trixie", ("podman",))) as root:
        unit = Path(root.put(bundle.PACKAGING / "vpmu-agent.container"))
        command = ("env", f"QUADLET_UNIT_DIRS={unit.parent}", "/usr/libexec/podman/quadlet", "-dryrun")
        (start,) = re.findall(r"^ExecStart=(.*)$", root.run(*command).stdout, re.MULTILINE)
    for flag in ("--cap-drop all", "--cap-add bpf", "--pid=host", "--read-only", "--health-on-failure kill"):
        assert flag in start


@every_way
def test_it_runs(run: Any, confinement: Confinement) -> None:
    assert run(confinement, AGENT, "--version").stdout == f"vpmu-agent, version {VERSION}\n"
    assert run(confinement, AGENT, "predict", "--events", "2").stdout.count("create") == 2


@every_way
def test_the_doctor_lacks_nothing_that_a_container_can_have(run: Any, confinement: Confinement) -> None:
    """What it says of this machine's kernel is another matter."""
    found = findings(run(confinement, AGENT, "doctor", "--output", "json", status=None).stdout)
    for check in ("kernel", "capabilities", "kptr_restrict", "libbpf", "bcc", "btf", "bpf", "privileges"):
        assert found[check]["status"] == "ok", found[check]


@every_way
@pytest.mark.parametrize("capability", ["CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"])
def test_the_doctor_names_a_capability_that_is_missing(
    run: Any, confinement: Confinement, capability: str
) -> None:
    less = bundle.without(confinement, capability)
    found = findings(run(less, AGENT, "doctor", "--output", "json", status=3).stdout)
    assert found["capabilities"]["found"] == f"this process lacks {capability}"


@pytest.mark.parametrize("capability", ["CAP_KILL", "CAP_SETGID", "CAP_SETUID"])
def test_root_that_cannot_become_another_user_is_told_why(run: Any, capability: str) -> None:
    done = run(bundle.without(AS["kubernetes"], capability), *RUN, status=3)
    assert f"root and lacks {capability}," in done.stderr


@every_way
def test_it_sees_the_hosts_processes(run: Any, confinement: Confinement) -> None:
    """Whose command lines have the VMs' names."""
    shown = run(confinement, "cat", f"/proc/{os.getpid()}/cmdline").stdout
    assert shown == Path("/proc/self/cmdline").read_text()
    alone = replace(confinement, host_pid=False)
    run(alone, "cat", f"/proc/{os.getpid()}/cmdline", status=1)


@every_way
def test_without_a_tmp_the_compiler_has_nowhere_to_write(run: Any, confinement: Confinement) -> None:
    code = "from vpmu_agent.loader.program import captured_stderr as capture\nwith capture(): pass"
    run(confinement, "/usr/bin/python3", "-c", code)
    done = run(replace(confinement, tmp=False), "/usr/bin/python3", "-c", code, status=1)
    assert "give it a writable /tmp" in done.stderr


@every_way
def test_the_daemon_serves_without_privileges_and_ends_on_sigterm(
    root: Path, tmp_path: Path, confinement: Confinement
) -> None:
    """Where KVM is not loaded, as this machine is made to look: it waits, is healthy and not ready."""
    with started(root, replace(confinement, hidden=("/sys/module",)), tmp_path) as first:
        assert answer("/-/healthy") == 200
        assert answer("/-/ready") == 503
        (daemon,) = children(first)
        status = Path(f"/proc/{daemon}/status").read_text()
        assert re.search(r"^CapPrm:\s+0+$", status, re.MULTILINE)
        assert re.search(rf"^Uid:(\s+{UID}){{4}}$", status, re.MULTILINE)
        os.kill(first, signal.SIGTERM)
    assert not Path(f"/proc/{daemon}").exists()


@contextmanager
def started(root: Path, confinement: Confinement, folder: Path) -> Iterator[int]:
    """A daemon in a container, once it answers; yields its first process. It has to end by itself, with 0."""
    command = [*RUN, "--user", "vpmu-agent"] if confinement.uid == 0 else RUN
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            bundle.command(root, command, confinement, folder), stdout=output, stderr=output
        )
    container: list[int] = []
    try:
        deadline = time.monotonic() + 60
        while not answers():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        (first,) = children(process.pid)
        container = [first, *children(first)]
        yield first
        assert process.wait(timeout=20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            for number in container:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            process.kill()
            process.wait()


def children(process: int) -> list[int]:
    """None if it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def answer(path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:19775{path}", timeout=10) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code


def answers() -> bool:
    try:
        return answer("/-/healthy") == 200
    except OSError:
        return False
