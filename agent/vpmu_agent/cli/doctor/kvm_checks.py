"""KVM and the PMU of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vpmu_agent.cli.doctor.finding import Finding, Status
from vpmu_agent.cli.doctor.host import Host, missing_capabilities
from vpmu_agent.cli.doctor.tax_check import weigh_mediated
from vpmu_agent.kernel import facts, kvm
from vpmu_agent.kernel.arch import current_arch
from vpmu_agent.kernel.causes import AS_ROOT, MOUNT_SYS
from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError, SymbolError
from vpmu_agent.kernel.layout import CREATE, KernelLayout, kvm_types, layout_of, require_kvm
from vpmu_agent.kernel.symbols import function_addresses


def check_kvm(host: Host) -> Iterator[Finding]:
    """Check that KVM is loaded, with a module for this processor."""
    require_kvm(root=host.root)
    how = "a module" if kvm.kvm_is_module(root=host.root) else "built in"
    vendors = kvm.kvm_vendor_modules(root=host.root)
    if vendors:
        yield Finding("kvm", Status.OK, f"{how}, with {' and '.join(vendors)}")
    else:
        names = current_arch().vendor_modules
        todo = " or ".join(f"modprobe {name}" for name in names)
        yield Finding("kvm", Status.WARN, f"{how}, but without {' or '.join(names)}: no guest can run", todo)


def check_types(host: Host) -> Iterator[Finding]:
    """Check that the probes can know the offset of every field that they read."""
    layout = layout_of(kvm_types(root=host.root), overflow_handlers=())
    found = f"struct kvm_pmc has {layout.pmc_size} bytes, {CREATE}() {layout.create_args} arguments"
    yield Finding("types", Status.OK, found)
    yield _groups(layout)


def _groups(layout: KernelLayout) -> Finding:
    """Return whether a counter can have several events, and whether KVM has room for them."""
    array = layout.pmc_events
    if array is None:
        return Finding("groups", Status.OK, "this kernel has no grouped events: one event per counter")
    if not array.is_flexible:
        return Finding("groups", Status.OK, f"grouped events, up to {array.room} per counter")
    return Finding(
        "groups",
        Status.FAIL,
        f"perf_events of struct kvm_pmc is a flexible array with room for {array.room}, and KVM keeps its "
        f"counters side by side: event {array.room} of one overlaps the next one's type and idx",
        f"keep max_nr_events at {array.room}, or run a kernel that gives the array a size",
    )


def check_handlers(host: Host) -> Iterator[Finding]:
    """Check that KVM's events can be told from all others."""
    try:
        found = function_addresses(current_arch().overflow_handlers, root=host.root)
    except SymbolError as error:
        if "CAP_SYSLOG" not in missing_capabilities(host):
            raise
        yield Finding("handlers", Status.WARN, error.found, AS_ROOT)
        return
    yield Finding("handlers", Status.OK, ", ".join(symbol.name for symbol in found))


def check_pmu(host: Host) -> Iterator[Finding]:
    """Check that the host has a hardware PMU."""
    devices = facts.pmu_devices(root=host.root)
    if not facts.can_see_pmus(root=host.root):
        found = f"cannot be checked: there is no {host.root / 'sys/bus/event_source/devices'}"
        yield Finding("pmu", Status.WARN, found, MOUNT_SYS)
    elif devices:
        described = [_pmu(name, facts.pmu_caps(name, root=host.root)) for name in devices]
        yield Finding("pmu", Status.OK, ", ".join(described))
    else:
        yield Finding(
            "pmu",
            Status.FAIL,
            "this host has no hardware PMU, so KVM gives its guests none, and there is nothing to trace",
            "run vpmu-agent on the physical host; on a VM, have its host give it a PMU",
        )


def _pmu(device: str, caps: facts.PmuCaps) -> str:
    """Return a PMU with what it has beside counters, of which Intel's guests can have LBR and PEBS."""
    has = [caps.name] if caps.name else []
    if caps.branches:
        has.append(f"records {caps.branches} branches")
    if caps.max_precise:
        has.append(f"precise up to level {caps.max_precise}")
    return f"{device} ({', '.join(has)})" if has else device


def check_vpmu(host: Host) -> Iterator[Finding]:
    """Check KVM's setting for the PMU of all guests."""
    enabled = kvm.vpmu_enabled(root=host.root)
    if enabled:
        yield Finding("vpmu", Status.OK, "enable_pmu=Y")
    elif why := kvm.why_no_vpmu(root=host.root):
        yield Finding("vpmu", Status.FAIL, *why, blocks=True)
    else:
        yield Finding("vpmu", Status.WARN, "cannot be checked: KVM has no parameter enable_pmu")


def check_mediated_vpmu(host: Host) -> Iterator[Finding]:
    """Check whether guests own the counters, which leaves no perf events to trace; if not, whether to."""
    modules = kvm.mediated_vpmu(root=host.root)
    on = [name for name, value in modules.items() if value]
    if on:
        yield Finding(
            "mediated_vpmu",
            Status.WARN,
            f"on in {' and '.join(on)}: guests own the counters while they run, and KVM creates no perf "
            "events for them, so there is nothing to trace; a VM without an in-kernel interrupt controller "
            "has no PMU at all",
            f"nothing, if this is intended; else stop the guests and load {on[0]} with enable_mediated_pmu=0",
        )
        if facts.nmi_watchdog(root=host.root):
            # Its event has no exclude_guest: perf_create_mediated_pmu() returns EBUSY (kernel/events/core.c).
            yield Finding(
                "mediated_vpmu",
                Status.WARN,
                "the NMI watchdog counts while guests run, so KVM refuses to start VMs with a mediated vPMU "
                "(EBUSY), as it does for any perf event without exclude_guest",
                "sysctl kernel.nmi_watchdog=0",
            )
    elif modules:
        yield weigh_mediated(" or ".join(modules), host.daemon_url)
    else:
        yield Finding("mediated_vpmu", Status.OK, "this kernel has none")


def check_nmi_watchdog(host: Host) -> Iterator[Finding]:
    """Check whether the watchdog takes a counter from the guests."""
    on = facts.nmi_watchdog(root=host.root)
    if on is None and not (host.root / "proc/sys/kernel").is_dir():
        yield Finding(
            "nmi_watchdog", Status.WARN, "cannot be checked: there is no /proc/sys/kernel", "mount /proc"
        )
    elif on:
        yield Finding(
            "nmi_watchdog",
            Status.WARN,
            "on: it takes one hardware counter of every CPU, which guests cannot use",
            "sysctl kernel.nmi_watchdog=0 if guests are short of counters",
        )
    else:
        yield Finding("nmi_watchdog", Status.OK, "this kernel has none" if on is None else "off")


def once_loaded(check: str, look: Callable[[Host], Iterator[Finding]]) -> Callable[[Host], Iterator[Finding]]:
    """Return a check for what comes with the kvm module: without it, the check "kvm" says it all."""

    def after_kvm(host: Host) -> Iterator[Finding]:
        try:
            require_kvm(root=host.root)
        except KvmNotLoadedError:
            yield Finding(check, Status.WARN, "cannot be checked before KVM is loaded", "see kvm")
        except KernelError:
            yield Finding(check, Status.WARN, "cannot be checked without KVM's types", "see kvm")
        else:
            yield from look(host)

    return after_kvm
