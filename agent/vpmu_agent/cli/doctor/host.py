"""What the checks look at, and what several of them ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpmu_agent.cli.doctor.finding import Finding, Status
from vpmu_agent.counts.guests import Found, guests_now
from vpmu_agent.kernel import causes, trials
from vpmu_agent.kernel.trials import Trial
from vpmu_agent.loader import rehearsal
from vpmu_agent.loader.rehearsal import Step
from vpmu_agent.system import privileges
from vpmu_agent.top.sources import DEFAULT_URL
from vpmu_agent.vms.names import Vms


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
    """Return the capabilities that tracing takes and this process lacks; none where that cannot be known."""
    return causes.missing_capabilities(root=host.root)


def not_tried(check: str) -> Finding:
    """Return the finding of a check that takes privileges which this process lacks."""
    return Finding(check, Status.WARN, "cannot be tried without privileges", "run vpmu-agent doctor as root")
