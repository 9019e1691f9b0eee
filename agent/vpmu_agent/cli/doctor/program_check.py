"""The real program, which all other checks only make likely to work; and bcc, which compiles it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vpmu_agent.cli.doctor.finding import PROGRAM, Finding, Status
from vpmu_agent.cli.doctor.host import Host, missing_capabilities, not_tried
from vpmu_agent.loader import rehearsal
from vpmu_agent.loader.rehearsal import Outcome, Step
from vpmu_agent.probes import WAYS

_LATER = "try again when this host is less busy"


def check_program(host: Host) -> Iterator[Finding]:
    """Check that bcc compiles the real program, and that the kernel attaches it."""
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
    elif missing_capabilities(host):
        yield not_tried(PROGRAM)
    elif unreadable := steps.get(rehearsal.HOST):
        if unreadable.outcome is Outcome.NO_KVM:
            yield Finding(PROGRAM, Status.WARN, "cannot be tried before KVM is loaded", "see kvm")
        else:
            yield Finding(PROGRAM, Status.WARN, f"cannot be tried: {unreadable.found}", unreadable.todo)
    else:
        yield _unattached_program(tried, bcc.found)


def _attached_program(tried: Sequence[Step]) -> Finding:
    """Return the finding of a program that was attached.

    One way is enough. A kernel that has only one is no warning: see kprobes and fentry.
    """
    ways = " and by ".join(step.name for step in tried if step.outcome is Outcome.WORKS)
    found = f"compiled, attached by {ways}, and detached"
    odd = [step for step in tried if step.outcome not in (Outcome.WORKS, Outcome.NO_WAY)]
    if not odd:
        return Finding(PROGRAM, Status.OK, found, proves=True)
    todo = f"nothing, unless you want --attach {odd[0].name}: then {odd[0].todo or 'report this'}"
    return Finding(PROGRAM, Status.WARN, f"{found}; {_told(odd)}", todo, proves=True)


def _unattached_program(tried: Sequence[Step], toolchain: str) -> Finding:
    told = [step for step in tried if step.outcome is not Outcome.NO_WAY]
    if all(step.outcome is Outcome.WORKS for step in told):
        found = "compiled and accepted by the verifier, but this kernel lets no program attach"
        return Finding(PROGRAM, Status.FAIL, found, "see kprobes and fentry", blocks=True)
    todo = "; ".join(dict.fromkeys(step.todo for step in told if step.todo))
    found = f"{toolchain}: {_told(told)}"
    if any(step.outcome is Outcome.UNKNOWN for step in told):
        return Finding(PROGRAM, Status.WARN, found, todo or _LATER)
    return Finding(PROGRAM, Status.FAIL, found, todo or "report this", blocks=True)


def _told(steps: Iterable[Step]) -> str:
    """Return each step's finding, with its way if it has one."""
    return "; ".join(f"{step.name}: {step.found}" if step.name in WAYS else step.found for step in steps)
