"""`vpmu-agent run`, up to the point where one process is three: supervisor, loader and daemon."""

from __future__ import annotations

from collections.abc import Callable

from vpmu_agent.daemon.separation import require_switch, separate
from vpmu_agent.daemon.settings import Configuration, Settings
from vpmu_agent.daemon.source import ProbeSource
from vpmu_agent.system.notify import notify
from vpmu_agent.system.signals import reload_requests


def start(read_settings: Callable[[], Settings], *, duration_s: float | None, source: ProbeSource) -> None:
    """Watch all VMs and serve metrics, until the time is over or a signal comes.

    SIGHUP has the settings read again. Raise ConfigError, WebConfigError, KernelError and ListenError.
    """
    notify("STATUS=loading the probes")
    with reload_requests() as reload_requested:
        configuration = Configuration(read_settings)
        settings = configuration.settings
        require_switch()
        instance = source.kvm_instance()
        link = separate(
            source.loader_command(settings.attach, durations=settings.durations, reads=settings.reads)
        )
        # Not before: to import it takes as long as half of the loader's work, which goes on meanwhile.
        from vpmu_agent.daemon.run import run

        run(link, instance, configuration, reload_requested, duration_s=duration_s, source=source)
