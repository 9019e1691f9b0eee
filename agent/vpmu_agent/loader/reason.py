"""Why bcc would not have a program: the one line that matters of what clang, the verifier and bcc print."""

from __future__ import annotations

import errno
import os
import re

from vpmu_agent.kernel.errors import ProbeError

COMPILER_TODO = (
    "reinstall vpmu-agent, and bcc with its libraries from one release of the distribution (Debian, Ubuntu: "
    "apt install --reinstall python3-bpfcc libbpfcc); if it stays, report this"
)
VERIFIER_TODO = (
    "report this with the kernel release: this kernel does not take vpmu-agent's program as this compiler "
    "makes it; until then, another release of bcc and its LLVM may do"
)

# file:line:column: error: text (clang), or none of a file where the trouble is not in one.
_COMPILER_ERROR = re.compile(r"^(?:\S+:\d+:\d+: )?(?:fatal )?error: .+|^LLVM ERROR: .+", re.MULTILINE)
# bcc, BPF.load_func() in __init__.py; bytes are printed with their b''.
_REFUSED_PROGRAM = re.compile(r"Failed to load BPF program b?'?(\w+)'?: (.*)")
_NOT_PERMITTED = "Need super-user privileges to run"  # what it says there for EPERM
# bcc, libbpf.c: in place of the log where the kernel says E2BIG, whichever of its limits that was.
_TOO_LARGE = re.compile(r"too large \((\d+) insns\), at most \d+ insns")
_MAX_LINES = 3  # of a reason: what is longer is no reason, but an output that is not known here
# bcc, libbpf.c: in front of the verifier's log.
_HEADER = re.compile(r"^bpf: Failed to load program: .*$", re.MULTILINE)

# What the verifier prints besides its reason (kernel/bpf/verifier.c and log.c): the instructions that it
# followed, what it knew of the registers at each, how it went back from one (mark_chain_precision()), and its
# statistics; and bcc's hints (libbpf.c, bpf_print_hints()), which follow the log.
_NOT_THE_REASON = re.compile(
    r"""^(?:
        \d+:[ ]                                            # 12: (79) r0 = *(u64 *)(r1 +0)   ; R0=scalar()
        | ;                                                # ; the line of C
        | (?:frame\d+:[ ])?(?:R\d+(?:_\w+)?|fp-\d+\w*)=    # R0_w=inv(id=0) R10=fp0
        | from[ ]\d+[ ]to[ ]\d+                            # from 9 to 12: R0=…
        | (?:cur|old)[ ]state:
        | (?:processed|verification[ ]time|stack[ ]depth|insns[ ]processed)[ ]
        | (?:func|Func)\#\d+
        | reg[ ]type[ ]unsupported[ ]for[ ]arg             # of ctx, in 6.1: it goes on without
        | (?:mark_precise|last_idx|regs=|parent[ ]|propagating[ ])
        | (?:caller:|callee:|returning[ ]from|to[ ]caller)
        | Live[ ]regs[ ]before
        | HINT:
    )""",
    re.VERBOSE,
)


def because(error: Exception, said: str) -> ProbeError:
    """The error to raise for what bcc raised, and what it, clang and the verifier printed before that."""
    if compilers := _COMPILER_ERROR.search(said):
        return ProbeError(f"the compiler refuses the program: {compilers.group()}", COMPILER_TODO)
    words = last_words(said)
    if refused := _REFUSED_PROGRAM.search(str(error)):
        name, errno_text = refused.groups()
        if not words:
            return ProbeError(f"the kernel refuses to load {name}: {errno_text}")
        if _HEADER.search(said) or _TOO_LARGE.search(said):
            return ProbeError(f"the verifier refuses {name}: {words}", VERIFIER_TODO)
        return ProbeError(f"cannot load {name}: {errno_text} ({words})")
    if _NOT_PERMITTED in str(error):
        # That may be so, or a container's filter, or lockdown: `doctor` knows.
        return ProbeError(f"the kernel refuses to load the program: {words or os.strerror(errno.EPERM)}")
    return ProbeError(f"{error} ({words})" if words else str(error))


def last_words(said: str) -> str:
    """What the verifier objects to, or how any other output ends; "" where it says nothing.

    The verifier's reason stands behind the last instruction that it looked at. It can have several lines,
    such as "invalid access to map value, value_size=8 off=8 size=8" and "R1 max value is outside of the
    allowed memory range"; behind it come states, statistics and hints.
    """
    if too_large := _TOO_LARGE.search(said):
        return f"too large, or too complex, for this kernel ({too_large[1]} instructions)"
    lines = [line.strip() for line in _HEADER.sub("", said).splitlines() if line.strip()]
    while lines and _NOT_THE_REASON.match(lines[-1]):
        lines.pop()
    reason: list[str] = []
    while lines and len(reason) < _MAX_LINES and not _NOT_THE_REASON.match(lines[-1]):
        reason.append(lines.pop())
    return "; ".join(reversed(reason))
