"""What a guest asked for, by name: the events of each vendor that perf itself has a name for.

The names are those of perf list, where it has one. Sources: for AMD `amd_perfmon_event_map` and its
successors for Zen (arch/x86/events/amd/core.c); for Intel the architectural events of CPUID leaf 0xA (Intel
SDM, volume 3, "Architectural Performance Monitoring"; also tools/testing/selftests/kvm/include/x86/pmu.h) by
the names of `intel_perfmon_event_map`, and the pseudo encodings of fixed counters
(arch/x86/events/intel/core.c). KVM gives fixed counters 0 to 2 the events 0xc0, 0x3c and 0x300
(arch/x86/kvm/vmx/pmu_intel.c).
"""

from __future__ import annotations

from vpmu_agent.model.call import Attr, Call, PmcType

TYPE_HARDWARE, TYPE_RAW = 0, 4  # enum perf_type_id

GUEST_LBR = 0x1B00
"""INTEL_FIXED_VLBR_EVENT (arch/x86/include/asm/perf_event.h): KVM's event for a guest's LBR."""

HARDWARE = (
    "cycles",
    "instructions",
    "cache-references",
    "cache-misses",
    "branches",
    "branch-misses",
    "bus-cycles",
    "stalled-cycles-frontend",
    "stalled-cycles-backend",
    "ref-cycles",
)
"""`enum perf_hw_id`. Older KVM asks for these where it can; since Linux 6.1 at the latest all are raw."""

AMD = {
    0x76: "cycles",
    0xC0: "instructions",
    0xC2: "branches",
    0xC3: "branch-misses",
    0x77D: "cache-references",  # before Zen
    0x77E: "cache-misses",
    0xD0: "stalled-cycles-frontend",
    0xD1: "stalled-cycles-backend",
    0xFF60: "cache-references",  # Zen
    0x964: "cache-misses",
    0x287: "stalled-cycles-frontend",
    0x187: "stalled-cycles-backend",
    0xA9: "stalled-cycles-frontend",  # Zen 2
    0x1_0000_0120: "ref-cycles",  # Zen 4
}
"""By `attr.config`: event select in bits 0 to 7 and 32 to 35, unit mask in bits 8 to 15."""

INTEL = {
    0x3C: "cycles",  # from here in the order of the bits of CPUID.0AH:EBX
    0xC0: "instructions",
    0x13C: "bus-cycles",
    0x4F2E: "cache-references",
    0x412E: "cache-misses",
    0xC4: "branches",
    0xC5: "branch-misses",
    0x1A4: "slots",
    0x2A4: "topdown-be-bound",
    0x73: "topdown-bad-spec",
    0x19C: "topdown-fe-bound",
    0x2C2: "topdown-retiring",
    0x1E4: "lbr-inserts",
    0x300: "ref-cycles",  # fixed counter 2
    0x400: "slots",  # fixed counter 3
    GUEST_LBR: "branch records",
}
"""By `attr.config`: event select in bits 0 to 7, unit mask in bits 8 to 15."""

VENDORS = {"AuthenticAMD": AMD, "HygonGenuine": AMD, "GenuineIntel": INTEL}
"""The tables, by `vendor_id` of /proc/cpuinfo."""

_EITHER = {config: name for config, name in AMD.items() if INTEL.get(config) == name}


def event_name(call: Call, vendor: str = "") -> str | None:
    """Return the name of the event that a call is for, None if it has none here.

    `vendor` is the host's, "" if that is not known: then only what means the same for all vendors has a name.
    """
    attr = call.attr
    if attr.type == TYPE_HARDWARE:
        return hardware_name(attr)
    if attr.type != TYPE_RAW:
        return None
    if call.pmc_type is not PmcType.GP:
        return INTEL.get(attr.config)  # AMD has neither fixed counters nor a guest-LBR event
    return raw_name(attr.config, vendor)


def raw_name(config: int, vendor: str = "") -> str | None:
    """Return the name of a raw event of a gp counter, as event_name() does."""
    return VENDORS.get(vendor, _EITHER).get(config)


def hardware_name(attr: Attr) -> str | None:
    """Return the name of an event of PERF_TYPE_HARDWARE, None if perf has no such event."""
    return HARDWARE[attr.config] if attr.config < len(HARDWARE) else None
