"""How Intel's and AMD's counters differ, for tests that run with both."""

from __future__ import annotations

from . import live

IS_INTEL = live.is_intel()

FIXED = 3 if IS_INTEL else 0
"""How many fixed counters a vCPU has."""

GP_CONFIGS = (0x3C, 0xC0, 0xC4, 0xC5) if IS_INTEL else (0x76, 0xC0, 0xC2, 0xC3)
"""What guests have gp counters 0 to 3 count: cycles, instructions, branches, branch misses."""

FIXED_CONFIGS = (0xC0, 0x3C, 0x300)[:FIXED]
"""What the fixed counters count: instructions, cycles, reference cycles."""

CONFIGS = dict(
    [
        *((f"gp{i}", config) for i, config in enumerate(GP_CONFIGS)),
        *((f"fixed{i}", config) for i, config in enumerate(FIXED_CONFIGS)),
    ]
)
"""All of them, by counter."""
