"""The dashboards' JSON and the rules, as far as they can be judged without Grafana and Prometheus."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.dashboards.panels import FILES, queries
from tests.dashboards.prometheus import RULES
from tests.support.places import ROOT
from tools import rules
from tools.dashboards.build import texts
from vpmu_agent.web.metrics import FAMILIES

README = (ROOT / "dashboards" / "README.md").read_text()
DASHBOARDS = {path: json.loads(path.read_text()) for path in FILES}
PANELS = [
    pytest.param(panel, id=f"{path.stem}: {panel['title']}")
    for path, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
RULES_TEXT = "".join(re.sub(r"^ *#.*\n", "", path.read_text(), flags=re.MULTILINE) for path in RULES)
RECORDED = set(re.findall(r"record: (\S+)", RULES_TEXT))
ALERTS = re.findall(r"alert: (\w+)", RULES_TEXT)
SAMPLES = {
    f"{family.name}{suffix}"
    for family in FAMILIES
    for suffix in (("_bucket", "_count", "_sum") if family.type == "histogram" else ("",))
}

Panel = dict[str, Any]


def metrics(text: str) -> set[str]:
    """The names of ours, and of recorded series, that stand in PromQL."""
    return set(re.findall(r"\b(?:[a-z_]+:)?vpmu_\w+(?::\w+)?", text)) - {"vpmu_agent"}


@pytest.mark.parametrize(("path", "text"), texts().items(), ids=lambda value: getattr(value, "stem", ""))
def test_the_json_is_what_the_code_makes(path: Path, text: str) -> None:
    assert path.read_text() == text, "make dashboards"


def test_every_file_is_made_by_the_code() -> None:
    assert set(FILES) == set(texts())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_grafanas_own_types_read_the_json(path: Path) -> None:
    read = Dashboard.from_json(DASHBOARDS[path])
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == DASHBOARDS[path]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_have_their_places(path: Path) -> None:
    panels = DASHBOARDS[path]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in panels]
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(places, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, "two panels overlap"
    assert all(x + w <= 24 for x, _, w, _ in places)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_tells_what_it_shows_and_in_what_unit(panel: Panel) -> None:
    assert panel["description"].endswith(".")
    overrides = {o["matcher"]["options"]: o["properties"] for o in panel["fieldConfig"]["overrides"]}
    if panel["type"] == "table":
        shown = panel["transformations"][-1]["options"]["renameByName"]
        values = [name for field, name in shown.items() if field.startswith("Value")]
        assert len(values) == len(panel["targets"])
        assert all("unit" in [prop["id"] for prop in overrides[name]] for name in values)
    elif panel["type"] == "heatmap":
        assert panel["options"]["yAxis"]["unit"]
    else:
        assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_the_data_source_that_was_chosen(panel: Panel) -> None:
    for asking in (panel, *panel["targets"]):
        assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dashboards_lead_to_each_other(path: Path) -> None:
    dashboard = DASHBOARDS[path]
    assert dashboard["uid"] == path.stem
    assert [link["tags"] for link in dashboard["links"]] == [dashboard["tags"]]
    uids = {other.stem for other in FILES}
    assert set(re.findall(r"/d/([\w-]+)", path.read_text())) <= uids
    assert set(re.findall(r"/d/([\w-]+)", RULES_TEXT)) == uids


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for query in queries() for name in metrics(query.expr)}
    expressions = "".join(re.findall(r"expr: (?:\|\n(?: {10}.*\n)+|.*\n)", RULES_TEXT))
    assert asked <= SAMPLES | RECORDED
    assert metrics(expressions) <= SAMPLES | RECORDED
    assert asked | metrics(expressions) >= RECORDED, "recorded for nobody"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_metric_is_shown_somewhere(family: Any) -> None:
    asked = {name for query in queries() for name in metrics(query.expr)}
    assert asked & {family.name, f"{family.name}_bucket", f"{family.name}_count"}, (
        "add a panel: dashboards/README.md, Another metric"
    )


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_runbook(alert: str) -> None:
    assert f"\n### {alert}\n" in README
    assert f'runbook_url: "{rules.RUNBOOKS}#{alert.lower()}"' in RULES_TEXT


def test_every_runbook_has_an_alert() -> None:
    assert re.findall(r"^### (Vpmu\w+)$", README, re.MULTILINE) == ALERTS


def test_runbooks_are_where_the_project_is() -> None:
    assert rules.ALERTS.read_text() == rules.alerts(), "make rules"
    homepage = re.search(r"^Homepage: (\S+)$", (ROOT / "debian/control").read_text(), re.MULTILINE)
    assert homepage
    assert rules.RUNBOOKS.startswith(f"{homepage[1]}/")
    assert rules.RUNBOOKS.endswith("/dashboards/README.md")


def test_runbooks_can_be_somewhere_else() -> None:
    moved = rules.alerts("https://wiki.example.org/vpmu")
    assert moved.count('runbook_url: "https://wiki.example.org/vpmu#vpmu') == len(ALERTS)
    assert rules.RUNBOOKS not in moved
    for wrong in ("dashboards/README.md", "https://wiki.example.org/#vpmu", 'https://wiki.example.org/"'):
        with pytest.raises(ValueError, match="is no web address"):
            rules.alerts(wrong)


def test_dashboards_can_be_in_a_grafana_of_ones_own() -> None:
    assert rules.ALERTS.read_text().count('dashboard_url: "/d/vpmu-agent-') == len(ALERTS)
    for address in ("https://grafana.example.org", "https://example.org/grafana/"):
        moved = rules.alerts(grafana=address)
        assert moved.count(f'dashboard_url: "{address.rstrip("/")}/d/vpmu-agent-') == len(ALERTS)
    with pytest.raises(ValueError, match="'grafana' is no web address such as https://grafana"):
        rules.alerts(grafana="grafana")


@pytest.mark.parametrize("arguments", [["--to", "."], ["--grafana", "https://grafana.example.org"]])
def test_a_copy_of_the_rules_has_an_address_and_a_place(arguments: list[str]) -> None:
    refused = CliRunner().invoke(rules.main, arguments)
    assert refused.exit_code == 2
    assert "--to belongs together with --runbooks or --grafana" in refused.output


def test_the_packages_rules_say_where_its_runbooks_are() -> None:
    """debian/rules rewrites this line of the installed copy."""
    (old,) = re.findall(r"s\|\^(# Runbooks: [^|]+)\|", (ROOT / "debian/rules").read_text())
    assert f"\n{old}" in rules.ALERTS.read_text()
