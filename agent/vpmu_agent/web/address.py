"""Where to listen: a host and a port, as `--listen` takes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. An empty host stands for all addresses of this machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address in `HOST:PORT`, `[IPV6]:PORT` or `:PORT`.

    Raise ValueError, whose message says what is wrong with it.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r} has no port: write HOST:PORT")
    if not (port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
        raise ValueError(f"{port!r} in {text!r} is not a port number from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        return Address(host[1:-1], int(port))
    if ":" in host or "[" in host or "]" in host:
        raise ValueError(f"the host in {text!r} is not clear: write an IPv6 address as [::1]:{port}")
    return Address(host, int(port))


class ListenError(Exception):
    """The server cannot listen on the address; the message says on which, and why."""
