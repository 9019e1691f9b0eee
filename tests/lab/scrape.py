"""The agent's metrics as Prometheus would read them."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable

# Samples by name and labels.
Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(listen: str) -> str:
    """One scrape, as the text that it is."""
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert isinstance(text, str)
    return text


def parse(text: str) -> Metrics:
    """The samples of a scrape."""
    samples: Metrics = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line):
            name, labels, value = match.groups()
            samples[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))] = float(value)
    return samples


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of all samples of one name that have these labels, 0 if there is none."""
    wanted = labels.items()
    return sum(value for (found, has), value in metrics.items() if found == name and wanted <= has)


def scrape_until(listen: str, condition: Callable[[Metrics], bool], *, timeout_s: float = 20.0) -> Metrics:
    """Scrapes until the metrics are as wanted; the last ones if they never are.

    A call is counted at its return, and its VM has a name a moment later: the first scrape may be early.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        metrics = parse(read(listen))
        if condition(metrics) or time.monotonic() > deadline:
            return metrics
        time.sleep(0.2)
