"""The kernel and this process: what is permitted, and which probes the kernel takes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vpmu_agent.cli.doctor.finding import Finding, Status
from vpmu_agent.cli.doctor.host import Host, missing_capabilities, not_tried
from vpmu_agent.kernel import btf, causes, container, facts
from vpmu_agent.kernel.arch import ARCHES, current_arch
from vpmu_agent.kernel.config import kernel_config, kernel_release
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.libbpf import libbpf
from vpmu_agent.kernel.trials import Trial
from vpmu_agent.probes import functions as probed_functions


def check_kernel(host: Host) -> Iterator[Finding]:
    """Yield the release and the architecture."""
    release = kernel_release(root=host.root)
    if release is None:
        yield Finding("kernel", Status.WARN, "the release cannot be read", "mount /proc")
        return
    machine = os.uname().machine
    if machine not in ARCHES:
        current_arch()  # raises the error that says so
    yield Finding("kernel", Status.OK, f"{release}, {machine}")


def check_preemption(host: Host) -> Iterator[Finding]:
    """Yield how the kernel preempts itself: it decides how "auto" attaches (loader.main.ways())."""
    model = facts.preemption(root=host.root)
    if model is None:
        found = (
            "cannot be told, so that --attach auto uses kprobes first: no call is lost with them either way"
        )
    elif model in facts.PREEMPTING:
        found = (
            f"{model}, so that --attach auto uses kprobes first: fexit would lose calls of preempted tasks"
        )
    else:
        found = f"{model}, so that --attach auto uses fexit first"
    yield Finding("preemption", Status.OK, found)


def check_capabilities(host: Host) -> Iterator[Finding]:
    """Check what this process is permitted to do."""
    held = facts.capabilities(root=host.root)
    if held is None:
        yield Finding("capabilities", Status.WARN, "/proc/self/status cannot be read", "mount /proc")
        return
    if lacking := causes.lacking_privileges(root=host.root):
        yield Finding("capabilities", Status.FAIL, *lacking, blocks=True)
    else:
        yield Finding("capabilities", Status.OK, ", ".join(sorted(held)))


def check_pid_namespace(host: Host) -> Iterator[Finding]:
    """Check that process IDs are the ones that the probes send."""
    container.require_host_pids(root=host.root)
    if container.is_hosts_namespace("pid", root=host.root):
        yield Finding("pid_namespace", Status.OK, "the host's")
    else:
        yield Finding(
            "pid_namespace", Status.WARN, "cannot be checked: there is no /proc/self/ns/pid", "mount /proc"
        )


def check_hidepid(host: Host) -> Iterator[Finding]:
    """Check whether the daemon, which switches to a user of its own, can see other users' processes."""
    value = container.hidepid(root=host.root)
    if value is None:
        yield Finding(
            "hidepid", Status.WARN, "cannot be checked: there is no /proc/self/mountinfo", "mount /proc"
        )
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


def check_lockdown(host: Host) -> Iterator[Finding]:
    """Check whether the kernel may be probed at all."""
    mode = facts.lockdown(root=host.root)
    if mode == "confidentiality":
        yield Finding("lockdown", Status.FAIL, *causes.LOCKED_DOWN, blocks=True)
    elif mode is not None:
        yield Finding("lockdown", Status.OK, mode)
    elif kernel_config("SECURITY_LOCKDOWN_LSM", root=host.root) == "n":
        yield Finding("lockdown", Status.OK, "this kernel has none")
    else:
        yield Finding(
            "lockdown",
            Status.WARN,
            "cannot be checked: there is no /sys/kernel/security/lockdown",
            "mount securityfs (mount -t securityfs none /sys/kernel/security)",
        )


def check_kptr_restrict(host: Host) -> Iterator[Finding]:
    """Check whether the address of KVM's overflow handler can be read."""
    value = facts.kptr_restrict(root=host.root)
    if value is None:
        yield Finding("kptr_restrict", Status.WARN, "cannot be read", "mount /proc")
    elif value >= 2:
        yield Finding(
            "kptr_restrict",
            Status.FAIL,
            f"{value}: the kernel hides all addresses from everyone, that of KVM's overflow handler too",
            "sysctl kernel.kptr_restrict=1 (hides them from all but root)",
        )
    else:
        yield Finding("kptr_restrict", Status.OK, str(value))


def check_libbpf(_host: Host) -> Iterator[Finding]:
    """Check that the library which reads the maps is there."""
    libbpf()
    yield Finding("libbpf", Status.OK, "loads")


def check_btf(host: Host) -> Iterator[Finding]:
    """Check that the kernel describes its types."""
    types = btf.vmlinux(root=host.root)
    yield Finding("btf", Status.OK, types.source)


def check_bpf(host: Host) -> Iterator[Finding]:
    """Check that the kernel loads what all of the probes are made of."""
    trial = host.try_bpf()
    if trial.works:
        yield Finding("bpf", Status.OK, "programs load, may read kernel memory, and have ring buffers")
    elif _lacks_privileges(host, trial):
        yield not_tried("bpf")
    else:
        yield _failed(
            host, "bpf", trial, "boot a kernel with CONFIG_BPF_SYSCALL=y (distributions' kernels have it)"
        )


def check_privileges(host: Host) -> Iterator[Finding]:
    """Check which privileges the daemon of `vpmu-agent run` keeps."""
    trial = host.try_map_access()
    if trial.works:
        yield Finding("privileges", Status.OK, "the daemon keeps none: it can read BPF maps without any")
    elif _lacks_privileges(host, trial):
        yield not_tried("privileges")
    elif trial.denied:
        yield Finding("privileges", Status.WARN, trial.reason, "see bpf")
    else:
        todo = "nothing; from Linux 5.19 on it keeps none"
        yield Finding("privileges", Status.WARN, f"{trial.reason}, so the daemon keeps CAP_BPF", todo)


def check_probes(host: Host) -> Iterator[Finding]:
    """Check both ways to put a probe on a function. One is enough."""
    functions = tuple(probed_functions().values())
    kprobe = host.try_kprobe(functions)
    kprobe_todo = "boot a kernel with CONFIG_KPROBE_EVENTS=y (distributions' kernels have it)"
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
            yield Finding(check, Status.OK, f"attached to all {len(functions)} functions and detached")
        elif _lacks_privileges(host, trial):
            yield not_tried(check)
        elif other.works:
            yield Finding(check, Status.WARN, trial.reason, "nothing: the other kind of probe is enough")
        elif _lacks_privileges(host, other):
            yield Finding(check, Status.WARN, trial.reason, "nothing, if the other kind of probe works")
        else:
            yield _failed(host, check, trial, todo)


def _failed(host: Host, check: str, trial: Trial, todo: str) -> Finding:
    """Return the finding of a trial without which there is no tracing; `todo` where no cause is known."""
    found, known = causes.cause_of(trial, root=host.root)
    return Finding(check, Status.FAIL, found, known or todo, blocks=True)


def _lacks_privileges(host: Host, trial: Trial) -> bool:
    """Return whether the refusal is for lack of privileges: then it says nothing about the kernel."""
    return trial.denied and bool(missing_capabilities(host))
