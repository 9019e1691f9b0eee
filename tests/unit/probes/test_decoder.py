from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.support.records import record
from tests.support.scenes import USER_CYCLES, Guest, checked
from vpmu_agent.model.call import Call, PmcType
from vpmu_agent.model.check import Checker
from vpmu_agent.model.rules import Kind
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.probes.decoder import Decoder


class Names:
    """Every process runs the same VM."""

    def met(self, tgid: int, command: Sequence[str]) -> None:
        """Nothing has to be known of it."""

    def name(self, tgid: int) -> str:
        """Its name."""
        assert tgid
        return "web01"


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(epoch_ns=0, vms=Names())


def decoded(decoder: Decoder, calls: Sequence[Call]) -> list[Call]:
    observations = [decoder.call(record(*observation)) for observation in checked(calls)]
    return [observation[0] for observation in observations if observation]


GROUP = list(Guest("web01", 4242).life(size=3))


def test_all_but_the_addresses_is_as_it_was_sent(decoder: Decoder) -> None:
    fixed = replace(GROUP[0], pmc_type=PmcType.FIXED, pmc_idx=1, starved=True, attr=USER_CYCLES)
    calls = [*GROUP, fixed]
    without = [replace(call, pmc=0, event=0, leader=0) for call in decoded(decoder, calls)]
    assert without == [replace(call, pmc=0, event=0, leader=0) for call in calls]


def test_a_call_has_pseudonyms_in_place_of_addresses(decoder: Decoder) -> None:
    sent = {number for call in GROUP for number in (call.pmc, call.event, call.leader)} - {0}
    calls = decoded(decoder, GROUP)
    seen = {number for call in calls for number in (call.pmc, call.event, call.leader)} - {0}
    assert len(seen) == len(sent) == 4
    assert not seen & sent
    assert all(number < 2**63 for number in seen)


def test_the_model_says_the_same_of_calls_with_pseudonyms(decoder: Decoder) -> None:
    guest = Guest("web01", 4242)
    sent = [*guest.life(size=3), *guest.unexpected_pause(pmc=1), guest.failed_create(pmc=2)]
    seen = decoded(decoder, sent)
    assert [verdict for _, verdict in checked(seen)] == [verdict for _, verdict in checked(sent)]
    assert Kind.UNEXPECTED_CALL in {verdict.kind for _, verdict in checked(seen)}


def test_what_is_none_stays_none(decoder: Decoder) -> None:
    leader, member, *_ = decoded(decoder, GROUP)
    assert leader.leader == 0
    assert member.leader == leader.event
    failed, lbr = decoded(
        decoder,
        [Guest("web01", 4242).failed_create(), replace(GROUP[0], pmc=0, vcpu=-1, pmc_type=PmcType.LBR)],
    )
    assert failed.event == 0
    assert (lbr.pmc, lbr.pmc_name) == (0, "lbr")
    assert lbr.event


def test_another_decoder_has_other_pseudonyms(decoder: Decoder) -> None:
    call, verdict = GROUP[0], Verdict(Kind.PREDICTED, 0, None)
    one, other = (
        decoder.call(record(call, verdict)),
        Decoder(epoch_ns=0, vms=Names()).call(record(call, verdict)),
    )
    assert one
    assert other
    assert one[0].event != other[0].event
    assert Checker().observe(one[0]) == Checker().observe(other[0])
