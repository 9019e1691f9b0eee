from __future__ import annotations

import tracemalloc
from itertools import pairwise

from vpmu_agent.probes.pseudonyms import make_pseudonyms

DIRECT_MAP = 0xFFFF_8881_0000_0000
EVENTS = [DIRECT_MAP + 0x400 * i for i in range(20_000)]


def test_the_same_address_has_the_same_pseudonym_and_another_one_another() -> None:
    pseudonym = make_pseudonyms()
    first = [pseudonym(address) for address in EVENTS]
    assert len(set(first)) == len(EVENTS)
    assert [pseudonym(address) for address in EVENTS] == first  # whether it is still remembered or not


def test_none_stays_none() -> None:
    pseudonym = make_pseudonyms()
    assert pseudonym(0) == 0
    assert all(pseudonym(address) for address in EVENTS)


def test_none_can_be_taken_for_an_address_of_the_kernel() -> None:
    pseudonym = make_pseudonyms()
    assert all(0 < pseudonym(address) < 2**63 for address in (*EVENTS, 1, 2**64 - 1))


def test_neighbours_are_strangers() -> None:
    # Every bit of the difference is set about as often as not, whatever the addresses have in common.
    pseudonym = make_pseudonyms()
    differences = [pseudonym(a) ^ pseudonym(b) for a, b in pairwise(EVENTS)]
    for bit in range(63):
        share = sum((difference >> bit) & 1 for difference in differences) / len(differences)
        assert 0.45 < share < 0.55, f"bit {bit} differs in {share:.0%} of pairs"


def test_another_run_has_other_pseudonyms() -> None:
    one, other = make_pseudonyms(), make_pseudonyms()
    assert not {one(address) for address in EVENTS[:1000]} & {other(address) for address in EVENTS[:1000]}


def test_memory_is_bounded() -> None:
    pseudonym = make_pseudonyms()
    tracemalloc.start()
    try:
        for address in EVENTS:
            pseudonym(address)
        assert tracemalloc.get_traced_memory()[0] < 4e6
    finally:
        tracemalloc.stop()
