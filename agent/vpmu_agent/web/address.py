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
        host = host[1:-1]
        if not host:
            raise ValueError(f"the host in {text!r} is empty: write :{port} for all addresses")
    elif ":" in host or "[" in host or "]" in host:
        raise ValueError(f"the host in {text!r} is not clear: write an IPv6 address as [::1]:{port}")
    if not (host.isprintable() and _can_be_looked_up(host)):
        raise ValueError(f"{host!r} in {text!r} cannot be the name of a host")
    return Address(host, int(port))


def _can_be_looked_up(host: str) -> bool:
    """Return whether the resolver can be asked for it: no part is empty or has more than 63 characters."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


class ListenError(Exception):
    """The server cannot listen on the address; the message says on which, and why."""
