"""VMs that were reset and whose counters went on as if nothing had happened, in a sentence.

An INIT leaves counters alone, and KVM zeroes them only where a vCPU is made: at a reset it is the VMM that
must write to their registers. QEMU does so for Intel's, and until 2025 at least it did not for AMD's.
"""

from __future__ import annotations

from collections import defaultdict

from vpmu_agent.counts.counters import VmCounters

MAX_NAMED = 4
"""How many counters a sentence names."""


def reset_sentence(vm: str, counters: VmCounters) -> str:
    """Return a sentence, without full stop, on the counters known to have outlived a reset; "" if none."""
    if not counters.outlived_reset:
        return ""
    names: defaultdict[int, list[str]] = defaultdict(list)
    outlived = [counter for counter in counters.counters if counter.outlived_reset]
    for counter in outlived[:MAX_NAMED]:
        names[counter.vcpu].append(counter.pmc)
    where = "; ".join(f"{', '.join(pmcs)} of vCPU {vcpu}" for vcpu, pmcs in names.items())
    more = "; …" if len(outlived) > MAX_NAMED else ""
    what = "a counter that goes" if len(outlived) == 1 else f"{len(outlived)} counters, which go"
    return f"{vm} was reset, but its VMM has not reset {what} on as before ({where}{more})"
