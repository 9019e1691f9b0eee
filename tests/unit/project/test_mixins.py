"""The dashboards and rules, as the mixins' linters want them.

The linters are Go programs that Debian and PyPI do not have, so what they check is written down again here,
from their documents, under their names: grafana/dashboard-linter (docs/rules) and cloudflare/pint
(docs/checks). What is meant to be otherwise is in their own forms, each with a reason: dashboards/.lint, and
comments in the rules. What takes a running Prometheus (promql/series, vector_matching, impossible) is in
tests/dashboards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest
import yaml
from promql_parser import parse_duration

from tests.dashboards.panels import FILES
from tests.dashboards.prometheus import RULES as RULE_FILES
from tests.support.places import ROOT
from tests.support.promql import RATE_INTERVAL, Selector, kept, operators, selectors

Json = dict[str, Any]
Found = Iterator[tuple[str, str]]
"""The title of a panel, or nothing where the whole dashboard is meant, and what is wrong."""

DASHBOARDS: list[Json] = [json.loads(path.read_text()) for path in FILES]
LINT: Json = yaml.safe_load((ROOT / "dashboards" / ".lint").read_text())

UNITS = {"short", "percentunit", "cps", "s", "bytes", "string"}
"""Those of Grafana's that are used here."""

SOURCES = {"$datasource", "${datasource}"}

RATES = {"rate", "irate", "increase"}


def panels(dashboard: Json) -> Iterator[Json]:
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def exprs(dashboard: Json) -> Iterator[tuple[str, str]]:
    return ((panel["title"], target["expr"]) for panel in panels(dashboard) for target in panel["targets"])


def asked(dashboard: Json) -> Iterator[tuple[str, Selector]]:
    return ((title, each) for title, expr in exprs(dashboard) for each in selectors(expr))


def variables(dashboard: Json) -> dict[str, Json]:
    return {each["name"]: each for each in dashboard["templating"]["list"]}


def queried(dashboard: Json) -> Iterator[Json]:
    return (each for each in variables(dashboard).values() if each["type"] == "query")


def template_datasource(dashboard: Json) -> Found:
    source = variables(dashboard).get("datasource", {})
    if (source.get("type"), source.get("label")) != ("datasource", "Data source"):
        yield "", "no variable for the data source"


def template(name: str) -> Callable[[Json], Found]:
    def rule(dashboard: Json) -> Found:
        variable = variables(dashboard).get(name)
        if variable is None or variable["type"] != "query":
            yield "", "no variable"
            return
        if variable["datasource"]["uid"] not in SOURCES:
            yield "", "its data source is not the one that is chosen"
        if not variable.get("multi"):
            yield "", "it takes one value only"
        if variable.get("allValue") != ".+":
            yield "", "all is not .+"
        if variable["label"] != name.title():
            yield "", f"its label is {variable['label']}"

    return rule


def template_label_promql(dashboard: Json) -> Found:
    for variable in queried(dashboard):
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        if query is None or not selectors(query[1]):
            yield "", variable["name"]


def template_on_time_change_reload(dashboard: Json) -> Found:
    return (("", variable["name"]) for variable in queried(dashboard) if variable["refresh"] != 2)


def panel_datasource(dashboard: Json) -> Found:
    for panel in panels(dashboard):
        if panel["datasource"]["uid"] not in SOURCES:
            yield panel["title"], panel["datasource"]["uid"]


def panel_title_description(dashboard: Json) -> Found:
    for panel in panels(dashboard):
        if not panel.get("title") or not panel.get("description"):
            yield panel.get("title", ""), "no title or no description"


def panel_units(dashboard: Json) -> Found:
    for panel in panels(dashboard):
        config = panel["fieldConfig"]
        overrides = [each for override in config["overrides"] for each in override["properties"]]
        units = {each["value"] for each in overrides if each["id"] == "unit"}
        if not {config["defaults"].get("unit"), *units} <= UNITS:
            yield panel["title"], "no unit, or none of Grafana's"


def panel_no_targets(dashboard: Json) -> Found:
    return ((panel["title"], "no query") for panel in panels(dashboard) if not panel.get("targets"))


def target_promql(dashboard: Json) -> Found:
    for title, expr in exprs(dashboard):
        try:
            selectors(expr)
        except ValueError as error:
            yield title, str(error)


def target_rate_interval(dashboard: Json) -> Found:
    for title, selector in asked(dashboard):
        if selector.function in RATES and selector.window != RATE_INTERVAL:
            yield title, str(selector.window)


def target_matcher(name: str) -> Callable[[Json], Found]:
    def rule(dashboard: Json) -> Found:
        for title, selector in asked(dashboard):
            if f'{name}=~"${name}"' not in selector.matchers:
                yield title, selector.name

    return rule


def target_counter_agg(dashboard: Json) -> Found:
    for title, selector in asked(dashboard):
        if selector.name.endswith("_total") and selector.function not in RATES:
            yield title, selector.name


def uneditable_dashboard(dashboard: Json) -> Found:
    if dashboard["editable"]:
        yield "", "editable"


LINTER: dict[str, Callable[[Json], Found]] = {
    "template-datasource-rule": template_datasource,
    "template-job-rule": template("job"),
    "template-instance-rule": template("instance"),
    "template-label-promql-rule": template_label_promql,
    "template-on-time-change-reload-rule": template_on_time_change_reload,
    "panel-datasource-rule": panel_datasource,
    "panel-title-description-rule": panel_title_description,
    "panel-units-rule": panel_units,
    "panel-no-targets-rule": panel_no_targets,
    "target-promql-rule": target_promql,
    "target-rate-interval-rule": target_rate_interval,
    "target-job-rule": target_matcher("job"),
    "target-instance-rule": target_matcher("instance"),
    "target-counter-agg-rule": target_counter_agg,
    "uneditable-dashboard-rule": uneditable_dashboard,
}


@pytest.mark.parametrize("rule", LINTER)
def test_dashboards_are_as_the_linter_wants_them_or_as_its_file_says(rule: str) -> None:
    found = {(each["title"], panel) for each in DASHBOARDS for panel, _ in LINTER[rule](each)}
    excepted = (LINT["exclusions"] | LINT["warnings"]).get(rule)
    if excepted is None:
        assert not found
    elif "entries" in excepted:
        assert found == {(each["dashboard"], each["panel"]) for each in excepted["entries"]}
    else:
        assert found, "nothing to except any more"


def test_the_linters_file_gives_reasons_for_rules_that_exist() -> None:
    excepted = LINT["exclusions"] | LINT["warnings"]
    assert set(excepted) <= set(LINTER)
    assert all(each["reason"].endswith(".") for each in excepted.values())


def test_nothing_but_the_label_of_a_host_is_excepted() -> None:
    problems = {what for each in DASHBOARDS for _, what in LINTER["template-instance-rule"](each)}
    assert problems == {"its label is Host"}


def first(dashboard: Json) -> Json:
    return next(panels(dashboard))


def ask(expr: str) -> Callable[[Json], None]:
    return lambda dashboard: first(dashboard)["targets"][0].update(expr=expr)


def set_variable(variable: str, /, **fields: Any) -> Callable[[Json], None]:
    return lambda dashboard: variables(dashboard)[variable].update(fields)


SPOILED: list[tuple[str, Callable[[Json], None]]] = [
    ("template-datasource-rule", set_variable("datasource", name="prometheus")),
    ("template-job-rule", set_variable("job", allValue=".*")),
    ("template-job-rule", set_variable("job", multi=False)),
    ("template-instance-rule", set_variable("instance", name="host")),
    ("template-label-promql-rule", set_variable("job", query={"query": "query_result(up)"})),
    ("template-on-time-change-reload-rule", set_variable("instance", refresh=1)),
    ("panel-datasource-rule", lambda dashboard: first(dashboard).update(datasource={"uid": "main"})),
    ("panel-title-description-rule", lambda dashboard: first(dashboard).update(description="")),
    ("panel-units-rule", lambda dashboard: first(dashboard)["fieldConfig"]["defaults"].update(unit="shorts")),
    ("panel-no-targets-rule", lambda dashboard: first(dashboard).update(targets=[])),
    ("target-promql-rule", ask("sum(vpmu_events")),
    ("target-rate-interval-rule", ask("rate(vpmu_calls_total[5m])")),
    ("target-job-rule", ask('vpmu_events{instance=~"$instance"}')),
    ("target-job-rule", ask('vpmu_events{job="$job",instance=~"$instance"}')),
    ("target-instance-rule", ask('vpmu_agent_vms{job=~"$job"}')),
    ("target-counter-agg-rule", ask("sum(vpmu_calls_total)")),
]


@pytest.mark.parametrize(
    ("rule", "spoil"), SPOILED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_rule_of_the_linter_finds_what_is_spoiled(rule: str, spoil: Callable[[Json], None]) -> None:
    (host,) = [each for each in DASHBOARDS if each["uid"] == "vpmu-agent-host"]
    spoiled = deepcopy(host)
    spoil(spoiled)
    assert set(LINTER[rule](spoiled)) - set(LINTER[rule](host))


# pint, for the rules.

SCRAPED = timedelta(minutes=1)
"""The longest interval between scrapes that dashboards/README.md allows."""

ANNOTATIONS = {"summary", "description", "runbook_url", "dashboard_url"}

FLAPPING = {"topk", "bottomk", "limitk", "limit_ratio"}

COMPARISONS = {">", "<", ">=", "<=", "==", "!="}

GROUPS = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
RECORDED = [rule for group in GROUPS for rule in group["rules"] if "record" in rule]


def disabled() -> dict[str, set[str]]:
    """Return the checks that comments in the rules' files disable, by the rule's name."""
    found: dict[str, set[str]] = {}
    for path in RULE_FILES:
        for text in re.split(r"^ +- (?=alert:|record:)", path.read_text(), flags=re.MULTILINE)[1:]:
            name = text.partition("\n")[0].split()[1]
            found[name] = set(re.findall(r"# pint disable (\S+)", text))
    return found


def named(rule: Json) -> str:
    name: str = rule.get("alert") or rule["record"]
    return name


every_alert = pytest.mark.parametrize("alert", ALERTS, ids=named)
every_recorded = pytest.mark.parametrize("rule", RECORDED, ids=named)
every_rule = pytest.mark.parametrize("rule", ALERTS + RECORDED, ids=named)


@every_alert
def test_alerts_annotation(alert: Json) -> None:
    assert set(alert["annotations"]) == ANNOTATIONS


@every_alert
def test_the_headline_of_an_alert_is_the_same_for_all_hosts_and_vms(alert: Json) -> None:
    """As the mixins have it: what is grouped has one headline. Who it is stands in the description."""
    summary, description = alert["annotations"]["summary"], alert["annotations"]["description"]
    assert "{{" not in summary
    about = set(re.findall(r"var-(\w+)=", alert["annotations"]["dashboard_url"]))
    assert {label for label in about if f"$labels.{label} }}}}" not in description} == set()


@every_alert
def test_alerts_template(alert: Json) -> None:
    assert "$value" not in str(alert["labels"])
    if {"rate", "irate", "deriv"} & operators(alert["expr"]) or ":rate" in alert["expr"]:
        assert re.search(r"\$value \| humanize", alert["annotations"]["description"])


@every_alert
def test_alerts_comparison(alert: Json) -> None:
    assert operators(alert["expr"]) & {*COMPARISONS, "absent"}


@every_alert
def test_alerts_absent(alert: Json) -> None:
    if "absent" in operators(alert["expr"]):
        assert parse_duration(alert["for"]) >= 2 * SCRAPED


@every_alert
def test_promql_fragile(alert: Json) -> None:
    assert not FLAPPING & operators(alert["expr"])


@every_alert
def test_rule_label(alert: Json) -> None:
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"warning", "critical"}


@every_recorded
def test_promql_aggregate(rule: Json) -> None:
    assert all("job" in labels for labels in kept(rule["expr"]))


@every_recorded
def test_rule_name(rule: Json) -> None:
    assert re.fullmatch(r"[a-z_]+:vpmu_\w+:(rate5m|increase5m|max5m|sum)", rule["record"])


@every_rule
def test_promql_rate(rule: Json) -> None:
    for selector in selectors(rule["expr"]):
        if selector.function in RATES:
            assert selector.window is not None
            assert selector.window >= 2 * SCRAPED
            assert re.search(r"_(total|count|sum|bucket)$", selector.name), "no counter"


@every_rule
def test_promql_counter(rule: Json) -> None:
    bare = [
        selector.name
        for selector in selectors(rule["expr"])
        if re.search(r"_(total|count|bucket)$", selector.name) and selector.function not in RATES
    ]
    assert bool(bare) == ("promql/counter" in disabled()[named(rule)])


@every_rule
def test_promql_regexp(rule: Json) -> None:
    for selector in selectors(rule["expr"]):
        for matcher in selector.matchers:
            if found := re.fullmatch(r'\w+[=!]~"(.*)"', matcher):
                assert re.search(r"[.|*+?\[(]", found[1]), "= does"
                assert not re.search(r"^\^|\$$", found[1]), "Prometheus puts anchors there itself"


def test_rule_duplicate() -> None:
    assert len({named(rule) for rule in ALERTS + RECORDED}) == len(ALERTS + RECORDED)
    assert len({" ".join(rule["expr"].split()) for rule in RECORDED}) == len(RECORDED)


def test_no_check_is_disabled_that_is_not_made() -> None:
    assert set().union(*disabled().values()) == {"promql/counter"}
