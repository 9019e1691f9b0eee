"""What the dashboards share: kinds of panels, variables, links, and the layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import heatmap as heatmap_builders
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "vpmu-agent"
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")

RATE = "$__rate_interval"

CHOSEN = 'job=~"$job",instance=~"$instance"'
"""The matchers of every selector: the jobs and hosts that are chosen."""

TOP = 50
"""Rows of a table: a fleet has more hosts than anyone reads."""

UNLESS_BLIND = f"unless on (job, instance) vpmu_agent_self_test_ok{{{CHOSEN}}} == 0"
"""Leaves out the agents whose probes do not run."""

UNMEASURED = "Not measured with --no-durations."
"""What panels say that need the durations of calls."""

TAX = f"CPU time that hosts spend in KVM's calls for guests' counters; 100 % is one CPU. {UNMEASURED}"

STARVED = "Counters that guests have enabled and that the host's PMU has no room for all the time."
LEAKED = "Host perf events that KVM made and that no counter holds any more, as the census found them."
ORPHANED = "Host perf events that VMs' counters left behind and that nothing will release."

_Panel = TypeVar("_Panel", Timeseries, Stat, Table, Heatmap)
_KEEP = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"


def query(expr: str, legend: str = "") -> Dataquery:
    """Return a query over the time range that is shown."""
    made = Dataquery().expr(expr).range().datasource(DATASOURCE)
    return made.legend_format(legend) if legend else made


def instant(expr: str) -> Dataquery:
    """Return a query for the end of that range, for a table or a single number."""
    return Dataquery().expr(expr).instant().datasource(DATASOURCE)


def timeseries(
    title: str,
    unit: str,
    description: str,
    queries: Sequence[Dataquery],
    *,
    span: int = 12,
    stacked: bool = False,
    negative: bool = False,
) -> Timeseries:
    """Return a panel of lines, stacked where their sum has a meaning; from zero unless `negative`."""
    legend = common_builders.VizLegendOptions()
    legend.display_mode(common.LegendDisplayMode.TABLE).placement(common.LegendPlacement.BOTTOM)
    tooltip = common_builders.VizTooltipOptions()
    tooltip.mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    panel = Timeseries().unit(unit).height(8).span(span)
    if not negative:
        panel.min(0)
    panel.legend(legend.show_legend(True).calcs(["lastNotNull", "max"])).tooltip(tooltip)
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL)).fill_opacity(30)
    return _finished(panel, title, description, queries)


def lines(
    title: str,
    unit: str,
    description: str,
    expr: str,
    legend: str,
    *,
    link: DashboardLink | None = None,
    span: int = 12,
    stacked: bool = False,
    negative: bool = False,
) -> Timeseries:
    """Return timeseries() of one query; with `link`, on its series."""
    queries = [query(expr, legend)]
    panel = timeseries(title, unit, description, queries, span=span, stacked=stacked, negative=negative)
    return panel.data_links([link]) if link else panel


def stat(
    title: str, unit: str, description: str, expr: str, *, red_from: float | None = None, span: int = 4
) -> Stat:
    """Return a panel with one current number, red from `red_from` on."""
    steps = [dashboard.Threshold(color="green")]
    if red_from is not None:
        steps.append(dashboard.Threshold(value=red_from, color="red"))
    panel = Stat().unit(unit).height(4).span(span).graph_mode(common.BigValueGraphMode.NONE)
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.thresholds(ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    return _finished(panel, title, description, [instant(expr)])


def versions(title: str, description: str, expr: str, legend: str, *, span: int = 4) -> Stat:
    """Return a panel with a number for each value of a label."""
    panel = Stat().unit("short").height(4).span(span).graph_mode(common.BigValueGraphMode.NONE)
    panel.text_mode(common.BigValueTextMode.VALUE_AND_NAME).color_mode(common.BigValueColorMode.NONE)
    return _finished(panel, title, description, [instant(expr).legend_format(legend)])


def table(
    title: str,
    description: str,
    columns: Mapping[str, str],
    values: Mapping[str, tuple[str, str]],
    *,
    links: Mapping[str, str] | None = None,
    span: int = 12,
) -> Table:
    """Return a table of the TOP rows by the first value.

    `columns` maps labels to the titles of their columns; `values` maps titles to a unit and an expression,
    which must keep these labels; `links` maps titles of columns to URLs.
    """
    first, *others = [expr for _, expr in values.values()]
    top = f"topk({TOP}, {first})"
    # Prometheus cannot limit one query by the order of another: each selects the rows of the first itself.
    exprs = [top, *(f"{expr} and on ({', '.join(columns)}) {top}" for expr in others)]
    # Labels are text: a VM may be named 1234567, which is not 1.23 Mil.
    panel = Table().unit("string").height(8).span(span)
    fields = [f"Value #{_ref_id(i)}" for i in range(len(values))] if len(values) > 1 else ["Value"]
    names = dict(columns) | dict(zip(fields, values, strict=True))
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={
                "includeByName": dict.fromkeys(names, True),
                "indexByName": {name: i for i, name in enumerate(names)},
                "renameByName": names,
            },
        )
    )
    panel.sort_by([common_builders.TableSortByFieldState().display_name(next(iter(values))).desc(True)])
    for name, (unit, _) in values.items():
        panel.override_by_name(name, [dashboard.DynamicConfigValue("unit", unit)])
    for name, url in (links or {}).items():
        link = {"title": "Open", "url": url, "targetBlank": False}
        panel.override_by_name(name, [dashboard.DynamicConfigValue("links", [link])])
    return _finished(
        panel, title, description, [instant(expr).format(PromQueryFormat.TABLE) for expr in exprs]
    )


def heatmap(title: str, unit: str, description: str, expr: str, *, span: int = 12) -> Heatmap:
    """Return a panel of a histogram over time; `expr` gives the increase of each bucket, by `le`."""
    panel = Heatmap().unit(unit).height(8).span(span).show_legend()
    panel.y_axis(heatmap_builders.YAxisConfig().unit(unit))
    panel.color(
        heatmap_builders.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    )
    panel.filter_values(heatmap_builders.FilterValueRange().le(1e-9))  # empty cells stay empty
    return _finished(panel, title, description, [query(expr, "{{le}}").format(PromQueryFormat.HEATMAP)])


def dashed(panel: Timeseries, pattern: str) -> Timeseries:
    """Return the panel, with dashed lines for the series whose names match."""
    style = {"fill": "dash", "dash": [8, 8]}
    return panel.override_by_regexp(pattern, [dashboard.DynamicConfigValue("custom.lineStyle", style)])


HOST_URL = f"/d/vpmu-agent-host?var-instance=%s&{_KEEP}"
VM_URL = f"/d/vpmu-agent-vm?var-instance=%s&var-vm=%s&{_KEEP}"
TO_HOST = DashboardLink("The host").url(HOST_URL % "${__field.labels.instance}")
TO_VM = DashboardLink("The VM").url(VM_URL % ("${__field.labels.instance}", "${__field.labels.vm}"))
HOST_ROW = HOST_URL % "${__data.fields.Host}"
VM_ROW = VM_URL % ("${__data.fields.Host}", "${__data.fields.VM}")


def variable(
    name: str, label: str, description: str, metric: str, *, several: bool = False, everything: bool = False
) -> QueryVariable:
    """Return a variable with the values of the label `name` in `metric`.

    It takes one value, with `several` any number of them, and with `everything` has all as its default.
    """
    made = QueryVariable(name).label(label).description(description).datasource(DATASOURCE)
    # As Grafana's own editor writes this kind of query; a plain string is the older form.
    made.query(
        {"query": f"label_values({metric}, {name})", "refId": "PrometheusVariableQueryEditor-VariableQuery"}
    )
    made.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    made.sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    if several or everything:
        # Grafana's own value for all is a list of all names, which is too long for a thousand hosts.
        made.multi(True).all_value(".+")
    if everything:
        made.include_all(True).current(dashboard.VariableOption(text="All", value="$__all"))
    return made


def hosts(description: str, *, everything: bool = False) -> QueryVariable:
    """Return the variable for hosts: one, several or, with `everything`, all of them."""
    agents = 'vpmu_agent_build_info{job=~"$job"}'
    return variable("instance", "Host", description, agents, several=True, everything=everything)


def build(
    title: str,
    uid: str,
    description: str,
    variables: Sequence[Builder[dashboard.VariableModel]],
    rows: Mapping[str, Sequence[Builder[dashboard.Panel]]],
) -> dashboard.Dashboard:
    """Return a dashboard of titled rows, whose panels are placed from left to right."""
    made = Dashboard(title).uid(uid).description(description).tags([TAG]).editable()
    made.time("now-3h", "now").refresh("1m").timezone("browser")
    made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made.link(
        DashboardLink("vPMU dashboards")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )
    made.with_variable(
        DatasourceVariable("datasource").label("Data source").type("prometheus").description("A Prometheus.")
    )
    made.with_variable(
        variable(
            "job",
            "Job",
            "Prometheus's jobs that scrape agents.",
            "vpmu_agent_build_info",
            everything=True,
        )
    )
    for each in variables:
        made.with_variable(each)
    for name, panels in rows.items():
        made.with_row(Row(name))
        for panel in panels:
            made.with_panel(panel)
    built = made.build()
    for i, placed in enumerate(built.panels or [], start=1):
        placed.id_val = i
    return built


def _finished(panel: _Panel, title: str, description: str, queries: Sequence[Dataquery]) -> _Panel:
    panel.title(title).description(description).datasource(DATASOURCE)
    for i, each in enumerate(queries):
        panel.with_target(each.ref_id(_ref_id(i)))
    return panel


def _ref_id(index: int) -> str:
    return chr(ord("A") + index)
