"""The lab's controls of grouped events in the lab VM: parameters of the grouped kernel's kvm module."""

from __future__ import annotations

import os
from pathlib import Path

PARAMETERS = Path("/sys/module/kvm/parameters")
MAX_GROUP_SIZE = 4  # KVM_PMC_MAX_NR_EVENTS

# As in lab_control.c.
DEFAULTS = {
    "group_sizes": "1",
    "group_sizes_fixed": "1",
    "group_sizes_once": "N",
    "member_configs": "0",
    "fail_create_at": "-1",
    "fail_create_errno": "19",
    "shrink_to": "0",
    "splice": "0",
    "misbehave": "none",
    "hazards_at": "-1,-1,-1",
}


def is_grouped_kernel() -> bool:
    """Whether the kernel that runs is the grouped one."""
    return "-grouped-" in os.uname().release


def reset() -> None:
    """Every counter has one event again, and nothing fails."""
    for name, value in DEFAULTS.items():
        _set(name, value)


def define_groups(*sizes: int, once: bool = False) -> None:
    """How many events gp counter 0, 1, ... has when the guest programs it; 1 for those not named.

    `once`: the first time only, so that it has one event from the second time on.
    """
    _set("group_sizes", ",".join(map(str, sizes)))
    _set("group_sizes_once", "Y" if once else "N")


def define_fixed_groups(*sizes: int) -> None:
    """The same for Intel's fixed counters."""
    _set("group_sizes_fixed", ",".join(map(str, sizes)))


def define_members(*configs: int) -> None:
    """The raw configs of members 1, 2, ...; those not named count what the guest chose for the leader."""
    _set("member_configs", ",".join(map(str, (0, *configs))))


def splice(bits: int) -> None:
    """The guest reads all members, 8 or 16 bits each, the leader's lowest; 0: the leader's count alone."""
    _set("splice", str(bits))


def fail_create(at: int, errno: int) -> None:
    """The creation of every group's member `at` fails with `errno`."""
    _set("fail_create_errno", str(errno))
    _set("fail_create_at", str(at))


def shrink_to(size: int) -> None:
    """The guest's access makes a larger group this small before anything of it is released; 0: never."""
    _set("shrink_to", str(size))


def misbehave(how: str) -> None:
    """What the design never does: see lab_control.c for the names."""
    _set("misbehave", how)


def hazards_at(*, tgid: int = -1, vcpu: int = -1, counter: int = -1) -> None:
    """Where fail_create(), shrink_to(), misbehave() and `once` hold; -1: everywhere. fixed0 is 32."""
    _set("hazards_at", f"{tgid},{vcpu},{counter}")


def _set(parameter: str, value: str) -> None:
    (PARAMETERS / parameter).write_text(f"{value}\n")
