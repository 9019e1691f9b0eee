"""What is answered at each path."""

from __future__ import annotations

import gzip
import json
from contextlib import closing

import pytest

from tests.support.counted import Maps, Processes
from tests.support.looks import WEB, look, pmc, starved, vcpu
from tests.support.scenes import Guest
from tests.support.web import LOOPBACK, get, serving
from vpmu_agent.counts.counters import Counters
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.web import metrics
from vpmu_agent.web.app import accepts_gzip, accepts_openmetrics, application
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.state import Overview


def test_metrics_are_served(running: Server) -> None:
    answer = get(running, "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert 'vpmu_calls_total{call="create",vm="web01"} 1\n' in answer.text


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize("encoding", ["gzip", "identity", ""])
@pytest.mark.parametrize("accept", [PROMETHEUS, "text/plain", "*/*"])
def test_openmetrics_and_compression_are_negotiated(running: Server, accept: str, encoding: str) -> None:
    answer = get(running, "/metrics", headers={"Accept": accept, "Accept-Encoding": encoding})
    body = answer.body
    if encoding == "gzip":
        assert answer.headers["Content-Encoding"] == "gzip"
        body = gzip.decompress(body)
    else:
        assert answer.headers["Content-Encoding"] is None
    content_type = {PROMETHEUS: metrics.OPENMETRICS}.get(accept, metrics.TEXT)
    assert answer.headers["Content-Type"] == content_type
    assert body.endswith(b"# EOF\n") == (content_type == metrics.OPENMETRICS)
    assert b'vpmu_calls_total{call="create",vm="web01"} 1\n' in body


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("text/plain, Application/OpenMetrics-Text; Version=1.0.0", True),
        ("application/openmetrics-text; version=0.0.1", False),
        ("application/openmetrics-text; version=2.0.0, text/plain", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text; version=1.0.0; q=0.0", False),
        ("application/openmetrics-text; version=1.0.0; q=0.1", True),
        ("application/openmetrics", False),
        ("text/plain;version=1.0.0", False),
        ("*/*", False),
        (";;,,=", False),
        ("", False),
    ],
)
def test_openmetrics_is_for_those_who_ask_for_it(accept: str, expected: bool) -> None:
    assert accepts_openmetrics(accept) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0.001", True),
        ("gzip ; q=1", True),
        ("gzip;q=0", False),
        ("deflate, gzip; q=0.000", False),
        ("gzip;q=0, *", False),
        ("*", True),
        ("*;q=0", False),
        ("x-gzip2", False),
        ("identity", False),
        ("", False),
    ],
)
def test_gzip_is_for_those_who_ask_for_it(header: str, expected: bool) -> None:
    assert accepts_gzip(header) == expected


def test_a_large_answer_comes_in_chunks_and_whole(running: Server, maps: Maps, vms: Processes) -> None:
    for tgid in range(1, 120):
        vms.names[tgid] = f"guest-{tgid}"
        maps.feed(Guest(vms.names[tgid], tgid).life())
    accept = {"Accept": "application/openmetrics-text"}
    plain = get(running, "/metrics", headers=accept).body
    compressed = get(running, "/metrics", headers={**accept, "Accept-Encoding": "gzip"}).body
    assert len(plain) > 8 * metrics.CHUNK
    last = b"# TYPE vpmu_agent_scrape_duration_seconds gauge\n"  # what follows differs every time
    assert plain.partition(last)[0] == gzip.decompress(compressed).partition(last)[0]
    assert plain.endswith(b"# EOF\n")


def test_a_head_is_no_scrape(running: Server, watch: Watch, vms: Processes) -> None:
    assert get(running, "/metrics").status == 200
    vms.living = set()
    watch.sweep()
    head = get(running, "/metrics", method="HEAD")
    assert (head.status, head.text) == (200, "")
    watch.sweep()
    assert "web01" in get(running, "/metrics").text
    watch.sweep()
    assert "web01" not in get(running, "/metrics").text


def test_a_scrape_that_fails_is_said_to(
    running: Server, maps: Maps, capfd: pytest.CaptureFixture[str]
) -> None:
    maps.is_closed = True
    assert get(running, "/metrics").status == 500
    assert "AssertionError" in capfd.readouterr().err
    assert get(running, "/-/healthy").status == 200


def test_the_page_and_its_state(running: Server) -> None:
    answer = get(running, "/")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "web01" in answer.text
    answer = get(running, "/api/v1/state")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert json.loads(answer.text)["vms"][0]["vm"] == "web01"
    assert answer.text.endswith("}\n")


def test_no_answer_is_taken_for_something_else(running: Server) -> None:
    for path in ("/", "/metrics", "/api/v1/state", "/-/healthy", "/-/ready", "/nothing"):
        headers = get(running, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers.get("Content-Security-Policy", "")
        assert policy.startswith("default-src 'none'; ") == (path == "/")


def test_the_other_pages(running: Server) -> None:
    healthy = get(running, "/-/healthy")
    assert (healthy.status, healthy.text) == (200, "healthy\n")
    for path in ("/favicon.ico", "/metrics/", "/nothing", "/-/", "/api/v1"):
        assert get(running, path).status == 404


def test_only_reading_is_allowed(running: Server) -> None:
    head = get(running, "/metrics", method="HEAD")
    assert (head.status, head.text) == (200, "")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(running, "/metrics", method=method).status == 405


@pytest.mark.parametrize("missing", ["", "KVM was unloaded"])
def test_ready_is_another_thing_than_healthy(missing: str) -> None:
    with serving(missing=missing) as server:
        healthy, ready = get(server, "/-/healthy"), get(server, "/-/ready")
        assert (healthy.status, healthy.text) == (200, "healthy\n")
        expected = (503, f"not ready: {missing}\n") if missing else (200, "ready\n")
        assert (ready.status, ready.text) == expected


def test_a_server_in_trouble_is_not_ready(watch: Watch) -> None:
    answer = application(Exporter(watch), Overview(watch, Recent(), str), lambda: "the HTTP server hangs")
    with closing(Server(LOOPBACK)) as server:
        server.start(answer)
        ready = get(server, "/-/ready")
        assert (ready.status, ready.text) == (503, "not ready: the HTTP server hangs\n")


def test_the_counters_of_a_vm(running: Server, watch: Watch) -> None:
    found = Counters().take(look(vcpu(global_ctrl=0x3F), pmc(0), starved(1)))
    watch.show_guests(Found(counters={"web 01&": found[WEB]}))
    answer = get(running, "/api/v1/counters?vm=web%2001%26")
    assert answer.headers["Content-Type"] == "application/json"
    counters = json.loads(answer.text)
    assert (counters["schema"], counters["kind"], counters["vm"]) == (1, "counters", "web 01&")
    assert counters["counters"][1] == {
        "vcpu": 0,
        "pmc": "gp1",
        "status": "starved",
        "event": "r076:h",
        "event_name": None,
        "events": 1,
        "size": 1,
        "cpu": 3,
        "running": None,
        "errno": 0,
        "outlived_reset": None,
    }
    assert "0x" not in answer.text  # no address of the kernel's
    assert json.loads(get(running, "/api/v1/counters?vm=web02").text)["counters"] == []


@pytest.mark.parametrize("query", ["", "?", "?vm=", "?pmc=gp0", "?vm=a&vm=b"])
def test_counters_of_no_vm(running: Server, query: str) -> None:
    answer = get(running, f"/api/v1/counters{query}")
    assert (answer.status, answer.text) == (400, "name a VM: /api/v1/counters?vm=NAME\n")
