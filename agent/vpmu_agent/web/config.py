"""Reads and checks the file of --web.config.file, in the format of Prometheus's exporter-toolkit.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. Settings that Python's
ssl cannot honour are refused: a file that is shared with other exporters must not protect less here.

Imported only where there is such a file, for it needs bcrypt and yaml.
"""

from __future__ import annotations

import os
import pwd
import re
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from errno import EACCES
from pathlib import Path
from typing import TypeVar

import yaml

from vpmu_agent.web.errors import WebConfigError
from vpmu_agent.web.users import Users


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


def check(path: Path) -> None:
    """Raise WebConfigError if the file, or one that it names, cannot be used."""
    read(path, {})


Stamp = tuple[int, ...]


def stamp(path: Path) -> Stamp:
    """Return what differs once a file was written, replaced, or made readable; empty if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


# Reading


@dataclass(frozen=True, slots=True)
class _Value:
    """A value in the file, and its place there."""

    file: Path
    key: str
    node: yaml.Node

    def refused(self, found: str) -> WebConfigError:
        """Return the error for this value: its place, its key, and what was found."""
        place = f"{self.file}:{self.node.start_mark.line + 1}"
        return WebConfigError(f"{place}: {self.key}: {found}" if self.key else f"{place}: {found}")

    def fields(self, known: Collection[str] = (), unsupported: Mapping[str, str] | None = None) -> _Fields:
        """Return the values of a mapping by their keys, which must be `known` ones unless that is empty.

        `unsupported` says of keys that exporter-toolkit has why they are not supported here.
        """
        if not isinstance(self.node, yaml.MappingNode):
            raise self.refused("must be a mapping: keys of its own, each indented on its own line")
        fields: dict[str, _Value] = {}
        for key, node in self.node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            path = f"{self.key}.{name}" if self.key else name
            at_key = _Value(self.file, path, key)
            if why := (unsupported or {}).get(name):
                raise at_key.refused(why)
            if known and name not in known:
                raise at_key.refused(f"is not a known key; known are {', '.join(known)}")
            if name in fields:
                raise at_key.refused("is set twice")
            fields[name] = _Value(self.file, path, node)
        return fields

    def text(self) -> str:
        """Return a string that is not empty."""
        if not (isinstance(self.node, yaml.ScalarNode) and self.node.tag == _STRING and self.node.value):
            raise self.refused("must be a string that is not empty")
        return str(self.node.value)

    def items(self) -> list[_Value]:
        """Return the values of a list, one or more."""
        if not (isinstance(self.node, yaml.SequenceNode) and self.node.value):
            raise self.refused("must be a list that is not empty")
        return [_Value(self.file, self.key, node) for node in self.node.value]

    def choice(self, choices: Mapping[str, _T], unsupported: Mapping[str, str] | None = None) -> _T:
        """Return what one of the names stands for."""
        name = self.text()
        if why := (unsupported or {}).get(name):
            raise self.refused(f"{name} {why}")
        if name not in choices:
            raise self.refused(f"{name!r} is not a known value; known are {', '.join(choices)}")
        return choices[name]

    def choices(self, choices: Mapping[str, _T], unsupported: Mapping[str, str] | None = None) -> list[_T]:
        """Return what the names in a list stand for."""
        return [each.choice(choices, unsupported) for each in self.items()]

    def boolean(self) -> bool:
        """Return true or false."""
        if not (isinstance(self.node, yaml.ScalarNode) and self.node.tag == _BOOLEAN):
            raise self.refused("must be true or false")
        return bool(yaml.SafeLoader.bool_values[self.node.value.lower()])

    def path(self) -> Path:
        """Return the path of a file; a relative one starts at the folder of the web file."""
        return self.file.parent / self.text()


def read(path: Path, seen: dict[Path, Stamp]) -> WebConfig:
    """Return the contents of the file. Raise WebConfigError if it cannot be used.

    `seen` gets the stamp of every file that was read, taken just before.
    """
    seen[path] = stamp(path)
    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
    except OSError as error:
        raise WebConfigError(f"{path}: {_unreadable(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise WebConfigError(f"{place}: is not YAML: {getattr(error, 'problem', None) or error}") from error
    if root is None:  # also while it is being written, and that must not let everybody in
        raise WebConfigError(f"{path}: is empty; to serve everybody, run without --web.config.file")
    fields = _Value(path, "", root).fields(_SECTIONS, _UNSUPPORTED)
    http = fields["http_server_config"].fields(_HTTP) if "http_server_config" in fields else {}
    if "http2" in http:
        http["http2"].boolean()  # both are fine: true allows HTTP/2, it does not require it
    tls, allowed_sans = None, frozenset[str]()
    if "tls_server_config" in fields:
        tls, allowed_sans = _tls(fields["tls_server_config"], seen)
    return WebConfig(
        tls,
        allowed_sans,
        _headers(http["headers"]) if "headers" in http else {},
        _users(fields["basic_auth_users"]) if "basic_auth_users" in fields else None,
    )


def _tls(section: _Value, seen: dict[Path, Stamp]) -> tuple[ssl.SSLContext, frozenset[str]]:
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
                "Python's ssl supports only one curve: name one, or remove this key"
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


def _load_certificate(context: ssl.SSLContext, cert: _Value, key: _Value, seen: dict[Path, Stamp]) -> None:
    def no_passphrase() -> str:
        raise key.refused(
            f"{key.path()} is protected by a passphrase, and nobody is there to enter it: remove it"
        )

    for value, what in ((cert, "CERTIFICATE"), (key, "PRIVATE KEY")):
        if f"{what}-----" not in _contents(value, seen):
            raise value.refused(f"{value.path()} contains no {what.lower()} in PEM format")
    try:
        context.load_cert_chain(cert.path(), key.path(), no_passphrase)
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            raise key.refused(f"{key.path()} is not the key of the certificate {cert.path()}") from error
        raise cert.refused(f"{cert.path()} and {key.path()} cannot be used: {reason or error}") from error


def _set_clients(context: ssl.SSLContext, fields: _Fields, seen: dict[Path, Stamp]) -> frozenset[str]:
    """Set which certificates clients need; return the names of which a certificate must have one."""
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
            found = f"{authorities.path()} contains no usable certificate in PEM format"
            raise authorities.refused(f"{found}: {error.reason or error}") from error
    elif context.verify_mode is not ssl.CERT_NONE:
        raise fields["client_auth_type"].refused(
            "needs client_ca_file, the authorities whose certificates are accepted"
        )
    if "client_allowed_sans" not in fields:
        return frozenset()
    sans = fields["client_allowed_sans"]
    if context.verify_mode is not ssl.CERT_REQUIRED:
        raise sans.refused(
            "needs client_auth_type: RequireAndVerifyClientCert, otherwise clients without a certificate are "
            "accepted"
        )
    return frozenset(each.text() for each in sans.items())


def _contents(value: _Value, seen: dict[Path, Stamp]) -> str:
    path = value.path()
    seen[path] = stamp(path)
    try:
        return path.read_text("ascii", "replace")
    except OSError as error:
        raise value.refused(f"{path} {_unreadable(error)}") from error


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
        if isinstance(value.node, yaml.ScalarNode) and not value.node.value:
            continue  # as if it were left out
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
            raise value.refused("is not a user name: it must not be empty or contain a colon")
        if not _is_bcrypt(value.text()):
            raise value.refused('is not a bcrypt hash; make one with: htpasswd -nBC 10 "" | tr -d ":\\n"')
        hashes[user] = value.text().encode()
    return Users(hashes) if hashes else None


_T = TypeVar("_T")
_Fields = dict[str, _Value]
_STRING, _BOOLEAN = "tag:yaml.org,2002:str", "tag:yaml.org,2002:bool"
_is_bcrypt = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}").fullmatch

_SECTIONS = ("tls_server_config", "http_server_config", "basic_auth_users")
_UNSUPPORTED = {
    "rate_limit": "is not supported: the agent serves a fixed number of clients at once; remove it"
}
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
    "client_auth_type",
    "client_ca_file",
    "client_allowed_sans",
    "min_version",
    "max_version",
    "cipher_suites",
    "prefer_server_cipher_suites",
    "curve_preferences",
)
_UNSUPPORTED_TLS = {
    inline: f"is not supported: Python's ssl reads it from a file; name one in {inline}_file"
    for inline in ("cert", "key", "client_ca")
}
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
_UNSUPPORTED_SUITES = dict.fromkeys(
    ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"),
    "is a suite of TLS 1.3, and those cannot be chosen, here or in Go: remove it",
)
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_UNSUPPORTED_CURVES = {"X25519MLKEM768": "is not supported by Python's ssl: remove it"}
