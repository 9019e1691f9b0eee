"""Where the state comes from: a daemon that runs, or probes of our own."""

from __future__ import annotations

import json
import netrc
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from vpmu_agent.counts.guests import Guests
from vpmu_agent.counts.recent import Recent
from vpmu_agent.counts.watch import Watch
from vpmu_agent.kernel.errors import KernelError
from vpmu_agent.kernel.facts import cpu_vendor
from vpmu_agent.kernel.kvm import kvm_instance
from vpmu_agent.probes import Mode
from vpmu_agent.probes.self_test import OwnTester, SelfTest
from vpmu_agent.trace.live import POLL_S, Attach, LiveProbes
from vpmu_agent.vms.names import Vms
from vpmu_agent.web.counters import counters_json
from vpmu_agent.web.state import Overview, state_json

DEFAULT_URL = "http://127.0.0.1:9775"
"""Where a daemon serves if its configuration does not say otherwise."""

TIMEOUT_S = 5.0
"""How long a daemon may take to go on with its answer."""

MAX_ANSWER = 64 << 20
"""Bytes of an answer that are read."""

_SWEEP_S = 1.0
_WAIT_S = 0.1  # how late a request to stop may be noticed


class SourceError(Exception):
    """There is no state now; the message says why. There may be one later."""


class NoDaemonError(SourceError):
    """Nothing listens at the address."""


class Source(Protocol):
    """Where the state of a host comes from. For one thread."""

    @property
    def name(self) -> str:
        """What to call it in front of the user."""

    def state(self) -> Any:
        """Return the state as its JSON has it. Raise SourceError if there is none now."""

    def counters(self, vm: str) -> Sequence[Mapping[str, Any]] | None:
        """Return all counters of a VM as the JSON of web/counters.py; None if the source cannot know them.

        Raise SourceError if there is no answer now.
        """

    def keep_up(self) -> None:
        """Do what is due, and let up to a tenth of a second pass."""


def checked_url(url: str) -> str:
    """Return the URL without a slash at its end. Raise ValueError if it is none: it says what to write."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ValueError(f"{url!r} is not the URL of a daemon: write http://HOST:PORT")
    if parts.username or parts.query or parts.fragment:
        raise ValueError("write http://HOST:PORT and no more; a password belongs in ~/.netrc")
    return url.rstrip("/")


class DaemonSource:
    """A daemon, asked over HTTP. It takes no privileges.

    A password comes from ~/.netrc, and further certificates from $SSL_CERT_FILE, as for other clients.
    """

    def __init__(self, url: str) -> None:
        """Remember where to ask: at a URL that checked_url() returned."""
        self.name = url
        self._headers = _credentials(urlsplit(url).hostname or "")
        # No proxies: the daemon of this host is asked for this host.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def state(self) -> Any:
        """Return what /api/v1/state answers."""
        return self._get("/api/v1/state")

    def counters(self, vm: str) -> Sequence[Mapping[str, Any]] | None:
        """Return what /api/v1/counters answers; None if this daemon has no such path."""
        try:
            answer = self._get(f"/api/v1/counters?vm={quote(vm, safe='')}")
        except _StatusError as error:
            if error.status == 404:
                return None
            raise
        found = answer.get("counters") if isinstance(answer, dict) else None
        return found if isinstance(found, list) else None

    def keep_up(self) -> None:
        """Sleep."""
        time.sleep(_WAIT_S)

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(self.name + path, headers=self._headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read(MAX_ANSWER))
        except HTTPError as error:
            error.close()
            raise _StatusError(self.name, error.code, error.reason) from error
        except URLError as error:
            reason = error.reason
            said = getattr(reason, "strerror", None) or str(reason)
            kind = NoDaemonError if isinstance(reason, ConnectionRefusedError) else SourceError
            raise kind(f"{self.name} cannot be reached: {said}") from error
        except TimeoutError as error:
            raise SourceError(f"{self.name} did not answer within {TIMEOUT_S:.0f} s") from error
        except (HTTPException, OSError) as error:
            raise SourceError(f"{self.name} hung up without an answer") from error
        except ValueError as error:
            raise SourceError(f"{self.name} answered with something that is not JSON") from error


class _StatusError(SourceError):
    def __init__(self, url: str, status: int, reason: str) -> None:
        hints = {
            401: "; put the user and password into ~/.netrc",
            421: "; use an address, or name the host in the daemon's --allow-hosts",
        }
        super().__init__(f"{url} answered {status} {reason}{hints.get(status, '')}")
        self.status = status


class OwnSource:
    """Probes of our own, attached as long as this process runs."""

    def __init__(self, probes: LiveProbes, vms: Vms) -> None:
        """Take what is there already into account. Raise KernelError if the probes do not run."""
        self.name = f"own {probes.mode} probes"
        self._probes = probes
        self._instance = kvm_instance()
        self._recent = Recent()
        self._watch = Watch(probes, vms)
        self._guests = Guests(vms)
        self._vendor = cpu_vendor()
        self._overview = Overview(self._watch, self._recent, str, self._vendor)
        self._swept = time.monotonic()
        self._self_test = SelfTest(OwnTester())
        self._look()

    def state(self) -> Any:
        """Return the state of at most a second ago."""
        return json.loads(state_json(self._overview.state()))

    def counters(self, vm: str) -> Sequence[Mapping[str, Any]] | None:
        """Return what the census found last."""
        answer = json.loads(counters_json(vm, self._guests.found, self._vendor))
        found: list[Mapping[str, Any]] = answer["counters"]
        return found

    def keep_up(self) -> None:
        """Take what the probes have sent, and once a second look for VMs that came or went.

        Raise KernelError if KVM was loaded again, because these probes are of the one before, or if they do
        not run.
        """
        is_due = time.monotonic() - self._swept >= _SWEEP_S
        processes = self._watch.processes() if is_due else frozenset[int]()
        for call, verdict in self._probes.poll(POLL_S):
            self._recent.add(call, verdict)
        if is_due:
            if kvm_instance() != self._instance:
                raise KernelError("KVM was unloaded or loaded again, so the probes see nothing any more")
            self._watch.sweep(processes)
            self._watch.give_back()
            self._look()
            self._swept = time.monotonic()

    def _look(self) -> None:
        if (sight := self._self_test.step(self._probes.self_tested)).runs is False:
            raise KernelError(sight.why, sight.todo)
        self._guests.sweep(self._probes.census, self._probes.errnos)
        self._watch.show_guests(self._guests.found)


@contextmanager
def chosen(url: str | None, default_url: str, mode: Mode, attach: Attach) -> Iterator[Source]:
    """Yield the daemon at `url`; if that is None, the one at `default_url`, or probes of our own.

    Raise SourceError if the daemon cannot be asked, or if there is none and probes cannot be attached.
    """
    daemon = DaemonSource(url or default_url)
    try:
        daemon.state()
    except NoDaemonError as nobody:
        if url:
            raise
        absent = nobody
    else:
        yield daemon
        return
    vms = Vms()
    with ExitStack() as stack:
        try:
            own = OwnSource(stack.enter_context(attach(mode=mode, vms=vms, stream=False)), vms)
        except KernelError as error:
            raise SourceError(f"{absent}, and probes cannot be attached: {error}") from error
        yield own


def _credentials(host: str) -> dict[str, str]:
    """Return the header with the user and password that ~/.netrc has for a host; none if it has none."""
    try:
        found = netrc.netrc(Path.home() / ".netrc").authenticators(host)
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return {}
    if not found:
        return {}
    user, _, password = found
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
