"""What on this host keeps vpmu-agent from tracing, or from telling the truth, and what to do about it."""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import click

from vpmu_agent.counts.census import pmus_now
from vpmu_agent.kernel import btf, container, facts, kvm, trials
from vpmu_agent.kernel.arch import ARCHES, current_arch
from vpmu_agent.kernel.config import kernel_config, kernel_release
from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError, ProbeError, SymbolError
from vpmu_agent.kernel.layout import CREATE, KernelLayout, kvm_types, layout_of, require_kvm
from vpmu_agent.kernel.libbpf import libbpf
from vpmu_agent.kernel.symbols import function_addresses
from vpmu_agent.kernel.trials import Trial
from vpmu_agent.loader import rehearsal
from vpmu_agent.loader.rehearsal import Outcome, Step
from vpmu_agent.probes import FUNCTIONS, WAYS
from vpmu_agent.system import privileges
from vpmu_agent.system.stdout import print_line
from vpmu_agent.trace.call_json import SCHEMA, dumps
from vpmu_agent.vms.modes import Mode, Pmu, Why, sentence, untraced
from vpmu_agent.vms.names import Vms

WIDTH = 100

PROGRAM = "program"
"""The check of the real program, attached and taken off."""

FINE, PROBLEM, CANNOT_RUN = 0, 1, 3  # exit statuses

AS_ROOT = "run vpmu-agent as root"
ALLOW_CALLS = (
    "allow bpf and perf_event_open in the container's seccomp profile (podman, docker: --security-opt "
    "seccomp=FILE; Kubernetes: seccompProfile), or in the service's SystemCallFilter="
)
MOUNT_SYS = "mount the host's /sys, read-only will do"


class Status(StrEnum):
    """How a check came out. `WARN`: tracing works, but see what was found; or it could not be seen."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it ("" if nothing).

    Whether live tracing can work here: a failure that `blocks` rules it out, and nothing `proves` it but the
    probes themselves, attached.
    """

    check: str
    status: Status
    found: str
    todo: str = ""
    blocks: bool = False
    proves: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """What the checks look at: the files below `root`, and trials in the running kernel."""

    root: Path = Path("/")
    try_bpf: Callable[[], Trial] = trials.try_bpf
    try_fexit: Callable[[Sequence[str]], Trial] = trials.try_fexit
    try_kprobe: Callable[[Sequence[str]], Trial] = trials.try_kprobe
    try_map_access: Callable[[], Trial] = privileges.try_map_access
    rehearse: Callable[[], Sequence[Step]] = rehearsal.rehearse
    pmus: Callable[[], Mapping[str, Sequence[Pmu]]] = lambda: pmus_now(Vms())


def run(*, as_json: bool) -> int:
    """Prints what `vpmu-agent doctor` prints, a check at a time, and returns its exit status.

    That is 0 if live tracing was seen to work and nothing is wrong, 1 if a check failed or it is unknown
    whether it works, and 3 if it cannot work here at all. Raises OutputError when stdout takes no more.
    """
    findings = []
    for finding in examine(Host()):
        print_line(dumps(finding_json(finding)) if as_json else finding_text(finding))
        findings.append(finding)
    print_line(dumps(summary_json(findings)) if as_json else summary_text(findings))
    return exit_status(findings)


def exit_status(findings: Collection[Finding]) -> int:
    """What `vpmu-agent doctor` exits with after these findings."""
    can_trace = _can_trace(findings)
    if can_trace is False:
        return CANNOT_RUN
    return FINE if can_trace and not _any_failed(findings) else PROBLEM


def examine(host: Host) -> Iterator[Finding]:
    """Makes every check. A check that cannot be made is a finding too, never an exception."""
    for check, look in CHECKS.items():
        try:
            yield from look(host)
        except KernelError as error:
            yield Finding(check, Status.FAIL, error.found, error.todo, blocks=True)
        except Exception as error:
            # The next checks may still tell what is wrong on this host.
            found = f"could not be checked: {type(error).__name__}: {error}"
            yield Finding(check, Status.WARN, found, "report this: it is a bug in vpmu-agent")


# Rendering


def finding_json(finding: Finding) -> dict[str, object]:
    """One line of `--output json`."""
    return {
        "schema": SCHEMA,
        "kind": "check",
        "check": finding.check,
        "status": finding.status,
        "found": finding.found,
        "todo": finding.todo,
    }


def summary_json(findings: Sequence[Finding]) -> dict[str, object]:
    """The last line of `--output json`; `can_trace` is null where that is unknown."""
    return {
        "schema": SCHEMA,
        "kind": "doctor",
        **_counts(findings),
        "can_trace": _can_trace(findings),
        "reasons": [f"{finding.check}: {finding.found}" for finding in _why_not(findings)],
    }


_COLORS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}
_CHECK_WIDTH, _STATUS_WIDTH = 15, 6
_INDENT = " " * (_CHECK_WIDTH + _STATUS_WIDTH)


def finding_text(finding: Finding) -> str:
    """One check for a person: at most WIDTH columns wide, what to do on lines of its own. With colours."""
    status = click.style(f"{finding.status:<{_STATUS_WIDTH}}", fg=_COLORS[finding.status])
    lines = _wrapped(finding.found, _INDENT)
    # The status is as wide with its colours as without, but textwrap would count them.
    lines[0] = f"{finding.check:<{_CHECK_WIDTH}}{status}{lines[0].lstrip()}"
    if finding.todo:
        lines += _wrapped(f"-> {finding.todo}", _INDENT, hanging="   ")
    return "\n".join(lines)


def summary_text(findings: Sequence[Finding]) -> str:
    """What all the findings come to."""
    counts = ", ".join(f"{count} {status}" for status, count in _counts(findings).items())
    match _can_trace(findings):
        case True:
            failed = ", but see what failed" if _any_failed(findings) else ""
            return f"\n{counts}. Live tracing can work here{failed}."
        case False:
            verdict = "Live tracing cannot work here:"
        case None:
            verdict = "Whether live tracing can work here is unknown:"
    lines = [f"\n{counts}. " + click.style(verdict, bold=True)]
    for finding in _why_not(findings):
        lines += _wrapped(f"- {finding.check}: {finding.found}", "  ", hanging="  ")
    return "\n".join(lines)


def _wrapped(text: str, indent: str, *, hanging: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + hanging,
        break_on_hyphens=False,
    ) or [""]


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    counter = Counter(finding.status for finding in findings)
    return {status.value: counter[status] for status in Status}


def _any_failed(findings: Iterable[Finding]) -> bool:
    return any(finding.status is Status.FAIL for finding in findings)


def _blocking(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.blocks and finding.status is Status.FAIL]


def _can_trace(findings: Collection[Finding]) -> bool | None:
    """Whether live tracing can work here: None if it was not seen to, and nothing is known to keep it."""
    if _blocking(findings):
        return False
    return any(finding.proves for finding in findings) or None


def _why_not(findings: Sequence[Finding]) -> list[Finding]:
    """What keeps live tracing from working, or from being known to work."""
    if _can_trace(findings):
        return []
    return _blocking(findings) or [finding for finding in findings if finding.check == PROGRAM]


# The checks: first the host and this process, then what the kernel takes, then KVM, and at last all together


def _kernel(host: Host) -> Iterator[Finding]:
    release = kernel_release(root=host.root)
    if release is None:
        yield Finding("kernel", Status.WARN, "the release cannot be read", "mount /proc")
        return
    machine = os.uname().machine
    if machine not in ARCHES:
        current_arch()  # raises the error that says so
    yield Finding("kernel", Status.OK, f"{release}, {machine}")


def _capabilities(host: Host) -> Iterator[Finding]:
    held = facts.capabilities(root=host.root)
    if held is None:
        yield Finding("capabilities", Status.WARN, "/proc/self/status cannot be read", "mount /proc")
        return
    if container.is_hosts_namespace("user", root=host.root) is False:
        found = "this process is in a user namespace of its own, where capabilities do not reach the kernel"
        todo = "run it as the host's root, not in a rootless container or another user namespace"
        yield Finding("capabilities", Status.FAIL, found, todo, blocks=True)
    elif missing := _missing_capabilities(host):
        found = f"this process lacks {', '.join(missing)}"
        added = " ".join(f"--cap-add={name}" for name in missing)
        todo = f"{AS_ROOT}; in a container, add them (podman, docker: {added}; Kubernetes: capabilities.add)"
        yield Finding("capabilities", Status.FAIL, found, todo, blocks=True)
    else:
        yield Finding("capabilities", Status.OK, ", ".join(sorted(held)))


def _missing_capabilities(host: Host) -> list[str]:
    """CAP_SYS_ADMIN stands for the two that were split from it (Linux 5.8), not for CAP_SYSLOG."""
    held = facts.capabilities(root=host.root)
    if held is None:
        return []
    if container.is_hosts_namespace("user", root=host.root) is False:
        held = frozenset()
    split = [] if "CAP_SYS_ADMIN" in held else ["CAP_BPF", "CAP_PERFMON"]
    return [name for name in (*split, "CAP_SYSLOG") if name not in held]


def _pid_namespace(host: Host) -> Iterator[Finding]:
    container.require_host_pids(root=host.root)
    if container.is_hosts_namespace("pid", root=host.root):
        yield Finding("pid_namespace", Status.OK, "the host's")
    else:
        yield Finding("pid_namespace", Status.WARN, "cannot be seen: no /proc/self/ns/pid", "mount /proc")


def _hidepid(host: Host) -> Iterator[Finding]:
    """The daemon becomes a user of its own, whatever it was started as."""
    value = container.hidepid(root=host.root)
    if value is None:
        yield Finding("hidepid", Status.WARN, "cannot be seen: no /proc/self/mountinfo", "mount /proc")
    elif value:
        yield Finding(
            "hidepid",
            Status.WARN,
            f"{value}: /proc hides other users' processes from the daemon, which then knows of a VM only the "
            "first 511 bytes of its command line, as the probes send them",
            "nothing, if `run` names all VMs; or mount /proc without hidepid",
        )
    else:
        yield Finding("hidepid", Status.OK, "off")


def _lockdown(host: Host) -> Iterator[Finding]:
    mode = facts.lockdown(root=host.root)
    if mode == "confidentiality":
        yield Finding(
            "lockdown",
            Status.FAIL,
            "confidentiality: the kernel lets nobody probe it or read its memory",
            "boot with lockdown=integrity or without lockdown (it may come with Secure Boot)",
            blocks=True,
        )
    elif mode is not None:
        yield Finding("lockdown", Status.OK, mode)
    elif kernel_config("SECURITY_LOCKDOWN_LSM", root=host.root) == "n":
        yield Finding("lockdown", Status.OK, "this kernel has none")
    else:
        yield Finding(
            "lockdown",
            Status.WARN,
            "cannot be seen: there is no /sys/kernel/security/lockdown",
            "mount securityfs (mount -t securityfs none /sys/kernel/security)",
        )


def _kptr_restrict(host: Host) -> Iterator[Finding]:
    value = facts.kptr_restrict(root=host.root)
    if value is None:
        yield Finding("kptr_restrict", Status.WARN, "cannot be read", "mount /proc")
    elif value >= 2:
        yield Finding(
            "kptr_restrict",
            Status.FAIL,
            f"{value}: the kernel hides its addresses from everybody, KVM's overflow handler among them",
            "sysctl kernel.kptr_restrict=1 (hides them from all but root)",
        )
    else:
        yield Finding("kptr_restrict", Status.OK, str(value))


def _libbpf(_host: Host) -> Iterator[Finding]:
    libbpf()
    yield Finding("libbpf", Status.OK, "loads")


def _bpf(host: Host) -> Iterator[Finding]:
    trial = host.try_bpf()
    if trial.works:
        yield Finding("bpf", Status.OK, "programs load, may read kernel memory, and have ring buffers")
    elif _lacks_privileges(host, trial):
        yield _not_tried("bpf")
    else:
        todo = "boot a kernel with CONFIG_BPF_SYSCALL=y (distributions' kernels have it)"
        yield Finding(
            "bpf", Status.FAIL, _reason(trial), ALLOW_CALLS if trial.filtered else todo, blocks=True
        )


def _privileges(host: Host) -> Iterator[Finding]:
    """What the daemon of `vpmu-agent run` keeps."""
    trial = host.try_map_access()
    if trial.works:
        yield Finding("privileges", Status.OK, "the daemon keeps none: it can read BPF maps without")
    elif _lacks_privileges(host, trial):
        yield _not_tried("privileges")
    elif trial.denied:
        yield Finding("privileges", Status.WARN, trial.reason, "see bpf")
    else:
        todo = "nothing; from Linux 5.19 on it keeps none"
        yield Finding("privileges", Status.WARN, f"{trial.reason}, so the daemon keeps CAP_BPF", todo)


def _probes(host: Host) -> Iterator[Finding]:
    """Both ways to put a probe on a function. One is enough."""
    functions = tuple(FUNCTIONS.values())
    kprobe = host.try_kprobe(functions)
    kprobe_todo = "boot a kernel with CONFIG_KPROBE_EVENTS=y (distributions' kernels have it)"
    if not facts.can_see_pmus(root=host.root):
        kprobe_todo = MOUNT_SYS
    fexit_todo = "boot a kernel with BPF trampolines and bpf_get_func_arg() (Linux 5.17), or with kprobes"
    try:
        fexit = host.try_fexit(functions)
    except KernelError as error:  # no BTF: a finding of its own, and no reason not to speak of kprobes
        fexit, fexit_todo = Trial(False, error.found), error.todo
    for check, trial, other, todo in (
        ("kprobes", kprobe, fexit, kprobe_todo),
        ("fentry", fexit, kprobe, fexit_todo),
    ):
        if trial.works:
            yield Finding(check, Status.OK, f"attached to all of {len(functions)} functions and taken off")
        elif _lacks_privileges(host, trial):
            yield _not_tried(check)
        elif other.works:
            yield Finding(check, Status.WARN, trial.reason, "nothing: the other kind of probe will do")
        elif _lacks_privileges(host, other):
            yield Finding(check, Status.WARN, trial.reason, "nothing, if the other kind of probe works")
        else:
            yield Finding(
                check, Status.FAIL, _reason(trial), ALLOW_CALLS if trial.filtered else todo, blocks=True
            )


def _reason(trial: Trial) -> str:
    """Why a trial failed, of a process that has the capabilities for it."""
    return trial.reason + (", although this process has the capabilities for it" if trial.denied else "")


def _lacks_privileges(host: Host, trial: Trial) -> bool:
    """Whether the refusal is for want of privileges: then it says nothing about the kernel."""
    return trial.denied and bool(_missing_capabilities(host))


def _not_tried(check: str) -> Finding:
    return Finding(check, Status.WARN, "cannot be tried without privileges", "run vpmu-agent doctor as root")


def _btf(host: Host) -> Iterator[Finding]:
    types = btf.vmlinux(root=host.root)
    yield Finding("btf", Status.OK, types.source)


def _kvm(host: Host) -> Iterator[Finding]:
    require_kvm(root=host.root)
    how = "a module" if kvm.kvm_is_module(root=host.root) else "built in"
    vendors = kvm.kvm_vendor_modules(root=host.root)
    if vendors:
        yield Finding("kvm", Status.OK, f"{how}, with {' and '.join(vendors)}")
    else:
        names = current_arch().vendor_modules
        todo = " or ".join(f"modprobe {name}" for name in names)
        yield Finding("kvm", Status.WARN, f"{how}, but without {' or '.join(names)}: no guest can run", todo)


def _types(host: Host) -> Iterator[Finding]:
    """Whether the probes can know where everything lies."""
    layout = layout_of(kvm_types(root=host.root), overflow_handlers=())
    found = f"struct kvm_pmc has {layout.pmc_size} bytes, {CREATE}() {layout.create_args} arguments"
    yield Finding("types", Status.OK, found)
    yield _groups(layout)


def _groups(layout: KernelLayout) -> Finding:
    """Whether a counter can have several events, and where they go."""
    array = layout.pmc_events
    if array is None:
        return Finding("groups", Status.OK, "this kernel has no grouped events: one event a counter")
    if not array.is_flexible:
        return Finding("groups", Status.OK, f"grouped events, up to {array.room} a counter")
    return Finding(
        "groups",
        Status.FAIL,
        f"perf_events of struct kvm_pmc is a flexible array with room for {array.room}, and KVM keeps its "
        f"counters side by side: event {array.room} of one lies on the next one's type and idx",
        f"keep max_nr_events at {array.room}, or run a kernel that gives the array a size",
    )


def _handlers(host: Host) -> Iterator[Finding]:
    """Whether KVM's events can be told from all others."""
    try:
        found = function_addresses(current_arch().overflow_handlers, root=host.root)
    except SymbolError as error:
        if "CAP_SYSLOG" not in _missing_capabilities(host):
            raise
        yield Finding("handlers", Status.WARN, error.found, AS_ROOT)
        return
    yield Finding("handlers", Status.OK, ", ".join(symbol.name for symbol in found))


def _pmu(host: Host) -> Iterator[Finding]:
    devices = facts.pmu_devices(root=host.root)
    if not facts.can_see_pmus(root=host.root):
        found = f"cannot be seen: there is no {host.root / 'sys/bus/event_source/devices'}"
        yield Finding("pmu", Status.WARN, found, MOUNT_SYS)
    elif devices:
        yield Finding("pmu", Status.OK, ", ".join(devices))
    else:
        yield Finding(
            "pmu",
            Status.FAIL,
            "this host has no hardware PMU, so KVM gives its guests none, and there is nothing to trace",
            "run vpmu-agent on the physical host; on a VM, have its host give it a PMU",
        )


def _vpmu(host: Host) -> Iterator[Finding]:
    enabled = kvm.vpmu_enabled(root=host.root)
    if enabled:
        yield Finding("vpmu", Status.OK, "enable_pmu=Y")
    elif enabled is None:
        yield Finding("vpmu", Status.WARN, "KVM shows no parameter enable_pmu, so this cannot be seen")
    elif facts.pmu_devices(root=host.root):
        yield Finding(
            "vpmu",
            Status.FAIL,
            "enable_pmu=N: KVM gives its guests no PMU, and there is nothing to trace",
            "stop the guests and load kvm with enable_pmu=1 (on the kernel's command line kvm.enable_pmu=1)",
        )
    else:
        found = "enable_pmu=N: KVM turns it off by itself where the host has no PMU"
        yield Finding("vpmu", Status.FAIL, found, "see pmu")


def _mediated_vpmu(host: Host) -> Iterator[Finding]:
    modules = kvm.mediated_vpmu(root=host.root)
    on = [name for name, value in modules.items() if value]
    if on:
        yield Finding(
            "mediated_vpmu",
            Status.WARN,
            f"on in {' and '.join(on)}: guests own the counters while they run, and KVM creates no perf "
            "events for them, so there is nothing to trace; a VM without an in-kernel interrupt controller "
            "has no PMU at all",
            f"nothing, if that is wanted; else stop the guests and load {on[0]} with enable_mediated_pmu=0",
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
    else:
        found = "off" if modules else "this kernel has none"
        yield Finding("mediated_vpmu", Status.OK, found)


def _vms(host: Host) -> Iterator[Finding]:
    """Which vPMU each VM has: of how many there is something to trace, and why of the others there is not."""
    if _missing_capabilities(host):
        yield _not_tried("vms")
        return
    try:
        by_vm = host.pmus()
    except KernelError as error:
        found = f"which vPMU a VM has cannot be told: {error.found}"
        todo = "see bcc" if isinstance(error, ProbeError) else error.todo
        yield Finding("vms", Status.WARN, found, todo or "nothing: all else works without")
        return
    has = [(vm, pmu) for vm, pmus in sorted(by_vm.items()) for pmu in pmus]
    if emulated := [vm for vm, pmu in has if pmu.mode is Mode.EMULATED]:
        yield Finding("vms", Status.OK, sentence(emulated, Pmu(Mode.EMULATED)))
    for pmu, vms in untraced(has).items():
        yield Finding("vms", Status.WARN, sentence(vms, pmu), _PMU_TODO[pmu.why])
    if not has:
        yield Finding("vms", Status.OK, "no VM runs now")


_PMU_TODO = {
    Why.HOST: "see vpmu",
    Why.NO_IRQCHIP: "start it with an in-kernel interrupt controller (QEMU: -machine kernel_irqchip=on)",
    Why.TURNED_OFF: "nothing, if that is wanted; QEMU gives a VM a PMU with -cpu host,pmu=on",
    Why.NO_CPUID: "nothing, if that is wanted; QEMU gives a VM a PMU with -cpu host,pmu=on",
    Why.UNKNOWN: "see vpmu and mediated_vpmu",
    None: "see mediated_vpmu",
}


def _nmi_watchdog(host: Host) -> Iterator[Finding]:
    on = facts.nmi_watchdog(root=host.root)
    if on is None and not (host.root / "proc/sys/kernel").is_dir():
        yield Finding("nmi_watchdog", Status.WARN, "cannot be seen", "mount /proc")
    elif on:
        yield Finding(
            "nmi_watchdog",
            Status.WARN,
            "on: it holds one hardware counter of every CPU, which guests then lack",
            "sysctl kernel.nmi_watchdog=0 if guests are short of counters",
        )
    else:
        yield Finding("nmi_watchdog", Status.OK, "this kernel has none" if on is None else "off")


def _program(host: Host) -> Iterator[Finding]:
    """The real program, which all of the above only makes likely to work; and what compiles it."""
    steps = {step.name: step for step in host.rehearse()}
    bcc = steps[rehearsal.BCC]
    if bcc.outcome is not Outcome.WORKS:
        is_unknown = bcc.outcome is Outcome.UNKNOWN
        status = Status.WARN if is_unknown else Status.FAIL
        yield Finding("bcc", status, bcc.found, bcc.todo or _LATER, blocks=not is_unknown)
        yield Finding(PROGRAM, Status.WARN, "cannot be tried without bcc", "see bcc")
        return
    yield Finding("bcc", Status.OK, bcc.found.removeprefix("bcc "))
    tried = [step for name in (*WAYS, rehearsal.VERIFIER) if (step := steps.get(name))]
    if any(step.outcome is Outcome.WORKS and step.name in WAYS for step in tried):
        yield _attached_program(tried)
    elif _missing_capabilities(host):
        yield _not_tried(PROGRAM)
    elif unreadable := steps.get(rehearsal.HOST):
        if unreadable.outcome is Outcome.NO_KVM:
            yield Finding(PROGRAM, Status.WARN, "cannot be tried before KVM is loaded", "see kvm")
        else:
            yield Finding(PROGRAM, Status.WARN, f"cannot be tried: {unreadable.found}", unreadable.todo)
    else:
        yield _unattached_program(tried, bcc.found)


def _attached_program(tried: Sequence[Step]) -> Finding:
    """One way is enough. A kernel that has one only is no warning: see kprobes and fentry."""
    ways = " and by ".join(step.name for step in tried if step.outcome is Outcome.WORKS)
    found = f"compiled, attached by {ways}, and taken off"
    odd = [step for step in tried if step.outcome not in (Outcome.WORKS, Outcome.NO_WAY)]
    if not odd:
        return Finding(PROGRAM, Status.OK, found, proves=True)
    todo = f"nothing, unless you want --attach {odd[0].name}: then {odd[0].todo or 'report this'}"
    return Finding(PROGRAM, Status.WARN, f"{found}; {_told(odd)}", todo, proves=True)


def _unattached_program(tried: Sequence[Step], toolchain: str) -> Finding:
    told = [step for step in tried if step.outcome is not Outcome.NO_WAY]
    if all(step.outcome is Outcome.WORKS for step in told):
        found = "compiled and taken by the verifier, but this kernel lets no program be attached"
        return Finding(PROGRAM, Status.FAIL, found, "see kprobes and fentry", blocks=True)
    todo = "; ".join(dict.fromkeys(step.todo for step in told if step.todo))
    found = f"{toolchain}: {_told(told)}"
    if any(step.outcome is Outcome.UNKNOWN for step in told):
        return Finding(PROGRAM, Status.WARN, found, todo or _LATER)
    return Finding(PROGRAM, Status.FAIL, found, todo or "report this", blocks=True)


_LATER = "try again when this host is less busy"


def _told(steps: Iterable[Step]) -> str:
    """Each step's finding, by its way if it has one."""
    return "; ".join(f"{step.name}: {step.found}" if step.name in WAYS else step.found for step in steps)


def _once_loaded(
    check: str, look: Callable[[Host], Iterator[Finding]]
) -> Callable[[Host], Iterator[Finding]]:
    """A check of something that comes with the kvm module: without it, kvm's own finding says it all."""

    def after_kvm(host: Host) -> Iterator[Finding]:
        try:
            require_kvm(root=host.root)
        except KvmNotLoadedError:
            yield Finding(check, Status.WARN, "cannot be seen before KVM is loaded", "see kvm")
        except KernelError:
            yield Finding(check, Status.WARN, "cannot be seen, as KVM cannot", "see kvm")
        else:
            yield from look(host)

    return after_kvm


CHECKS: dict[str, Callable[[Host], Iterator[Finding]]] = {
    "kernel": _kernel,
    "capabilities": _capabilities,
    "pid_namespace": _pid_namespace,
    "hidepid": _hidepid,
    "lockdown": _lockdown,
    "kptr_restrict": _kptr_restrict,
    "libbpf": _libbpf,
    "btf": _btf,
    "bpf": _bpf,
    "privileges": _privileges,
    "kprobes": _probes,  # and fentry
    "kvm": _kvm,
    "types": _once_loaded("types", _types),
    "handlers": _once_loaded("handlers", _handlers),
    "pmu": _pmu,
    "vpmu": _once_loaded("vpmu", _vpmu),
    "mediated_vpmu": _once_loaded("mediated_vpmu", _mediated_vpmu),
    "vms": _once_loaded("vms", _vms),
    "nmi_watchdog": _nmi_watchdog,
    PROGRAM: _program,  # and bcc
}
