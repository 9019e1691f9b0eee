"""Which hosts a request may be for, so that no web page reads the agent through a browser (DNS rebinding).

A page may give its own name the agent's address, and then ask the agent by that name as if it were its own
server. The browser sends that name in the header Host. docs/web.md says what is answered, and why.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from vpmu_agent.web.address import Address

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Domains that nobody can have on the internet: RFC 6761, RFC 6762, RFC 8375, and ICANN for private use.
_PRIVATE_DOMAINS = (".localhost", ".local", ".home.arpa", ".internal")
_WITHOUT_DATA = ("/-/healthy", "/-/ready")

_is_pattern = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*").fullmatch


def parse_hosts(text: str) -> frozenset[str]:
    """Return the hosts in a list such as `a.example,*.b.example`. Raise ValueError: it says what is wrong."""
    hosts = frozenset(each.strip().lower().rstrip(".") for each in text.split(",") if each.strip())
    for host in hosts:
        if not _is_pattern(host):
            raise ValueError(f"{host!r} is not a host name: write NAME, *.DOMAIN, or * for any host")
    return hosts


class Hosts:
    """The hosts that are known: addresses, names that no web page can have, our own, and those allowed."""

    def __init__(self, listen: Address, bound: Address, allowed: Collection[str]) -> None:
        """Take what --listen says, the address that came of it, and what parse_hosts() returned."""
        self._allowed = allowed
        self._own = {listen.host.lower(), socket.gethostname().lower()}
        self._is_local = ipaddress.ip_address(bound.host.partition("%")[0]).is_loopback

    def learn_own_name(self) -> None:
        """Ask for this machine's full name, in a thread: that can take long, and nobody waits for it."""
        with suppress(RuntimeError):  # no threads: then it remains unknown
            threading.Thread(target=lambda: self._own.add(socket.getfqdn().lower()), daemon=True).start()

    def guarded(self, application: WSGIApplication) -> WSGIApplication:
        """Return the application for requests that are for known hosts; others are refused."""

        def guard(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            host = environ.get("HTTP_HOST", "")
            if self._is_safe(environ) or self.knows(host):
                return application(environ, start_response)
            start_response("421 Misdirected Request", [("Content-Type", "text/plain; charset=utf-8")])
            text = f"unknown host {host[:100]!a}: use this machine's address or name, or see --allow-hosts\n"
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [text.encode()]

        return guard

    def knows(self, header: str) -> bool:
        """Return whether a Host header names a known host. Without one, it was not a browser that asked."""
        host = re.sub(r":\d*$", "", header.lower()).rstrip(".")
        return (
            ("." not in host.removeprefix("[") and ":" not in host)  # "", "localhost", "web01"
            or _is_address(host)
            or host.endswith(_PRIVATE_DOMAINS)
            or host in self._own
            or any(_matches(host, pattern) for pattern in self._allowed)
        )

    def _is_safe(self, environ: WSGIEnvironment) -> bool:
        """Return whether it does not matter whom the request is for."""
        path = environ.get("PATH_INFO") or "/"
        return (
            # With TLS the browser has checked the name, and a page has no password for a name of its own.
            environ["wsgi.url_scheme"] == "https"
            or "AUTH_TYPE" in environ
            or path in _WITHOUT_DATA
            # Prometheus may use any name that leads to an address that others can reach.
            or (path == "/metrics" and not self._is_local)
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return False
    return True


def _matches(host: str, pattern: str) -> bool:
    return pattern == "*" or host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))
