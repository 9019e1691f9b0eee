"""KVM diverges, and the journal names the VM and the kind."""

from __future__ import annotations

from vpmu_agent.daemon import report
from vpmu_agent.model.rules import Kind

from ..grouped import control
from ..grouped.misbehaviour import MISBEHAVIOUR
from ..guests import guest_a
from .unit import UNIT, journal, systemctl


def test_each_kind_is_in_the_journal_with_its_vm() -> None:
    for how in MISBEHAVIOUR:
        control.define_groups(3)
        control.misbehave(how)
        with guest_a(how, counters=1) as guest:
            guest.finish()
    control.reset()
    systemctl("stop", UNIT)  # which reads what is still on its way
    for how, kinds in MISBEHAVIOUR.items():
        entries = journal(f"VPMU_VM={how}", f"MESSAGE_ID={report.DIVERGENCE}", f"_SYSTEMD_UNIT={UNIT}")
        assert {entry["VPMU_KIND"] for entry in entries} == set(kinds)
        for entry in entries:
            start = f"{how}: vCPU 0 gp0: {entry['VPMU_KIND']} ({Kind(entry['VPMU_KIND']).meaning}): "
            assert entry["MESSAGE"].startswith(start)
            assert entry["MESSAGE"].endswith(f"; expected {entry['VPMU_EXPECTED']}")
