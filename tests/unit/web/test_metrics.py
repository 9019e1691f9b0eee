from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from prometheus_client.registry import Collector

from tests.support.counted import Maps, Processes
from tests.support.guests import Names, Pulls, amd, emulating, seen
from tests.support.guests import found as found_guests
from tests.support.looks import host_event, look, pmc, starved, stray, without_event
from tests.support.scenes import Guest
from vpmu_agent.counts.guests import Found, Guests
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.buckets import DURATION_BOUNDS_NS
from vpmu_agent.model.call import Call, CallName, PmcType
from vpmu_agent.model.counter_status import CounterStatus
from vpmu_agent.model.rules import Kind, State
from vpmu_agent.probes import Unattached
from vpmu_agent.probes.census import PINNED
from vpmu_agent.vms.modes import Mode, Pmu, Why
from vpmu_agent.web import metrics
from vpmu_agent.web.families import Family
from vpmu_agent.web.metrics import (
    AGENT_FAMILIES,
    FAMILIES,
    HOST_FAMILIES,
    OTHERS,
    OWNERS,
    PMC_FAMILIES,
    VM_FAMILIES,
    Exporter,
)

WEB, DB = 4242, 777
FORMATS = pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scraped:
    """What one scrape showed, as Prometheus reads it."""

    def __init__(self, exporter: Exporter, *, openmetrics: bool = False) -> None:
        self.text = b"".join(exporter.scrape(openmetrics=openmetrics)).decode()
        self.samples = samples(self.text, openmetrics=openmetrics)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, tuple(sorted(labels.items()))))

    def names(self, **labels: str) -> set[str]:
        return {name for name, found in self.samples if labels.items() <= dict(found).items()}


def samples(text: str, *, openmetrics: bool = False) -> Samples:
    families = openmetrics_families(text) if openmetrics else text_families(text)
    found = [
        ((sample.name, tuple(sorted(sample.labels.items()))), sample.value)
        for family in families
        for sample in family.samples
    ]
    assert len(dict(found)) == len(found), "a series is there twice"
    return dict(found)


def exporter(
    maps: Maps, vms: Processes | None = None, *, per_counter: bool = True, durations: bool = True
) -> Exporter:
    vms = vms or Processes(web01=WEB, db01=DB)
    return Exporter(Watch(maps, vms, per_counter=per_counter, durations=durations))


def scrape(*calls: Iterable[Call], per_counter: bool = True, durations: bool = True) -> Scraped:
    return Scraped(exporter(Maps(*calls), per_counter=per_counter, durations=durations))


def test_calls_and_predictions_are_counted_by_vm_and_call() -> None:
    web, db = Guest("web01", WEB), Guest("db01", DB)
    found = scrape(web.life(), web.life(vcpu=1, pmc=1), db.life(size=3))
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


@FORMATS
def test_a_vm_that_made_no_call_has_its_mode_too(openmetrics: bool) -> None:
    watch = Watch(Maps(Guest("web01", WEB).life()), Processes(web01=WEB))
    off = Pmu(Mode.OFF, Why.NO_IRQCHIP)
    # One process may have several VMs.
    watch.show_guests(Found(pmus={"web01": [Pmu(Mode.EMULATED)], 'd"b': [Pmu(Mode.MEDIATED), off]}))
    found = Scraped(Exporter(watch), openmetrics=openmetrics)
    modes = {key: value for key, value in found.samples.items() if key[0] == "vpmu_mode"}
    assert {(dict(labels)["vm"], dict(labels)["mode"]): value for (_, labels), value in modes.items()} == {
        ("web01", "emulated"): 1,
        ('d"b', "mediated"): 1,
        ('d"b', "off"): 1,
    }
    assert found("vpmu_agent_vms") == 1


CENSUS_METRICS = (
    "vpmu_starved_pmcs",
    "vpmu_leaked_events",
    "vpmu_pmcs",
    "vpmu_running_ratio",
    "vpmu_host_pmu_events",
    "vpmu_agent_census_records",
)


def scrape_guests(guests: Found, *, openmetrics: bool = False) -> Scraped:
    watch = Watch(Maps(), Processes(web01=WEB, db01=DB))
    watch.show_guests(guests)
    return Scraped(Exporter(watch), openmetrics=openmetrics)


@FORMATS
def test_what_the_census_says_of_each_vm(openmetrics: bool) -> None:
    # A vCPU of web01 has six counters; db01's guest uses none.
    things = amd(), pmc(0), pmc(1), starved(2), starved(3), amd(tgid=DB, address=0x20, vm=2)
    found = scrape_guests(found_guests({WEB: "web01", DB: 'd"b%d'}, *things), openmetrics=openmetrics)
    assert found("vpmu_starved_pmcs", vm="web01") == 2
    assert found("vpmu_starved_pmcs", vm='d"b%d') == 0
    statuses = {status: found("vpmu_pmcs", vm="web01", status=status) for status in CounterStatus}
    nothing = dict.fromkeys(CounterStatus, 0)
    assert statuses == nothing | {
        CounterStatus.COUNTING: 2,
        CounterStatus.STARVED: 2,
        CounterStatus.IDLE: 2,
    }
    assert found("vpmu_pmcs", vm='d"b%d', status="idle") == 6
    assert found("vpmu_agent_census_up") == 1
    assert found("vpmu_agent_census_pulls_total") == 2
    assert found("vpmu_agent_census_records") == 6
    assert (found("vpmu_agent_census_cpu_seconds_total") or 0) > 0


def test_leaked_events_are_counted_of_each_vm() -> None:
    things = amd(), stray(1), stray(2, pmc_idx=3), amd(tgid=DB, address=0x20, vm=2)
    found = scrape_guests(seen({WEB: "web01", DB: "db01"}, look(*things, at=1), look(*things, at=9)))
    assert found("vpmu_leaked_events", vm="web01") == 2
    assert found("vpmu_leaked_events", vm="db01") == 0


def test_the_running_ratio_is_that_of_enabled_time_and_absent_without_any() -> None:
    half = pmc(0, enabled_ns=10**9, running_ns=10**9 // 4)
    guests = Guests(Names({WEB: "web01", DB: "db01"}), emulating)
    things = amd(), half, amd(tgid=DB, address=0x20, vm=2), starved(0, tgid=DB, vcpu=0x20)
    guests.look(Pulls(*things))
    found = scrape_guests(guests.found)
    assert found("vpmu_running_ratio", vm="web01") == 0.25
    assert found("vpmu_running_ratio", vm="db01") is None
    assert found("vpmu_starved_pmcs", vm="db01") == 1


def test_vms_whose_vpmu_is_not_emulated_are_not_said_to_be_well() -> None:
    things = amd(mediated=True), without_event(), amd(tgid=DB, address=0x20, vm=2, vm_pmu=False, gp=0)
    found = scrape_guests(found_guests({WEB: "web01", DB: "db01"}, *things))
    assert found("vpmu_pmcs", vm="web01", status="mediated") == 1
    assert found("vpmu_starved_pmcs", vm="web01") is None
    assert found.names(vm="db01") == {"vpmu_mode"}


def test_who_has_events_on_the_hosts_pmu_is_bounded() -> None:
    # Process n has n + 1 events, one of them pinned.
    events = [
        host_event(100 * n + i, tgid=n, comm=f"perf-{n:02}", attr_flags=PINNED if i == 0 else 0)
        for n in range(OWNERS + 2)
        for i in range(n + 1)
    ]
    twin = host_event(9999, tgid=99, comm="perf-11", attr_flags=0)  # another process of that name
    found = scrape_guests(found_guests({}, *events, twin))
    name = "vpmu_host_pmu_events"
    owners = {dict(labels)["owner_comm"] for family, labels in found.samples if family == name}
    assert owners == {OTHERS, *(f"perf-{n:02}" for n in range(2, OWNERS + 2))}
    assert found(name, owner_comm="perf-11", pinned="true") == 1
    assert found(name, owner_comm="perf-11", pinned="false") == 12
    assert found(name, owner_comm=OTHERS, pinned="true") == 2
    assert found(name, owner_comm=OTHERS, pinned="false") == 1


def test_that_nobody_has_events_there_is_known() -> None:
    found = scrape_guests(found_guests({}))
    assert found("vpmu_host_pmu_events", owner_comm=OTHERS, pinned="true") == 0
    assert found("vpmu_host_pmu_events", owner_comm=OTHERS, pinned="false") == 0
    assert len(OTHERS.encode()) > 15  # TASK_COMM_LEN is 16: no process has this name


def test_where_events_of_the_host_are_not_found_it_is_not_said_that_there_are_none() -> None:
    found = scrape_guests(replace(found_guests({}), no_holders="perf_read() is not there"))
    assert "vpmu_host_pmu_events" not in found.names()
    assert found("vpmu_agent_census_up") == 1


def test_without_a_census_nothing_is_said_of_what_it_would_find() -> None:
    guests, census = Guests(Names({WEB: "web01"}), emulating), Pulls(amd(), starved())
    for failing in (False, True):
        never = scrape_guests(guests.found)
        assert not set(CENSUS_METRICS) & never.names()
        assert never("vpmu_agent_census_up") == 0
        assert never("vpmu_agent_census_pulls_total") == (1 if failing else 0)
        census.missing = ""
        guests.look(census)
        assert scrape_guests(guests.found)("vpmu_starved_pmcs", vm="web01") == 1
        census.missing = "cannot read the census"
        guests.look(census)


def test_a_diverging_counter_is_found() -> None:
    web = Guest("web01", WEB)
    found = scrape(web.life(), web.unexpected_pause(pmc=3))
    assert found("vpmu_divergences_total", vm="web01", kind="unexpected_call") == 1
    diverged = {"vm": "web01", "vcpu": "0", "pmc": "gp3", "kind": "unexpected_call"}
    assert found("vpmu_pmc_divergences_total", **diverged) == 1
    assert found.names(pmc="gp0") == {"vpmu_pmc_calls_total"}
    for kind in Kind:
        assert (found("vpmu_divergences_total", vm="web01", kind=kind) is not None) == kind.is_divergence


def test_what_the_model_cannot_know_is_unknown() -> None:
    web = Guest("web01", WEB)
    found = scrape([web.call(CallName.PAUSE, 1)], web.life(pmc=1))
    assert found("vpmu_unknown_calls_total", vm="web01") == 1


def test_each_vm_says_once_who_it_is() -> None:
    vms = Processes(web01=WEB, db01=DB)
    maps = Maps(Guest("web01", WEB).life(vcpu=0), Guest("web01", WEB).life(vcpu=1), Guest("db01", DB).life())
    exported = exporter(maps, vms)
    web01 = {"vm": "web01", "uuid": "", "vmm": "qemu", "pid": str(WEB), "pod_uid": ""}
    assert Scraped(exported)("vpmu_vm_info", **web01) == 1
    watch = Watch(maps, vms)
    Scraped(Exporter(watch))
    vms.names[9999], vms.living = "web01", {9999}
    watch.sweep()
    maps.feed(Guest("web01", 9999).life())
    found = Scraped(Exporter(watch))
    # Two of one VM, and no query could join it to the VM's other series.
    assert [dict(labels)["pid"] for name, labels in found.samples if name == "vpmu_vm_info"] == [
        str(DB),
        "9999",
    ]


def test_series_by_counter_can_be_turned_off() -> None:
    calls = [*Guest("web01", WEB).life(vcpu=3, pmc=2)]
    labels = {"vm": "web01", "vcpu": "3", "pmc": "gp2"}
    assert [scrape(calls)("vpmu_pmc_calls_total", call=call, **labels) for call in CallName] == [1, 1, 1, 1]
    assert "vpmu_pmc_" not in scrape(calls, per_counter=False).text


def test_counters_have_their_names_and_those_of_one_name_are_one() -> None:
    web = Guest("web01", WEB)
    fixed = [replace(call, pmc_type=PmcType.FIXED, pmc=call.pmc + 64, pmc_idx=1) for call in web.life()]
    lbr = [
        replace(call, pmc_type=PmcType.LBR, pmc=address, pmc_idx=0, vcpu=-1)
        for address in (0, 8)
        for call in web.life()
    ]
    found = scrape(web.life(), fixed, lbr)
    name, create = "vpmu_pmc_calls_total", {"vm": "web01", "call": "create"}
    assert found(name, vcpu="0", pmc="gp0", **create) == 1
    assert found(name, vcpu="0", pmc="fixed1", **create) == 1
    assert found(name, vcpu="-1", pmc="lbr", **create) is None
    assert found("vpmu_calls_total", **create) == 4


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
    assert [float(bound) for bound in bounds[:-1]] == [ns / 1e9 for ns in DURATION_BOUNDS_NS]


def test_without_durations_what_they_are_for_is_absent_and_not_zero() -> None:
    calls = [replace(call, duration_ns=0) for call in Guest("web01", WEB).life()]
    found = scrape(calls, durations=False)
    assert found("vpmu_agent_durations_enabled") == 0
    assert "vpmu_call_duration_seconds" not in found.text
    assert "vpmu_host_seconds" not in found.text
    measured = scrape(calls)
    assert measured("vpmu_agent_durations_enabled") == 1
    parts = {f"vpmu_call_duration_seconds_{part}" for part in ("bucket", "count", "sum")}
    assert measured.names() - found.names() == {"vpmu_host_seconds_total", *parts}


def test_starvations_are_counted_of_each_vm() -> None:
    starved = [replace(call, starved=True) for call in Guest("web01", WEB).life()]
    found = scrape(starved[:3], Guest("db01", DB).life())
    assert found("vpmu_starvations_total", vm="web01") == 3
    assert found("vpmu_starvations_total", vm="db01") == 0


def test_groups_and_events_are_what_is_held_now() -> None:
    web = Guest("web01", WEB)
    group = [*web.life(size=4)]
    found = scrape(group[:8], [*web.life(pmc=1)][:2])
    assert found("vpmu_groups", vm="web01", state="running") == 1
    assert found("vpmu_groups", vm="web01", state="paused") == 1
    assert sum(found("vpmu_groups", vm="web01", state=state) or 0 for state in State) == 2
    assert found("vpmu_orphaned_events", vm="web01") == 0
    assert found("vpmu_events", vm="web01") == 5
    assert found("vpmu_group_size_events_count", vm="web01") == 2
    assert found("vpmu_group_size_events_sum", vm="web01") == 5
    assert found("vpmu_group_size_events_bucket", vm="web01", le="1.0") == 1
    assert found("vpmu_group_size_events_bucket", vm="web01", le="4.0") == 2
    assert found("vpmu_pinned_siblings_total", vm="web01") == 3
    assert scrape(group)("vpmu_events", vm="web01") == 0


def test_the_agent_tells_of_itself() -> None:
    maps = Maps(Guest("web01", WEB).life())
    maps.losses = {"ring_full": 3, "missed_return": 0}
    found = Scraped(exporter(maps))
    assert found("vpmu_agent_build_info", version=version("vpmu-agent")) == 1
    assert found("vpmu_agent_attached_probes", mode="fexit") == 6
    assert found("vpmu_agent_loads_total") == 1
    assert found("vpmu_agent_lost_records_total", reason="ring_full") == 3
    assert found("vpmu_agent_lost_records_total", reason="missed_return") == 0
    assert found("vpmu_agent_vms") == 1
    assert found("vpmu_agent_map_entries", map="vcpus") == 1
    assert found("vpmu_agent_map_max_entries", map="vcpus") == 8
    duration = found("vpmu_agent_scrape_duration_seconds")
    assert duration is not None
    assert 0 < duration < 1


@FORMATS
@pytest.mark.parametrize("known", [True, False, None])
def test_what_is_not_known_has_no_series(openmetrics: bool, known: bool | None) -> None:
    watch = Watch(Maps(), Processes())
    watch.show_sight(known)
    found = Scraped(Exporter(watch, lambda: known), openmetrics=openmetrics)
    assert found("vpmu_agent_self_test_ok") == known
    assert found("vpmu_host_vpmu_enabled") == known


def test_nothing_was_loaded_while_there_is_no_kvm() -> None:
    watch = Watch(Unattached(), Processes())
    assert Scraped(Exporter(watch))("vpmu_agent_loads_total") == 0
    watch.replace(Maps())
    assert Scraped(Exporter(watch))("vpmu_agent_loads_total") == 1


@FORMATS
def test_without_vms_there_are_only_the_agents_own_series(openmetrics: bool) -> None:
    found = Scraped(exporter(Maps()), openmetrics=openmetrics)
    assert all(
        name.startswith(("vpmu_agent_", "vpmu_host_vpmu_enabled", "process_")) for name in found.names()
    )


@FORMATS
def test_every_family_is_declared_once_and_exported_with_its_help(openmetrics: bool) -> None:
    assert (*VM_FAMILIES, *PMC_FAMILIES, *HOST_FAMILIES, *AGENT_FAMILIES) == FAMILIES
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    text = Scraped(exporter(Maps(Guest("web01", WEB).life())), openmetrics=openmetrics).text
    for family in FAMILIES:
        name = family.name.removesuffix("_total") if openmetrics else family.name
        assert text.count(f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n") == 1
        assert not set(family.help) & set('\\\n"')
        assert family.name.startswith("vpmu_")
        assert family.name.endswith("_total") == (family.type == "counter")
    assert text.count("# HELP vpmu_") == len(FAMILIES)
    assert text.count("# HELP process_") >= 5
    assert text.endswith("# EOF\n") == openmetrics


# prometheus-client's own writer as the yardstick

ODD_NAMES = [
    'a"b',
    "back\\slash",
    "new\nline",
    "\\n",
    "100%",
    "%s %d %%",
    "é\N{SNOWMAN}",
    "{x},y=z",
    " ",
    "0",
]


class Reference(Collector):
    """The same families and numbers, for prometheus-client to write."""

    def __init__(self, found: Samples) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return [self._family(family) for family in FAMILIES]

    def _family(self, family: Family) -> Metric:
        if family.type == "histogram":
            return self._histogram(family)
        made = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
        metric = made(family.name, family.help, labels=family.labels)
        for (name, labels), value in self._found.items():
            if name == family.name:
                metric.add_metric([dict(labels)[label] for label in family.labels], value)
        return metric

    def _histogram(self, family: Family) -> Metric:
        metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for (name, labels), total in self._found.items():
            if name == f"{family.name}_sum":
                buckets = [
                    (dict(found)["le"], value)
                    for (bucket, found), value in self._found.items()
                    if bucket == f"{family.name}_bucket" and set(labels) < set(found)
                ]
                metric.add_metric([dict(labels)[label] for label in family.labels], buckets, total)
        return metric


@FORMATS
def test_it_is_what_prometheus_client_would_write(openmetrics: bool) -> None:
    """Line for line, but for the way in which numbers are written."""
    names = {name: tgid for tgid, name in enumerate(ODD_NAMES, 100)}
    maps = Maps()
    for name, tgid in names.items():
        guest = Guest(name, tgid)
        maps.feed([*guest.life(size=1 + tgid % 4, vcpu=tgid % 3), *guest.unexpected_pause(pmc=1)])
        maps.feed([guest.failed_create(pmc=2)] * (tgid % 3))
    watch = Watch(maps, Processes(**names))
    vcpus = [amd(tgid=tgid, address=tgid) for tgid in names.values()]
    pmcs = [pmc(tgid=tgid, vcpu=tgid) for tgid in names.values()]
    events = [host_event(0x900 + i, tgid=i, comm=name) for i, name in enumerate(ODD_NAMES)]
    watch.show_guests(found_guests({tgid: name for name, tgid in names.items()}, *vcpus, *pmcs, *events))
    found = Scraped(Exporter(watch), openmetrics=openmetrics)
    # The process's own families are prometheus-client's already.
    ours = {key: value for key, value in found.samples.items() if key[0].startswith("vpmu_")}
    assert {dict(labels)["vm"] for _, labels in found.samples if "vm" in dict(labels)} == set(ODD_NAMES)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Reference(ours))
    generate = openmetrics_exposition.generate_latest if openmetrics else generate_latest
    expected = generate(registry).decode()
    assert samples(expected, openmetrics=openmetrics) == ours
    assert without_numbers(found.text) == without_numbers(expected)


def without_numbers(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not re.match(r"(# (HELP|TYPE) )?process_", line)]
    return sorted(line if line.startswith("#") else line.rpartition(" ")[0] for line in lines)


def test_chunks_are_bounded() -> None:
    guests = [Guest(f"guest-{tgid:0100}", tgid) for tgid in range(200)]
    maps = Maps(*(guest.life(vcpu=vcpu) for guest in guests for vcpu in range(2)))
    chunks = [
        *exporter(maps, Processes(**{guest.vm: guest.tgid for guest in guests})).scrape(openmetrics=True)
    ]
    assert len(chunks) > 20
    assert max(map(len, chunks)) < 2 * metrics.CHUNK


def test_a_scrape_that_cannot_be_had_fails_before_its_first_line() -> None:
    maps = Maps(Guest("web01", WEB).life())
    maps.is_closed = True
    with pytest.raises(AssertionError):
        exporter(maps).scrape(openmetrics=True)
