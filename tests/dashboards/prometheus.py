"""Debian's Prometheus, started on a free port in a folder of its own, and asked through its HTTP API."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode

RULES = sorted((Path(__file__).parents[2] / "dashboards" / "rules").glob("*.yml"))

WINDOW = "15s"
"""What a test has time for, instead of the minutes of the rules."""

_READY_S = 20.0


class QueryError(Exception):
    """Prometheus refused a query; the message is its own."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a query: how many series, and all their numbers."""

    series: int
    numbers: list[float]

    @property
    def most(self) -> float:
        """The number with the largest absolute value."""
        return max(self.numbers, key=abs)


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, address: str) -> None:
        self._api = f"http://{address}/api/v1"

    def query(self, expr: str, at: float) -> Result:
        """Return the result of an instant query."""
        return _result(self._get("query", query=expr, time=at))

    def query_range(self, expr: str, start: float, end: float) -> Result:
        """Return the result of a range query with a step of one second."""
        return _result(self._get("query_range", query=expr, start=start, end=end, step=1))

    def values(self, label: str, metric: str) -> list[str]:
        """Return the values of a label, as Grafana's label_values() gets them."""
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules, each with its health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **parameters: str | float) -> Any:
        try:
            with urllib.request.urlopen(f"{self._api}/{path}?{urlencode(parameters)}", timeout=20) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise QueryError(json.load(error)["error"]) from error


def _result(data: Mapping[str, Any]) -> Result:
    found = data["result"]
    samples = [sample for series in found for sample in series.get("values", [series.get("value")])]
    numbers = [number for _, text in samples if not math.isnan(number := float(text))]
    return Result(len(found), numbers)


@contextmanager
def running(folder: Path, targets: Mapping[str, str], **how: Any) -> Iterator[Prometheus]:
    """Run a Prometheus with our rules that scrapes hosts, by name, every second; its log is in the folder.

    `how` is more of its `scrape_config`.
    The rules' windows are shortened to WINDOW, and all are evaluated every second: nobody waits minutes.
    """
    if shutil.which("prometheus") is None:
        raise FileNotFoundError("no prometheus here: apt-get install prometheus, or `make dashboards-check`")
    for path in RULES:
        text = re.sub(r"(\[|offset )\d+m\b", rf"\g<1>{WINDOW}", path.read_text())
        (folder / path.name).write_text(re.sub("interval: .*", "interval: 1s", text))
    hosts = [
        {"targets": [address], "labels": {"instance": instance}} for instance, address in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [path.name for path in RULES],
        "scrape_configs": [{"job_name": "vpmu-agent", "static_configs": hosts, **how}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{_free_port()}"
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    ]
    log = folder / "prometheus.log"
    with log.open("w") as out, subprocess.Popen(command, cwd=folder, stdout=out, stderr=out) as process:
        try:
            _wait_until_ready(address, process, log)
            yield Prometheus(address)
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://{address}/-/ready", timeout=1).close()
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"Prometheus did not come up:\n{log.read_text()}")
