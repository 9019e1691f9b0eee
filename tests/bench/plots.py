"""The figures as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from tests.bench import daemon_cpu, run_time, scrape_growth
from tests.bench.lookalike import CALLS, Kernel

_COLOURS = "#d1495b", "#edae49", "#bbbbbb", "#66a182", "#2e4057", "#8d6a9f"


def draw(values: Mapping[str, float], folder: Path) -> Iterator[Path]:
    """Draws what was measured, as PNG; `values` are the figures by key."""
    mpl.rcParams["axes.spines.top"] = mpl.rcParams["axes.spines.right"] = False
    for name, plot in ("run_time", _run_time), ("scrape", _scrape), ("daemon_cpu", _daemon_cpu):
        if any(key.startswith(f"{name}.") for key in values):
            path = folder / f"{name}.png"
            picture = plot(values)
            picture.set_layout_engine("constrained")
            picture.savefig(path, dpi=120)
            yield path


def _run_time(values: Mapping[str, float]) -> Picture:
    picture = Picture(figsize=(11, 7))
    grid = picture.subplots(len(run_time.COUNTERS), len(run_time.PACES))
    for row, kernel in zip(grid, run_time.COUNTERS, strict=True):
        for axes, pace in zip(row, run_time.PACES, strict=True):
            _bars(axes, values, kernel, pace)
    picture.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    picture.suptitle("Run time of the BPF programs of one call, entry and return added up")
    return picture


def _bars(axes: Axes, values: Mapping[str, float], kernel: Kernel, pace: str) -> None:
    prefix = f"run_time.{kernel}.{pace}"
    calls = [call for call in CALLS if f"{prefix}.{call}.monitor" in values]
    width = 0.8 / len(run_time.NAMES)
    for i, (name, what) in enumerate(run_time.NAMES.items()):
        at = [x + (i - (len(run_time.NAMES) - 1) / 2) * width for x in range(len(calls))]
        heights = [values[f"{prefix}.{call}.{name}"] for call in calls]
        bars = axes.bar(at, heights, width, label=what, color=_COLOURS[i])
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(calls)), calls)
    axes.set_ylabel("ns a call")
    axes.set_title(f"{kernel} functions{run_time.COUNTERS[kernel].what}, {run_time.PACES[pace].what}")


def _scrape(values: Mapping[str, float]) -> Picture:
    picture = Picture(figsize=(7, 4.5))
    axes = picture.subplots()
    times = [values[f"scrape.{vms}.ms"] for vms in scrape_growth.VMS]
    axes.loglog(scrape_growth.VMS, times, "o-", color=_COLOURS[0])
    for vms, time in zip(scrape_growth.VMS, times, strict=True):
        size = values[f"scrape.{vms}.kb"]
        text = f"{time:.3g} ms, {size:,.0f} kB"
        axes.annotate(text, (vms, time), textcoords="offset points", xytext=(6, -12), fontsize=8)
    axes.axhline(200, color=_COLOURS[-1], linestyle=":", label="goal at 1,000 VMs")
    axes.set(xlabel="VMs of 4 vCPUs", ylabel="ms", title="Time of a scrape")
    axes.margins(x=0.2)
    axes.legend(frameon=False)
    return picture


def _daemon_cpu(values: Mapping[str, float]) -> Picture:
    picture = Picture(figsize=(7, 4.5))
    axes = picture.subplots()
    made = [values.get(f"daemon_cpu.{rate}.rate", 0) for rate in daemon_cpu.RATES]
    axes.plot(made, [values[f"daemon_cpu.{rate}"] for rate in daemon_cpu.RATES], "o-", color=_COLOURS[0])
    axes.axhline(1, color=_COLOURS[-1], linestyle=":", label="goal")
    axes.set(xlabel="calls/s, all as predicted", ylabel="percent of a core", title="CPU of the daemon")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return picture
