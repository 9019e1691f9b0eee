"""Certificates, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

CLIENT_NAMES = "DNS:prometheus.example,IP:192.0.2.7,IP:2001:db8::1,email:ops@example.org"


def make(folder: Path) -> None:
    """Two authorities, and certificates of the first: of a server, of its next one, and of a client.

    And `middle`, an authority that the first one made, with a certificate `below` it. Each is in NAME.crt and
    its key in NAME.key; that of the server also in locked.key, with a passphrase.
    """
    certificate(folder, "ca")
    certificate(folder, "stranger")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-addext")
    for name in ("server", "next"):
        certificate(folder, name, *signed, "subjectAltName=IP:127.0.0.1")
    certificate(folder, "client", *signed, f"subjectAltName={CLIENT_NAMES}")
    certificate(folder, "middle", *signed, "basicConstraints=critical,CA:TRUE")
    below = ("-CA", "middle.crt", "-CAkey", "middle.key")
    certificate(folder, "below", *below, "-addext", "subjectAltName=DNS:below.example")
    openssl(folder, "ec", "-in", "server.key", "-aes128", "-passout", "pass:x", "-out", "locked.key")


def certificate(folder: Path, name: str, *options: str) -> None:
    """One that signs itself, if the options say nothing else."""
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key")
    # From Python 3.13 on, ssl refuses an authority that does not say what its key is for.
    usage = ("-addext", "keyUsage=critical,digitalSignature,keyCertSign")
    openssl(folder, "req", "-x509", *new_key, "-subj", f"/CN={name}", "-out", f"{name}.crt", *usage, *options)


def openssl(folder: Path, *arguments: str) -> None:
    """Runs it there."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
