"""Whether VMs with an emulated vPMU cost the host so much that a mediated one is worth a thought.

What it changes is in docs/mediated.md, with its sources.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from vpmu_agent.cli.doctor.finding import Finding, Status
from vpmu_agent.top.reading import Reading, Readings, StateError, VmLine
from vpmu_agent.top.sources import DaemonSource, SourceError
from vpmu_agent.top.table import share_text

HIGH_TAX = 0.1
"""The share of one CPU from which on a VM's tax is called high: that of the alert VpmuTaxHigh."""

MAX_NAMED = 3
"""How many VMs are named, those with the most tax."""

_INTERVAL_S = 2.0


def weigh_mediated(modules: str, daemon_url: str) -> Finding:
    """Return what the mediated vPMU of KVM's `modules`, which is off, would change for the VMs.

    Only the daemon knows the tax; it is that of two seconds.
    """
    try:
        reading = _reading(daemon_url)
    except (SourceError, StateError) as error:
        return _off(f"what it would spare the host is unknown, a running vpmu-agent knows the tax: {error}")
    vms = [vm for vm in reading.vms if vm.host_share is not None]
    if not vms:
        if reading.missing:
            why = f"no probes are attached: {reading.missing}"
        elif any(vm.is_traced for vm in reading.vms):
            why = "the daemon has not measured it (--no-durations?)"
        else:
            return _off("and KVM makes no calls for any VM")
        return _off(f"what it would spare the host is unknown: {why}")
    vms.sort(key=lambda vm: vm.host_share or 0, reverse=True)
    high = [vm for vm in vms if (vm.host_share or 0) >= HIGH_TAX]
    if not high:
        return _off(f"the VM with the highest tax, {_named(vms[:1])}, would gain little by it")
    return Finding(
        "mediated_vpmu",
        Status.WARN,
        f"off, and the tax is high: {_named(high)}, spent in KVM's perf calls for their counters. With a "
        "mediated vPMU there are no such calls, and no counter is starved; but leaving a guest takes longer, "
        "perf on the host can no longer profile guests, vpmu-agent has nothing to trace, and all VMs of the "
        "host have it (Linux, Documentation/admin-guide/kernel-parameters.txt, enable_mediated_pmu; "
        "commit bf2c3138ae36)",
        f"weigh it with docs/mediated.md; to switch, stop the guests and load {modules} with "
        "enable_mediated_pmu=1",
    )


def _off(what: str) -> Finding:
    return Finding("mediated_vpmu", Status.OK, f"off; {what}")


def _reading(url: str) -> Reading:
    source, readings = DaemonSource(url), Readings()
    readings.take(source.state())
    time.sleep(_INTERVAL_S)
    return readings.take(source.state())


def _named(vms: Sequence[VmLine]) -> str:
    """Return the first VMs with their tax, and how many more there are."""
    said = [f"{vm.vm} {share_text(vm.host_share or 0)} % of a CPU" for vm in vms[:MAX_NAMED]]
    return ", ".join([*said, f"{len(vms) - MAX_NAMED} more"] if len(vms) > MAX_NAMED else said)
