"""The daemon's probes: attached for the KVM that is loaded now, taken off when it goes."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable

from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon.report import tell_state
from vpmu_agent.daemon.separation import Link
from vpmu_agent.daemon.source import ProbeSource
from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError
from vpmu_agent.model.call import Call
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.probes import Unattached
from vpmu_agent.probes.handover import PATIENCE_S, SLOW_S
from vpmu_agent.probes.self_test import SelfTest
from vpmu_agent.system.journal import Level, tell
from vpmu_agent.system.notify import notify
from vpmu_agent.system.ready import is_readable
from vpmu_agent.trace.live import LiveProbes, attached_line
from vpmu_agent.vms.names import Vms

_MAX_PATIENCE_S = 3600.0
"""A loader that hangs is ended and another one started, which gets twice the time, up to this (seconds)."""

_RETRY_S = 30.0
"""How long to wait after probes could not be attached: each try costs a second of a processor."""


_EXTENSION_S = 60
"""How long a service manager shall wait from now on for the first probes, again and again, in seconds."""


class Attachment:
    """Probes for the KVM that is loaded now: its handler's address and its types change with every load."""

    def __init__(
        self,
        link: Link,
        vms: Vms,
        instance: int | None,
        report: Callable[[Call, Verdict], None],
        source: ProbeSource,
    ) -> None:
        """`instance` is what `source.kvm_instance()` returned before the first loader was started.

        What the probes send goes to `report`, call by call.
        """
        self.probes: LiveProbes = Unattached()
        self._link = link
        self._vms = vms
        self._report = report
        self._source = source
        self._loading: socket.socket | None = link.first
        self._asked = self._told = time.monotonic()  # when the loader was asked for, and last told of
        self._patience_s = PATIENCE_S
        self._instance = instance  # the one that the probes are for, or are being loaded for
        self._retry_at = -math.inf
        self._missing = ""
        self._self_test = SelfTest(link)

    def wait(self, *, even_without_kvm: bool = False) -> None:
        """Wait for the first probes. Raise KernelError if there are none."""
        while self._loading and not is_readable(self._loading, 1):
            notify(f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1_000_000}")
            self._look_after_loader()
        try:
            self.probes = self._loaded()
        except KvmNotLoadedError as error:
            if not even_without_kvm:
                raise
            self._missing = error.found
            tell_state(f"{error.found}; waiting for it")

    def renew(self, watch: Watch) -> None:
        """Check whether KVM was unloaded or loaded since, and have `watch` go on with probes that fit."""
        if self._loading and is_readable(self._loading):
            try:
                self._replace(self._loaded(), watch)
                self.tell_attached()
            except KernelError as error:
                self._missing = str(error)
                tell_state(f"{error}; trying again in {_RETRY_S:.0f} s", Level.ERROR)
                self._retry_at = time.monotonic() + _RETRY_S
        self._look_after_loader()
        instance = self._source.kvm_instance()
        if self._loading or (self.is_attached and instance == self._instance):
            return
        if self.is_attached:
            self._replace(Unattached(), watch)
            self._missing = "KVM was unloaded"
            tell_state(f"{self._missing}: the probes are off until it is back", Level.NOTICE)
        is_new = instance != self._instance
        if instance is not None and (is_new or time.monotonic() >= self._retry_at):
            self._patience_s = PATIENCE_S
            self._load(instance)

    def tell_attached(self) -> None:
        """Tell that there are probes, and if they will have nothing to see."""
        tell_state(self.line)
        if why := self._source.why_no_vpmu():
            tell("; ".join(why), Level.WARNING)

    def test(self) -> None:
        """Find out whether the probes run, and tell when that changes; to be called about once a second."""
        before = self._self_test.sight
        now = self._self_test.step(self.probes.self_tested)
        if now == before:
            return
        if now.runs is False:
            tell_state(f"blind: {now}", Level.ERROR)
        elif before.runs is False and now.runs:
            tell_state(f"the probes run again; {self.line}", Level.NOTICE)
        elif now.why:
            tell(now.why, Level.WARNING)

    def poll(self, timeout_s: float) -> None:
        """Report what the probes have sent; wait up to `timeout_s` for it."""
        for call, verdict in self.probes.poll(timeout_s):
            self._report(call, verdict)

    @property
    def is_attached(self) -> bool:
        """Whether there are probes now."""
        return not isinstance(self.probes, Unattached)

    @property
    def missing(self) -> str:
        """Why no probes run now; empty if they do, or if that cannot be known of those that are attached."""
        if self.is_attached:
            return "" if self.sees is not False else str(self._self_test.sight)
        return "the probes are being loaded" if self._loading else self._missing

    @property
    def sees(self) -> bool | None:
        """Whether the probes were seen to run; None if there are none, or if it cannot be known."""
        return self._self_test.sight.runs

    @property
    def line(self) -> str:
        """The line that scripts wait for on stderr."""
        return attached_line(self.probes.mode, self.probes.functions)

    def close(self) -> None:
        """Take the probes off."""
        self.probes.close()

    def _load(self, instance: int | None) -> None:
        self._loading, self._instance = self._link.load(), instance
        self._asked = self._told = time.monotonic()

    def _look_after_loader(self) -> None:
        """Tell if the loader takes long; if it hangs, have it ended and another one started."""
        now = time.monotonic()
        if not self._loading or now - self._told < SLOW_S:
            return
        self._told = now
        if now - self._asked < self._patience_s:
            tell_state(
                f"the loader is still at work on the probes, after {now - self._asked:.0f} s; it has "
                f"{self._patience_s:.0f} s",
                Level.NOTICE,
            )
            return
        tell_state(
            f"the loader has sent nothing in {self._patience_s:.0f} s: it is ended, and another one started",
            Level.ERROR,
        )
        self._patience_s = min(2 * self._patience_s, _MAX_PATIENCE_S)
        self._loading.close()
        self._load(self._source.kvm_instance())

    def _loaded(self) -> LiveProbes:
        """Wait for the loader, and return what it hands over."""
        assert self._loading
        channel, self._loading = self._loading, None
        with channel:
            return self._source.adopt(channel, vms=self._vms)

    def _replace(self, new: LiveProbes, watch: Watch) -> None:
        old, self.probes = self.probes, new
        for call, verdict in old.stop():
            self._report(call, verdict)
        watch.replace(new)
        old.close()
