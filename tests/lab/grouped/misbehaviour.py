"""The wrong things that the lab's KVM does when it is told to, and what the model has to call them."""

from __future__ import annotations

from vpmu_agent.model.rules import Kind

MISBEHAVIOUR = {
    "create_enabled": {Kind.ENABLED_EARLY},
    "enable_early": {Kind.ENABLED_EARLY},
    "wrong_leader": {Kind.WRONG_LEADER},
    "swap_enables": {Kind.ENABLED_OUT_OF_ORDER},
    "skip_enable": {Kind.NOT_ENABLED},
    "release_backwards": {Kind.RELEASED_OUT_OF_ORDER},
}
