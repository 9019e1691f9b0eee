"""Counts per VM, of more VMs and counters than have counts of their own."""

from __future__ import annotations

import pytest

from tests.support.scenes import Guest, checked
from vpmu_agent.model.call import CallName
from vpmu_agent.trace import tally as module
from vpmu_agent.trace.tally import OTHER_COUNTERS, OTHER_VMS, Tally, Unchecked


def test_vms_beyond_a_number_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VMS", 2)
    tally = Tally()
    for _ in range(2):
        for name in ("web01", "db01", "web02", "web03"):
            for call, verdict in checked(Guest(name, 1).life()):
                tally.add(call, verdict)
    tally.add_unchecked("web03", Unchecked(read=1))
    tally.add_unchecked("db02", Unchecked(read=2))
    assert tally.vms[OTHER_VMS].unchecked == Unchecked(read=3)
    assert {name: vm.calls[CallName.CREATE] for name, vm in tally.vms.items()} == {
        "web01": 2,
        "db01": 2,
        OTHER_VMS: 4,
    }


def test_diverging_counters_beyond_a_number_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DIVERGING", 3)
    tally, guest = Tally(), Guest("web01", 1)
    for _ in range(2):
        for call, verdict in checked(call for pmc in range(8) for call in guest.unexpected_pause(pmc=pmc)):
            tally.add(call, verdict)
    found = {pmc: count for (_, pmc, _), count in tally.vms["web01"].divergences.items()}
    assert found == {"gp0": 2, "gp1": 2, "gp2": 2, OTHER_COUNTERS: 10}
    assert tally.divergences == 16
