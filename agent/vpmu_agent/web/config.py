"""Reads and checks the file of --web.config.file, in the format of Prometheus's exporter-toolkit.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Settings that Python's
ssl cannot honour are refused: a file that is shared with other exporters must not protect less here.
docs/web.md lists what is taken otherwise than there.

Imported only where there is such a file, for it needs bcrypt and yaml.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EACCES
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import yaml
from yaml.composer import ComposerError
from yaml.resolver import Resolver

from vpmu_agent.system.files import open_file, read_file, read_opened
from vpmu_agent.web.errors import WebConfigError
from vpmu_agent.web.users import Users

MAX_SIZE = 64 * 1024
"""Bytes of the file: some hundred users."""

MAX_PEM_SIZE = 1024 * 1024
"""Bytes of certificates or a key; all public authorities together have a quarter of that."""

_MAX_DEPTH = 10
"""Of collections within each other; the format has three."""


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The contents of the file."""

    tls: ssl.SSLContext | None = None
    allowed_sans: frozenset[str] = frozenset()
    """A client's certificate must have one of these names; empty: it may have any."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of every answer; they replace our own of the same name."""
    users: Users | None = None
    """None: no authentication."""

    @property
    def needs_password(self) -> bool:
        """Whether only users are answered."""
        return self.users is not None

    def accepts(self, certificate: Mapping[str, Any] | None) -> bool:
        """Return whether a client's certificate, a verified one, has one of the names that it must have."""
        return not self.allowed_sans or not self.allowed_sans.isdisjoint(_sans(certificate))


def check(path: Path) -> None:
    """Raise WebConfigError if the file, or one that it names, cannot be used."""
    read(path, {})


def _sans(certificate: Mapping[str, Any] | None) -> set[str]:
    """Return the subject alternative names of a client's certificate: DNS, IP, e-mail, URI."""
    names = (certificate or {}).get("subjectAltName", ())
    return {str(ipaddress.ip_address(name)) if kind == "IP Address" else name for kind, name in names}


Stamp = tuple[int, ...]


def stamp(path: Path) -> Stamp:
    """Return what differs once a file was written, replaced, or made readable; empty if it is not there."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: no file can have this name
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


# Reading


class _Loader(yaml.SafeLoader):
    """Refuses collections that are nested too deeply, before they take Python's whole stack, and a second."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            mark = parent.start_mark if parent else None
            raise ComposerError(None, None, f"nested deeper than {_MAX_DEPTH} collections", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass(frozen=True, slots=True)
class _Value:
    """A value in the file, and its place there."""

    file: Path
    key: str
    node: yaml.Node

    def refused(self, found: str) -> WebConfigError:
        """Return the error for this value: its place, its key, and what was found."""
        place = f"{self.file}:{self.node.start_mark.line + 1}"
        return WebConfigError(f"{place}: {_shown(self.key)}: {found}" if self.key else f"{place}: {found}")

    @property
    def is_null(self) -> bool:
        """Whether nothing was written, or `null`: as if the key were left out."""
        return self.node.tag == _NULL and _has_implicit_tag(self.node)

    @property
    def is_blank(self) -> bool:
        """Whether it is null or an empty string."""
        return self.is_null or (self.node.tag == _STRING and not self.node.value)

    def fields(self, known: Collection[str]) -> _Fields:
        """Return the values of a mapping by their keys, which must be `known`; without null ones."""
        fields: _Fields = {}
        for at_key, name, value in self._entries():
            if name not in known:
                raise at_key.refused(f"is not a known key; known are {', '.join(known)}")
            if not value.is_null:
                fields.setdefault(name, value)
        return fields

    def entries(self) -> _Fields:
        """Return the values of a mapping that may have any keys."""
        entries: _Fields = {}
        for _, name, value in self._entries():
            entries.setdefault(name, value)
        return entries

    def _entries(self) -> Iterator[tuple[_Value, str, _Value]]:
        """Yield key, name and value of each entry: the mapping's own, then those that it merges."""
        for mapping in self._mappings():
            own = set()
            for key, node in mapping.value:
                if key.tag == _MERGE:
                    continue
                if not isinstance(key, yaml.ScalarNode):
                    raise _Value(self.file, self.key, key).refused("has a key that is not a string")
                path = f"{self.key}.{key.value}" if self.key else key.value
                at_key = _Value(self.file, path, key)
                if key.value in own:
                    raise at_key.refused("is set twice")
                own.add(key.value)
                yield at_key, key.value, _Value(self.file, path, node)

    def _mappings(self) -> Iterator[yaml.MappingNode]:
        """Yield the mapping, then what it merges (`<<: *other`), the first of which wins; each once."""
        met: set[int] = set()
        waiting = [self.node]
        while waiting:
            node = waiting.pop()
            if not (isinstance(node, yaml.MappingNode) and node.tag == _MAPPING):
                found = "must be a mapping: keys of its own, each indented on its own line"
                raise _Value(self.file, self.key, node).refused(found)
            if id(node) in met:  # an alias of it, or of a mapping that merges itself
                continue
            met.add(id(node))
            yield node
            merged = [value for key, value in node.value if key.tag == _MERGE]
            lists = [each.value if isinstance(each, yaml.SequenceNode) else [each] for each in merged]
            waiting += reversed([each for nodes in lists for each in nodes])

    def text(self) -> str:
        """Return a scalar that is not empty, as it is written, in quotes or without: 1 is "1"."""
        if not isinstance(self.node, yaml.ScalarNode) or self.is_blank:
            raise self.refused("must be a string that is not empty")
        if self.node.tag != _STRING and not _has_implicit_tag(self.node):
            raise self.refused("has a tag that does not fit: remove what begins with an exclamation mark")
        return str(self.node.value)

    def items(self) -> list[_Value]:
        """Return the values of a list."""
        if not (isinstance(self.node, yaml.SequenceNode) and self.node.tag == _LIST):
            raise self.refused("must be a list")
        return [_Value(self.file, self.key, node) for node in self.node.value]

    def choice(self, choices: Mapping[str, _T], unsupported: Mapping[str, str] | None = None) -> _T:
        """Return what one of the names stands for."""
        name = self.text()
        if why := (unsupported or {}).get(name):
            raise self.refused(f"{name} {why}")
        if name not in choices:
            raise self.refused(f"{name!a:.80} is not a known value; known are {', '.join(choices)}")
        return choices[name]

    def choices(self, choices: Mapping[str, _T], unsupported: Mapping[str, str] | None = None) -> list[_T]:
        """Return what the names in a list stand for."""
        return [each.choice(choices, unsupported) for each in self.items()]

    def boolean(self) -> bool:
        """Return true or false, which YAML 1.1 and Go know by other words too."""
        node = self.node
        name = node.value.lower() if _has_implicit_tag(node) and node.style is None else ""
        if name not in _BOOLEANS:
            raise self.refused("must be true or false")
        return _BOOLEANS[name]

    def path(self) -> Path:
        """Return the path of a file; a relative one starts at the folder of the web file."""
        text = self.text()
        if not text.isprintable():  # not shown: it may be a key
            raise self.refused("must be the path of a file: printable characters on one line")
        return self.file.parent / text


def read(path: Path, seen: dict[Path, Stamp]) -> WebConfig:
    """Return the contents of the file. Raise WebConfigError if it cannot be used.

    `seen` gets the stamp of every file that was read, taken just before.
    """
    try:
        return _read(path, seen)
    except WebConfigError:
        raise
    except Exception as error:  # whatever the file did: it must not end a daemon that reloads it
        found = f"cannot be used: {type(error).__name__}: {error}; please report this"
        raise WebConfigError(f"{path}: {found}") from error


def _read(path: Path, seen: dict[Path, Stamp]) -> WebConfig:
    root = _root(path, seen)
    if root is None or root.is_null:  # also while it is being written, and that must not let everybody in
        raise WebConfigError(f"{path}: is empty; to serve everybody, run without --web.config.file")
    fields = root.fields(_SECTIONS)
    http = fields["http_server_config"].fields(_HTTP) if "http_server_config" in fields else {}
    if "http2" in http:
        http["http2"].boolean()  # both are fine: true allows HTTP/2, it does not require it
    if "rate_limit" in fields:
        _require_no_limit(fields["rate_limit"])
    tls, allowed_sans = None, frozenset[str]()
    if "tls_server_config" in fields:
        tls, allowed_sans = _tls(fields["tls_server_config"], seen)
    return WebConfig(
        tls,
        allowed_sans,
        _headers(http["headers"]) if "headers" in http else {},
        _users(fields["basic_auth_users"]) if "basic_auth_users" in fields else None,
    )


def _root(path: Path, seen: dict[Path, Stamp]) -> _Value | None:
    """Return what the file consists of, None if that is nothing."""
    seen[path] = stamp(path)
    try:
        root = yaml.compose(read_file(path, MAX_SIZE), _Loader)
    except OSError as error:
        raise WebConfigError(f"{path}: {_unreadable(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        # A reader's error, of bytes that are no text, has a reason and no mark.
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise WebConfigError(f"{place}: is not YAML: {problem}") from error
    return _Value(path, "", root) if root else None


def _require_no_limit(section: _Value) -> None:
    fields = section.fields(_RATE_LIMIT)
    if "burst" in fields and not _is_whole(fields["burst"].text()):
        raise fields["burst"].refused("must be a whole number")
    if "interval" in fields and not _is_no_time(fields["interval"].text()):
        raise fields["interval"].refused(
            "is not supported: the agent serves a fixed number of clients at once; set it to 0, or remove it"
        )


def _tls(section: _Value, seen: dict[Path, Stamp]) -> tuple[ssl.SSLContext | None, frozenset[str]]:
    fields = section.fields(_TLS)
    if not fields:
        return None, frozenset()
    certificate, key = (_required_file(section, fields, name) for name in ("cert", "key"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    _set_versions(context, fields)
    _set_suites(context, fields)
    _set_curve(context, fields)
    _load_certificate(context, certificate, key, seen)
    return context, _set_clients(context, fields, seen)


def _set_versions(context: ssl.SSLContext, fields: _Fields) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if "min_version" in fields:
        context.minimum_version = fields["min_version"].choice(_VERSIONS, _BROKEN_VERSIONS)
    if "max_version" in fields:
        context.maximum_version = fields["max_version"].choice(_VERSIONS, _BROKEN_VERSIONS)
        if context.maximum_version < context.minimum_version:
            raise fields["max_version"].refused("is lower than min_version")


def _set_suites(context: ssl.SSLContext, fields: _Fields) -> None:
    prefers_own = fields.get("prefer_server_cipher_suites")
    if prefers_own and not prefers_own.boolean():
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    wanted = fields["cipher_suites"].choices(_SUITES) if "cipher_suites" in fields else []
    if not wanted:
        return
    # Those of TLS 1.3 are all on, as in Go, whatever the list says.
    if older := [suite for suite in wanted if suite]:
        context.set_ciphers(":".join(older))
    elif context.minimum_version < ssl.TLSVersion.TLSv1_3:
        raise fields["cipher_suites"].refused(
            "has only suites of TLS 1.3, so none for TLS 1.2: add one, or set min_version: TLS13"
        )


def _set_curve(context: ssl.SSLContext, fields: _Fields) -> None:
    value = fields.get("curve_preferences")
    curves = value.choices(_CURVES, _UNSUPPORTED_CURVES) if value else []
    if not (value and curves):
        return
    if len(curves) > 1:
        raise value.refused("Python's ssl supports only one curve: name one, or remove this key")
    try:
        context.set_ecdh_curve(curves[0])
    except (ValueError, ssl.SSLError) as error:  # X25519, in older versions of Python
        raise value.refused(
            f"this version of Python's ssl cannot set {curves[0]}: name another curve, or remove this key"
        ) from error


def _required_file(section: _Value, fields: _Fields, key: str) -> _Value:
    """Return the value of `KEY_file`."""
    named, inline = fields.get(f"{key}_file"), fields.get(key)
    if named and not named.is_blank:
        return named
    if inline and not inline.is_blank:
        raise inline.refused(f"is not supported: Python's ssl reads it from a file; name one in {key}_file")
    raise section.refused(f"needs {key}_file")


def _load_certificate(context: ssl.SSLContext, cert: _Value, key: _Value, seen: dict[Path, Stamp]) -> None:
    def no_passphrase() -> str:
        raise key.refused(
            f"{key.path()} is protected by a passphrase, and nobody is there to enter it: remove it"
        )

    with _opened(cert, "CERTIFICATE", seen) as cert_path, _opened(key, "PRIVATE KEY", seen) as key_path:
        try:
            context.load_cert_chain(cert_path, key_path, no_passphrase)
        except OSError as error:  # ssl.SSLError is one
            reason = getattr(error, "reason", None)
            if reason == "KEY_VALUES_MISMATCH":
                found = f"{key.path()} is not the key of the certificate {cert.path()}"
                raise key.refused(found) from error
            found = f"{cert.path()} and {key.path()} cannot be used: {reason or error}"
            raise cert.refused(found) from error


@contextmanager
def _opened(value: _Value, what: str, seen: dict[Path, Stamp]) -> Iterator[str]:
    """Open a file with a `what` in PEM format; yield the path of what was opened, whatever is there by then.

    Python's ssl opens files itself, and would wait for ever for one that became a FIFO.
    """
    path = value.path()
    seen[path] = stamp(path)
    try:
        descriptor = open_file(path)
    except OSError as error:
        raise value.refused(f"{path} {_unreadable(error)}") from error
    try:
        if f"{what}-----".encode() not in _read_pem(value, path, descriptor):
            raise value.refused(f"{path} contains no {what.lower()} in PEM format")
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read_pem(value: _Value, path: Path, descriptor: int) -> bytes:
    try:
        return read_opened(descriptor, MAX_PEM_SIZE)
    except OSError as error:
        raise value.refused(f"{path} {_unreadable(error)}") from error


def _load_authorities(context: ssl.SSLContext, value: _Value, seen: dict[Path, Stamp]) -> None:
    """Trust the certificates of client_ca_file, or those that client_ca itself contains."""
    if value.key.endswith("_file"):
        path = value.path()
        seen[path] = stamp(path)
        try:
            name, text = str(path), read_file(path, MAX_PEM_SIZE).decode("ascii", "ignore")
        except OSError as error:
            raise value.refused(f"{path} {_unreadable(error)}") from error
    else:
        name, text = "this text", value.text().encode("ascii", "ignore").decode()
    try:
        context.load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        found = f"{name} contains no usable certificate in PEM format"
        raise value.refused(f"{found}: {getattr(error, 'reason', None) or error}") from error
    # As in Go, all certificates in the file are trusted, with no root above them: an intermediate authority,
    # or a client's own certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _set_clients(context: ssl.SSLContext, fields: _Fields, seen: dict[Path, Stamp]) -> frozenset[str]:
    """Set which certificates clients need; return the names of which a certificate must have one."""
    policy = fields.get("client_auth_type")
    context.verify_mode = (
        policy.choice(_CLIENT_AUTH, _UNSUPPORTED_CLIENT_AUTH)
        if policy and not policy.is_blank
        else ssl.CERT_NONE
    )
    values = (fields.get("client_ca_file"), fields.get("client_ca"))
    if value := next((value for value in values if value and not value.is_blank), None):
        if context.verify_mode is ssl.CERT_NONE:
            raise value.refused("has no effect without client_auth_type: RequireAndVerifyClientCert")
        _load_authorities(context, value, seen)
        # As in Go, all certificates in the file are trusted, with no root above them: an intermediate
        # authority, or a client's own certificate.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    elif policy and context.verify_mode is ssl.CERT_REQUIRED:
        raise policy.refused("needs client_ca_file, the authorities whose certificates are accepted")
    elif context.verify_mode is ssl.CERT_OPTIONAL:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)  # as Go does: the authorities of this host
    if "client_allowed_sans" not in fields:
        return frozenset()
    sans = fields["client_allowed_sans"]
    if context.verify_mode is not ssl.CERT_REQUIRED:
        raise sans.refused(
            "needs client_auth_type: RequireAndVerifyClientCert, otherwise clients without a certificate are "
            "accepted"
        )
    if not sans.items():
        raise sans.refused("must not be an empty list, which no certificate fits")
    return frozenset(each.text() for each in sans.items())


def _unreadable(error: OSError) -> str:
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    todo = (
        "; give that user read access, or run as a user that has it (--user)" if error.errno == EACCES else ""
    )
    return f"cannot be read by user {user}: {error.strerror}{todo}"


def _headers(section: _Value) -> dict[str, str]:
    headers = {}
    for name, value in section.fields(_HEADERS).items():
        if value.is_blank:
            continue  # as if it were left out
        text, allowed = value.text(), _HEADERS[name]
        if allowed and text not in allowed:
            raise value.refused(f"must be {' or '.join(allowed)}")
        if not (text.isascii() and text.isprintable()):
            raise value.refused("must be printable ASCII on one line")
        headers[name] = text
    return headers


def _users(section: _Value) -> Users | None:
    hashes = {}
    for user, value in section.entries().items():
        if not user or ":" in user:
            raise value.refused("is not a user name: it must not be empty or contain a colon")
        if not _is_bcrypt(value.text()):
            raise value.refused('is not a bcrypt hash; make one with: htpasswd -nBC 10 "" | tr -d ":\\n"')
        hashes[user] = value.text().encode()
    return Users(hashes) if hashes else None


def _has_implicit_tag(node: yaml.Node) -> TypeGuard[yaml.ScalarNode]:
    """Return whether this is a scalar with the tag that its plain text has; `!!int x` has another."""
    resolve: Callable[..., str] = Resolver().resolve
    is_scalar = isinstance(node, yaml.ScalarNode)
    return is_scalar and node.tag == resolve(yaml.ScalarNode, node.value, (True, False))


def _shown(text: str) -> str:
    """Return a text of the file for the log: escaped if it has control characters."""
    return text if text.isprintable() else ascii(text)


_T = TypeVar("_T")
_Fields = dict[str, _Value]
_STRING, _NULL, _MERGE, _MAPPING, _LIST = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "null", "merge", "map", "seq")
)
_BOOLEANS: Mapping[str, bool] = {**yaml.SafeLoader.bool_values, "y": True, "n": False}
_is_whole = re.compile(r"[-+]?\d+", re.ASCII).fullmatch
# What Go's time.ParseDuration() makes 0.
_is_no_time = re.compile(r"[-+]?(0|(0+(\.0*)?(ns|us|µs|ms|s|m|h))+)").fullmatch
_is_bcrypt = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}").fullmatch

_SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users", "rate_limit")
_RATE_LIMIT = ("interval", "burst")
_HTTP = ("http2", "headers")
_HEADERS = {  # with their allowed values, if only some are allowed
    "Content-Security-Policy": (),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
    "X-XSS-Protection": (),
    "Strict-Transport-Security": (),
}
_TLS = (
    "cert_file",
    "key_file",
    "cert",
    "key",
    "client_auth_type",
    "client_ca_file",
    "client_ca",
    "client_allowed_sans",
    "min_version",
    "max_version",
    "cipher_suites",
    "prefer_server_cipher_suites",
    "curve_preferences",
)
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_BROKEN_VERSIONS = dict.fromkeys(
    ("TLS10", "TLS11"),
    "is not supported: RFC 8996 forbids it as insecure; use TLS12",
)
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_UNSUPPORTED_CLIENT_AUTH = dict.fromkeys(
    ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert"),
    "is not supported: it accepts certificates without verifying them, which proves nothing; use "
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
# Those of TLS 1.3 cannot be chosen, in Go or here.
_SUITES |= dict.fromkeys(
    ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"), ""
)
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_UNSUPPORTED_CURVES = {"X25519MLKEM768": "is not supported by Python's ssl: remove it"}
