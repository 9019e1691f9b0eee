"""One VM: what KVM did for its counters, what the model predicts, and the time that it took."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import CustomVariable
from grafana_foundation_sdk.models.dashboard import Dashboard, VariableOption

from tools.dashboards.panels import (
    CHOSEN,
    RATE,
    UNMEASURED,
    build,
    dashed,
    heatmap,
    hosts,
    lines,
    query,
    stat,
    table,
    timeseries,
    variable,
)
from vpmu_agent.model.call import CallName, UncheckedCall

_OF = f'{CHOSEN},vm="$vm"'
_IT = f"{{{_OF}}}"
_CALLS = [*CallName, *UncheckedCall]

_TAX = f"CPU time that the host spends in KVM's calls for this VM's counters; 100 % is one CPU. {UNMEASURED}"

_NOW = [
    stat(
        title="Tax",
        unit="percentunit",
        description=_TAX,
        expr=f"sum(rate(vpmu_host_seconds_total{_IT}[{RATE}]))",
        span=3,
    ),
    stat(
        title="Programs",
        unit="cps",
        description="Counters programmed per second; each time their events are created again.",
        expr=f"sum(rate(vpmu_group_size_events_count{_IT}[{RATE}]))",
        span=3,
    ),
    stat(
        title="Events held",
        unit="short",
        description="Host perf events that the VM's counters currently hold.",
        expr=f"sum(vpmu_events{_IT})",
        span=3,
    ),
    stat(
        title="Divergences",
        unit="short",
        description="Calls that diverged from the model since the agent was started.",
        expr=f"sum(vpmu_divergences_total{_IT})",
        red_from=1,
        span=3,
    ),
    stat(
        title="Create failures",
        unit="short",
        description="Events that could not be created since the agent was started.",
        expr=f'sum(vpmu_call_errors_total{{{_OF},call="create"}}) or vector(0)',
        red_from=1,
        span=3,
    ),
    stat(
        title="Unknown calls",
        unit="short",
        description="Calls that the model could not judge since the agent was started.",
        expr=f"sum(vpmu_unknown_calls_total{_IT})",
        span=3,
    ),
    stat(
        title="Starved counters",
        unit="short",
        description=(
            "Counters that the guest has enabled and that the host's PMU has no room for all the time. No "
            "number where the census does not work."
        ),
        expr=f"sum(vpmu_starved_pmcs{_IT})",
        red_from=1,
        span=3,
    ),
    stat(
        title="Leaked events",
        unit="short",
        description=(
            "Host perf events that KVM made for the VM and that no counter holds any more. No number where "
            "the census does not work."
        ),
        expr=f"sum(vpmu_leaked_events{_IT})",
        red_from=1,
        span=3,
    ),
]

_MODEL = [
    dashed(
        timeseries(
            title="Observed and predicted calls",
            unit="cps",
            description=(
                "Calls that KVM made and, dashed, those that the model predicted. Where they diverge, KVM "
                "left calls out or made others."
            ),
            queries=[
                query(f"sum by (call) (rate(vpmu_calls_total{_IT}[{RATE}]))", "{{call}}"),
                query(f"sum by (call) (rate(vpmu_predicted_calls_total{_IT}[{RATE}]))", "{{call}} predicted"),
            ],
        ),
        "predicted$",
    ),
    lines(
        title="Observed minus predicted",
        unit="short",
        description=(
            "Difference of the two counts since the agent was started. Above zero: calls that KVM need not "
            "have made, or that the model could not know."
        ),
        expr=f"sum by (call) (vpmu_calls_total{_IT}) - sum by (call) (vpmu_predicted_calls_total{_IT})",
        legend="{{call}}",
        negative=True,
    ),
    lines(
        title="Divergences by kind",
        unit="short",
        description="Over five minutes. Empty as long as all is well.",
        expr=f"sum by (kind) (instance_vm_kind:vpmu_divergences:increase5m{_IT})",
        legend="{{kind}}",
        stacked=True,
    ),
    table(
        title="Divergences by counter",
        description=(
            "Since the agent was started. Empty as long as all is well, or if the agent runs with "
            "--no-per-counter."
        ),
        columns={"instance": "Host", "vcpu": "vCPU", "pmc": "Counter", "kind": "Kind"},
        values={"Divergences": ("short", f"vpmu_pmc_divergences_total{_IT}")},
    ),
    lines(
        title="Create failures by errno",
        unit="short",
        description="Over five minutes. Empty as long as all is well.",
        expr=f"sum by (errno) (instance_vm_errno:vpmu_create_failures:increase5m{_IT})",
        legend="{{errno}}",
        stacked=True,
    ),
    timeseries(
        title="Unknown and refused calls",
        unit="cps",
        description=(
            "Unknown: calls that the model could not judge, because their counters are older than the agent, "
            "records were lost, or they may be consequences of a divergence. Refused: calls that the agent "
            "did not follow, because the VM has too many counters."
        ),
        queries=[
            query(f"sum by (instance) (rate({metric}{_IT}[{RATE}]))", f"{what}, {{{{instance}}}}")
            for metric, what in (
                ("vpmu_unknown_calls_total", "unknown"),
                ("vpmu_refused_calls_total", "refused"),
            )
        ],
    ),
]

_GROUPS = [
    lines(
        title="Groups by state",
        unit="short",
        description=(
            "Virtual counters that currently hold host events, by the state of their group. If many are "
            "creating, enabling or releasing, KVM is slow there; a partial group counts nothing."
        ),
        expr=f"sum by (state) (vpmu_groups{_IT})",
        legend="{{state}}",
        stacked=True,
    ),
    lines(
        title="Sizes of groups",
        unit="cps",
        description="Groups programmed per second, by number of events (at most).",
        expr=f"sum by (le) (rate(vpmu_group_size_events_bucket{_IT}[{RATE}]))",
        legend="≤ {{le}}",
    ),
    lines(
        title="Events held",
        unit="short",
        description="Host perf events that the VM's counters currently hold, by host.",
        expr=f"sum by (instance) (vpmu_events{_IT})",
        legend="{{instance}}",
        span=8,
    ),
    timeseries(
        title="Orphaned and leaked events",
        unit="short",
        description=(
            "Host perf events that nothing will release. Orphaned: by the calls, the VM's counters left them "
            "behind. Leaked: the census found them, and no counter holds them."
        ),
        queries=[
            query(f"sum by (instance) (vpmu_{what}_events{_IT})", f"{what}, {{{{instance}}}}")
            for what in ("orphaned", "leaked")
        ],
        span=8,
    ),
    lines(
        title="Pinned siblings",
        unit="cps",
        description="Group members created pinned, which perf_event_open() refuses for all but the leader.",
        expr=f"sum by (instance) (rate(vpmu_pinned_siblings_total{_IT}[{RATE}]))",
        legend="{{instance}}",
        span=8,
    ),
    lines(
        title="Counters by status",
        unit="short",
        description="What the counters that the guest uses do, according to the census.",
        expr=f'sum by (status) (vpmu_pmcs{{{_OF},status!="idle"}}) > 0',
        legend="{{status}}",
        stacked=True,
        span=8,
    ),
    lines(
        title="Starvations",
        unit="cps",
        description=(
            "Calls that left a counter starved, however short the measurement: the host's PMU had no room "
            "for its events."
        ),
        expr=f"sum by (instance) (rate(vpmu_starvations_total{_IT}[{RATE}]))",
        legend="{{instance}}",
        span=8,
    ),
    lines(
        title="Running ratio",
        unit="percentunit",
        description=(
            "Part of the time that the VM's events were enabled in which they ran. A pinned event without "
            "room is not enabled: it is among the starved counters."
        ),
        expr=f"min by (instance) (vpmu_running_ratio{_IT})",
        legend="{{instance}}",
        span=8,
    ),
]

_TIME = [
    heatmap(
        title="Duration of $call",
        unit="s",
        description=f"Duration of these calls, from entry to return. Select calls above. {UNMEASURED}",
        expr=f'sum by (le) (increase(vpmu_call_duration_seconds_bucket{{{_OF},call=~"$call"}}[{RATE}]))',
    ),
    timeseries(
        title="Median and slow calls",
        unit="s",
        description=f"Median and 99th percentile of the duration of calls, by name. {UNMEASURED}",
        queries=[
            query(
                f"histogram_quantile({quantile}, sum by (call, le)"
                f" (rate(vpmu_call_duration_seconds_bucket{_IT}[{RATE}])))",
                f"{{{{call}}}} {name}",
            )
            for quantile, name in ((0.5, "median"), (0.99, "99 %"))
        ],
    ),
    lines(
        title="Tax by call",
        unit="percentunit",
        description=f"{_TAX} By call.",
        expr=f"sum by (call) (rate(vpmu_call_duration_seconds_sum{_IT}[{RATE}]))",
        legend="{{call}}",
        stacked=True,
    ),
    table(
        title="Busiest counters",
        description="Calls per second, by vCPU and counter. Empty if the agent runs with --no-per-counter.",
        columns={"instance": "Host", "vcpu": "vCPU", "pmc": "Counter"},
        values={
            "Calls": ("cps", f"sum by (instance, vcpu, pmc) (rate(vpmu_pmc_calls_total{_IT}[{RATE}]))"),
            "Creates": (
                "cps",
                f'sum by (instance, vcpu, pmc) (rate(vpmu_pmc_calls_total{{{_OF},call="create"}}[{RATE}]))',
            ),
        },
    ),
]


def vm() -> Dashboard:
    """Return the dashboard."""
    call = (
        CustomVariable("call").label("Call").description("What the heatmap shows.").values(",".join(_CALLS))
    )
    call.multi(True).include_all(True).all_value(".+").current(VariableOption(text="All", value="$__all"))
    return build(
        title="vPMU / VM",
        uid="vpmu-agent-vm",
        description=(
            "One VM's performance counters: what KVM did and what the model predicts, the state of their "
            "groups, and the time that the calls took."
        ),
        variables=[
            hosts("Where the VM runs or has run: several hosts after a migration.", everything=True),
            variable(
                name="vm",
                label="VM",
                description="A VM, by name.",
                metric=f"vpmu_events{{{CHOSEN}}}",
            ),
            call,
        ],
        rows={"Now": _NOW, "Against the model": _MODEL, "Groups": _GROUPS, "Time": _TIME},
    )
