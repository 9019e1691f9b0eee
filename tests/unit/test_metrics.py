from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.scenes import Guest
from vpmu_agent.metrics import AGENT_FAMILIES, FAMILIES, PMC_FAMILIES, VM_FAMILIES, VpmuCollector, Watch
from vpmu_agent.model.automaton import Kind, State
from vpmu_agent.model.call import Call, CallName
from vpmu_agent.tally import DURATION_BOUNDS_NS

WEB, DB = 4242, 777


class Scraped:
    """What one scrape showed, as Prometheus reads it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.text = generate_latest(registry).decode()
        self._samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._samples.get((name, tuple(sorted(labels.items()))))

    def names(self, **labels: str) -> set[str]:
        return {name for name, found in self._samples if labels.items() <= dict(found).items()}


def registry(
    watch: Watch, *, per_counter: bool = True, lost: dict[str, int] | None = None
) -> CollectorRegistry:
    made = CollectorRegistry()
    lost = lost or {"ring_full": 0}
    made.register(VpmuCollector(watch, mode="fexit", attached=4, lost=lambda: lost, per_counter=per_counter))
    return made


def scrape(calls: Iterable[Call], *, per_counter: bool = True, lost: dict[str, int] | None = None) -> Scraped:
    watch = Watch()
    watch.feed(calls)
    return Scraped(registry(watch, per_counter=per_counter, lost=lost))


def test_calls_and_predictions_are_counted_by_vm_and_call() -> None:
    web, db = Guest("web01", WEB), Guest("db01", DB)
    found = scrape([*web.life(), *web.life(pmc=1), *db.life(size=3)])
    for name in ("vpmu_calls_total", "vpmu_predicted_calls_total"):
        assert {call: found(name, vm="web01", call=call) for call in CallName} == dict.fromkeys(CallName, 2)
        assert [found(name, vm="db01", call=call) for call in CallName] == [3, 3, 0, 3]
    assert found("vpmu_divergences_total", vm="web01", kind="unexpected_call") == 0


def test_failures_are_counted_by_errno() -> None:
    web = Guest("web01", WEB)
    odd = replace(web.failed_create(), result=-524)
    found = scrape([web.failed_create(), web.failed_create(), odd])
    assert found("vpmu_call_errors_total", vm="web01", call="create", errno="ENOSPC") == 2
    assert found("vpmu_call_errors_total", vm="web01", call="create", errno="524") == 1
    assert found("vpmu_call_errors_total", vm="web01", call="enable", errno="ENOSPC") is None


def test_a_diverging_counter_is_found() -> None:
    web = Guest("web01", WEB)
    found = scrape([*web.life(), *web.unexpected_pause(pmc=3)])
    assert found("vpmu_divergences_total", vm="web01", kind="unexpected_call") == 1
    diverged = {"vm": "web01", "vcpu": "0", "pmc": "gp3", "kind": "unexpected_call"}
    assert found("vpmu_pmc_divergences_total", **diverged) == 1
    assert found.names(pmc="gp0") == {"vpmu_pmc_calls_total"}
    for kind in Kind:
        assert (found("vpmu_divergences_total", vm="web01", kind=kind) is not None) == kind.is_divergence


def test_series_by_counter_can_be_turned_off() -> None:
    calls = [*Guest("web01", WEB).life(vcpu=3, pmc=2)]
    labels = {"vm": "web01", "vcpu": "3", "pmc": "gp2", "call": "create"}
    assert scrape(calls)("vpmu_pmc_calls_total", **labels) == 1
    assert "vpmu_pmc_" not in scrape(calls, per_counter=False).text


def test_durations_are_a_histogram_in_seconds_with_inclusive_bounds() -> None:
    enable = Guest("web01", WEB).call(CallName.ENABLE, 1)
    found = scrape([replace(enable, duration_ns=ns) for ns in (50, 100, 101, 10_000_000, 20_000_000)])
    name = "vpmu_call_duration_seconds"
    labels = {"vm": "web01", "call": "enable"}
    assert found(f"{name}_count", **labels) == 5
    assert found(f"{name}_sum", **labels) == pytest.approx(0.030000251)
    assert found(f"{name}_bucket", le="1e-07", **labels) == 2
    assert found(f"{name}_bucket", le="5e-07", **labels) == 3
    assert found(f"{name}_bucket", le="0.01", **labels) == 4
    assert found(f"{name}_bucket", le="+Inf", **labels) == 5
    assert found("vpmu_host_seconds_total", vm="web01") == pytest.approx(0.030000251)
    bounds = re.findall(rf'{name}_bucket{{call="enable",le="([^"]+)"', found.text)
    bounds = bounds or re.findall(rf'{name}_bucket{{.*call="enable".*le="([^"]+)"', found.text)
    assert [float(bound) for bound in bounds[:-1]] == [ns / 1e9 for ns in DURATION_BOUNDS_NS]


def test_groups_and_events_are_what_is_held_now() -> None:
    web = Guest("web01", WEB)
    group = [*web.life(size=4)]
    found = scrape([*group[:8], *[*web.life(pmc=1)][:2]])
    assert found("vpmu_groups", vm="web01", state="running") == 1
    assert found("vpmu_groups", vm="web01", state="paused") == 1
    assert sum(found("vpmu_groups", vm="web01", state=state) or 0 for state in State) == 2
    assert found("vpmu_orphaned_events", vm="web01") == 0
    assert found("vpmu_events", vm="web01") == 5
    assert found("vpmu_group_size_events_count", vm="web01") == 2
    assert found("vpmu_group_size_events_sum", vm="web01") == 5
    assert found("vpmu_group_size_events_bucket", vm="web01", le="1.0") == 1
    assert found("vpmu_group_size_events_bucket", vm="web01", le="4.0") == 2
    assert scrape(group)("vpmu_events", vm="web01") == 0


def test_the_agent_tells_of_itself() -> None:
    found = scrape([*Guest("web01", WEB).life()], lost={"ring_full": 3, "missed_return": 0})
    assert found("vpmu_agent_build_info", version="0.1.0") == 1
    assert found("vpmu_agent_attached_probes", mode="fexit") == 4
    assert found("vpmu_agent_lost_records_total", reason="ring_full") == 3
    assert found("vpmu_agent_lost_records_total", reason="missed_return") == 0
    assert found("vpmu_agent_vms") == 1
    duration = found("vpmu_agent_scrape_duration_seconds")
    assert duration is not None
    assert 0 < duration < 1


def test_without_vms_there_are_only_the_agents_own_series() -> None:
    assert all(name.startswith("vpmu_agent_") for name in scrape([]).names())


def test_every_family_is_declared_once_and_exported_with_its_help() -> None:
    assert (*VM_FAMILIES, *PMC_FAMILIES, *AGENT_FAMILIES) == FAMILIES
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    text = scrape([*Guest("web01", WEB).life()]).text
    for family in FAMILIES:
        assert f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.type}\n" in text
        assert family.name.startswith("vpmu_")
        assert family.name.endswith("_total") == (family.type == "counter")


def test_label_values_are_escaped() -> None:
    assert scrape([*Guest('a"b\\c', WEB).life()])("vpmu_events", vm='a"b\\c') == 0


def test_a_vm_that_is_gone_is_shown_once_more_and_then_not() -> None:
    web, db = Guest("web01", WEB), Guest("db01", DB)
    watch = Watch()
    made = registry(watch)
    watch.feed([*web.life(), *[*db.life(size=2)][:4]])
    assert Scraped(made).names(vm="db01")
    alive = {WEB}
    assert watch.sweep(alive.__contains__) == []
    assert watch.sweep(alive.__contains__) == []  # nobody has seen yet how it ended
    last = Scraped(made)
    assert last("vpmu_calls_total", vm="db01", call="create") == 2
    assert last("vpmu_agent_vms") == 2
    assert watch.sweep(alive.__contains__) == [DB]
    after = Scraped(made)
    assert not after.names(vm="db01")
    assert after("vpmu_agent_vms") == 1
    assert after("vpmu_calls_total", vm="web01", call="create") == 1
    # The monitor forgot it too: a new process at the same address starts with nothing held.
    watch.feed([next(db.life())])
    assert Scraped(made)("vpmu_events", vm="db01") == 1


def test_without_a_scrape_a_vm_that_is_gone_is_dropped_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    watch.feed(Guest("web01", WEB).life())
    assert watch.sweep(lambda _: False) == []
    monkeypatch.setattr("vpmu_agent.metrics.GONE_S", 0.0)
    assert watch.sweep(lambda _: False) == [WEB]


def test_a_vm_that_was_restarted_goes_on_counting() -> None:
    watch = Watch()
    made = registry(watch)
    watch.feed([*Guest("web01", WEB).life(size=2)][:4])
    watch.sweep(lambda _: False)
    watch.feed(Guest("web01", 9999).life())
    assert watch.sweep(lambda tgid: tgid == 9999) == [WEB]
    Scraped(made)
    assert watch.sweep(lambda tgid: tgid == 9999) == []
    found = Scraped(made)
    assert found("vpmu_calls_total", vm="web01", call="create") == 3
    assert found("vpmu_events", vm="web01") == 0  # its former process's events went with it


def test_registering_is_not_a_scrape() -> None:
    watch = Watch()
    watch.feed(Guest("web01", WEB).life())
    watch.sweep(lambda _: False)
    registry(watch)
    assert watch.sweep(lambda _: False) == []


def test_scrapes_while_calls_come_see_whole_counts() -> None:
    """A life adds four calls under one lock: no scrape may see fewer of one name than of another."""
    watch = Watch()
    made = registry(watch)
    done = threading.Event()

    def feed() -> None:
        web = Guest("web01", WEB)
        while not done.is_set():
            watch.feed([*web.life()])

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        for _ in range(50):
            found = Scraped(made)
            counts = {found("vpmu_calls_total", vm="web01", call=call) for call in CallName}
            assert len(counts) == 1
    finally:
        done.set()
        thread.join()
