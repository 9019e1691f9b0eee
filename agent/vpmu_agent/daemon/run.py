"""The daemon: watch all VMs and serve what is counted, without privileges."""

from __future__ import annotations

import faulthandler
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from vpmu_agent.counts.guests import Found, Guests
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.daemon.attachment import Attachment
from vpmu_agent.daemon.failing import FailingCounters
from vpmu_agent.daemon.leaks import LeakReport
from vpmu_agent.daemon.pulse import Pulse
from vpmu_agent.daemon.report import Report, tell_refused, tell_untraced
from vpmu_agent.daemon.resets import ResetReport
from vpmu_agent.daemon.separation import Link, give_up_privileges
from vpmu_agent.daemon.settings import Configuration
from vpmu_agent.daemon.source import ProbeSource
from vpmu_agent.kernel.container import hidden_processes
from vpmu_agent.kernel.facts import cpu_vendor
from vpmu_agent.model.call import Call
from vpmu_agent.model.verdict import Verdict
from vpmu_agent.system.journal import LOG, Level, tell
from vpmu_agent.system.memory import give_back, keep_small
from vpmu_agent.system.notify import notify
from vpmu_agent.system.signals import END_S, stop_requests
from vpmu_agent.trace.live import POLL_S, LiveProbes
from vpmu_agent.vms.names import Vms
from vpmu_agent.web.app import application
from vpmu_agent.web.hosts import Hosts
from vpmu_agent.web.metrics import Exporter
from vpmu_agent.web.server import Server
from vpmu_agent.web.state import Overview

if TYPE_CHECKING:
    from vpmu_agent.web.web_file import WebFile

_SWEEP_S = 1.0


def run(
    link: Link,
    instance: int | None,
    configuration: Configuration,
    reload_requested: Callable[[], bool],
    *,
    duration_s: float | None,
    source: ProbeSource,
) -> None:
    """Be the daemon, until the time is over or a signal comes; see start().

    `instance` is what `source.kvm_instance()` returned before the first loader was started.
    """
    settings = configuration.settings
    keep_small()
    faulthandler.enable()  # a service manager's watchdog sends SIGABRT: the log shall say where it hung
    give_up_privileges(link, settings.user)
    if option := hidden_processes():
        tell(
            f"/proc hides the processes of other users (hidepid={option}): VMs have no names before "
            "their first call, and then by the first 511 bytes of their command line; mount /proc "
            "without hidepid, or with gid= and this user in that group",
            Level.WARNING,
        )
    # Not before: this user must be able to read it, now and when it changes.
    web = open_web_config(settings.web_config_file) if settings.web_config_file else None
    vms, vendor = Vms(), cpu_vendor()
    recent, report = Recent(), Report(vendor=vendor)

    def take(call: Call, verdict: Verdict) -> None:
        recent.add(call, verdict)
        report.add(call, verdict)

    attachment = Attachment(link, vms, instance, take, source)
    # Before waiting for the probes: what is wrong with the address shows at once.
    with closing(report), closing(Server(settings.listen, web)) as server, closing(attachment):
        attachment.wait(even_without_kvm=settings.wait)
        watch = Watch(
            attachment.probes,
            vms,
            per_counter=settings.per_counter,
            durations=settings.durations,
            reads=settings.reads,
        )
        guests = Guests(vms)
        tellers = FailingCounters().tell_of, LeakReport().tell_of, ResetReport().tell_of
        with stop_requests(within_s=END_S) as stopped:
            # Before the first scrape, which shows what VMs held before the agent came.
            look_at_guests(attachment.probes, guests, watch, tellers)
            overview = Overview(watch, recent, lambda: attachment.missing, vendor)
            hosts = Hosts(settings.listen, server.address, settings.allow_hosts)
            hosts.learn_own_name()
            answers = application(Exporter(watch), overview, lambda: server.trouble)
            server.start(hosts.guarded(answers))
            tell(f"serving {server.url}/metrics")
            if attachment.is_attached:
                attachment.tell_attached()
            test_probes(attachment, watch)
            give_back()
            notify("READY=1")
            try:
                watch_over(
                    attachment,
                    watch,
                    guests,
                    report,
                    tellers,
                    Pulse(lambda: server.trouble),
                    have_ended=vms.have_ended,
                    reload=lambda: configuration.reload_if(reload_requested(), watch, web),
                    duration_s=duration_s,
                    stopped=stopped,
                )
            finally:
                notify("STOPPING=1")
                server.close()  # a scrape reads the probes' maps


def watch_over(
    attachment: Attachment,
    watch: Watch,
    guests: Guests,
    report: Report,
    tellers: Sequence[Callable[[Found], None]],
    pulse: Pulse,
    *,
    have_ended: Callable[[], bool],
    reload: Callable[[], None],
    duration_s: float | None,
    stopped: Callable[[], bool],
) -> None:
    """Keep up with the probes' ring, with VMs that end, with KVM itself and with the settings.

    A VM's end is looked for as often as the ring: another process can have its tgid at once. But not so often
    that it takes more than a tenth of the time.
    """
    end = time.monotonic() + (math.inf if duration_s is None else duration_s)
    swept = look_from = time.monotonic()
    while not stopped() and (left := end - time.monotonic()) > 0:
        is_due = time.monotonic() - swept >= _SWEEP_S
        has_ended = time.monotonic() >= look_from and have_ended()
        processes = watch.processes() if is_due or has_ended else frozenset[int]()
        # What is to be counted stands in the maps. The ring has the VMs' names, and must not stay full.
        attachment.poll(min(POLL_S, left))
        reload()
        if has_ended and not is_due:
            began = time.monotonic()
            watch.sweep(processes)
            look_from = max(began + POLL_S, time.monotonic() + 9 * (time.monotonic() - began))
        if is_due:
            attachment.renew(watch)
            test_probes(attachment, watch)
            watch.sweep(processes)
            watch.give_back()
            tell_refused(watch.newly_refused())
            look_at_guests(attachment.probes, guests, watch, tellers)
            report.sweep()
            LOG.retry()
            pulse.sweep()
            swept = time.monotonic()


def test_probes(attachment: Attachment, watch: Watch) -> None:
    """Find out whether the probes run, and show it."""
    attachment.test()
    watch.show_sight(attachment.sees)


def look_at_guests(
    probes: LiveProbes, guests: Guests, watch: Watch, tellers: Sequence[Callable[[Found], None]]
) -> None:
    """Show what the census finds, and tell of VMs without a vPMU to trace, and what `tellers` tell of it."""
    tell_untraced(guests.sweep(probes.census, probes.errnos, probes.starvations()))
    watch.show_guests(guests.found)
    for tell_of in tellers:
        tell_of(guests.found)
    if missing := guests.newly_missing(probes.census):
        tell(f"there is no census, all else works: {missing}", Level.WARNING)


def open_web_config(path: Path) -> WebFile:
    """Return the file of --web.config.file; only who has one needs what reads it. Raise WebConfigError."""
    from vpmu_agent.web.web_file import WebFile

    return WebFile(path, lambda error: tell(error, Level.ERROR))
