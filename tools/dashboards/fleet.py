"""All hosts at a glance.

Uses recorded series and the agents' own families only, so that it works for any number of hosts.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards.panels import (
    HOST_ROW,
    RATE,
    STARVED,
    TO_HOST,
    UNLESS_BLIND,
    UNMEASURED,
    VM_ROW,
    build,
    lines,
    query,
    stat,
    table,
    timeseries,
    versions,
)

_HOST, _VM = {"instance": "Host"}, {"instance": "Host", "vm": "VM"}

_TAX = f"CPU time that hosts spend in KVM's calls for guests' counters; 100 % is one CPU. {UNMEASURED}"

_LEAKED = "Host perf events that KVM made and that no counter holds any more, as the census found them."

_NOW = [
    stat(
        title="Hosts watched",
        unit="short",
        description="Hosts whose agent has probes attached that run.",
        expr=f"count(vpmu_agent_attached_probes > 0 {UNLESS_BLIND}) or vector(0)",
        span=3,
    ),
    stat(
        title="Hosts not watched",
        unit="short",
        description="Agents that do not answer, have no probes attached, or whose probes do not run.",
        expr='(count(up{job="vpmu-agent"} == 0) or vector(0))'
        " + (count(vpmu_agent_attached_probes == 0) or vector(0))"
        " + (count(vpmu_agent_self_test_ok == 0) or vector(0))",
        red_from=1,
        span=3,
    ),
    stat(
        title="VMs",
        unit="short",
        description="VMs that have used their counters.",
        expr="sum(vpmu_agent_vms)",
        span=3,
    ),
    stat(
        title="Tax",
        unit="percentunit",
        description=f"{_TAX} Sum of all hosts, over the last five minutes.",
        expr="sum(instance:vpmu_host_seconds:rate5m)",
        span=3,
    ),
    stat(
        title="Divergences",
        unit="short",
        description="Calls in the last five minutes that diverged from the model.",
        expr="sum(instance_vm_kind:vpmu_divergences:increase5m) or vector(0)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Create failures",
        unit="short",
        description="Events that could not be created in the last five minutes.",
        expr="sum(instance_vm_errno:vpmu_create_failures:increase5m) or vector(0)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Starved counters",
        unit="short",
        description=f"{STARVED} The most of each VM in the last five minutes.",
        expr="sum(instance_vm:vpmu_starved_pmcs:max5m) or vector(0)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Leaked events",
        unit="short",
        description=f"{_LEAKED} The most of each VM in the last five minutes.",
        expr="sum(instance_vm:vpmu_leaked_events:max5m) or vector(0)",
        red_from=1,
        span=3,
    ),
]

_WHO_PAYS = [
    lines(
        title="Hosts by tax",
        unit="percentunit",
        description=f"{_TAX} The ten hosts with the most tax.",
        expr="topk(10, instance:vpmu_host_seconds:rate5m)",
        legend="{{instance}}",
        link=TO_HOST,
    ),
    table(
        title="Hosts",
        description=f"The hosts with the most tax, over the last five minutes. {_TAX}",
        columns=_HOST,
        values={
            "Tax": (
                "percentunit",
                "sum by (instance) (instance:vpmu_host_seconds:rate5m)"
                # Rows also where there is no tax.
                " or NaN * sum by (instance) (vpmu_agent_vms)",
            ),
            "VMs": ("short", "sum by (instance) (vpmu_agent_vms)"),
            "Programs": ("cps", "sum by (instance) (instance:vpmu_programs:rate5m)"),
            "Events": ("short", "sum by (instance) (instance:vpmu_events:sum)"),
            "Orphaned events": ("short", "sum by (instance) (instance:vpmu_orphaned_events:sum)"),
        },
        links={"Host": HOST_ROW},
    ),
    table(
        title="VMs by tax",
        description=f"The VMs with the most tax, over the last five minutes. {_TAX}",
        columns=_VM,
        values={
            "Tax": ("percentunit", "sum by (instance, vm) (instance_vm:vpmu_host_seconds:rate5m)"),
            "Programs": ("cps", "sum by (instance, vm) (instance_vm:vpmu_programs:rate5m)"),
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    lines(
        title="Calls",
        unit="cps",
        description="KVM's calls for guests' counters on all hosts, by name.",
        expr="sum by (call) (instance_call:vpmu_calls:rate5m)",
        legend="{{call}}",
        stacked=True,
    ),
    lines(
        title="Slow calls",
        unit="s",
        description=f"99th percentile of the duration of calls on all hosts, by name. {UNMEASURED}",
        expr=(
            "histogram_quantile(0.99, sum by (call, le) (call_le:vpmu_call_duration_seconds_bucket:rate5m))"
        ),
        legend="{{call}}",
    ),
    lines(
        title="Groups",
        unit="short",
        description="Virtual counters that currently hold host events, by the state of their group.",
        expr="sum by (state) (instance_state:vpmu_groups:sum)",
        legend="{{state}}",
        stacked=True,
    ),
]

_WRONG = [
    lines(
        title="Divergences by kind",
        unit="short",
        description="Over five minutes, on all hosts. Empty as long as all is well.",
        expr="sum by (kind) (instance_vm_kind:vpmu_divergences:increase5m)",
        legend="{{kind}}",
        stacked=True,
    ),
    table(
        title="VMs with divergences",
        description="In the last five minutes. Empty as long as all is well.",
        columns=_VM | {"kind": "Kind"},
        values={
            "Divergences": (
                "short",
                "sum by (instance, vm, kind) (instance_vm_kind:vpmu_divergences:increase5m)",
            )
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    lines(
        title="Create failures by errno",
        unit="short",
        description="Over five minutes, on all hosts. Empty as long as all is well.",
        expr="sum by (errno) (instance_vm_errno:vpmu_create_failures:increase5m)",
        legend="{{errno}}",
        stacked=True,
    ),
    table(
        title="VMs with create failures",
        description="In the last five minutes. Empty as long as all is well.",
        columns=_VM | {"errno": "errno"},
        values={
            "Failures": (
                "short",
                "sum by (instance, vm, errno) (instance_vm_errno:vpmu_create_failures:increase5m)",
            )
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    lines(
        title="Starved counters",
        unit="short",
        description=f"{STARVED} The ten hosts with the most. Empty as long as all is well.",
        expr="topk(10, sum by (instance) (instance_vm:vpmu_starved_pmcs:max5m))",
        legend="{{instance}}",
        stacked=True,
    ),
    table(
        title="VMs with starved counters",
        description=f"{STARVED} The most in the last five minutes. Empty as long as all is well.",
        columns=_VM,
        values={"Starved": ("short", "sum by (instance, vm) (instance_vm:vpmu_starved_pmcs:max5m)")},
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    table(
        title="VMs with leaked events",
        description=f"{_LEAKED} The most in the last five minutes. Empty as long as all is well.",
        columns=_VM,
        values={"Leaked": ("short", "sum by (instance, vm) (instance_vm:vpmu_leaked_events:max5m)")},
        links={"Host": HOST_ROW, "VM": VM_ROW},
        span=24,
    ),
]

_AGENTS = [
    table(
        title="Alerts",
        description="Firing and pending alerts of these rules. Empty as long as all is well.",
        columns={"alertname": "Alert", "alertstate": "State", "instance": "Host", "vm": "VM"},
        values={
            "Alerts": (
                "short",
                'sum by (alertname, alertstate, instance, vm) (ALERTS{alertname=~"Vpmu.+"})',
            )
        },
        links={"Host": HOST_ROW},
    ),
    versions(
        title="Versions",
        description="Number of agents, by version.",
        expr="count by (version) (vpmu_agent_build_info)",
        legend="{{version}}",
    ),
    versions(
        title="Attach modes",
        description="Number of agents, by attach mode of their probes.",
        expr="count by (mode) (vpmu_agent_attached_probes > 0)",
        legend="{{mode}}",
    ),
    versions(
        title="Probes loaded",
        description="How often agents loaded their probes again, after the kvm module was reloaded.",
        expr="sum(clamp_min(vpmu_agent_loads_total - 1, 0))",
        legend="reloads",
    ),
    lines(
        title="Lost",
        unit="cps",
        description="What agents lose, by reason; with ring_full and errors_full the counts stay complete.",
        expr=f"sum by (reason) (rate(vpmu_agent_lost_records_total[{RATE}]))",
        legend="{{reason}}",
    ),
    lines(
        title="Fullest maps",
        unit="percentunit",
        description="Entries in the agents' BPF maps, as a share of the maximum.",
        expr="topk(10, max by (instance, map) (vpmu_agent_map_entries / vpmu_agent_map_max_entries))",
        legend="{{instance}} {{map}}",
    ),
    lines(
        title="Slowest scrapes",
        unit="s",
        description="How long agents take to answer a scrape.",
        expr="topk(10, max by (instance) (vpmu_agent_scrape_duration_seconds))",
        legend="{{instance}}",
    ),
    timeseries(
        title="Hosts of which less is known",
        unit="short",
        description=(
            "Agents that cannot read the census, so that nobody knows of starved counters there; and those "
            "that run with --no-durations or --no-reads, whose tax is unknown or without reads."
        ),
        queries=[
            query("count(vpmu_agent_census_up == 0) or vector(0)", "no census"),
            query("count(vpmu_agent_durations_enabled == 0) or vector(0)", "no durations"),
            query("count(vpmu_agent_reads_enabled == 0) or vector(0)", "no reads"),
        ],
    ),
    lines(
        title="Census' CPU time",
        unit="percentunit",
        description="The ten agents that spend most on pulls of the census; 100 % is one CPU.",
        expr=f"topk(10, rate(vpmu_agent_census_cpu_seconds_total[{RATE}]))",
        legend="{{instance}}",
    ),
    lines(
        title="Agents' memory",
        unit="bytes",
        description="The ten agents with the most resident memory.",
        expr="topk(10, process_resident_memory_bytes and on (job, instance) vpmu_agent_build_info)",
        legend="{{instance}}",
        span=6,
    ),
    lines(
        title="Agents' CPU time",
        unit="percentunit",
        description="The ten agents with the most CPU time; 100 % is one CPU.",
        expr=(
            f"topk(10, rate(process_cpu_seconds_total[{RATE}]) and on (job, instance) vpmu_agent_build_info)"
        ),
        legend="{{instance}}",
        span=6,
    ),
]


def fleet() -> Dashboard:
    """Return the dashboard."""
    return build(
        title="vPMU / Fleet",
        uid="vpmu-agent-fleet",
        description=(
            "Which hosts and VMs pay for guests' performance counters, where KVM diverges from the model, "
            "and whether the agents are well. Needs the recording rules."
        ),
        variables=[],
        rows={"Now": _NOW, "Who pays": _WHO_PAYS, "What goes wrong": _WRONG, "The agents": _AGENTS},
    )
