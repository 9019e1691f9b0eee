"""A starved Linux guest is told of everywhere, with who starves it."""

from __future__ import annotations

import html
import json
import subprocess
import urllib.request

import pytest

from . import agent, pmu
from .guests import guest_b
from .holder import NAME, holder
from .listed import listed
from .scrape import scrape_until, total

LISTEN = "127.0.0.1:9775"


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_a_starved_linux_guest_is_told_of_everywhere_with_who_starves_it() -> None:
    pmu.set_room(3)
    with holder() as pid, agent.run(LISTEN) as daemon, agent.trace() as tracing:
        with guest_b(work_ms=180_000) as guest:
            starved = scrape_until(LISTEN, lambda now: total(now, "vpmu_starved_pmcs") == 2, timeout_s=180)
            assert total(starved, "vpmu_starved_pmcs", vm="web01") == 2
            assert total(starved, "vpmu_starvations_total", vm="web01") >= 2
            assert pmu.kvm_counts(guest.tgid).refused >= 2
            top = subprocess.run(
                [*agent.COMMAND, "top", "--once", "--output", "json", "--url", f"http://{LISTEN}"],
                capture_output=True,
                check=False,
            )
            with urllib.request.urlopen(f"http://{LISTEN}/", timeout=30) as answer:
                page = html.unescape(answer.read().decode())
            found = listed()
        gone = scrape_until(LISTEN, lambda now: total(now, "vpmu_starved_pmcs") == 0)
        assert total(gone, "vpmu_starved_pmcs") == 0
        log, seen = daemon.stderr(), tracing.stop()
    (held,) = found.of("holder")
    what = f"2 of 4 counters starved; on CPU 0 {NAME} (pid {pid}) has 1 event, pinned"
    assert (held["comm"], held["pid"]) == (NAME, pid)
    assert top.returncode == 1
    (vm,) = json.loads(top.stdout)["vms"]
    assert (vm["vm"], vm["counters"]["starved"], vm["starved"]) == ("web01", 2, f"web01: {what}")
    assert sorted(found.counters()["web01"].values()).count("starved") == 2
    assert found.vm("web01")["starved"] == f"web01: {what}"
    assert what in page
    assert f"web01: {what}" in log
    assert any(call.get("starved") for call in seen.calls("web01"))
    # The guest's own scheduler puts the events off and on again, and then they are told of again.
    assert {line["vm"] for line in seen.lines if line["kind"] == "starved"} == {"web01"}
    assert seen.summary("web01")["divergences"] == 0
