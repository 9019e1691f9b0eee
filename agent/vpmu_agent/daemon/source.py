"""Where the daemon's probes come from, and the KVM that they are for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vpmu_agent import probes
from vpmu_agent.kernel.kvm import kvm_instance, why_no_vpmu

if TYPE_CHECKING:
    from vpmu_agent.probes import Mode
    from vpmu_agent.trace.live import LiveProbes
    from vpmu_agent.vms.names import Vms


class Adopt(Protocol):
    """`probes.adopt()`, as far as the daemon needs it."""

    def __call__(self, channel: socket.socket, /, *, vms: Vms) -> LiveProbes:
        """Wait for what a loader hands over. Raise KernelError where it failed."""


class LoaderCommand(Protocol):
    """`probes.loader_command()`, as far as the daemon needs it."""

    def __call__(self, mode: Mode, /, *, durations: bool, reads: bool) -> Sequence[str]:
        """Return the command of a loader without its last argument."""


@dataclass(frozen=True, slots=True)
class ProbeSource:
    """Where the daemon's probes come from: the KVM that is loaded, a loader, and what takes over from it."""

    kvm_instance: Callable[[], int | None] = kvm_instance
    why_no_vpmu: Callable[[], tuple[str, str] | None] = why_no_vpmu
    loader_command: LoaderCommand = probes.loader_command
    adopt: Adopt = probes.adopt
