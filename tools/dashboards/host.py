"""One host: the time that its VMs cost, the events that they hold, and the state of its agent.

Several can be chosen, to compare them; not all at once, for these are raw series.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards.panels import (
    CHOSEN,
    LEAKED,
    ORPHANED,
    RATE,
    STARVED,
    TAX,
    TO_VM,
    UNLESS_BLIND,
    UNMEASURED,
    VM_ROW,
    build,
    hosts,
    lines,
    query,
    stat,
    table,
    timeseries,
    versions,
)

_HERE = f"{{{CHOSEN}}}"
_OF_AGENTS = f"and on (job, instance) vpmu_agent_build_info{_HERE}"
_VM = {"instance": "Host", "vm": "VM"}

_NOW = [
    stat(
        title="Tax",
        unit="percentunit",
        description=TAX,
        expr=f"sum(rate(vpmu_host_seconds_total{_HERE}[{RATE}]))"
        f" or (vector(0) unless on () vpmu_agent_durations_enabled{_HERE} == 0)",
        span=3,
    ),
    stat(
        title="VMs",
        unit="short",
        description="VMs that have used their counters.",
        expr=f"sum(vpmu_agent_vms{_HERE})",
        span=3,
    ),
    stat(
        title="Events held",
        unit="short",
        description="Host perf events that VMs currently hold.",
        expr=f"sum(vpmu_events{_HERE}) or vector(0)",
        span=3,
    ),
    stat(
        title="Divergences",
        unit="short",
        description="Calls that diverged from the model since the agent was started.",
        expr=f"sum(vpmu_divergences_total{_HERE}) or vector(0)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Create failures",
        unit="short",
        description="Events that could not be created since the agent was started.",
        expr=f'sum(vpmu_call_errors_total{{{CHOSEN},call="create"}}) or vector(0)',
        red_from=1,
        span=3,
    ),
    stat(
        title="Orphaned events",
        unit="short",
        description=ORPHANED,
        expr=f"sum(vpmu_orphaned_events{_HERE}) or vector(0)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Starved counters",
        unit="short",
        description=f"{STARVED} No number where the census does not work.",
        expr=f"sum(vpmu_starved_pmcs{_HERE}) or (vector(0) and on () vpmu_agent_census_up{_HERE} == 1)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Leaked events",
        unit="short",
        description=f"{LEAKED} No number where the census does not work.",
        expr=f"sum(vpmu_leaked_events{_HERE}) or (vector(0) and on () vpmu_agent_census_up{_HERE} == 1)",
        red_from=1,
        span=3,
    ),
]

_WHO_PAYS = [
    lines(
        title="Tax by VM",
        unit="percentunit",
        description=f"{TAX} The ten VMs with the most tax.",
        expr=f"topk(10, rate(vpmu_host_seconds_total{_HERE}[{RATE}]))",
        legend="{{instance}} {{vm}}",
        stacked=True,
        link=TO_VM,
    ),
    lines(
        title="Tax by call",
        unit="percentunit",
        description=f"{TAX} By call.",
        expr=f"sum by (call) (rate(vpmu_call_duration_seconds_sum{_HERE}[{RATE}]))",
        legend="{{call}}",
        stacked=True,
    ),
    table(
        title="VMs",
        description=f"VMs by tax. {TAX}",
        columns=_VM,
        values={
            "Tax": (
                "percentunit",
                f"sum by (instance, vm) (rate(vpmu_host_seconds_total{_HERE}[{RATE}]))"
                # Rows also where there is no tax.
                f" or NaN * sum by (instance, vm) (vpmu_events{_HERE})",
            ),
            "Programs": (
                "cps",
                f"sum by (instance, vm) (rate(vpmu_group_size_events_count{_HERE}[{RATE}]))",
            ),
            "Events": ("short", f"sum by (instance, vm) (vpmu_events{_HERE})"),
            "Orphaned events": ("short", f"sum by (instance, vm) (vpmu_orphaned_events{_HERE})"),
            "Starved counters": ("short", f"sum by (instance, vm) (vpmu_starved_pmcs{_HERE})"),
            "Leaked events": ("short", f"sum by (instance, vm) (vpmu_leaked_events{_HERE})"),
            "Divergences": ("short", f"sum by (instance, vm) (vpmu_divergences_total{_HERE})"),
            "Unknown": ("short", f"sum by (instance, vm) (vpmu_unknown_calls_total{_HERE})"),
        },
        links={"VM": VM_ROW},
        span=24,
    ),
    lines(
        title="Programs by VM",
        unit="cps",
        description="Counters programmed per second; each time their events are created again.",
        expr=f"topk(10, rate(vpmu_group_size_events_count{_HERE}[{RATE}]))",
        legend="{{instance}} {{vm}}",
        link=TO_VM,
    ),
    lines(
        title="Calls",
        unit="cps",
        description="KVM's calls for guests' counters, by name.",
        expr=f"sum by (call) (rate(vpmu_calls_total{_HERE}[{RATE}]))",
        legend="{{call}}",
        stacked=True,
    ),
    lines(
        title="Slow calls",
        unit="s",
        description=f"99th percentile of the duration of calls, by name. {UNMEASURED}",
        expr=(
            "histogram_quantile(0.99,"
            f" sum by (call, le) (rate(vpmu_call_duration_seconds_bucket{_HERE}[{RATE}])))"
        ),
        legend="{{call}}",
    ),
    lines(
        title="Groups",
        unit="short",
        description="Virtual counters that currently hold host events, by the state of their group.",
        expr=f"sum by (state) (vpmu_groups{_HERE})",
        legend="{{state}}",
        stacked=True,
    ),
]

_WRONG = [
    lines(
        title="Divergences",
        unit="short",
        description="Over five minutes, by VM and kind. Empty as long as all is well.",
        expr=f"instance_vm_kind:vpmu_divergences:increase5m{_HERE}",
        legend="{{instance}} {{vm}} {{kind}}",
        stacked=True,
        link=TO_VM,
    ),
    lines(
        title="Create failures",
        unit="short",
        description="Over five minutes, by VM and errno. Empty as long as all is well.",
        expr=f"instance_vm_errno:vpmu_create_failures:increase5m{_HERE}",
        legend="{{instance}} {{vm}} {{errno}}",
        stacked=True,
        link=TO_VM,
    ),
    lines(
        title="Orphaned events",
        unit="short",
        description=ORPHANED,
        expr=f"topk(10, vpmu_orphaned_events{_HERE})",
        legend="{{instance}} {{vm}}",
        link=TO_VM,
    ),
    lines(
        title="Leaked events",
        unit="short",
        description=f"{LEAKED} The ten VMs with the most.",
        expr=f"topk(10, vpmu_leaked_events{_HERE} > 0)",
        legend="{{instance}} {{vm}}",
        link=TO_VM,
    ),
    lines(
        title="Events held",
        unit="short",
        description="Host perf events that VMs currently hold; the ten VMs with the most.",
        expr=f"topk(10, vpmu_events{_HERE})",
        legend="{{instance}} {{vm}}",
        link=TO_VM,
    ),
    lines(
        title="Starved counters",
        unit="short",
        description=f"{STARVED} The ten VMs with the most.",
        expr=f"topk(10, vpmu_starved_pmcs{_HERE} > 0)",
        legend="{{instance}} {{vm}}",
        stacked=True,
        link=TO_VM,
    ),
    lines(
        title="Starvations",
        unit="cps",
        description=(
            "Calls that left a counter starved, the short ones between two pulls of the census included; "
            "the ten VMs with the most."
        ),
        expr=f"topk(10, rate(vpmu_starvations_total{_HERE}[{RATE}]) > 0)",
        legend="{{instance}} {{vm}}",
        link=TO_VM,
    ),
    lines(
        title="Who has the host's PMU",
        unit="short",
        description=(
            "Open events on the host's PMU that are not KVM's, by the name of their process; pinned ones are "
            "served before all others. The NMI watchdog has one more on each CPU where it runs."
        ),
        expr=f"sum by (owner_comm, pinned) (vpmu_host_pmu_events{_HERE}) > 0",
        legend="{{owner_comm}}, pinned: {{pinned}}",
        stacked=True,
    ),
    lines(
        title="Counters by status",
        unit="short",
        description="What the counters in use do, according to the census.",
        expr=f'sum by (status) (vpmu_pmcs{{{CHOSEN},status!="idle"}}) > 0',
        legend="{{status}}",
        stacked=True,
    ),
    lines(
        title="Running ratio",
        unit="percentunit",
        description=(
            "Part of the time that events were enabled in which they ran; the ten VMs with the smallest."
        ),
        expr=f"bottomk(10, vpmu_running_ratio{_HERE})",
        legend="{{instance}} {{vm}}",
        link=TO_VM,
    ),
]

_AGENT = [
    versions(
        title="VMMs",
        description="Known VMs, by VMM.",
        expr=f"count by (vmm) (vpmu_vm_info{_HERE})",
        legend="{{vmm}}",
        span=4,
    ),
    versions(
        title="vPMUs",
        description="Running VMs, by how KVM gives them their PMU; only emulated vPMUs are traced.",
        expr=f"count by (mode) (vpmu_mode{_HERE})"
        " or sum by (mode)"
        f' (label_replace(vpmu_host_vpmu_enabled{_HERE} == 0, "mode", "none can be had", "", ""))',
        legend="{{mode}}",
    ),
    versions(
        title="Version",
        description="Number of agents, by version: one for each host that is chosen.",
        expr=f"count by (version) (vpmu_agent_build_info{_HERE})",
        legend="{{version}}",
        span=4,
    ),
    versions(
        title="Probes",
        description="Kernel functions whose probes run, by attach mode; without any, the agent sees nothing.",
        expr=f"vpmu_agent_attached_probes{_HERE} {UNLESS_BLIND}",
        legend="{{instance}} {{mode}}",
        span=4,
    ),
    stat(
        title="Probes loaded",
        unit="short",
        description="Loads of the probes: one at startup, and one after each reload of the kvm module.",
        expr=f"sum(vpmu_agent_loads_total{_HERE})",
        span=4,
    ),
    stat(
        title="Lost",
        unit="short",
        description="What the agent has lost since it was started, for all reasons.",
        expr=f"sum(vpmu_agent_lost_records_total{_HERE})",
        red_from=1,
        span=4,
    ),
    lines(
        title="Lost by reason",
        unit="cps",
        description="What the agent loses; with ring_full and errors_full the counts stay complete.",
        expr=f"rate(vpmu_agent_lost_records_total{_HERE}[{RATE}])",
        legend="{{instance}} {{reason}}",
        span=8,
    ),
    lines(
        title="Maps",
        unit="percentunit",
        description="Entries in the agent's BPF maps, as a share of the maximum.",
        expr=f"vpmu_agent_map_entries{_HERE} / vpmu_agent_map_max_entries{_HERE}",
        legend="{{instance}} {{map}}",
        span=8,
    ),
    lines(
        title="Scrape",
        unit="s",
        description="How long the agent takes to answer a scrape.",
        expr=f"vpmu_agent_scrape_duration_seconds{_HERE}",
        legend="{{instance}}",
        span=8,
    ),
    timeseries(
        title="Census",
        unit="short",
        description="Whether the last pull of the census worked (1), and pulls per second.",
        queries=[
            query(f"vpmu_agent_census_up{_HERE}", "{{instance}} up"),
            query(f"rate(vpmu_agent_census_pulls_total{_HERE}[{RATE}])", "{{instance}} pulls per second"),
        ],
        span=8,
    ),
    lines(
        title="Census: what it finds",
        unit="short",
        description="vCPUs, counters in use and their events, and events of others, in the last pull.",
        expr=f"vpmu_agent_census_records{_HERE}",
        legend="{{instance}}",
        span=8,
    ),
    lines(
        title="Census: CPU time",
        unit="percentunit",
        description="100 % is one CPU; it is pulled less often where that would be more than 1 %.",
        expr=f"rate(vpmu_agent_census_cpu_seconds_total{_HERE}[{RATE}])",
        legend="{{instance}}",
        span=8,
    ),
    lines(
        title="Agent's memory",
        unit="bytes",
        description="Resident memory.",
        expr=f"process_resident_memory_bytes{_HERE} {_OF_AGENTS}",
        legend="{{instance}}",
        span=8,
    ),
    lines(
        title="Agent's CPU time",
        unit="percentunit",
        description="100 % is one CPU.",
        expr=f"rate(process_cpu_seconds_total{_HERE}[{RATE}]) {_OF_AGENTS}",
        legend="{{instance}}",
        span=8,
    ),
    timeseries(
        title="Told late or not at all",
        unit="cps",
        description=(
            "Log entries and messages to the service manager that could not be written when they were due, "
            "and VMs whose last counts no scrape has seen."
        ),
        queries=[
            query(f"rate(vpmu_agent_delayed_messages_total{_HERE}[{RATE}])", "{{instance}} {{to}}"),
            query(f"rate(vpmu_agent_dropped_vms_total{_HERE}[{RATE}])", "{{instance}} VMs"),
        ],
        span=8,
    ),
]


def host() -> Dashboard:
    """Return the dashboard."""
    return build(
        title="vPMU / Host",
        uid="vpmu-agent-host",
        description=(
            "How one host's VMs use their performance counters, what that costs, and whether the agent is "
            "well. Choose several hosts to compare them."
        ),
        variables=[hosts("One host or several, by the address at which its agent is scraped.")],
        rows={"Now": _NOW, "Who pays": _WHO_PAYS, "What goes wrong": _WRONG, "The agent": _AGENT},
    )
