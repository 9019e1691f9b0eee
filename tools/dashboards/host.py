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
        *("Tax", "percentunit", _TAX),
        f"sum(rate(vpmu_host_seconds_total{_HERE}[{RATE}])) or vector(0)",
    ),
    stat("VMs", "short", "VMs whose counters were seen at work.", f"sum(vpmu_agent_vms{_HERE})"),
    stat("Events held", "short", "Host perf events that VMs hold.", f"sum(vpmu_events{_HERE}) or vector(0)"),
    stat(
        *("Divergences", "short", "Calls that were not as predicted, since the agent was started."),
        f"sum(vpmu_divergences_total{_HERE}) or vector(0)",
        red_from=1,
    ),
    stat(
        *("Create failures", "short", "Events that could not be created, since the agent was started."),
        f'sum(vpmu_call_errors_total{{{_OF},call="create"}}) or vector(0)',
        red_from=1,
    ),
    stat(
        *("Left behind", "short", "Host perf events that no counter will release any more."),
        f"sum(vpmu_orphaned_events{_HERE}) or vector(0)",
        red_from=1,
    ),
]

_WHO_PAYS = [
    linked(
        timeseries(
            *("Tax by VM", "percentunit", f"{_TAX} The ten VMs that cost most."),
            query(f"topk(10, rate(vpmu_host_seconds_total{_HERE}[{RATE}]))", "{{vm}}"),
            stacked=True,
        ),
        TO_VM,
    ),
    timeseries(
        *("Tax by call", "percentunit", f"{_TAX} By the name of the call."),
        query(f"sum by (call) (rate(vpmu_call_duration_seconds_sum{_HERE}[{RATE}]))", "{{call}}"),
        stacked=True,
    ),
    table(
        *("VMs", f"The VMs of this host, those that cost most first. {_TAX}"),
        _VM,
        {
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
            *("Programs by VM", "cps", "Counters programmed a second; each program creates events anew."),
            query(f"topk(10, rate(vpmu_group_size_events_count{_HERE}[{RATE}]))", "{{vm}}"),
        ),
        TO_VM,
    ),
    timeseries(
        *("Calls", "cps", "Calls that KVM makes for guests' counters, by name."),
        query(f"sum by (call) (rate(vpmu_calls_total{_HERE}[{RATE}]))", "{{call}}"),
        stacked=True,
    ),
    timeseries(
        *("Slow calls", "s", "The time that 99 of 100 calls stay below, by name."),
        query(
            "histogram_quantile(0.99,"
            f" sum by (call, le) (rate(vpmu_call_duration_seconds_bucket{_HERE}[{RATE}])))",
            "{{call}}",
        ),
    ),
    timeseries(
        *("Groups", "short", "Virtual counters that hold host events, by what their group is doing."),
        query(f"sum by (state) (vpmu_groups{_HERE})", "{{state}}"),
        stacked=True,
    ),
]

_WRONG = [
    linked(
        timeseries(
            *("Divergences", "short", "Within five minutes, by VM and kind. Empty while all is well."),
            query(f"instance_vm_kind:vpmu_divergences:increase5m{_HERE}", "{{vm}} {{kind}}"),
            stacked=True,
        ),
        TO_VM,
    ),
    linked(
        timeseries(
            *("Create failures", "short", "Within five minutes, by VM and errno. Empty while all is well."),
            query(f"instance_vm_errno:vpmu_create_failures:increase5m{_HERE}", "{{vm}} {{errno}}"),
            stacked=True,
        ),
        TO_VM,
    ),
    linked(
        timeseries(
            *("Left behind", "short", "Host perf events that no counter will release any more, by VM."),
            query(f"topk(10, vpmu_orphaned_events{_HERE})", "{{vm}}"),
        ),
        TO_VM,
    ),
    linked(
        timeseries(
            *("Events held", "short", "Host perf events that the VMs' counters hold; the ten with most."),
            query(f"topk(10, vpmu_events{_HERE})", "{{vm}}"),
        ),
        TO_VM,
    ),
]

_AGENT = [
    versions(
        "VMMs", "VMs known, by what runs them.", f"count by (vmm) (vpmu_vm_info{_HERE})", "{{vmm}}", span=4
    ),
    versions(
        *("vPMUs", "VMs that run, by how KVM gives them their PMU; only what is emulated is traced."),
        f"count by (mode) (vpmu_mode{_HERE})",
        "{{mode}}",
    ),
    versions("Version", "Of the agent.", f"vpmu_agent_build_info{_HERE}", "{{version}}", span=4),
    versions(
        *("Probes", "Kernel functions that are watched, and how; none means that nothing is seen."),
        f"vpmu_agent_attached_probes{_HERE}",
        "{{mode}}",
        span=4,
    ),
    stat(
        *("Probes loaded", "short", "Once at the start, and whenever the kvm module had been loaded anew."),
        f"sum(vpmu_agent_loads_total{_HERE})",
        span=4,
    ),
    stat(
        *("Lost", "short", "What the agent lost since it was started, whatever the reason."),
        f"sum(vpmu_agent_lost_records_total{_HERE})",
        red_from=1,
        span=4,
    ),
    timeseries(
        *(
            "Lost by reason",
            "cps",
            "What the agent loses; ring_full and errors_full leave the counts complete.",
        ),
        query(f"rate(vpmu_agent_lost_records_total{_HERE}[{RATE}])", "{{reason}}"),
        span=8,
    ),
    timeseries(
        *("Maps", "percentunit", "Entries of the agent's BPF maps, as a share of their room."),
        query(f"vpmu_agent_map_entries{_HERE} / vpmu_agent_map_max_entries{_HERE}", "{{map}}"),
        span=8,
    ),
    timeseries(
        *("Scrape", "s", "How long the agent takes to answer a scrape."),
        query(f"vpmu_agent_scrape_duration_seconds{_HERE}", "scrape"),
        span=8,
    ),
    timeseries(
        *("Agent's memory", "bytes", "Its resident memory."),
        query(
            f"process_resident_memory_bytes{_HERE} and on (job, instance) vpmu_agent_build_info", "resident"
        ),
    ),
    timeseries(
        *("Agent's CPU time", "percentunit", "100 % is one CPU."),
        query(
            f"rate(process_cpu_seconds_total{_HERE}[{RATE}]) and on (job, instance) vpmu_agent_build_info",
            "CPU",
        ),
    ),
]


def host() -> Dashboard:
    """The dashboard."""
    return build(
        "vPMU / Host",
        "vpmu-agent-host",
        "What one host's VMs do with their performance counters, what that costs, and how the agent is.",
        [
            variable(
                "instance",
                "Host",
                "A host, by the address that its agent is scraped at.",
                "vpmu_agent_build_info",
            )
        ],
        {"Now": _NOW, "Who pays": _WHO_PAYS, "What goes wrong": _WRONG, "The agent": _AGENT},
    )
