"""All hosts at a glance.

Uses recorded series and the agents' own families only, so that it works for any number of hosts.
"""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from tools.dashboards.panels import (
    CHOSEN,
    HOST_ROW,
    LEAKED,
    RATE,
    STARVED,
    TAX,
    TO_HOST,
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

_HOST, _VM = {"instance": "Host"}, {"instance": "Host", "vm": "VM"}

_JOB = 'job=~"$job"'
_HERE = f"{{{CHOSEN}}}"
_OF_AGENTS = f"and on (job, instance) vpmu_agent_build_info{_HERE}"

_NOW = [
    stat(
        title="Hosts watched",
        unit="short",
        description="Hosts whose agent has probes attached that run.",
        expr=f"count(vpmu_agent_attached_probes{_HERE} > 0 {UNLESS_BLIND}) or vector(0)",
        span=3,
    ),
    stat(
        title="Hosts not watched",
        unit="short",
        description="Agents that do not answer, have no probes attached, or whose probes do not run.",
        expr=f'(count(up{{{CHOSEN},job="vpmu-agent"}} == 0) or vector(0))'
        f" + (count(vpmu_agent_attached_probes{_HERE} == 0) or vector(0))"
        f" + (count(vpmu_agent_self_test_ok{_HERE} == 0) or vector(0))",
        red_from=1,
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
        title="Tax",
        unit="percentunit",
        description=f"{TAX} Sum of the hosts, over the last five minutes.",
        expr=f"sum(instance:vpmu_host_seconds:rate5m{_HERE})",
        span=3,
    ),
    stat(
        title="Divergences",
        unit="short",
        description="Calls in the last five minutes that diverged from the model.",
        expr=f"sum(instance_vm_kind:vpmu_divergences:increase5m{_HERE}) or vector(0)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Create failures",
        unit="short",
        description="Events that could not be created in the last five minutes.",
        expr=f"sum(instance_vm_errno:vpmu_create_failures:increase5m{_HERE}) or vector(0)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Starved counters",
        unit="short",
        description=f"{STARVED} The most of each VM in the last five minutes.",
        expr=f"sum(instance_vm:vpmu_starved_pmcs:max5m{_HERE}) or vector(0)",
        red_from=1,
        span=3,
    ),
    stat(
        title="Leaked events",
        unit="short",
        description=f"{LEAKED} The most of each VM in the last five minutes.",
        expr=f"sum(instance_vm:vpmu_leaked_events:max5m{_HERE}) or vector(0)",
        red_from=1,
        span=3,
    ),
]

_WHO_PAYS = [
    lines(
        title="Hosts by tax",
        unit="percentunit",
        description=f"{TAX} The ten hosts with the most tax.",
        expr=f"topk(10, instance:vpmu_host_seconds:rate5m{_HERE})",
        legend="{{instance}}",
        link=TO_HOST,
    ),
    table(
        title="Hosts",
        description=f"The hosts with the most tax, over the last five minutes. {TAX}",
        columns=_HOST,
        values={
            "Tax": (
                "percentunit",
                f"sum by (instance) (instance:vpmu_host_seconds:rate5m{_HERE})"
                # Rows also where there is no tax.
                f" or NaN * sum by (instance) (vpmu_agent_vms{_HERE})",
            ),
            "VMs": ("short", f"sum by (instance) (vpmu_agent_vms{_HERE})"),
            "Programs": ("cps", f"sum by (instance) (instance:vpmu_programs:rate5m{_HERE})"),
            "Events": ("short", f"sum by (instance) (instance:vpmu_events:sum{_HERE})"),
            "Orphaned events": ("short", f"sum by (instance) (instance:vpmu_orphaned_events:sum{_HERE})"),
        },
        links={"Host": HOST_ROW},
    ),
    table(
        title="VMs by tax",
        description=f"The VMs with the most tax, over the last five minutes. {TAX}",
        columns=_VM,
        values={
            "Tax": ("percentunit", f"sum by (instance, vm) (instance_vm:vpmu_host_seconds:rate5m{_HERE})"),
            "Programs": ("cps", f"sum by (instance, vm) (instance_vm:vpmu_programs:rate5m{_HERE})"),
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    lines(
        title="Calls",
        unit="cps",
        description="KVM's calls for guests' counters, by name.",
        expr=f"sum by (call) (instance_call:vpmu_calls:rate5m{_HERE})",
        legend="{{call}}",
        stacked=True,
    ),
    lines(
        title="Slow calls",
        unit="s",
        description=(
            "99th percentile of the duration of calls, by name, on all hosts: it is recorded for all of them "
            f"together, whichever are chosen. {UNMEASURED}"
        ),
        expr=(
            "histogram_quantile(0.99,"
            f" sum by (call, le) (call_le:vpmu_call_duration_seconds_bucket:rate5m{{{_JOB}}}))"
        ),
        legend="{{call}}",
    ),
    lines(
        title="Groups",
        unit="short",
        description="Virtual counters that currently hold host events, by the state of their group.",
        expr=f"sum by (state) (instance_state:vpmu_groups:sum{_HERE})",
        legend="{{state}}",
        stacked=True,
    ),
]

_WRONG = [
    lines(
        title="Divergences by kind",
        unit="short",
        description="Over five minutes. Empty as long as all is well.",
        expr=f"sum by (kind) (instance_vm_kind:vpmu_divergences:increase5m{_HERE})",
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
                f"sum by (instance, vm, kind) (instance_vm_kind:vpmu_divergences:increase5m{_HERE})",
            )
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    lines(
        title="Create failures by errno",
        unit="short",
        description="Over five minutes. Empty as long as all is well.",
        expr=f"sum by (errno) (instance_vm_errno:vpmu_create_failures:increase5m{_HERE})",
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
                f"sum by (instance, vm, errno) (instance_vm_errno:vpmu_create_failures:increase5m{_HERE})",
            )
        },
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    lines(
        title="Starved counters",
        unit="short",
        description=f"{STARVED} The ten hosts with the most. Empty as long as all is well.",
        expr=f"topk(10, sum by (instance) (instance_vm:vpmu_starved_pmcs:max5m{_HERE}))",
        legend="{{instance}}",
        stacked=True,
    ),
    table(
        title="VMs with starved counters",
        description=f"{STARVED} The most in the last five minutes. Empty as long as all is well.",
        columns=_VM,
        values={"Starved": ("short", f"sum by (instance, vm) (instance_vm:vpmu_starved_pmcs:max5m{_HERE})")},
        links={"Host": HOST_ROW, "VM": VM_ROW},
    ),
    table(
        title="VMs with leaked events",
        description=f"{LEAKED} The most in the last five minutes. Empty as long as all is well.",
        columns=_VM,
        values={"Leaked": ("short", f"sum by (instance, vm) (instance_vm:vpmu_leaked_events:max5m{_HERE})")},
        links={"Host": HOST_ROW, "VM": VM_ROW},
        span=24,
    ),
]

_AGENTS = [
    table(
        title="Alerts",
        description=(
            "Firing and pending alerts of these rules, those about no host included. Empty as long as all is "
            "well."
        ),
        columns={"alertname": "Alert", "alertstate": "State", "instance": "Host", "vm": "VM"},
        values={
            "Alerts": (
                "short",
                "sum by (alertname, alertstate, instance, vm)"
                f' (ALERTS{{{_JOB},instance=~"$instance|",alertname=~"Vpmu.+"}})',  # or of no host
            )
        },
        links={"Host": HOST_ROW},
    ),
    versions(
        title="Versions",
        description="Number of agents, by version.",
        expr=f"count by (version) (vpmu_agent_build_info{_HERE})",
        legend="{{version}}",
    ),
    versions(
        title="Attach modes",
        description="Number of agents, by attach mode of their probes.",
        expr=f"count by (mode) (vpmu_agent_attached_probes{_HERE} > 0)",
        legend="{{mode}}",
    ),
    versions(
        title="Probes loaded",
        description="How often agents loaded their probes again, after the kvm module was reloaded.",
        expr=f"sum(clamp_min(vpmu_agent_loads_total{_HERE} - 1, 0))",
        legend="reloads",
    ),
    lines(
        title="Lost",
        unit="cps",
        description="What agents lose, by reason; with ring_full and errors_full the counts stay complete.",
        expr=f"sum by (reason) (rate(vpmu_agent_lost_records_total{_HERE}[{RATE}]))",
        legend="{{reason}}",
    ),
    lines(
        title="Fullest maps",
        unit="percentunit",
        description="Entries in the agents' BPF maps, as a share of the maximum.",
        expr=(
            "topk(10, max by (instance, map)"
            f" (vpmu_agent_map_entries{_HERE} / vpmu_agent_map_max_entries{_HERE}))"
        ),
        legend="{{instance}} {{map}}",
    ),
    lines(
        title="Slowest scrapes",
        unit="s",
        description="How long agents take to answer a scrape.",
        expr=f"topk(10, max by (instance) (vpmu_agent_scrape_duration_seconds{_HERE}))",
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
            query(f"count(vpmu_agent_census_up{_HERE} == 0) or vector(0)", "no census"),
            query(f"count(vpmu_agent_durations_enabled{_HERE} == 0) or vector(0)", "no durations"),
            query(f"count(vpmu_agent_reads_enabled{_HERE} == 0) or vector(0)", "no reads"),
        ],
    ),
    lines(
        title="Census' CPU time",
        unit="percentunit",
        description="The ten agents that spend most on pulls of the census; 100 % is one CPU.",
        expr=f"topk(10, rate(vpmu_agent_census_cpu_seconds_total{_HERE}[{RATE}]))",
        legend="{{instance}}",
    ),
    lines(
        title="Agents' memory",
        unit="bytes",
        description="The ten agents with the most resident memory.",
        expr=f"topk(10, process_resident_memory_bytes{_HERE} {_OF_AGENTS})",
        legend="{{instance}}",
        span=6,
    ),
    lines(
        title="Agents' CPU time",
        unit="percentunit",
        description="The ten agents with the most CPU time; 100 % is one CPU.",
        expr=f"topk(10, rate(process_cpu_seconds_total{_HERE}[{RATE}]) {_OF_AGENTS})",
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
        variables=[hosts("The hosts that count here; all of them, unless some are chosen.", everything=True)],
        rows={"Now": _NOW, "Who pays": _WHO_PAYS, "What goes wrong": _WRONG, "The agents": _AGENTS},
    )
