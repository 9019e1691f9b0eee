"""One host: which of its VMs cost it time, what they hold, and how its agent is."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards.panels import (
    RATE,
    TO_VM,
    VM_ROW,
    build,
    linked,
    query,
    stat,
    table,
    timeseries,
    variable,
    versions,
)

_OF = 'instance="$instance"'
_HERE = f"{{{_OF}}}"
_VM = {"instance": "Host", "vm": "VM"}

_TAX = "CPU time of this host that goes into the calls that KVM makes for guests' counters; 100 % is one CPU."

_NOW = [
    stat(
        title="Tax",
        unit="percentunit",
        description=_TAX,
        expr=f"sum(rate(vpmu_host_seconds_total{_HERE}[{RATE}])) or vector(0)",
    ),
    stat(
        title="VMs",
        unit="short",
        description="VMs whose counters were seen at work.",
        expr=f"sum(vpmu_agent_vms{_HERE})",
    ),
    stat(
        title="Events held",
        unit="short",
        description="Host perf events that VMs hold.",
        expr=f"sum(vpmu_events{_HERE}) or vector(0)",
    ),
    stat(
        title="Divergences",
        unit="short",
        description="Calls that were not as predicted, since the agent was started.",
        expr=f"sum(vpmu_divergences_total{_HERE}) or vector(0)",
        red_from=1,
    ),
    stat(
        title="Create failures",
        unit="short",
        description="Events that could not be created, since the agent was started.",
        expr=f'sum(vpmu_call_errors_total{{{_OF},call="create"}}) or vector(0)',
        red_from=1,
    ),
    stat(
        title="Left behind",
        unit="short",
        description="Host perf events that no counter will release any more.",
        expr=f"sum(vpmu_orphaned_events{_HERE}) or vector(0)",
        red_from=1,
    ),
]

_WHO_PAYS = [
    linked(
        timeseries(
            title="Tax by VM",
            unit="percentunit",
            description=f"{_TAX} The ten VMs that cost most.",
            queries=[query(f"topk(10, rate(vpmu_host_seconds_total{_HERE}[{RATE}]))", "{{vm}}")],
            stacked=True,
        ),
        TO_VM,
    ),
    timeseries(
        title="Tax by call",
        unit="percentunit",
        description=f"{_TAX} By the name of the call.",
        queries=[query(f"sum by (call) (rate(vpmu_call_duration_seconds_sum{_HERE}[{RATE}]))", "{{call}}")],
        stacked=True,
    ),
    table(
        title="VMs",
        description=f"The VMs of this host, those that cost most first. {_TAX}",
        columns=_VM,
        values={
            "Tax": (
                "percentunit",
                f"sum by (instance, vm) (rate(vpmu_host_seconds_total{_HERE}[{RATE}]))",
            ),
            "Programs": (
                "cps",
                f"sum by (instance, vm) (rate(vpmu_group_size_events_count{_HERE}[{RATE}]))",
            ),
            "Events": ("short", f"sum by (instance, vm) (vpmu_events{_HERE})"),
            "Left behind": ("short", f"sum by (instance, vm) (vpmu_orphaned_events{_HERE})"),
            "Divergences": ("short", f"sum by (instance, vm) (vpmu_divergences_total{_HERE})"),
            "Unknown": ("short", f"sum by (instance, vm) (vpmu_unknown_calls_total{_HERE})"),
        },
        links={"VM": VM_ROW},
        span=24,
    ),
    linked(
        timeseries(
            title="Programs by VM",
            unit="cps",
            description="Counters programmed a second; each program creates events anew.",
            queries=[query(f"topk(10, rate(vpmu_group_size_events_count{_HERE}[{RATE}]))", "{{vm}}")],
        ),
        TO_VM,
    ),
    timeseries(
        title="Calls",
        unit="cps",
        description="Calls that KVM makes for guests' counters, by name.",
        queries=[query(f"sum by (call) (rate(vpmu_calls_total{_HERE}[{RATE}]))", "{{call}}")],
        stacked=True,
    ),
    timeseries(
        title="Slow calls",
        unit="s",
        description="The time that 99 of 100 calls stay below, by name.",
        queries=[
            query(
                "histogram_quantile(0.99,"
                f" sum by (call, le) (rate(vpmu_call_duration_seconds_bucket{_HERE}[{RATE}])))",
                "{{call}}",
            )
        ],
    ),
    timeseries(
        title="Groups",
        unit="short",
        description="Virtual counters that hold host events, by what their group is doing.",
        queries=[query(f"sum by (state) (vpmu_groups{_HERE})", "{{state}}")],
        stacked=True,
    ),
]

_WRONG = [
    linked(
        timeseries(
            title="Divergences",
            unit="short",
            description="Within five minutes, by VM and kind. Empty while all is well.",
            queries=[query(f"instance_vm_kind:vpmu_divergences:increase5m{_HERE}", "{{vm}} {{kind}}")],
            stacked=True,
        ),
        TO_VM,
    ),
    linked(
        timeseries(
            title="Create failures",
            unit="short",
            description="Within five minutes, by VM and errno. Empty while all is well.",
            queries=[query(f"instance_vm_errno:vpmu_create_failures:increase5m{_HERE}", "{{vm}} {{errno}}")],
            stacked=True,
        ),
        TO_VM,
    ),
    linked(
        timeseries(
            title="Left behind",
            unit="short",
            description="Host perf events that no counter will release any more, by VM.",
            queries=[query(f"topk(10, vpmu_orphaned_events{_HERE})", "{{vm}}")],
        ),
        TO_VM,
    ),
    linked(
        timeseries(
            title="Events held",
            unit="short",
            description="Host perf events that the VMs' counters hold; the ten with most.",
            queries=[query(f"topk(10, vpmu_events{_HERE})", "{{vm}}")],
        ),
        TO_VM,
    ),
]

_AGENT = [
    versions(
        title="VMMs",
        description="VMs known, by what runs them.",
        expr=f"count by (vmm) (vpmu_vm_info{_HERE})",
        legend="{{vmm}}",
        span=4,
    ),
    versions(
        title="vPMUs",
        description="VMs that run, by how KVM gives them their PMU; only what is emulated is traced.",
        expr=f"count by (mode) (vpmu_mode{_HERE})",
        legend="{{mode}}",
    ),
    versions(
        title="Version",
        description="Of the agent.",
        expr=f"vpmu_agent_build_info{_HERE}",
        legend="{{version}}",
        span=4,
    ),
    versions(
        title="Probes",
        description="Kernel functions that are watched, and how; none means that nothing is seen.",
        expr=f"vpmu_agent_attached_probes{_HERE}",
        legend="{{mode}}",
        span=4,
    ),
    stat(
        title="Probes loaded",
        unit="short",
        description="Once at the start, and whenever the kvm module had been loaded anew.",
        expr=f"sum(vpmu_agent_loads_total{_HERE})",
        span=4,
    ),
    stat(
        title="Lost",
        unit="short",
        description="What the agent lost since it was started, whatever the reason.",
        expr=f"sum(vpmu_agent_lost_records_total{_HERE})",
        red_from=1,
        span=4,
    ),
    timeseries(
        title="Lost by reason",
        unit="cps",
        description="What the agent loses; ring_full and errors_full leave the counts complete.",
        queries=[query(f"rate(vpmu_agent_lost_records_total{_HERE}[{RATE}])", "{{reason}}")],
        span=8,
    ),
    timeseries(
        title="Maps",
        unit="percentunit",
        description="Entries of the agent's BPF maps, as a share of their room.",
        queries=[query(f"vpmu_agent_map_entries{_HERE} / vpmu_agent_map_max_entries{_HERE}", "{{map}}")],
        span=8,
    ),
    timeseries(
        title="Scrape",
        unit="s",
        description="How long the agent takes to answer a scrape.",
        queries=[query(f"vpmu_agent_scrape_duration_seconds{_HERE}", "scrape")],
        span=8,
    ),
    timeseries(
        title="Agent's memory",
        unit="bytes",
        description="Its resident memory.",
        queries=[
            query(
                f"process_resident_memory_bytes{_HERE} and on (job, instance) vpmu_agent_build_info",
                "resident",
            )
        ],
    ),
    timeseries(
        title="Agent's CPU time",
        unit="percentunit",
        description="100 % is one CPU.",
        queries=[
            query(
                f"rate(process_cpu_seconds_total{_HERE}[{RATE}])"
                " and on (job, instance) vpmu_agent_build_info",
                "CPU",
            )
        ],
    ),
]


def host() -> Dashboard:
    """Return the dashboard."""
    return build(
        title="vPMU / Host",
        uid="vpmu-agent-host",
        description=(
            "What one host's VMs do with their performance counters, what that costs, and how the agent is."
        ),
        variables=[
            variable(
                name="instance",
                label="Host",
                description="A host, by the address that its agent is scraped at.",
                metric="vpmu_agent_build_info",
            )
        ],
        rows={"Now": _NOW, "Who pays": _WHO_PAYS, "What goes wrong": _WRONG, "The agent": _AGENT},
    )
