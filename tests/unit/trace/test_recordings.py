"""What the lab recorded of real guests (`make recordings`), through everything that comes after a call."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.commands import invoke
from tests.support.counted import Maps, Processes
from tests.support.places import DATA
from vpmu_agent.counts.watch import Watch
from vpmu_agent.model.call import Call, CallName, PmcType
from vpmu_agent.model.check import Checker
from vpmu_agent.model.rules import Kind
from vpmu_agent.trace.recording import Recording
from vpmu_agent.web.metrics import Exporter

RECORDINGS = sorted(DATA.glob("*.jsonl"))


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def calls(path: Path) -> list[Call]:
    with path.open("rb") as file:
        return [call for batch in Recording(file, path.name).batches() for call in batch]


def lines(text: str, kind: str) -> list[str]:
    return [line for line in text.splitlines() if json.loads(line)["kind"] == kind]


def is_partial(path: Path) -> bool:
    """Whether a creation failed in the recording."""
    return path.stem.endswith("partial_groups")


def test_there_are_recordings_of_both_vendors_guests_of_groups_and_of_global_control() -> None:
    assert {path.stem for path in RECORDINGS} == {
        "guest_a",
        "guest_b",
        "grouped",
        "partial_groups",
        "perfmon_v2",
        "intel",
        "intel_global",
        "intel_pebs_lbr",
        "intel_grouped",
        "intel_partial_groups",
    }


def test_a_replay_prints_what_the_trace_did(path: Path) -> None:
    result = invoke("replay", "--output", "json", str(path))
    recorded = path.read_text()
    assert result.exit_code == is_partial(path)
    assert lines(result.stdout, "call") == lines(recorded, "call")
    assert lines(result.stdout, "summary") == lines(recorded, "summary")


def test_a_filter_does_not_take_calls_from_the_model() -> None:
    """KVM's count of a vCPU's events goes on with the other counters' calls."""
    path = next(path for path in RECORDINGS if path.stem == "grouped")
    result = invoke("replay", "--quiet", "--output", "json", "--pmc", "gp1", str(path))
    summary = json.loads(result.stdout)
    assert (result.exit_code, summary["divergences"]) == (0, 0)
    assert 0 < sum(summary["calls"].values()) < 236


def test_kvm_did_as_the_model_predicts(path: Path, calls: list[Call]) -> None:
    monitor = Checker()
    verdicts = [monitor.observe(call) for call in calls]
    failed = Counter({Kind.PARTIAL_GROUP: sum(call.result < 0 for call in calls)})
    assert Counter(verdict.kind for verdict in verdicts) - failed == {
        Kind.PREDICTED: len(calls) - failed.total()
    }
    assert (failed.total() > 0) == is_partial(path)
    predicted = Counter(name for verdict in verdicts for name in verdict.predicted)
    assert predicted == Counter(call.name for call in calls)
    assert list(monitor.groups()) == []


def test_kvm_counted_its_events_itself(calls: list[Call]) -> None:
    held: Counter[tuple[int, int]] = Counter()
    for call in calls:
        # No call tells the vCPU of a guest-LBR event; where there is such an event, there is one vCPU.
        vcpu = (call.tgid, max(call.vcpu, 0))
        if call.name is CallName.CREATE and call.pmc_type is not PmcType.LBR:
            assert call.event_count == held[vcpu]
        if call.result == 0:
            held[vcpu] += (call.name is CallName.CREATE) - (call.name is CallName.RELEASE)
    assert not +held


def test_the_metrics_add_up_to_the_recording(path: Path, calls: list[Call]) -> None:
    watch = Watch(Maps(calls), Processes(**{call.vm: call.tgid for call in calls}))
    text = b"".join(Exporter(watch).scrape(openmetrics=False)).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    for line in lines(path.read_text(), "summary"):
        summary = json.loads(line)
        scraped = {
            sample.labels["call"]: sample.value
            for sample in samples
            if sample.name == "vpmu_calls_total" and sample.labels["vm"] == summary["vm"]
        }
        assert scraped == summary["calls"] | {"read": 0, "period": 0}
    diverged = {s.labels["kind"]: s.value for s in samples if s.name == "vpmu_divergences_total" and s.value}
    partial = sum(call.result < 0 for call in calls)
    assert diverged == ({"partial_group": partial} if partial else {})
    seconds = sum(sample.value for sample in samples if sample.name == "vpmu_host_seconds_total")
    assert seconds == pytest.approx(sum(call.duration_ns for call in calls) / 1e9)
