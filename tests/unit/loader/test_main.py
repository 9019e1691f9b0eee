"""What the loader says where no way to attach works. In the lab it attaches."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from vpmu_agent.kernel.census import CensusLayout
from vpmu_agent.kernel.errors import BtfError, KernelError, ProbeError
from vpmu_agent.loader import main as loader
from vpmu_agent.loader.main import NoWayError, load
from vpmu_agent.probes import Way
from vpmu_agent.probes.handover import Handover


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> dict[Way, KernelError]:
    """What each way is refused with; without an entry it works. Only the kernel and bcc are not asked."""
    told: dict[Way, KernelError] = {}

    def attached(way: Way, _known: Mapping[str, int]) -> Handover:
        if way in told:
            raise told[way]
        return Handover(way)

    for name, value in {
        "attached": attached,
        "require_host_pids": lambda: None,
        "toolchain": lambda: "bcc 0.31.0 and LLVM 19.1",
        "read_layout": lambda: None,
        "constants": lambda _layout: {},
        "preemption": lambda: "voluntary",
    }.items():
        monkeypatch.setattr(loader, name, value)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return told


def test_each_way_says_what_refused_it(refusals: dict[Way, KernelError]) -> None:
    refusals["fexit"] = ProbeError("the verifier refuses kretfunc__x: R2 invalid mem access", "report this")
    refusals["kprobe"] = ProbeError("the verifier refuses vpmu_x: R2 invalid mem access", "report this")
    with pytest.raises(ProbeError) as raised:
        load("auto")
    assert raised.value.found == (
        "cannot attach the probes with bcc 0.31.0 and LLVM 19.1 (fexit: the verifier refuses kretfunc__x: R2 "
        "invalid mem access; kprobe: the verifier refuses vpmu_x: R2 invalid mem access)"
    )
    assert raised.value.todo == "report this"


def test_a_way_that_the_kernel_has_not(refusals: dict[Way, KernelError]) -> None:
    refusals["kprobe"] = NoWayError("built without CONFIG_KPROBES")
    with pytest.raises(
        ProbeError, match=r"\(kprobe: built without CONFIG_KPROBES\); `vpmu-agent doctor` says"
    ):
        load("kprobe")


@pytest.mark.parametrize("refusal", [NoWayError("no trampolines"), BtfError("no function x() in the BTF")])
def test_auto_takes_the_next_way(refusals: dict[Way, KernelError], refusal: KernelError) -> None:
    """A BTF without these functions keeps fexit from attaching, and not kprobes."""
    refusals["fexit"] = refusal
    assert load("auto").mode == "kprobe"


@pytest.mark.parametrize("model", ["lazy", "full", "rt", None])
def test_fexit_is_not_the_first_choice_where_it_can_be_preempted(
    refusals: dict[Way, KernelError], monkeypatch: pytest.MonkeyPatch, model: str | None
) -> None:
    monkeypatch.setattr(loader, "preemption", lambda: model)
    assert load("auto").mode == "kprobe"
    assert load("fexit").mode == "fexit"
    refusals["kprobe"] = NoWayError("built without CONFIG_KPROBES")
    assert load("auto").mode == "fexit"


def test_who_is_not_root_is_told_so(
    refusals: dict[Way, KernelError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    refusals["kprobe"] = NoWayError("not permitted")
    with pytest.raises(ProbeError, match="run it as root, or with CAP_BPF"):
        load("kprobe")


def test_without_a_census_all_else_works(
    refusals: dict[Way, KernelError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_layout() -> CensusLayout:
        raise BtfError("no field enable_pmu in struct kvm_arch in the BTF of vmlinux", "report it")

    monkeypatch.setattr(loader, "read_census_layout", no_layout)
    assert not refusals
    handed = load("auto")
    assert (handed.mode, handed.census) == ("fexit", None)
    assert handed.no_census == "no field enable_pmu in struct kvm_arch in the BTF of vmlinux; report it"
