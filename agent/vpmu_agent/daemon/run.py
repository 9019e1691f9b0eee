"""`vpmu-agent run`: a daemon that watches and serves with no privileges, and the parent that keeps them."""

from __future__ import annotations

import faulthandler
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vpmu_agent import probes
from vpmu_agent.counts.census import Modes
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon import supervisor as parent
from vpmu_agent.daemon.config_file import ConfigError
from vpmu_agent.daemon.report import Level, Report, tell, tell_untraced
from vpmu_agent.kernel.errors import KernelError, KvmNotLoadedError
from vpmu_agent.kernel.kvm import kvm_instance
from vpmu_agent.model.call import Call
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.probes import Probes, Unattached, handover
from vpmu_agent.probes.census import Census
from vpmu_agent.system import privileges
from vpmu_agent.system.notify import notify
from vpmu_agent.system.privileges import User
from vpmu_agent.trace.live import POLL_S, attached_line, stop_requests
from vpmu_agent.vms.names import Vms
from vpmu_agent.web.address import Address
from vpmu_agent.web.app import application
from vpmu_agent.web.errors import WebConfigError
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.state import Overview

if TYPE_CHECKING:
    from types import FrameType

    from vpmu_agent.web.web_file import WebFile

_SWEEP_S = 1.0
_RETRY_S = 30.0
"""How long to wait after probes could not be attached: each try costs a second of a processor."""


@dataclass(frozen=True, slots=True)
class Link:
    """The daemon's end of the line to its parent, and the end on which the first loader hands over."""

    parent: int
    control: socket.socket
    first: socket.socket

    def load(self) -> socket.socket:
        """Has the parent start a loader; returns the end on which it hands over."""
        ours, theirs = handover.channel()
        with theirs:
            socket.send_fds(self.control, [parent.LOAD], [theirs.fileno()])
        return ours


def separate(loader: Sequence[str]) -> Link:
    """Starts the first loader and splits this process in two. Returns in the child, the daemon to be.

    The process that was called becomes the parent (supervisor.py). It ends when and as the daemon does.
    """
    control, theirs = handover.channel()
    first, end = handover.channel()
    with end:
        loading = parent.spawn([*loader], end.fileno())
    caller = os.getpid()
    # Until the parent has its handlers: a signal would end it, and a loader that ended would stay a zombie.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*parent.PASSED_ON, signal.SIGCHLD))
    if daemon := os.fork():
        theirs.set_inheritable(True)
        # -I and -S: nothing of the environment, the current directory or site-packages gets in.
        os.execv(
            sys.executable,
            [
                *(sys.executable, "-I", "-S", parent.__file__),
                *map(str, (theirs.fileno(), daemon, loading)),
                *loader,
            ],
        )
    theirs.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*parent.PASSED_ON, signal.SIGCHLD))
    # Ctrl-C is for the parent, which passes it on; twice would be once too often.
    os.setsid()
    return Link(caller, control, first)


@dataclass(frozen=True, slots=True)
class Settings:
    """What flags and file say together; the fields are the keys of the file (config_file.py)."""

    listen: Address
    web_config_file: Path | None
    per_counter: bool
    user: User
    wait: bool
    """Start also where KVM is not loaded yet."""
    attach: probes.Mode


def run(settings_now: Callable[[], Settings], *, duration_s: float | None) -> None:
    """Watches all VMs and serves metrics, until the time is over or a signal comes.

    SIGHUP has `settings_now` asked again. Raises ConfigError, WebConfigError, KernelError, ListenError and
    NotifyError.
    """
    notify("STATUS=loading the probes")
    configuration = Configuration(settings_now)
    settings = configuration.settings
    require_switch()
    instance = kvm_instance()
    link = separate(probes.loader_command(settings.attach))
    faulthandler.enable()  # a service manager's watchdog sends SIGABRT: the log shall say where it hung
    give_up_privileges(link, settings.user)
    # Not before: this user must be able to read it, now and when it changes.
    web = open_web_config(settings.web_config_file) if settings.web_config_file else None
    vms = Vms()
    recent, report = Recent(), Report()

    def take(call: Call, verdict: Verdict) -> None:
        recent.add(call, verdict)
        report.add(call, verdict)

    # Before waiting for the probes: what is wrong with the address shows at once.
    with (
        closing(report),
        closing(Server(settings.listen, web)) as server,
        closing(Attachment(link, vms, instance, take)) as attachment,
    ):
        attachment.wait(even_without_kvm=settings.wait)
        watch = Watch(attachment.probes, vms, per_counter=settings.per_counter)
        with stop_requests() as stopped:
            overview = Overview(watch, recent, lambda: attachment.missing)
            server.start(application(Exporter(watch), overview))
            tell(f"serving {server.url}/metrics")
            if attachment.is_attached:
                tell_state(attachment.line)
            notify("READY=1")
            try:
                reload = partial(configuration.renew, watch, web)
                watch_over(attachment, watch, Modes(vms), report, reload, duration_s, stopped)
            finally:
                notify("STOPPING=1")
                server.close()  # a scrape reads the probes' maps


def require_switch() -> None:
    """KernelError if this process is a root that cannot become the daemon's user."""
    if missing := privileges.missing_to_switch():
        raise KernelError(
            f"this process is root and lacks {', '.join(missing)}, so it cannot become an unprivileged user",
            "in a container add them (podman: --cap-add, Kubernetes: securityContext.capabilities.add), or "
            "start it as a user with CAP_BPF, CAP_PERFMON and CAP_SYSLOG as ambient capabilities",
        )


def give_up_privileges(link: Link, user: User) -> None:
    """Makes this process one that can only read maps which it is given, and that ends with its parent."""
    trial = privileges.try_map_access(user)
    keep = frozenset() if trial.works or trial.denied else frozenset({"CAP_BPF"})
    privileges.drop(user, keep=keep)
    privileges.end_with(link.parent, signal.SIGTERM)


class Attachment:
    """Probes for the KVM that is loaded now: its handler's address and its types change with every load."""

    def __init__(
        self, link: Link, vms: Vms, instance: int | None, report: Callable[[Call, Verdict], None]
    ) -> None:
        """`instance` is the kvm_instance() from before the first loader was started.

        What the probes send goes to `report`, call by call.
        """
        self.probes: Probes | Unattached = Unattached()
        self._link = link
        self._vms = vms
        self._report = report
        self._loading: socket.socket | None = link.first
        self._instance = instance  # the one that the probes are for, or are being loaded for
        self._retry_at = -math.inf
        self._missing = ""

    def wait(self, *, even_without_kvm: bool = False) -> None:
        """Waits for the first probes. Raises KernelError if there are none."""
        try:
            self.probes = self._loaded()
        except KvmNotLoadedError as error:
            if not even_without_kvm:
                raise
            self._missing = error.found
            tell_state(f"{error.found}; waiting for it")

    def renew(self, watch: Watch) -> None:
        """Looks whether KVM was unloaded or loaded since, and has `watch` go on with probes that fit."""
        if self._loading and select.select([self._loading], [], [], 0)[0]:
            try:
                self._replace(self._loaded(), watch)
                tell_state(self.line)
            except KernelError as error:
                self._missing = str(error)
                tell_state(f"{error}; trying again in {_RETRY_S:.0f} s", Level.ERROR)
                self._retry_at = time.monotonic() + _RETRY_S
        instance = kvm_instance()
        if self._loading or (self.is_attached and instance == self._instance):
            return
        if self.is_attached:
            self._replace(Unattached(), watch)
            self._missing = "KVM was unloaded"
            tell_state(f"{self._missing}: the probes are off until it is back", Level.NOTICE)
        is_new = instance != self._instance
        if instance is not None and (is_new or time.monotonic() >= self._retry_at):
            self._loading, self._instance = self._link.load(), instance

    def poll(self, timeout_s: float) -> None:
        """Reads what the probes have sent; waits up to `timeout_s` for it."""
        for said in self.probes.poll(timeout_s):
            self._report(*said)

    @property
    def is_attached(self) -> bool:
        """Whether there are probes now."""
        return not isinstance(self.probes, Unattached)

    @property
    def missing(self) -> str:
        """Why there are no probes now; empty if there are."""
        if self.is_attached:
            return ""
        return "the probes are being loaded" if self._loading else self._missing

    @property
    def line(self) -> str:
        """The line that scripts wait for on stderr."""
        return attached_line(self.probes.mode, self.probes.functions)

    def close(self) -> None:
        """Takes the probes off."""
        self.probes.close()

    def _loaded(self) -> Probes:
        """What the loader hands over; waits for it."""
        assert self._loading
        channel, self._loading = self._loading, None
        with channel:
            return probes.adopt(channel, vms=self._vms)

    def _replace(self, new: Probes | Unattached, watch: Watch) -> None:
        old, self.probes = self.probes, new
        for said in old.stop():
            self._report(*said)
        watch.replace(new)
        old.close()


class Configuration:
    """The settings in force. Once it is made, SIGHUP does not end this process, but asks for a reload."""

    def __init__(self, settings_now: Callable[[], Settings]) -> None:
        """`settings_now` reads them, or raises ConfigError; as this does."""
        self._asked = False
        signal.signal(signal.SIGHUP, self._ask)
        self._settings_now = settings_now
        self.settings = settings_now()

    def renew(self, watch: Watch, web: WebFile | None) -> None:
        """Looks whether SIGHUP came, and reloads if so."""
        if self._asked:
            self._asked = False  # before reading: what is asked for meanwhile is another reload
            notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            tell(f"configuration read again: {self.reload(watch, web)}")
            notify("READY=1")

    def reload(self, watch: Watch, web: WebFile | None) -> str:
        """Puts in force what the files say now, as far as that takes no restart; returns how it went.

        What cannot be read changes nothing.
        """
        done = []
        try:
            new = self._settings_now()
            if web:
                web.reload()
                done.append(f"{web.path} too")
        except (ConfigError, WebConfigError) as error:
            for line in str(error).splitlines():
                tell(line, Level.ERROR)
            return "refused, all stays as it was"
        if new.per_counter != self.settings.per_counter:
            watch.count_per_counter(new.per_counter)
            self.settings = replace(self.settings, per_counter=new.per_counter)
            done.append(f"per_counter is {str(new.per_counter).lower()} now")
        differ = [
            each.name for each in fields(new) if getattr(new, each.name) != getattr(self.settings, each.name)
        ]
        if differ:
            done.append(f"restart to change {', '.join(differ)}")
        return "; ".join(done) or "nothing changed"

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True


def watch_over(
    attachment: Attachment,
    watch: Watch,
    modes: Modes,
    report: Report,
    reload: Callable[[], None],
    duration_s: float | None,
    stopped: Callable[[], bool],
) -> None:
    """Keeps up with the probes' ring, with the VMs that are gone, with KVM itself, and with its settings."""
    end = time.monotonic() + (math.inf if duration_s is None else duration_s)
    swept = time.monotonic()
    while not stopped() and (left := end - time.monotonic()) > 0:
        is_due = time.monotonic() - swept >= _SWEEP_S
        processes = watch.processes() if is_due else frozenset[int]()
        # What is to be counted stands in the maps. The ring has the VMs' names, and must not stay full.
        attachment.poll(min(POLL_S, left))
        reload()
        if is_due:
            attachment.renew(watch)
            watch.sweep(processes)
            look_at_modes(attachment.probes.census, modes, watch)
            report.sweep()
            notify("WATCHDOG=1")
            swept = time.monotonic()


def look_at_modes(census: Census, modes: Modes, watch: Watch) -> None:
    """Shows which vPMU each VM has, and tells of those that have none to trace."""
    tell_untraced(modes.sweep(census))
    watch.show_pmus(modes.by_vm)
    if missing := modes.newly_missing(census):
        tell(f"which vPMU a VM has cannot be told, all else works: {missing}", Level.WARNING)


def open_web_config(path: Path) -> WebFile:
    """The file of --web.config.file; only who has one needs what reads it. Raises WebConfigError."""
    from vpmu_agent.web.web_file import WebFile

    return WebFile(path, lambda error: tell(error, Level.ERROR))


def tell_state(line: str, level: Level = Level.INFO) -> None:
    """A line for the log that is also what `systemctl status` shows from now on."""
    tell(line, level)
    notify(f"STATUS={line}")
