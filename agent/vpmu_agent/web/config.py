"""TLS and basic authentication, by a file in the format of Prometheus's exporter-toolkit.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. What Python's ssl cannot
do is refused: a file that an operator also gives to other exporters must not protect less here.

Only who has such a file imports this, and with it bcrypt and yaml.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import pwd
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from errno import EACCES
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import bcrypt
import yaml

from vpmu_agent.web.server import WebConfigError, time_left

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PASSWORD_S = 5.0
"""How long a client may wait until its password is looked at: one at a time is."""


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What the file says."""

    tls: ssl.SSLContext | None = None
    allowed_sans: frozenset[str] = frozenset()
    """One of these must be in a client's certificate; none: it need not have any."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What every answer has, in place of our own of the same name."""
    users: Users | None = None
    """None: there is no authentication."""


class WebFile:
    """The file, read anew whenever it or one that it names has changed.

    Raises WebConfigError when it is made. Later a file that cannot be used is told to `report`, once, and
    what was read before stays.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.path = path
        self._report = report
        self._lock = threading.Lock()
        self._seen: dict[Path, _Stamp] = {}
        self._config = self._read()

    def current(self) -> WebConfig:
        """What holds now."""
        if self._has_changed():
            with self._lock:
                if self._has_changed():
                    try:
                        self._config = self._read()
                    except WebConfigError as error:
                        self._report(f"{error}; what was read before stays")
        return self._config

    def reload(self) -> None:
        """Reads it anew. Raises WebConfigError if it cannot be used; what was read before stays then."""
        with self._lock:
            self._config = self._read()

    def secured(self, client: socket.socket, end: float) -> socket.socket | None:
        """The client behind TLS, if that is wanted; None if it speaks something else.

        OSError if the handshake fails, or is not over at `end` (time.monotonic()); `client` is closed then.
        """
        config = self.current()
        if config.tls is None:
            return client
        client.settimeout(time_left(end))
        if client.recv(1, socket.MSG_PEEK) != _HANDSHAKE:
            return None
        connection = config.tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        try:
            connection.settimeout(time_left(end))
            connection.do_handshake()
            if config.allowed_sans and config.allowed_sans.isdisjoint(_sans(connection.getpeercert())):
                raise ConnectionAbortedError("client_allowed_sans has none of the certificate's names")
        except BaseException:
            connection.close()
            raise
        return connection

    def guarded(self, application: WSGIApplication) -> WSGIApplication:
        """The same for users that are known, and with the headers that the file has."""

        def guard(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            config = self.current()
            theirs = {name.lower() for name in config.headers}

            def start(
                status: str, headers: list[tuple[str, str]], *failure: Any
            ) -> Callable[[bytes], object]:
                ours = [header for header in headers if header[0].lower() not in theirs]
                return start_response(status, [*ours, *config.headers.items()], *failure)

            try:
                if config.users is None or config.users.admits(environ.get("HTTP_AUTHORIZATION", "")):
                    return application(environ, start)
                start("401 Unauthorized", [_TEXT, ("WWW-Authenticate", _CHALLENGE)])
                body = b"a user and a password are needed\n"
            except BusyError:
                start("503 Service Unavailable", [_TEXT])
                body = b"too many passwords at once; try again\n"
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

        return guard

    def _has_changed(self) -> bool:
        return any(_stamp(path) != stamp for path, stamp in self._seen.items())

    def _read(self) -> WebConfig:
        seen: dict[Path, _Stamp] = {}
        try:
            return _read(self.path, seen)
        finally:
            self._seen = seen  # of a failure, too: it may be mended in any of them


def check(path: Path) -> None:
    """Raises WebConfigError if such a file, or one that it names, cannot be used."""
    _read(path, {})


class BusyError(Exception):
    """More clients than can be served want their passwords looked at."""


class Users:
    """Who may ask.

    bcrypt takes its time for each look at a password, on purpose. So what proved to be right is remembered,
    as a keyed digest, and one that is not is looked at only when it is its turn. For a user that is not known
    somebody else's hash is taken, so that nobody learns by the time it takes who is.
    """

    def __init__(self, hashes: Mapping[str, bytes]) -> None:
        self._hashes = hashes
        self._strangers = max(hashes.values(), key=lambda each: each.split(b"$")[2])  # by its cost
        self._key = secrets.token_bytes(32)
        self._proved: dict[str, bytes] = {}
        self._turn = threading.Lock()

    def admits(self, authorization: str) -> bool:
        """Whether the value of an Authorization header is of one of them. Raises BusyError."""
        user, password = _credentials(authorization)
        digest = hmac.digest(self._key, b"\0".join((user.encode(), password)), "sha256")
        if hmac.compare_digest(self._proved.get(user, b""), digest):
            return True
        if not user or b"\0" in password:  # which bcrypt does not take
            return False
        if not self._turn.acquire(timeout=PASSWORD_S):
            raise BusyError
        try:
            # bcrypt itself looks no further than 72 bytes; its newer versions refuse more.
            is_right = bcrypt.checkpw(password[:72], self._hashes.get(user, self._strangers))
        finally:
            self._turn.release()
        if is_right and user in self._hashes:
            self._proved[user] = digest
            return True
        return False


_HANDSHAKE = b"\x16"  # the first byte of TLS: the type of a record
_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_CHALLENGE = 'Basic realm="vpmu-agent", charset="UTF-8"'


def _credentials(authorization: str) -> tuple[str, bytes]:
    """User and password; no user if it has none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", b""
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return user.decode(), password
    except (binascii.Error, ValueError):
        return "", b""


def _sans(certificate: Mapping[str, Any] | None) -> set[str]:
    """The names that a client's certificate has beside its subject: DNS, IP, e-mail, URI."""
    names = (certificate or {}).get("subjectAltName", ())
    return {str(ipaddress.ip_address(name)) if kind == "IP Address" else name for kind, name in names}


_Stamp = tuple[int, ...]


def _stamp(path: Path) -> _Stamp:
    """What differs when a file was written anew, replaced, or may be read all of a sudden."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


# Reading


@dataclass(frozen=True, slots=True)
class _Value:
    """A value in the file, and where it is."""

    file: Path
    key: str
    node: yaml.Node

    def refused(self, found: str) -> WebConfigError:
        """The sentence for the user."""
        place = f"{self.file}:{self.node.start_mark.line + 1}"
        return WebConfigError(f"{place}: {self.key}: {found}" if self.key else f"{place}: {found}")

    def fields(self, known: Collection[str] = (), unsupported: Mapping[str, str] | None = None) -> _Fields:
        """The values of a mapping, by their keys; any key is fine if none is `known`."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.refused("must have keys of its own, each on a line and further to the right")
        fields: dict[str, _Value] = {}
        for key, node in self.node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            path = f"{self.key}.{name}" if self.key else name
            at_key = _Value(self.file, path, key)
            if why := (unsupported or {}).get(name):
                raise at_key.refused(why)
            if known and name not in known:
                raise at_key.refused(f"is not known; known are {', '.join(known)}")
            if name in fields:
                raise at_key.refused("is there twice")
            fields[name] = _Value(self.file, path, node)
        return fields

    def text(self) -> str:
        """A string that is not empty."""
        if not (isinstance(self.node, yaml.ScalarNode) and self.node.tag == _STRING and self.node.value):
            raise self.refused("must be a string, and not empty")
        return str(self.node.value)

    def items(self) -> list[_Value]:
        """The values of a list, one or more."""
        if not (isinstance(self.node, yaml.SequenceNode) and self.node.value):
            raise self.refused("must be a list, and not empty")
        return [_Value(self.file, self.key, node) for node in self.node.value]

    def choice(self, choices: Mapping[str, _T], unsupported: Mapping[str, str] | None = None) -> _T:
        """What one of the names stands for."""
        name = self.text()
        if why := (unsupported or {}).get(name):
            raise self.refused(f"{name} {why}")
        if name not in choices:
            raise self.refused(f"{name!r} is not known; known are {', '.join(choices)}")
        return choices[name]

    def choices(self, choices: Mapping[str, _T], unsupported: Mapping[str, str] | None = None) -> list[_T]:
        """What the names in a list stand for."""
        return [each.choice(choices, unsupported) for each in self.items()]

    def boolean(self) -> bool:
        """True or false."""
        if not (isinstance(self.node, yaml.ScalarNode) and self.node.tag == _BOOLEAN):
            raise self.refused("must be true or false")
        return bool(yaml.SafeLoader.bool_values[self.node.value.lower()])

    def path(self) -> Path:
        """A file; a relative name is one beside the file that this stands in."""
        return self.file.parent / self.text()


def _read(path: Path, seen: dict[Path, _Stamp]) -> WebConfig:
    """What the file says, or WebConfigError. `seen` gets all that was read, as it was just before."""
    seen[path] = _stamp(path)
    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
    except OSError as error:
        raise WebConfigError(f"{path}: {_unreadable(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise WebConfigError(f"{place}: is no YAML: {getattr(error, 'problem', None) or error}") from error
    if root is None:  # also for the moment in which somebody writes it: that must not open all doors
        raise WebConfigError(f"{path}: is empty; to serve everybody, leave --web.config.file out")
    fields = _Value(path, "", root).fields(_SECTIONS, _UNSUPPORTED)
    http = fields["http_server_config"].fields(_HTTP) if "http_server_config" in fields else {}
    if "http2" in http:
        http["http2"].boolean()  # either is kept to: it allows HTTP/2, and nobody must offer it
    tls, allowed_sans = None, frozenset[str]()
    if "tls_server_config" in fields:
        tls, allowed_sans = _tls(fields["tls_server_config"], seen)
    return WebConfig(
        tls,
        allowed_sans,
        _headers(http["headers"]) if "headers" in http else {},
        _users(fields["basic_auth_users"]) if "basic_auth_users" in fields else None,
    )


def _tls(section: _Value, seen: dict[Path, _Stamp]) -> tuple[ssl.SSLContext, frozenset[str]]:
    fields = section.fields(_TLS, _UNSUPPORTED_TLS)
    for name in ("cert_file", "key_file"):
        if name not in fields:
            raise section.refused(f"needs {name}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    _set_versions(context, fields)
    if "cipher_suites" in fields:
        context.set_ciphers(":".join(fields["cipher_suites"].choices(_SUITES, _UNSUPPORTED_SUITES)))
    prefers_own = fields.get("prefer_server_cipher_suites")
    if prefers_own and not prefers_own.boolean():
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if "curve_preferences" in fields:
        curve, *others = fields["curve_preferences"].choices(_CURVES, _UNSUPPORTED_CURVES)
        if others:
            raise fields["curve_preferences"].refused(
                "Python's ssl takes one curve: name one, or leave it out"
            )
        context.set_ecdh_curve(curve)
    _load_certificate(context, fields["cert_file"], fields["key_file"], seen)
    return context, _set_clients(context, fields, seen)


def _set_versions(context: ssl.SSLContext, fields: _Fields) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if "min_version" in fields:
        context.minimum_version = fields["min_version"].choice(_VERSIONS, _BROKEN_VERSIONS)
    if "max_version" in fields:
        context.maximum_version = fields["max_version"].choice(_VERSIONS, _BROKEN_VERSIONS)
        if context.maximum_version < context.minimum_version:
            raise fields["max_version"].refused("is lower than min_version")


def _load_certificate(context: ssl.SSLContext, cert: _Value, key: _Value, seen: dict[Path, _Stamp]) -> None:
    def no_passphrase() -> str:
        raise key.refused(f"{key.path()} has a passphrase, and nobody is there to be asked: take it off")

    for value, what in ((cert, "CERTIFICATE"), (key, "PRIVATE KEY")):
        if f"{what}-----" not in _contents(value, seen):
            raise value.refused(f"{value.path()} has no {what.lower()} in PEM")
    try:
        context.load_cert_chain(cert.path(), key.path(), no_passphrase)
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            raise key.refused(f"{key.path()} is not the key of the certificate {cert.path()}") from error
        raise cert.refused(f"{cert.path()} and {key.path()} cannot be used: {reason or error}") from error


def _set_clients(context: ssl.SSLContext, fields: _Fields, seen: dict[Path, _Stamp]) -> frozenset[str]:
    """Which clients are let in by their certificates; returns the names of which one must be in those."""
    context.verify_mode = (
        fields["client_auth_type"].choice(_CLIENT_AUTH, _UNSUPPORTED_CLIENT_AUTH)
        if "client_auth_type" in fields
        else ssl.CERT_NONE
    )
    if "client_ca_file" in fields:
        authorities = fields["client_ca_file"]
        if context.verify_mode is ssl.CERT_NONE:
            raise authorities.refused("has no effect without client_auth_type: RequireAndVerifyClientCert")
        try:
            context.load_verify_locations(cadata=_contents(authorities, seen))
        except ssl.SSLError as error:
            found = f"{authorities.path()} has no certificate in PEM that can be used"
            raise authorities.refused(f"{found}: {error.reason or error}") from error
    elif context.verify_mode is not ssl.CERT_NONE:
        raise fields["client_auth_type"].refused("needs client_ca_file, whose certificates are let in")
    if "client_allowed_sans" not in fields:
        return frozenset()
    sans = fields["client_allowed_sans"]
    if context.verify_mode is not ssl.CERT_REQUIRED:
        raise sans.refused(
            "needs client_auth_type: RequireAndVerifyClientCert, or who has no certificate is let in"
        )
    return frozenset(each.text() for each in sans.items())


def _contents(value: _Value, seen: dict[Path, _Stamp]) -> str:
    path = value.path()
    seen[path] = _stamp(path)
    try:
        return path.read_text("ascii", "replace")
    except OSError as error:
        raise value.refused(f"{path} {_unreadable(error)}") from error


def _unreadable(error: OSError) -> str:
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    todo = "; let that user read it, or run as one that may (--user)" if error.errno == EACCES else ""
    return f"cannot be read by user {user}: {error.strerror}{todo}"


def _headers(section: _Value) -> dict[str, str]:
    headers = {}
    for name, value in section.fields(_HEADERS).items():
        if isinstance(value.node, yaml.ScalarNode) and not value.node.value:
            continue  # as if it were not there
        text, allowed = value.text(), _HEADERS[name]
        if allowed and text.lower() not in allowed:
            raise value.refused(f"must be {' or '.join(allowed)}")
        if not (text.isascii() and text.isprintable()):
            raise value.refused("must be printable ASCII on one line")
        headers[name] = text
    return headers


def _users(section: _Value) -> Users | None:
    hashes = {}
    for user, value in section.fields().items():
        if not user or ":" in user:
            raise value.refused("is no name for a user: nobody can send one that is empty or has a colon")
        if not _is_bcrypt(value.text()):
            raise value.refused('is no bcrypt hash; make one: htpasswd -nBC 10 "" | tr -d ":\\n"')
        hashes[user] = value.text().encode()
    return Users(hashes) if hashes else None


_T = TypeVar("_T")
_Fields = dict[str, _Value]
_STRING, _BOOLEAN = "tag:yaml.org,2002:str", "tag:yaml.org,2002:bool"
_is_bcrypt = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}").fullmatch

_SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users")
_UNSUPPORTED = {
    "rate_limit": "is not supported: the agent serves a fixed number of clients at once; leave it out"
}
_HTTP = ("http2", "headers")
_HEADERS = {  # and what their values may be, if that is laid down
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}
_TLS = (
    *("cert_file", "key_file", "client_auth_type", "client_ca_file", "client_allowed_sans"),
    *("min_version", "max_version", "cipher_suites", "prefer_server_cipher_suites", "curve_preferences"),
)
_UNSUPPORTED_TLS = {
    inline: f"is not supported: Python's ssl reads files; write it to one and name it in {inline}_file"
    for inline in ("cert", "key", "client_ca")
}
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_BROKEN_VERSIONS = dict.fromkeys(
    ("TLS10", "TLS11"),
    "is not supported: RFC 8996 forbids it, for what it protects can be broken; take TLS12",
)
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_UNSUPPORTED_CLIENT_AUTH = dict.fromkeys(
    ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert"),
    "is not supported: it takes certificates that nobody verified, which prove nothing; take "
    "RequireAndVerifyClientCert",
)
# Go's names, which are IANA's, and OpenSSL's.
_SUITES = {
    f"TLS_ECDHE_{key}_WITH_{go}": f"ECDHE-{key}-{openssl}"
    for key in ("ECDSA", "RSA")
    for go, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
    )
}
_UNSUPPORTED_SUITES = dict.fromkeys(
    ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"),
    "is of TLS 1.3, whose suites are not chosen, here or in Go: leave it out",
)
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_UNSUPPORTED_CURVES = {"X25519MLKEM768": "is not supported by Python's ssl: leave it out"}
