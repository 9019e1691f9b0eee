from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.scenes import USER_CYCLES, Guest
from vpmu_agent.model.call import CallName, PmcType
from vpmu_agent.model.event_names import AMD, INTEL, event_name
from vpmu_agent.text import event_text

AMD_CPU, INTEL_CPU = "AuthenticAMD", "GenuineIntel"


def name(config: int, vendor: str = "", *, kind: int = 4, pmc: PmcType = PmcType.GP) -> str | None:
    call = Guest("web01", 1).call(CallName.CREATE, 0, attr=replace(USER_CYCLES, type=kind, config=config))
    return event_name(replace(call, pmc_type=pmc), vendor)


@pytest.mark.parametrize(
    ("config", "amd", "intel"),
    [
        (0xC0, "instructions", "instructions"),
        (0x76, "cycles", None),
        (0x3C, None, "cycles"),
        (0xC4, None, "branches"),
        (0xC5, None, "branch-misses"),
        (0xC2, "branches", None),
        (0x412E, None, "cache-misses"),
        (0x964, "cache-misses", None),
        (0x300, None, "ref-cycles"),
        (0x1_0000_0120, "ref-cycles", None),
        (0x1_00C0, None, None),
    ],
)
def test_a_code_has_a_name_on_its_vendors_processors(config: int, amd: str | None, intel: str | None) -> None:
    assert (name(config, AMD_CPU), name(config, "HygonGenuine"), name(config, INTEL_CPU)) == (amd, amd, intel)


def test_every_architectural_event_of_intel_has_a_name() -> None:
    """By event select and unit mask, in the order of CPUID.0AH:EBX."""
    events = [
        (0x3C, 0x00),
        (0xC0, 0x00),
        (0x3C, 0x01),
        (0x2E, 0x4F),
        (0x2E, 0x41),
        (0xC4, 0x00),
        (0xC5, 0x00),
        (0xA4, 0x01),
        (0xA4, 0x02),
        (0x73, 0x00),
        (0x9C, 0x01),
        (0xC2, 0x02),
        (0xE4, 0x01),
    ]
    names = [name(unit_mask << 8 | select, INTEL_CPU) for select, unit_mask in events]
    assert names[:8] == [
        "cycles",
        "instructions",
        "bus-cycles",
        "cache-references",
        "cache-misses",
        "branches",
        "branch-misses",
        "slots",
    ]
    assert None not in names
    assert len(set(names)) == len(events)
    of_amd = {name(unit_mask << 8 | select, AMD_CPU) for select, unit_mask in events}
    assert of_amd == {"instructions", None}


@pytest.mark.parametrize("config", sorted({*AMD, *INTEL, 0x1234}))
@pytest.mark.parametrize("vendor", ["", "CentaurHauls"])
def test_without_a_known_vendor_only_what_both_agree_on_has_a_name(config: int, vendor: str) -> None:
    agreed = AMD.get(config) == INTEL.get(config)
    assert name(config, vendor) == (AMD.get(config) if agreed else None)


def test_only_intel_has_fixed_counters_and_guest_lbr() -> None:
    assert name(0x3C, pmc=PmcType.FIXED) == "cycles"
    assert name(0x300, pmc=PmcType.FIXED) == "ref-cycles"
    assert name(0x1B00, pmc=PmcType.LBR) == "branch records"


def test_generic_events_have_perfs_names_everywhere() -> None:
    assert (name(0, kind=0), name(9, kind=0), name(10, kind=0)) == ("cycles", "ref-cycles", None)
    assert name(0xC0, AMD_CPU, kind=8) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "instructions (r0c0:uGD), in the guest, user mode only"),
        ({"exclude_kernel": False}, "instructions (r0c0:GD), in the guest"),
        (
            {"exclude_kernel": False, "exclude_user": True},
            "instructions (r0c0:kGD), in the guest, kernel mode only",
        ),
        ({"exclude_user": True}, "instructions (r0c0:hGD), in the guest, neither user nor kernel mode"),
        (
            {"exclude_kernel": False, "exclude_host": False, "config": 0x1B00},
            "r1b00:HGD, in the guest and on the host",
        ),
        (
            {"exclude_kernel": False, "exclude_host": False, "exclude_guest": True},
            "instructions (r0c0:HD), on the host",
        ),
    ],
)
def test_what_a_guest_asked_for_in_words(change: dict[str, Any], text: str) -> None:
    attr = replace(replace(USER_CYCLES, config=0xC0), **change)
    assert event_text(Guest("web01", 1).call(CallName.CREATE, 0, attr=attr)) == text
