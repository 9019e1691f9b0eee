"""What the checks look at, and what several of them ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.cli.doctor.finding import Finding, Status
from vpmu_agent.counts.guests import Found, guests_now
from vpmu_agent.kernel import container, facts, trials
from vpmu_agent.kernel.trials import Trial
from vpmu_agent.loader import rehearsal
from vpmu_agent.loader.rehearsal import Step
from vpmu_agent.system import privileges
from vpmu_agent.top.sources import DEFAULT_URL
from vpmu_agent.vms.names import Vms

AS_ROOT = "run vpmu-agent as root"
MOUNT_SYS = "mount the host's /sys, read-only is enough"


@dataclass(frozen=True, slots=True)
class Host:
    """What the checks look at: the files below `root`, and trials in the running kernel."""

    root: Path = Path("/")
    try_bpf: Callable[[], Trial] = trials.try_bpf
    try_fexit: Callable[[Sequence[str]], Trial] = trials.try_fexit
    try_kprobe: Callable[[Sequence[str]], Trial] = trials.try_kprobe
    try_map_access: Callable[[], Trial] = privileges.try_map_access
    rehearse: Callable[[], Sequence[Step]] = rehearsal.rehearse
    guests: Callable[[], Found] = lambda: guests_now(Vms())
    daemon_url: str = DEFAULT_URL
    """Where this host's daemon answers, if it runs."""


def missing_capabilities(host: Host) -> list[str]:
    """Return the capabilities that tracing takes and this process lacks; none where that cannot be known.

    CAP_SYS_ADMIN stands for the two that were split from it (Linux 5.8), not for CAP_SYSLOG.
    """
    held = facts.capabilities(root=host.root)
    if held is None:
        return []
    if container.is_hosts_namespace("user", root=host.root) is False:
        held = frozenset()
    split = [] if "CAP_SYS_ADMIN" in held else ["CAP_BPF", "CAP_PERFMON"]
    return [name for name in (*split, "CAP_SYSLOG") if name not in held]


def not_tried(check: str) -> Finding:
    """Return the finding of a check that takes privileges which this process lacks."""
    return Finding(check, Status.WARN, "cannot be tried without privileges", "run vpmu-agent doctor as root")
