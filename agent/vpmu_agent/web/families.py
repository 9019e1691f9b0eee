"""The families of metrics, as declared: name, type, labels and help, and how their lines are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as exported (a histogram's without `_bucket`), type, labels and help text.

    The help text contains no character that one of the two formats escapes.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str

    def head(self, *, openmetrics: bool) -> str:
        """Return the lines before the samples: help and type."""
        # In OpenMetrics the suffix belongs to a counter's sample, not to its name.
        name = self.name.removesuffix("_total") if openmetrics else self.name
        return f"# HELP {name} {self.help}\n# TYPE {name} {self.type}\n"

    def lines(self, values: Iterable[Sequence[str]], number: str = "%d") -> str:
        """Return a line for each tuple of label values, which are escaped.

        All lines get the same `number`, or the same place that `%` fills in.
        """
        return "".join(
            self._line(self.name, zip(self.labels, labels, strict=True), number) for labels in values
        )

    def histogram(self, values: Iterable[Sequence[str]], bounds: Sequence[float], total: str = "%d") -> str:
        """Return the lines of a histogram for each tuple of label values: buckets, count and sum.

        `%` fills in their numbers; `total` is the place for the sum.
        """
        text = ""
        for labels in values:
            known = list(zip(self.labels, labels, strict=True))
            for bound in (*map(repr, bounds), "+Inf"):
                text += self._line(f"{self.name}_bucket", [*known, ("le", bound)], "%d")
            text += self._line(f"{self.name}_count", known, "%d")
            text += self._line(f"{self.name}_sum", known, total)
        return text

    def metric(self, samples: Mapping[tuple[str, ...], float]) -> Metric:
        """Return the family for prometheus-client, with the number of each tuple of label values."""
        family = CounterMetricFamily if self.type == "counter" else GaugeMetricFamily
        metric = family(self.name, self.help, labels=self.labels)
        for labels, number in samples.items():
            metric.add_metric(labels, number)
        return metric

    def _line(self, name: str, labels: Iterable[tuple[str, str]], number: str) -> str:
        text = ",".join(f'{label}="{value}"' for label, value in sorted(labels))
        return f"{name}{{{text}}} {number}\n" if text else f"{name} {number}\n"


CALLS = Family(
    name="vpmu_calls_total",
    type="counter",
    labels=("vm", "call"),
    help=(
        "Calls that KVM made for the VM's counters. The model says nothing of `read` and `period`, which "
        "--no-reads leaves out."
    ),
)
PREDICTED = Family(
    name="vpmu_predicted_calls_total",
    type="counter",
    labels=("vm", "call"),
    help="Calls that the model predicted; equal to vpmu_calls_total as long as KVM behaves as predicted.",
)
UNKNOWN = Family(
    name="vpmu_unknown_calls_total",
    type="counter",
    labels=("vm",),
    help=(
        "Calls that the model could not judge: their counters were set up before the agent was started, "
        "records were lost, or they may be consequences of a divergence."
    ),
)
PINNED_SIBLINGS = Family(
    name="vpmu_pinned_siblings_total",
    type="counter",
    labels=("vm",),
    help="Group members created pinned, which perf_event_open() refuses for all but the leader.",
)
ERRORS = Family(
    name="vpmu_call_errors_total",
    type="counter",
    labels=("vm", "call", "errno"),
    help="Calls that failed, by errno.",
)
DURATION = Family(
    name="vpmu_call_duration_seconds",
    type="histogram",
    labels=("vm", "call"),
    help="Duration of a call, from its entry to its return. Off with --no-durations.",
)
HOST = Family(
    name="vpmu_host_seconds_total",
    type="counter",
    labels=("vm",),
    help="Host time spent in the VM's vPMU calls. Off with --no-durations; without reads with --no-reads.",
)
DIVERGENCES = Family(
    name="vpmu_divergences_total",
    type="counter",
    labels=("vm", "kind"),
    help="Calls that diverged from the model, by kind.",
)
STARVATIONS = Family(
    name="vpmu_starvations_total",
    type="counter",
    labels=("vm",),
    help=(
        "Calls that left a counter starved: the host's PMU had no room for its events, so that it counts "
        "nothing. With --no-durations only creates are looked at, and not enables."
    ),
)
GROUPS = Family(
    name="vpmu_groups",
    type="gauge",
    labels=("vm", "state"),
    help="Counters that currently hold events, by the state of their group.",
)
EVENTS = Family(
    name="vpmu_events",
    type="gauge",
    labels=("vm",),
    help="Host perf events that the VM's counters currently hold.",
)
ORPHANED = Family(
    name="vpmu_orphaned_events",
    type="gauge",
    labels=("vm",),
    help="Host perf events that the VM's counters left behind and that nothing will release.",
)
GROUP_SIZE = Family(
    name="vpmu_group_size_events",
    type="histogram",
    labels=("vm",),
    help=(
        "Size of the groups that were programmed, in events; not of those whose first event could not be "
        "created."
    ),
)
REFUSED = Family(
    name="vpmu_refused_calls_total",
    type="counter",
    labels=("vm",),
    help=(
        "Calls that the agent did not follow for lack of room, usually because the VM's process has more "
        "counters than one process may have; they are missing from all other counts of the VM."
    ),
)
VM_INFO = Family(
    name="vpmu_vm_info",
    type="gauge",
    labels=("vm", "uuid", "vmm", "pid", "pod_uid"),
    help="Always 1; identifies the VM: its UUID, VMM, PID and, in Kubernetes, the UID of its pod.",
)
MODE = Family(
    name="vpmu_mode",
    type="gauge",
    labels=("vm", "mode"),
    help=(
        "Always 1; how KVM gives the VM its PMU: emulated with perf events, which are what the agent counts; "
        "mediated, where the guest owns the host's counters while it runs and there are no events; or off. "
        "Also for VMs that made no call; no series where it cannot be determined."
    ),
)
STARVED = Family(
    name="vpmu_starved_pmcs",
    type="gauge",
    labels=("vm",),
    help=(
        "Counters that the guest has enabled and whose events do not run on the host's PMU, or not all the "
        "time. For every VM with an emulated vPMU; no series where the census does not work."
    ),
)
LEAKED = Family(
    name="vpmu_leaked_events",
    type="gauge",
    labels=("vm",),
    help=(
        "Host perf events that KVM made for the VM's counters and that no counter holds any more, so that "
        "nothing will release them as long as the VM runs; at least so many. For every VM with an emulated "
        "vPMU; no series where the census does not work."
    ),
)
PMCS = Family(
    name="vpmu_pmcs",
    type="gauge",
    labels=("vm", "status"),
    help=(
        "Counters of the VM, by what they do according to the census; those that the guest does not use are "
        "idle. For every VM with a vPMU; no series where the census does not work."
    ),
)
RUNNING = Family(
    name="vpmu_running_ratio",
    type="gauge",
    labels=("vm",),
    help=(
        "Part of the time that the VM's events were enabled in which they ran, between the last two pulls of "
        "the census. A pinned event without room is not enabled: see vpmu_starved_pmcs. No series where "
        "nothing was enabled, or where the census does not work."
    ),
)
PMC_CALLS = Family(
    name="vpmu_pmc_calls_total",
    type="counter",
    labels=("vm", "vcpu", "pmc", "call"),
    help="Calls by counter, except those for guest LBR, which has no counter. Off with --no-per-counter.",
)
PMC_DIVERGENCES = Family(
    name="vpmu_pmc_divergences_total",
    type="counter",
    labels=("vm", "vcpu", "pmc", "kind"),
    help="Divergences by counter; only counters that diverged have a series. Off with --no-per-counter.",
)
BUILD = Family(
    name="vpmu_agent_build_info",
    type="gauge",
    labels=("version",),
    help="Always 1; the version of the agent.",
)
PROBES = Family(
    name="vpmu_agent_attached_probes",
    type="gauge",
    labels=("mode",),
    help="Probed kernel functions, by attach mode.",
)
SELF_TEST = Family(
    name="vpmu_agent_self_test_ok",
    type="gauge",
    labels=(),
    help=(
        "1 if the attached probes saw the last call that the agent made to test them; 0 if they did not, so "
        "that they do not run and nothing is counted. No series where no probes are attached, or where they "
        "cannot be tested."
    ),
)
DURATIONS = Family(
    name="vpmu_agent_durations_enabled",
    type="gauge",
    labels=(),
    help="1 if the durations of calls are measured, 0 with --no-durations.",
)
READS = Family(
    name="vpmu_agent_reads_enabled",
    type="gauge",
    labels=(),
    help="1 if the calls that read counters or set periods are counted, 0 with --no-reads.",
)
LOADS = Family(
    name="vpmu_agent_loads_total",
    type="counter",
    labels=(),
    help="How often the probes were loaded: at startup, and after each reload of the kvm module.",
)
LOST = Family(
    name="vpmu_agent_lost_records_total",
    type="counter",
    labels=("reason",),
    help=(
        "What was lost, by reason. ring_full loses a record, and errors_full an errno, of a call that is "
        "still counted; any other reason loses the call itself, and then none of the counts above is "
        "complete."
    ),
)
VMS = Family(
    name="vpmu_agent_vms",
    type="gauge",
    labels=(),
    help="Known VMs: those that are running, and those that are gone since the last scrape.",
)
DROPPED_VMS = Family(
    name="vpmu_agent_dropped_vms_total",
    type="counter",
    labels=(),
    help="VMs that are gone and whose last counts were dropped before a scrape: too many, or none in time.",
)
DELAYED = Family(
    name="vpmu_agent_delayed_messages_total",
    type="counter",
    labels=("to",),
    help=(
        "Log entries, and messages to the service manager, that could not be written when they were due, as "
        "on a full disk. They are written once that is possible."
    ),
)
MAP_ENTRIES = Family(
    name="vpmu_agent_map_entries",
    type="gauge",
    labels=("map",),
    help="Current number of entries in a BPF map.",
)
MAP_ROOM = Family(
    name="vpmu_agent_map_max_entries",
    type="gauge",
    labels=("map",),
    help="Maximum number of entries in a BPF map.",
)
HOST_PMU_EVENTS = Family(
    name="vpmu_host_pmu_events",
    type="gauge",
    labels=("owner_comm", "pinned"),
    help=(
        "Open events on the host's PMU that are not KVM's, by the name of the process that has them: the "
        "names with the most events, and the rest as one. No series where the census does not find them. The "
        "NMI watchdog's events belong to no process and are not included."
    ),
)
VPMU_ENABLED = Family(
    name="vpmu_host_vpmu_enabled",
    type="gauge",
    labels=(),
    help=(
        "1 if KVM can give guests a vPMU, 0 if it gives none to any (its parameter enable_pmu is N, as on "
        "hosts without a PMU): then there is nothing to trace. No series where it cannot be read."
    ),
)
CENSUS_UP = Family(
    name="vpmu_agent_census_up",
    type="gauge",
    labels=(),
    help="1 if the last pull of the census worked, 0 if it did not or if there was none yet.",
)
CENSUS_PULLS = Family(
    name="vpmu_agent_census_pulls_total",
    type="counter",
    labels=(),
    help="Pulls of the census that worked, those of known VMs alone included.",
)
CENSUS_CPU = Family(
    name="vpmu_agent_census_cpu_seconds_total",
    type="counter",
    labels=(),
    help="CPU time that pulls of the census took, in the kernel and in the agent.",
)
CENSUS_RECORDS = Family(
    name="vpmu_agent_census_records",
    type="gauge",
    labels=(),
    help=(
        "What the last pull of the census found: vCPUs, counters in use and their events, and events of "
        "others. No series where the census does not work."
    ),
)
SCRAPE = Family(
    name="vpmu_agent_scrape_duration_seconds",
    type="gauge",
    labels=(),
    help="Time from the start of this scrape to this line, including time blocked on the client.",
)
