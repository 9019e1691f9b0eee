"""One VM: what KVM did for its counters against what the model predicts, and what that took."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import CustomVariable
from grafana_foundation_sdk.models.dashboard import Dashboard, VariableOption

from tools.dashboards.panels import (
    RATE,
    build,
    dashed,
    heatmap,
    query,
    stat,
    table,
    timeseries,
    variable,
)
from vpmu_agent.model.call import CallName

_OF = 'instance=~"$instance",vm="$vm"'
_IT = f"{{{_OF}}}"

_TAX = "CPU time of the host that goes into the calls that KVM makes for its counters; 100 % is one CPU."

_NOW = [
    stat("Tax", "percentunit", _TAX, f"sum(rate(vpmu_host_seconds_total{_IT}[{RATE}]))"),
    stat(
        *("Programs", "cps", "Counters programmed a second; each program creates events anew."),
        f"sum(rate(vpmu_group_size_events_count{_IT}[{RATE}]))",
    ),
    stat("Events held", "short", "Host perf events that its counters hold.", f"sum(vpmu_events{_IT})"),
    stat(
        *("Divergences", "short", "Calls that were not as predicted, since the agent was started."),
        f"sum(vpmu_divergences_total{_IT})",
        red_from=1,
    ),
    stat(
        *("Create failures", "short", "Events that could not be created, since the agent was started."),
        f'sum(vpmu_call_errors_total{{{_OF},call="create"}}) or vector(0)',
        red_from=1,
    ),
    stat(
        *("Unknown calls", "short", "Calls that the model can say nothing of, since the agent was started."),
        f"sum(vpmu_unknown_calls_total{_IT})",
    ),
]

_MODEL = [
    dashed(
        timeseries(
            "Observed and predicted calls",
            "cps",
            "Calls that KVM made, and (dashed) those that the model says it had to make. Where the two part, "
            "KVM left calls out or made others.",
            query(f"sum by (call) (rate(vpmu_calls_total{_IT}[{RATE}]))", "{{call}}"),
            query(f"sum by (call) (rate(vpmu_predicted_calls_total{_IT}[{RATE}]))", "{{call}} predicted"),
        ),
        "predicted$",
    ),
    timeseries(
        "Observed less predicted",
        "short",
        "By how many calls the two counts differ since the agent was started. Above zero are calls that KVM "
        "made without need, or that the model could not know.",
        query(
            f"sum by (call) (vpmu_calls_total{_IT}) - sum by (call) (vpmu_predicted_calls_total{_IT})",
            "{{call}}",
        ),
        negative=True,
    ),
    timeseries(
        *("Divergences by kind", "short", "Within five minutes. Empty while all is well."),
        query(f"sum by (kind) (instance_vm_kind:vpmu_divergences:increase5m{_IT})", "{{kind}}"),
        stacked=True,
    ),
    table(
        "Divergences by counter",
        "Since the agent was started. Empty while all is well, and with the agent's --no-per-counter.",
        {"instance": "Host", "vcpu": "vCPU", "pmc": "Counter", "kind": "Kind"},
        {"Divergences": ("short", f"vpmu_pmc_divergences_total{_IT}")},
    ),
    timeseries(
        *("Create failures by errno", "short", "Within five minutes. Empty while all is well."),
        query(f"sum by (errno) (instance_vm_errno:vpmu_create_failures:increase5m{_IT})", "{{errno}}"),
        stacked=True,
    ),
    timeseries(
        "Unknown calls",
        "cps",
        "Calls that the model can say nothing of: their counters are older than the agent, records were "
        "lost, or they can be consequences of a divergence.",
        query(f"sum by (instance) (rate(vpmu_unknown_calls_total{_IT}[{RATE}]))", "{{instance}}"),
    ),
]

_GROUPS = [
    timeseries(
        "Life of groups",
        "short",
        "Virtual counters that hold host events, by what their group is doing. Long in creating, enabling or "
        "releasing: KVM is slow there. Any in partial: a group that counts nothing.",
        query(f"sum by (state) (vpmu_groups{_IT})", "{{state}}"),
        stacked=True,
    ),
    timeseries(
        *("Sizes of groups", "cps", "Groups programmed a second, by the number of their events (at most)."),
        query(f"sum by (le) (rate(vpmu_group_size_events_bucket{_IT}[{RATE}]))", "≤ {{le}}"),
    ),
    timeseries(
        *("Events held", "short", "Host perf events that its counters hold, by host."),
        query(f"sum by (instance) (vpmu_events{_IT})", "{{instance}}"),
        span=8,
    ),
    timeseries(
        *("Left behind", "short", "Host perf events that no counter will release any more."),
        query(f"sum by (instance) (vpmu_orphaned_events{_IT})", "{{instance}}"),
        span=8,
    ),
    timeseries(
        *(
            "Pinned siblings",
            "cps",
            "Group members that were created pinned, as perf_event_open() refuses to.",
        ),
        query(f"sum by (instance) (rate(vpmu_pinned_siblings_total{_IT}[{RATE}]))", "{{instance}}"),
        span=8,
    ),
]

_TIME = [
    heatmap(
        *("Duration of $call", "s", "How long these calls took, from entry to return. Choose calls above."),
        f'sum by (le) (increase(vpmu_call_duration_seconds_bucket{{{_OF},call=~"$call"}}[{RATE}]))',
    ),
    timeseries(
        *(
            "Median and slow calls",
            "s",
            "The time that half of the calls, and 99 of 100, stay below, by name.",
        ),
        *(
            query(
                f"histogram_quantile({quantile}, sum by (call, le)"
                f" (rate(vpmu_call_duration_seconds_bucket{_IT}[{RATE}])))",
                f"{{{{call}}}} {name}",
            )
            for quantile, name in ((0.5, "median"), (0.99, "99 %"))
        ),
    ),
    timeseries(
        *("Tax by call", "percentunit", f"{_TAX} By the name of the call."),
        query(f"sum by (call) (rate(vpmu_call_duration_seconds_sum{_IT}[{RATE}]))", "{{call}}"),
        stacked=True,
    ),
    table(
        "Busiest counters",
        "Calls a second by vCPU and counter. Empty where the agent runs with --no-per-counter.",
        {"instance": "Host", "vcpu": "vCPU", "pmc": "Counter"},
        {
            "Calls": ("cps", f"sum by (instance, vcpu, pmc) (rate(vpmu_pmc_calls_total{_IT}[{RATE}]))"),
            "Creates": (
                "cps",
                f'sum by (instance, vcpu, pmc) (rate(vpmu_pmc_calls_total{{{_OF},call="create"}}[{RATE}]))',
            ),
        },
    ),
]


def vm() -> Dashboard:
    """The dashboard."""
    call = (
        CustomVariable("call").label("Call").description("What the heatmap shows.").values(",".join(CallName))
    )
    call.multi(True).include_all(True).all_value(".+").current(VariableOption(text="All", value="$__all"))
    return build(
        "vPMU / VM",
        "vpmu-agent-vm",
        "One VM's performance counters: what KVM did against what the model predicts, the life of their "
        "groups, and the time it took.",
        [
            variable(
                *("instance", "Host", "Where the VM runs, or ran: more than one after a migration."),
                "vpmu_agent_build_info",
                several=True,
            ),
            variable("vm", "VM", "A VM, by its name.", 'vpmu_events{instance=~"$instance"}'),
            call,
        ],
        {"Now": _NOW, "Against the model": _MODEL, "Groups": _GROUPS, "Time": _TIME},
    )
