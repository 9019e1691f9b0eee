"""Failed creations as stories: one for each counter, event and errno, however often KVM tries again.

KVM of newer kernels tries again at each entry into the guest (kvm_pmu_handle_event() in arch/x86/kvm/pmu.c).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from vpmu_agent.model.call import Call
from vpmu_agent.text import attr_text

KEPT = 200
"""How many stories are kept; a guest chooses how many there are."""

Key: TypeAlias = tuple[str, int, str, str, int]
"""The VM, vCPU, counter, event in perf's notation, and (positive) errno."""


def key(call: Call) -> Key:
    """Return which story a failed creation belongs to."""
    return call.vm, call.vcpu, call.pmc_name, attr_text(call.attr), -call.result


@dataclass(slots=True)
class Story:
    """A creation that failed, once or again and again."""

    last: Call
    since_ns: int
    """When it failed first."""
    count: int = 0


class Failures:
    """The last stories. The one that has been quiet for longest makes room for a new one."""

    def __init__(self) -> None:
        self._stories: dict[Key, Story] = {}  # the one that failed last is last
        self.forgotten = 0
        """How many failures are no longer kept."""

    def add(self, call: Call) -> Story:
        """Add a failed creation, and return its story."""
        its = key(call)
        story = self._stories.pop(its, None) or Story(call, call.time_ns)
        story.last = call
        story.count += 1
        self._stories[its] = story
        if len(self._stories) > KEPT:
            self.forgotten += self._stories.pop(next(iter(self._stories))).count
        return story

    def __iter__(self) -> Iterator[Story]:
        """Iterate over the stories, the one that failed last first."""
        return reversed(list(self._stories.values()))
