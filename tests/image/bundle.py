"""The image's archive as a folder, and what a runtime makes of the documented flags: an OCI bundle for crun.

For machines on which podman cannot run as documented (no CAP_SYS_RESOURCE, cgroups of both versions), and for
trials that leave one of the flags out.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import re
import shlex
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tools.image.build import UID, cache

PACKAGING = Path(__file__).parents[2] / "packaging"
LIMIT_S = 120.0
IN_LAYER = Path("srv/vpmu-agent-image")

# What podman and containerd both hide of /proc and /sys, and what they let nobody write.
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/firmware",
    "/sys/fs/selinux",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


# crun refuses machines that mount both versions of cgroups, even where it is to make none.
ONE_CGROUP = 'umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"'


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a container may do, as far as it bears on the agent."""

    uid: int
    capabilities: frozenset[str]
    host_pid: bool
    read_only: bool
    tmp: bool
    """Whether /tmp can be written to."""
    seccomp: Path | None
    hidden: tuple[str, ...] = ()
    """Folders of /sys that it does not see."""


def of_podman_run() -> Confinement:
    """As packaging/podman-run has it: podman gives a user that is not root ambient capabilities."""
    flags = podman_flags()
    return Confinement(
        uid=UID,
        capabilities=_capabilities(flags["cap-add"][0].split(",")),
        host_pid=flags["pid"] == ["host"],
        read_only="read-only" in flags,
        tmp=True,  # --read-only-tmpfs is podman's default
        seccomp=PACKAGING / "seccomp.json",
    )


def of_daemonset() -> Confinement:
    """As packaging/kubernetes/daemonset.yml has it: root, for Kubernetes gives no other user capabilities."""
    documents = yaml.safe_load_all((PACKAGING / "kubernetes" / "daemonset.yml").read_text())
    (daemonset,) = (each for each in documents if each["kind"] == "DaemonSet")
    pod = daemonset["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"]["drop"] == ["ALL"]
    return Confinement(
        uid=context["runAsUser"],
        capabilities=_capabilities(context["capabilities"]["add"]),
        host_pid=pod["hostPID"],
        read_only=context["readOnlyRootFilesystem"],
        tmp=[mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"],
        seccomp=PACKAGING / "seccomp.json",
    )


def podman_flags() -> dict[str, list[str]]:
    """The flags of packaging/podman-run, each with what was given for it."""
    text = (PACKAGING / "podman-run").read_text()
    words = shlex.split(text.partition("exec podman run")[2].replace("\\\n", " "))
    flags: dict[str, list[str]] = {}
    for word in words[:-1]:
        name, _, value = word.removeprefix("--").partition("=")
        flags.setdefault(name, []).append(value)
    return flags


def _capabilities(names: list[str]) -> frozenset[str]:
    return frozenset(f"CAP_{name.upper()}" for name in names)


def unpacked(archive: Path) -> Path:
    """The root file system that the archive's layers make, kept for the next time.

    It is IN_LAYER of a folder of its own, which laid over a host's root puts it there.
    """
    with tarfile.open(archive) as outer:
        layers = _layers(outer)
        root = cache() / f"rootfs-{'-'.join(digest[:8] for digest in layers)}"
        with (cache() / "unpacked.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not root.exists():
                for old in cache().glob("rootfs-*"):
                    shutil.rmtree(old)
                partial = cache() / "rootfs-partial"
                inside = partial / IN_LAYER
                inside.mkdir(parents=True)
                for digest in layers:
                    file = outer.extractfile(f"blobs/sha256/{digest}")
                    assert file
                    with gzip.open(file) as layer:
                        _unpack(layer, inside)
                partial.rename(root)
    return root / IN_LAYER


def _unpack(layer: gzip.GzipFile, to: Path) -> None:
    # Not tarfile: that of Debian 12 knows no filters, and warns without one on Debian 13.
    options = ("--extract", "--numeric-owner", "--preserve-permissions", "--directory")
    with subprocess.Popen(["tar", *options, str(to)], stdin=subprocess.PIPE) as tar:
        assert tar.stdin
        shutil.copyfileobj(layer, tar.stdin)
    assert tar.returncode == 0
    assert not list(to.rglob(".wh.*"))  # what a layer removes, which none of ours does


def image_config(archive: Path) -> dict[str, Any]:
    """The configuration of the image in an archive."""
    with tarfile.open(archive) as outer:
        config: dict[str, Any] = _blob(outer, _manifest(outer)["config"]["digest"])
        return config


def _layers(outer: tarfile.TarFile) -> list[str]:
    return [layer["digest"].partition(":")[2] for layer in _manifest(outer)["layers"]]


def _manifest(outer: tarfile.TarFile) -> Any:
    (manifest,) = _json(outer, "index.json")["manifests"]
    return _blob(outer, manifest["digest"])


def _blob(outer: tarfile.TarFile, digest: str) -> Any:
    return _json(outer, f"blobs/{digest.replace(':', '/')}")


def _json(outer: tarfile.TarFile, name: str) -> Any:
    file = outer.extractfile(name)
    assert file
    return json.load(file)


def spec(root: Path, command: list[str], confinement: Confinement) -> dict[str, object]:
    """The config.json of a bundle that runs `command`."""
    held = sorted(confinement.capabilities)
    capabilities = {"bounding": held, "effective": held, "permitted": held}
    if confinement.uid:
        capabilities |= {"inheritable": held, "ambient": held}
    mounts = [
        _mount("/proc", "proc"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=1m"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    ]
    if confinement.tmp:
        mounts.append(_mount("/tmp", "tmpfs", "nosuid", "nodev", "mode=1777", "size=16m"))
    namespaces = ["mount", "ipc", "uts"] + ([] if confinement.host_pid else ["pid"])
    linux: dict[str, object] = {
        "namespaces": [{"type": kind} for kind in namespaces],
        "maskedPaths": [*_MASKED, *confinement.hidden],
        "readonlyPaths": list(_READ_ONLY),
    }
    if confinement.seccomp:
        linux["seccomp"] = json.loads(confinement.seccomp.read_text())
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": confinement.uid, "gid": confinement.uid},
            "args": command,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"],
            "cwd": "/",
            "capabilities": capabilities,
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": confinement.read_only},
        "mounts": mounts,
        "linux": linux,
    }


def _mount(destination: str, kind: str, *options: str) -> dict[str, object]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def command(root: Path, words: list[str], confinement: Confinement, folder: Path) -> list[str | Path]:
    """What runs a command of the image with crun, in no cgroup of its own. `folder` takes the bundle."""
    (folder / "config.json").write_text(json.dumps(spec(root, words, confinement)))
    name = re.sub(r"\W", "-", f"vpmu-agent{folder}")
    return [
        "unshare",
        "--mount",
        "sh",
        "-euc",
        ONE_CGROUP,
        "sh",
        "crun",
        "--cgroup-manager=disabled",
        "--root",
        folder / "state",
        "run",
        "--bundle",
        folder,
        name,
    ]


def run(
    root: Path, words: list[str], confinement: Confinement, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Runs a command of the image with crun, to its end."""
    return subprocess.run(
        command(root, words, confinement, folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def without(confinement: Confinement, *capabilities: str) -> Confinement:
    """The same with fewer capabilities."""
    return replace(confinement, capabilities=confinement.capabilities - set(capabilities))
