"""All checks in their order: the kernel and this process, then KVM, and at last the real program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from vpmu_agent.cli.doctor import census_checks, kernel_checks, kvm_checks
from vpmu_agent.cli.doctor.finding import PROGRAM, Finding, Status, exit_status
from vpmu_agent.cli.doctor.host import Host
from vpmu_agent.cli.doctor.kvm_checks import once_loaded
from vpmu_agent.cli.doctor.program_check import check_program
from vpmu_agent.cli.doctor.report import finding_json, finding_text, summary_json, summary_text
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.system.stdout import Style, print_line
from vpmu_agent.trace.call_json import dumps

CHECKS: dict[str, Callable[[Host], Iterator[Finding]]] = {
    "kernel": kernel_checks.check_kernel,
    "preemption": kernel_checks.check_preemption,
    "capabilities": kernel_checks.check_capabilities,
    "pid_namespace": kernel_checks.check_pid_namespace,
    "hidepid": kernel_checks.check_hidepid,
    "lockdown": kernel_checks.check_lockdown,
    "kptr_restrict": kernel_checks.check_kptr_restrict,
    "libbpf": kernel_checks.check_libbpf,
    "btf": kernel_checks.check_btf,
    "bpf": kernel_checks.check_bpf,
    "privileges": kernel_checks.check_privileges,
    "kprobes": kernel_checks.check_probes,  # and fentry
    "kvm": kvm_checks.check_kvm,
    "types": once_loaded("types", kvm_checks.check_types),
    "handlers": once_loaded("handlers", kvm_checks.check_handlers),
    "pmu": kvm_checks.check_pmu,
    "vpmu": once_loaded("vpmu", kvm_checks.check_vpmu),
    "mediated_vpmu": once_loaded("mediated_vpmu", kvm_checks.check_mediated_vpmu),
    "vms": once_loaded("vms", census_checks.check_census),  # and host_pmu
    "nmi_watchdog": kvm_checks.check_nmi_watchdog,
    PROGRAM: check_program,  # and bcc
}


def run(host: Host, *, as_json: bool) -> int:
    """Print what `vpmu-agent doctor` prints, a check at a time, and return its exit status.

    That is 0 if live tracing was seen to work and nothing is wrong, 1 if a check failed or it is unknown
    whether it works, and 3 if it cannot work here at all. Raise OutputError when stdout takes no more.
    """
    style = Style(sys.stdout)
    findings = []
    for finding in examine(host):
        print_line(dumps(finding_json(finding)) if as_json else finding_text(finding, style))
        findings.append(finding)
    print_line(dumps(summary_json(findings)) if as_json else summary_text(findings, style))
    return exit_status(findings)


def examine(host: Host) -> Iterator[Finding]:
    """Make every check. A check that cannot be made is a finding too, never an exception."""
    for check, look in CHECKS.items():
        try:
            yield from look(host)
        except KernelError as error:
            yield Finding(check, Status.FAIL, error.found, error.todo, blocks=True)
        except Exception as error:
            # The next checks may still tell what is wrong on this host.
            found = f"could not be checked: {type(error).__name__}: {error}"
            yield Finding(check, Status.WARN, found, "report this: it is a bug in vpmu-agent")
