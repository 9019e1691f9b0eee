"""All hosts at a glance.

Reads recorded series only, and what agents say of themselves, so that it holds for any number of hosts.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards.panels import (
    HOST_ROW,
    RATE,
    TO_HOST,
    VM_ROW,
    build,
    linked,
    query,
    stat,
    table,
    timeseries,
    versions,
)

_HOST, _VM = {"instance": "Host"}, {"instance": "Host", "vm": "VM"}

_TAX = "CPU time of the host that goes into the calls that KVM makes for guests' counters; 100 % is one CPU."

_NOW = [
    stat(
        *("Hosts watched", "short", "Hosts whose agent has its probes attached."),
        "count(vpmu_agent_attached_probes > 0) or vector(0)",
    ),
    stat(
        *("Hosts not watched", "short", "Agents that do not answer, or have no probe attached."),
        '(count(up{job="vpmu-agent"} == 0) or vector(0))'
        " + (count(vpmu_agent_attached_probes == 0) or vector(0))",
        red_from=1,
    ),
    stat("VMs", "short", "VMs whose counters were seen at work.", "sum(vpmu_agent_vms)"),
    stat(
        *("Tax", "percentunit", f"{_TAX} Of all hosts, over five minutes."),
        "sum(instance:vpmu_host_seconds:rate5m)",
    ),
    stat(
        *("Divergences", "short", "Calls of the last five minutes that were not as the model predicts."),
        "sum(instance_vm_kind:vpmu_divergences:increase5m) or vector(0)",
        red_from=1,
    ),
    stat(
        *("Create failures", "short", "Events that could not be created in the last five minutes."),
        "sum(instance_vm_errno:vpmu_create_failures:increase5m) or vector(0)",
        red_from=1,
    ),
]

_WHO_PAYS = [
    linked(
        timeseries(
            *("Hosts by tax", "percentunit", f"{_TAX} The ten hosts that spend most."),
            query("topk(10, instance:vpmu_host_seconds:rate5m)", "{{instance}}"),
        ),
        TO_HOST,
    ),
    table(
        "Hosts",
        f"The hosts that spend most on their guests' counters, over five minutes. {_TAX}",
        _HOST,
        {
            "Tax": ("percentunit", "sum by (instance) (instance:vpmu_host_seconds:rate5m)"),
            "VMs": ("short", "sum by (instance) (vpmu_agent_vms)"),
            "Programs": ("cps", "sum by (instance) (instance:vpmu_programs:rate5m)"),
            "Events": ("short", "sum by (instance) (instance:vpmu_events:sum)"),
            "Left behind": ("short", "sum by (instance) (instance:vpmu_orphaned_events:sum)"),
        },
        links={"Host": HOST_ROW},
    ),
    table(
        "VMs by tax",
        f"The VMs whose counters cost most, over five minutes. {_TAX}",
        _VM,
        {
            "Tax": ("percentunit", "sum by (instance, vm) (instance_vm:vpmu_host_seconds:rate5m)"),
            "Programs": ("cps", "sum by (instance, vm) (instance_vm:vpmu_programs:rate5m)"),
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    timeseries(
        *("Calls", "cps", "Calls that KVM makes for guests' counters, by name, on all hosts."),
        query("sum by (call) (instance_call:vpmu_calls:rate5m)", "{{call}}"),
        stacked=True,
    ),
    timeseries(
        *("Slow calls", "s", "The time that 99 of 100 calls stay below, on all hosts, by name."),
        query(
            "histogram_quantile(0.99, sum by (call, le) (call_le:vpmu_call_duration_seconds_bucket:rate5m))",
            "{{call}}",
        ),
    ),
    timeseries(
        *("Groups", "short", "Virtual counters that hold host events now, by what their group is doing."),
        query("sum by (state) (instance_state:vpmu_groups:sum)", "{{state}}"),
        stacked=True,
    ),
]

_WRONG = [
    timeseries(
        *("Divergences by kind", "short", "Within five minutes, on all hosts. Empty while all is well."),
        query("sum by (kind) (instance_vm_kind:vpmu_divergences:increase5m)", "{{kind}}"),
        stacked=True,
    ),
    table(
        *("VMs with divergences", "In the last five minutes. Empty while all is well."),
        _VM | {"kind": "Kind"},
        {
            "Divergences": (
                "short",
                "sum by (instance, vm, kind) (instance_vm_kind:vpmu_divergences:increase5m)",
            )
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    timeseries(
        *("Create failures by errno", "short", "Within five minutes, on all hosts. Empty while all is well."),
        query("sum by (errno) (instance_vm_errno:vpmu_create_failures:increase5m)", "{{errno}}"),
        stacked=True,
    ),
    table(
        *("VMs with create failures", "In the last five minutes. Empty while all is well."),
        _VM | {"errno": "errno"},
        {
            "Failures": (
                "short",
                "sum by (instance, vm, errno) (instance_vm_errno:vpmu_create_failures:increase5m)",
            )
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
]

_AGENTS = [
    table(
        *(
            "Alerts",
            "Alerts of these rules that fire, or will if their cause lasts. Empty while all is well.",
        ),
        {"alertname": "Alert", "alertstate": "State", "instance": "Host", "vm": "VM"},
        {
            "Alerts": (
                "short",
                'sum by (alertname, alertstate, instance, vm) (ALERTS{alertname=~"Vpmu.+"})',
            )
        },
        links={"Host": HOST_ROW},
    ),
    versions("Versions", "Agents, by version.", "count by (version) (vpmu_agent_build_info)", "{{version}}"),
    versions(
        *("Attached by", "Agents, by how their probes are attached."),
        "count by (mode) (vpmu_agent_attached_probes > 0)",
        "{{mode}}",
    ),
    versions(
        *(
            "Probes loaded",
            "Loads of the probes beyond an agent's first, each after the kvm module came anew.",
        ),
        "sum(vpmu_agent_loads_total - 1)",
        "reloads",
    ),
    timeseries(
        *("Lost", "cps", "What agents lost, by reason; ring_full and errors_full leave the counts complete."),
        query(f"sum by (reason) (rate(vpmu_agent_lost_records_total[{RATE}]))", "{{reason}}"),
    ),
    timeseries(
        *("Fullest maps", "percentunit", "Entries of the agents' BPF maps, as a share of their room."),
        query(
            "topk(10, max by (instance, map) (vpmu_agent_map_entries / vpmu_agent_map_max_entries))",
            "{{instance}} {{map}}",
        ),
    ),
    timeseries(
        *("Slowest scrapes", "s", "How long agents take to answer a scrape."),
        query("topk(10, max by (instance) (vpmu_agent_scrape_duration_seconds))", "{{instance}}"),
    ),
    timeseries(
        *("Agents' memory", "bytes", "The ten agents with the most resident memory."),
        query(
            "topk(10, process_resident_memory_bytes and on (job, instance) vpmu_agent_build_info)",
            "{{instance}}",
        ),
        span=6,
    ),
    timeseries(
        *("Agents' CPU time", "percentunit", "The ten agents that take most CPU time; 100 % is one CPU."),
        query(
            f"topk(10, rate(process_cpu_seconds_total[{RATE}]) and on (job, instance) vpmu_agent_build_info)",
            "{{instance}}",
        ),
        span=6,
    ),
]


def fleet() -> Dashboard:
    """The dashboard."""
    return build(
        "vPMU / Fleet",
        "vpmu-agent-fleet",
        "Which hosts and VMs pay for guests' performance counters, where KVM does not do as predicted, and "
        "whether anybody watches. Needs the recording rules.",
        [],
        {"Now": _NOW, "Who pays": _WHO_PAYS, "What goes wrong": _WRONG, "The agents": _AGENTS},
    )
