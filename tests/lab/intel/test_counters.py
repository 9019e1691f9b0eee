"""What Intel's guests have alone: fixed counters, PEBS, and last branch records."""

from __future__ import annotations

import html
import json
import urllib.request
from collections import Counter
from contextlib import ExitStack

import pytest

from .. import agent, pmu
from ..checks import assert_agrees, assert_as_predicted
from ..guests import guest_a
from ..listed import listed, programmed
from ..scrape import scrape_until, total
from ..vendor import CONFIGS, FIXED, FIXED_CONFIGS

LISTEN = "127.0.0.1:9775"
FIXED_NAMES = {"fixed0": "instructions", "fixed1": "cycles", "fixed2": "ref-cycles"}
LBR_CONFIG = 0x1B00  # INTEL_FIXED_VLBR_EVENT

pytestmark = pytest.mark.intel


def answer(path: str) -> str:
    with urllib.request.urlopen(f"http://{LISTEN}{path}", timeout=60) as got:
        text = got.read().decode()
    assert isinstance(text, str)
    return text


def test_fixed_counters_have_their_names_everywhere() -> None:
    """There is room for the general-purpose counters, so the fixed ones are starved."""
    pmu.set_room(4)
    with agent.run(LISTEN) as running, ExitStack() as stack:
        programmed(stack, guest_a("fixed01", fixed=FIXED, stepwise=True))
        metrics = scrape_until(LISTEN, lambda now: total(now, "vpmu_starved_pmcs") == FIXED, timeout_s=60)
        state = json.loads(answer("/api/v1/state"))
        page = html.unescape(answer("/"))
        found = listed()
        assert running.stop().status == 0
    counters = {dict(labels).get("pmc") for name, labels in metrics if name == "vpmu_pmc_calls_total"}
    assert counters == CONFIGS.keys()
    (vm,) = state["vms"]
    assert {failing["pmc"]: failing["event_name"] for failing in vm["failing"]} == FIXED_NAMES
    assert "fixed0" in page
    listed_fixed = {line["pmc"]: line for line in found.of("counter") if line["pmc"] in FIXED_NAMES}
    assert {counter: line["event_name"] for counter, line in listed_fixed.items()} == FIXED_NAMES
    assert {line["config"] for line in listed_fixed.values()} == set(FIXED_CONFIGS)
    (counted,) = found.of("vm")
    assert (counted["pmu_version"], counted["gp"], counted["fixed"]) == (2, 4, 3)


def test_pebs_events_and_branch_records_are_told_apart() -> None:
    pmu.set_capabilities(pmu.LBR_FORMAT | pmu.PEBS_FORMAT)
    with agent.trace() as tracing:
        with guest_a("pebs01", fixed=FIXED, pebs=True) as pebs:
            pebs.finish()
        with guest_a("lbr01", fixed=FIXED, lbr=True) as lbr:
            lbr.finish()
        of_pebs, of_lbr = (pmu.kvm_counts(guest.tgid) for guest in (pebs, lbr))
        records = pmu.perf_counts(lbr.tgid)  # KVM gives that event no handler
        seen = tracing.stop()
    assert_agrees(seen, "pebs01", of_pebs)
    assert_agrees(seen, "lbr01", of_lbr + records)
    for name in ("pebs01", "lbr01"):
        assert_as_predicted(seen, name)
    precise = {(line["pmc"], line["attr"]["precise_ip"] > 0) for line in seen.calls("pebs01", "create")}
    assert precise == {(counter, counter.startswith("gp")) for counter in CONFIGS}
    of_records = [line for line in seen.calls("lbr01") if line["pmc"] == "lbr"]
    assert Counter(line["call"] for line in of_records) == {"create": 1, "release": 1}
    assert {line["attr"]["config"] for line in of_records} == {LBR_CONFIG}
    assert records.initialised == records.destroyed == 1
