"""Every query of every panel, and every rule, against a real Prometheus that scrapes the real exporter."""

from __future__ import annotations

import re

import pytest

from tests.dashboards.conftest import Live
from tests.dashboards.panels import PanelQuery, queries
from tests.dashboards.prometheus import WINDOW

QUERIES = list(queries())

CHOSEN = {"instance": "kvm2", "vm": "web01"}
"""What a person would choose where there is no all: the host and VM that have everything."""

BUILT_IN = {"__rate_interval": "5s"}

NEVER_HERE = {"vpmu-agent-host / The agent / Told late or not at all B"}
"""Queries that find only zeros: no VM is dropped before a scrape where there is one each second."""

BEFORE_THE_FIRST_SCRAPE = {"VpmuAgentsAbsent"}
"""Alerts on what is not there; all others are made to have a cause in this fleet."""


def default(variable: dict[str, object]) -> str:
    return str(variable["allValue"]) if variable.get("includeAll") else CHOSEN[str(variable["name"])]


def filled_in(query: PanelQuery, **chosen: str) -> str:
    """Return the query as Grafana sends it; what is not chosen has its default: all, where there is such."""
    known = {each["name"]: default(each) for each in query.variables if each["type"] != "datasource"}
    known |= BUILT_IN | chosen
    return re.sub(r"\$(\w+)", lambda found: known[found[1]], query.expr)


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_a_query_of_a_panel_finds_something(query: PanelQuery, live: Live) -> None:
    expr, now = filled_in(query), live.now
    assert "$" not in expr
    found = (
        live.prometheus.query(expr, now)
        if query.is_instant
        else live.prometheus.query_range(expr, now - 10, now)
    )
    assert found.numbers, f"nothing: {expr}"
    live.report.append(
        f"{query!s:<70} {found.series:4} series {len(found.numbers):5} samples, most {found.most:12.6g}"
    )
    assert bool(found.most) == (str(query) not in NEVER_HERE), (
        f"most {found.most}; `or vector(0)` and a wrong label give only zeros as well: {expr}"
    )


def test_without_durations_a_host_has_rows_and_no_tax(live: Live) -> None:
    """An idle host whose agent measures durations has a tax of 0."""
    queries = {str(query): query for query in QUERIES}

    def found(panel: str, **chosen: str) -> tuple[int, list[float]]:
        result = live.prometheus.query(filled_in(queries[panel], **chosen), live.now)
        return result.series, result.numbers  # without those that are NaN

    assert found("vpmu-agent-host / Now / Tax A", instance="kvm3") == (0, [])
    assert found("vpmu-agent-host / Now / Tax A", instance="kvm4") == (1, [0])
    assert found("vpmu-agent-host / Who pays / VMs A", instance="kvm3") == (1, [])
    hosts, taxes = found("vpmu-agent-fleet / Who pays / Hosts A")
    assert (hosts, len(taxes)) == (4, 2)


@pytest.mark.parametrize(
    "query", {each.dashboard: each for each in QUERIES}.values(), ids=lambda q: q.dashboard
)
def test_variables_have_values_to_choose(query: PanelQuery, live: Live) -> None:
    for variable in query.variables:
        if variable["type"] == "custom":
            values = live.prometheus.values(variable["name"], "vpmu_call_duration_seconds_bucket")
            assert values == sorted(variable["query"].split(","))
        if variable["type"] != "query":
            continue
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert found
        values = live.prometheus.values(found[2], re.sub(r"\$\w+", ".+", found[1]))
        assert (CHOSEN | {"job": "vpmu-agent"})[variable["name"]] in values
        live.report.append(f"{query.dashboard} / ${variable['name']}: {', '.join(values)}")


def test_what_is_chosen_is_what_a_dashboard_counts(live: Live) -> None:
    queries = {str(query): query for query in QUERIES}

    def found(panel: str, **chosen: str) -> tuple[int, float]:
        result = live.prometheus.query(filled_in(queries[panel], **chosen), live.now)
        return result.series, sum(result.numbers)

    watched = "vpmu-agent-fleet / Now / Hosts watched A"
    assert found(watched) == (1, 3)
    assert found(watched, instance="kvm2") == (1, 1)
    assert found(watched, instance="(kvm1|kvm2)") == (1, 2)  # as Grafana writes several
    assert found(watched, job="node") == (1, 0)
    not_watched = "vpmu-agent-fleet / Now / Hosts not watched A"
    assert found(not_watched) == (1, 2)
    assert found(not_watched, instance="kvm5") == (1, 1)
    assert found("vpmu-agent-host / Who pays / VMs C", instance="(kvm1|kvm2)")[0] > 1
    assert found("vpmu-agent-fleet / The agents / Alerts A", instance="kvm4") == (1, 1)


def test_every_rule_finds_something(live: Live) -> None:
    rules = live.prometheus.rules()
    assert len(rules) > 10
    for rule in rules:
        assert rule["health"] == "ok", rule
        at = live.before if rule["name"] in BEFORE_THE_FIRST_SCRAPE else live.now
        found = live.prometheus.query(rule["query"], at)
        live.report.append(f"{rule['type']} rule {rule['name']:<62} {found.series:4} series")
        assert found.numbers, rule
        if rule["type"] == "recording":
            recorded = live.prometheus.query(rule["name"], at)
            assert recorded.numbers, rule
        else:
            assert bool(rule["alerts"]) == (rule["name"] not in BEFORE_THE_FIRST_SCRAPE), rule


def test_the_rules_look_at_what_a_test_has_time_for(live: Live) -> None:
    windows = [w for rule in live.prometheus.rules() for w in re.findall(r"\[(\w+)\]", rule["query"])]
    assert set(windows) == {WINDOW}
