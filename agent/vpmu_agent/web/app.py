"""The routes: what is answered at each path, as a WSGI application."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from vpmu_agent.web import page
from vpmu_agent.web.metrics import OPENMETRICS, TEXT, Exporter
from vpmu_agent.web.state import Overview, state_json

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def application(
    exporter: Exporter, overview: Overview, trouble: Callable[[], str] = lambda: ""
) -> WSGIApplication:
    """Return the application that serves the metrics of `exporter` and the page of `overview`.

    `trouble` says what is wrong with the server, or nothing.
    """

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO") or "/", environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            allow = [("Allow", "GET, HEAD")]
            return _text(start_response, "405 Method Not Allowed", b"only GET and HEAD are allowed\n", allow)
        if path == "/metrics":
            return _metrics(exporter, environ, start_response)
        if path == "/":
            body = [page.html(overview.state()).encode()]
            start_response("200 OK", [*page.HEADERS, _NO_SNIFFING])
        elif path == "/api/v1/state":
            body = [f"{state_json(overview.state())}\n".encode()]
            start_response("200 OK", [("Content-Type", "application/json"), _NO_STORE, _NO_SNIFFING])
        elif path == "/api/v1/counters":
            body = _counters(start_response, overview, environ.get("QUERY_STRING", ""))
        elif path == "/-/healthy":
            body = _text(start_response, "200 OK", b"healthy\n")
        elif path == "/-/ready":
            body = _ready(start_response, trouble() or overview.missing())
        else:
            body = _text(start_response, "404 Not Found", b"not found; the metrics are at /metrics\n")
        return [] if method == "HEAD" else body

    return answer


_NO_STORE = ("Cache-Control", "no-store")
_NO_SNIFFING = ("X-Content-Type-Options", "nosniff")


def _ready(start_response: StartResponse, missing: str) -> list[bytes]:
    if missing:
        return _text(start_response, "503 Service Unavailable", f"not ready: {missing}\n".encode())
    return _text(start_response, "200 OK", b"ready\n")


def _counters(start_response: StartResponse, overview: Overview, query: str) -> list[bytes]:
    asked = parse_qs(query).get("vm", [])
    if len(asked) != 1:
        return _text(start_response, "400 Bad Request", b"name a VM: /api/v1/counters?vm=NAME\n")
    start_response("200 OK", [("Content-Type", "application/json"), _NO_STORE, _NO_SNIFFING])
    return [f"{overview.counters_json(asked[0])}\n".encode()]


def _metrics(exporter: Exporter, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the metrics in chunks; in one piece they would be 13 MB for 1,000 VMs.

    So their length is not known beforehand, and they end with the connection. Clients that must detect
    truncation should request OpenMetrics, which has an end mark, or gzip, which has a checksum; Prometheus
    requests both.
    """
    openmetrics = accepts_openmetrics(environ.get("HTTP_ACCEPT", ""))
    gzip = accepts_gzip(environ.get("HTTP_ACCEPT_ENCODING", ""))
    # A HEAD request is not a scrape: it must not count as having shown the last counts of a VM that is gone.
    is_scrape = environ["REQUEST_METHOD"] == "GET"
    chunks = exporter.scrape(openmetrics=openmetrics) if is_scrape else iter(())
    headers = [
        ("Content-Type", OPENMETRICS if openmetrics else TEXT),
        _NO_SNIFFING,
        ("Vary", "Accept, Accept-Encoding"),
    ]
    if gzip:
        headers.append(("Content-Encoding", "gzip"))
    start_response("200 OK", headers)
    return _gzipped(chunks) if gzip and is_scrape else chunks


def accepts_openmetrics(accept: str) -> bool:
    """Return whether an Accept header has OpenMetrics, in our version or without one."""
    for media in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in media.split(";"))
        versions = [value for value in parameters if value.startswith("version=")]
        if (
            kind == "application/openmetrics-text"
            and versions in ([], ["version=1.0.0"])
            and _wanted(parameters)
        ):
            return True
    return False


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether an Accept-Encoding header has gzip, or failing that, anything."""
    wanted = {}
    for coding in accept_encoding.lower().split(","):
        name, *parameters = (part.strip() for part in coding.split(";"))
        wanted[name] = _wanted(parameters)
    return wanted.get("gzip", wanted.get("*", False))


def _wanted(parameters: Iterable[str]) -> bool:
    """Return whether the weight among these parameters is not 0, which stands for "not this one"."""
    weights = [value.removeprefix("q=").strip() for value in parameters if value.startswith("q=")]
    return all(re.fullmatch(r"0(\.0*)?", weight) is None for weight in weights)


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # Level 1: on text this uniform the next levels take twice the time to save another tenth.
    compressor = zlib.compressobj(level=1, wbits=16 + zlib.MAX_WBITS)
    for chunk in chunks:
        if compressed := compressor.compress(chunk):
            yield compressed
    yield compressor.flush()


def _text(
    start_response: StartResponse, status: str, body: bytes, headers: Iterable[tuple[str, str]] = ()
) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), _NO_SNIFFING, *headers])
    return [body]
