"""What one census says: the PMU of each VM, counters that are starved, and who uses the host's PMU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vpmu_agent.cli.doctor.finding import Finding, Status
from vpmu_agent.cli.doctor.host import Host, missing_capabilities, not_tried
from vpmu_agent.counts.counters import Holder
from vpmu_agent.counts.guests import Found
from vpmu_agent.counts.starvation import sentence as starvation
from vpmu_agent.kernel import facts, kvm
from vpmu_agent.kernel.census import PERF_READ
from vpmu_agent.kernel.errors import KernelError, ProbeError, SymbolError
from vpmu_agent.kernel.symbols import function_addresses
from vpmu_agent.vms.modes import Mode, Pmu, Why, sentence, untraced

MAX_NAMED = 5
"""How many processes or VMs are named one by one; of the rest their number is given."""


def check_census(host: Host) -> Iterator[Finding]:
    """Check the VMs (`vms`) and who has events on the host's PMU (`host_pmu`), of one census."""
    if missing_capabilities(host):
        yield not_tried("vms")
        yield not_tried("host_pmu")
        return
    try:
        found = host.guests()
    except KernelError as error:
        what = f"which vPMU each VM has cannot be determined: {error.found}"
        todo = "see bcc" if isinstance(error, ProbeError) else error.todo
        yield Finding("vms", Status.WARN, what, todo or "nothing: all else works without")
        yield Finding("host_pmu", Status.WARN, "who uses the host's PMU cannot be determined", "see vms")
        return
    yield from _vms(found)
    yield from _starved(host, found)
    yield from _host_pmu(host, found)


def _vms(found: Found) -> Iterator[Finding]:
    """Yield which vPMU each VM has: how many can be traced, and why the others cannot."""
    has = [(vm, pmu) for vm, pmus in sorted(found.pmus.items()) for pmu in pmus]
    if emulated := [vm for vm, pmu in has if pmu.mode is Mode.EMULATED]:
        yield Finding("vms", Status.OK, sentence(emulated, Pmu(Mode.EMULATED)))
    for pmu, vms in untraced(has).items():
        yield Finding("vms", Status.WARN, sentence(vms, pmu), _PMU_TODO[pmu.why])
    if not has:
        yield Finding("vms", Status.OK, "no VM is running")


_PMU_TODO = {
    Why.HOST: "see vpmu",
    Why.NO_IRQCHIP: "start it with an in-kernel interrupt controller (QEMU: -machine kernel_irqchip=on)",
    Why.TURNED_OFF: "nothing, if this is intended; QEMU gives a VM a PMU with -cpu host,pmu=on",
    Why.NO_CPUID: "nothing, if this is intended; QEMU gives a VM a PMU with -cpu host,pmu=on",
    Why.UNKNOWN: "see vpmu and mediated_vpmu",
    None: "see mediated_vpmu",
}


def _starved(host: Host, found: Found) -> Iterator[Finding]:
    """Yield the VMs whose guests have counters that are starved now."""
    nmi_watchdog = facts.nmi_watchdog(root=host.root)
    said = [text for vm in found.counters if (text := starvation(vm, found, nmi_watchdog=nmi_watchdog))]
    for text in said[:MAX_NAMED]:
        yield Finding("vms", Status.WARN, text, "see host_pmu")
    if len(said) > MAX_NAMED:
        what = f"{len(said) - MAX_NAMED} more VMs have starved counters"
        yield Finding("vms", Status.WARN, what, "see host_pmu")


def _host_pmu(host: Host, found: Found) -> Iterator[Finding]:
    """Yield who else has events on the host's PMU, and whom that keeps from what."""
    try:
        function_addresses([PERF_READ], root=host.root)
    except SymbolError as error:
        what = f"which processes have events on it cannot be determined: {error.found}"
        yield Finding("host_pmu", Status.WARN, what, error.todo)
        return
    said = _first([_holder(holder) for holder in found.holders]) or [
        "no process of the host has events on it"
    ]
    if events := sum(len(counter.events) for vm in found.counters.values() for counter in vm.counters):
        said.append(f"VMs have {_count(events)}")
    if facts.nmi_watchdog(root=host.root):
        said.append("the NMI watchdog has 1 event on each CPU, pinned")
    what = "; ".join(said)
    # Pinned events of a CPU come before those of a thread, as KVM's are; others wait for both
    # (ctx_sched_in() in kernel/events/core.c).
    pinned = any(holder.active and holder.pinned for holder in found.holders)
    emulated = any(pmu.mode is Mode.EMULATED for pmus in found.pmus.values() for pmu in pmus)
    if pinned and emulated:
        todo = (
            "if guests lack counters, stop what has pinned events, or have it use events that are not pinned"
        )
        yield Finding("host_pmu", Status.WARN, what, todo)
    else:
        yield Finding("host_pmu", Status.OK, what)
    yield from _mediated(host, found)


def _mediated(host: Host, found: Found) -> Iterator[Finding]:
    """Yield which processes a mediated vPMU does not go together with (kernel/events/core.c).

    perf_create_mediated_pmu() fails with EBUSY while there are events without exclude_guest, and
    mediated_pmu_account_event() refuses new ones while such a VM lives.
    """
    lives = any(pmu.mode is Mode.MEDIATED for pmus in found.pmus.values() for pmu in pmus)
    if not lives and not any(kvm.mediated_vpmu(root=host.root).values()):
        return
    refused = "while a VM with a mediated vPMU lives, new events without exclude_guest fail with EOPNOTSUPP"
    if including := [holder for holder in found.holders if holder.include_guests]:
        named = "; ".join(_first([f"{_name(each)} has {_count(each.include_guests)}" for each in including]))
        what = f"{named} without exclude_guest, so KVM starts no VM with a mediated vPMU (EBUSY); {refused}"
        todo = "stop these processes, or have their events exclude guests (perf's modifier H, as in cycles:H)"
        yield Finding("host_pmu", Status.WARN, what, todo)
    elif lives:
        yield Finding("host_pmu", Status.OK, refused)


def _holder(holder: Holder) -> str:
    said = f"{_name(holder)} has {_count(holder.events)}"
    if holder.pinned:
        said += ", pinned" if holder.pinned == holder.events else f", {holder.pinned} of them pinned"
    if holder.cpus:
        said += f", on CPU {', '.join(_first([str(cpu) for cpu in holder.cpus]))}"
    return f"{said} ({holder.failed} found no room)" if holder.failed else said


def _name(holder: Holder) -> str:
    return f"{holder.comm} (pid {holder.tgid})"


def _count(events: int) -> str:
    return "1 event" if events == 1 else f"{events} events"


def _first(texts: Sequence[str]) -> list[str]:
    """Return the first MAX_NAMED of these, and how many more there are."""
    more = [f"{len(texts) - MAX_NAMED} more"] if len(texts) > MAX_NAMED else []
    return [*texts[:MAX_NAMED], *more]
