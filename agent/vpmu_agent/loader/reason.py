"""Why a program was refused: the one line that matters in the output of bcc's clang or of the verifier."""

from __future__ import annotations

import errno
import os
import re

from vpmu_agent.kernel.errors import ProbeError

COMPILER_TODO = (
    "reinstall vpmu-agent, and bcc with its libraries from one release of the distribution (Debian, Ubuntu: "
    "apt install --reinstall python3-bpfcc libbpfcc); if that does not help, report this"
)
VERIFIER_TODO = (
    "report this with the kernel release: this kernel does not accept vpmu-agent's program as this compiler "
    "builds it; meanwhile, another release of bcc and its LLVM may work"
)

# clang: file:line:column: error: text, or error: text if it is not about a file.
_COMPILER_ERROR = re.compile(r"^(?:\S+:\d+:\d+: )?(?:fatal )?error: .+|^LLVM ERROR: .+", re.MULTILINE)
_MAX_LINES = 3  # of a reason; if there are more, it is some other output
# Of the kernel, in hex or as a number: a program that is loaded has that of KVM's overflow handler in it.
_ADDRESS = re.compile(r"\b(?:0x)?f{4}[0-9a-f]{12}\b|\b18446[67]\d{14}\b")

# What the verifier prints besides its reason (kernel/bpf/verifier.c and log.c): the instructions that it
# followed, the state of the registers at each, its backtracking (mark_chain_precision()) and its statistics.
_NOT_THE_REASON = re.compile(
    r"""^(?:
        \d+:[ ]                                            # 12: (79) r0 = *(u64 *)(r1 +0)   ; R0=scalar()
        | ;                                                # ; the line of C
        | (?:frame\d+:[ ])?(?:R\d+(?:_\w+)?|fp-\d+\w*)=    # R0_w=inv(id=0) R10=fp0
        | from[ ]\d+[ ]to[ ]\d+                            # from 9 to 12: R0=…
        | (?:cur|old)[ ]state:
        | (?:processed|verification[ ]time|stack[ ]depth|insns[ ]processed)[ ]
        | (?:func|Func)\#\d+
        | reg[ ]type[ ]unsupported[ ]for[ ]arg             # of ctx, in 6.1: not an error
        | (?:mark_precise|last_idx|regs=|parent[ ]|propagating[ ])
        | (?:caller:|callee:|returning[ ]from|to[ ]caller)
        | Live[ ]regs[ ]before
    )""",
    re.VERBOSE,
)


def compiler_refused(error: Exception, printed: str) -> ProbeError:
    """Return the error to raise for what bcc raised, given what it and clang printed before."""
    if found := _COMPILER_ERROR.search(printed):
        return ProbeError(f"the compiler refuses the program: {found.group()}", COMPILER_TODO)
    words = last_words(printed)
    return ProbeError(f"{error} ({words})" if words else str(error))


def kernel_refused(name: str, code: int, log: str, *, instructions: int) -> ProbeError:
    """Return the error for a program that the kernel would not load: its errno, and the verifier's log."""
    if code == errno.E2BIG:  # whichever of its limits that means
        words = f"too large, or too complex, for this kernel ({instructions} instructions)"
    else:
        words = last_words(log)
    if not words:
        return ProbeError(f"the kernel refuses to load {name}: {os.strerror(code)}")
    return ProbeError(f"the verifier refuses {name}: {words}", VERIFIER_TODO)


def last_words(printed: str) -> str:
    """Return the verifier's reason, or the end of any other output; "" if there is none.

    The verifier's reason follows the last instruction that it looked at. It can have several lines, such as
    "invalid access to map value, value_size=8 off=8 size=8" and "R1 max value is outside of the allowed
    memory range"; after it come states, statistics and hints. Kernel addresses are left out of it.
    """
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    while lines and _NOT_THE_REASON.match(lines[-1]):
        lines.pop()
    reason: list[str] = []
    while lines and len(reason) < _MAX_LINES and not _NOT_THE_REASON.match(lines[-1]):
        reason.append(lines.pop())
    return _ADDRESS.sub("(an address)", "; ".join(reversed(reason)))
