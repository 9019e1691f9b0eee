"""In which order the loader tries the ways to attach, and what it says if none works."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vpmu_agent.kernel.census import CensusLayout
from vpmu_agent.kernel.errors import BtfError, KernelError, ProbeError
from vpmu_agent.loader.main import NoWayError, census_constants, first_attached, ways
from vpmu_agent.probes import WAYS, Way
from vpmu_agent.probes.handover import Handover


def tools() -> str:
    return "bcc 0.31.0 and LLVM 19.1"


def refusing(refusals: dict[Way, KernelError]) -> Callable[[Way], Handover]:
    """Return a kernel that refuses some ways."""

    def attach(way: Way) -> Handover:
        if way in refusals:
            raise refusals[way]
        return Handover(way)

    return attach


@pytest.fixture
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.mark.usefixtures("_root")
def test_each_way_says_what_refused_it() -> None:
    attach = refusing(
        {
            "fexit": ProbeError("the verifier refuses vpmu_y: R2 invalid mem access", "report this"),
            "kprobe": ProbeError("the verifier refuses vpmu_x: R2 invalid mem access", "report this"),
        }
    )
    with pytest.raises(ProbeError) as raised:
        first_attached(WAYS, attach, tools)
    assert raised.value.found == (
        "cannot attach the probes with bcc 0.31.0 and LLVM 19.1 (fexit: the verifier refuses vpmu_y: R2 "
        "invalid mem access; kprobe: the verifier refuses vpmu_x: R2 invalid mem access)"
    )
    assert raised.value.todo == "report this"


@pytest.mark.usefixtures("_root")
def test_a_way_that_the_kernel_has_not() -> None:
    attach = refusing({"kprobe": NoWayError("built without CONFIG_KPROBES")})
    with pytest.raises(
        ProbeError, match=r"\(kprobe: built without CONFIG_KPROBES\); `vpmu-agent doctor` says"
    ):
        first_attached(["kprobe"], attach, tools)


@pytest.mark.parametrize("refusal", [NoWayError("no trampolines"), BtfError("no function x() in the BTF")])
def test_the_next_way_is_taken(refusal: KernelError) -> None:
    """A BTF without these functions keeps fexit from attaching, and not kprobes."""
    attach = refusing({"fexit": refusal})
    assert first_attached(WAYS, attach, tools).mode == "kprobe"


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ("none", "fexit"),
        ("voluntary", "fexit"),
        ("lazy", "kprobe"),
        ("full", "kprobe"),
        ("rt", "kprobe"),
        (None, "kprobe"),
    ],
)
def test_fexit_is_not_the_first_choice_where_it_can_be_preempted(model: str | None, first: Way) -> None:
    order = ways(model)
    assert order[0] == first
    assert set(order) == set(WAYS)


def test_the_known_cause_is_all_that_is_advised() -> None:
    """And not, for one, a newer kernel, or to be root, which does not help under lockdown."""
    attach = refusing({"kprobe": NoWayError("not permitted: lockdown", "boot without lockdown")})
    with pytest.raises(ProbeError) as raised:
        first_attached(["kprobe"], attach, tools)
    assert raised.value.todo == "boot without lockdown"


def test_without_a_census_all_else_works() -> None:
    def no_layout() -> CensusLayout:
        raise BtfError("no field enable_pmu in struct kvm_arch in the BTF of vmlinux", "report it")

    assert census_constants(no_layout) == (
        {},
        "no field enable_pmu in struct kvm_arch in the BTF of vmlinux; report it",
    )
