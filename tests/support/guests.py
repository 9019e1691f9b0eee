"""What guests the census finds, worked out by the real code from looks that are made up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.looks import Thing, look, vcpu
from vpmu_agent.counts.guests import Found, Guests
from vpmu_agent.counts.pmus import KvmPmu
from vpmu_agent.probes.census import Census, Look, Vcpu


class Pulls(Census):
    """A census that finds what it is told to."""

    def __init__(self, *found: Thing) -> None:
        super().__init__(None)
        self.look = look(*found)

    def pull(self) -> Look:
        return Look() if self.missing else self.look


class Names:
    """The names of VMs, by process."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names

    def name(self, tgid: int) -> str:
        return self.names[tgid]

    def forget(self, tgid: int) -> None:
        """Do nothing: the names stay."""


def amd(**other: Any) -> Vcpu:
    """A vCPU whose PMU has no global control: a counter counts if its event select says so."""
    return vcpu(**({"pmu_version": 1} | other))


def emulating() -> KvmPmu:
    """Return the parameters of a KVM that emulates vPMUs."""
    return KvmPmu(enabled=True, mediated=False)


def found(names: Mapping[int, str], *things: Thing) -> Found:
    """Return what two pulls say that both find these things."""
    return seen(names, look(*things), look(*things))


def seen(names: Mapping[int, str], *looks: Look) -> Found:
    """Return what these looks say, one after the other."""
    guests, census = Guests(Names(names), emulating), Pulls()
    for census.look in looks:
        guests.look(census)
    return guests.found
