"""Self-signed certificates for tests of TLS, made by the openssl program."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.peers import LOOPBACK, require_program


@dataclass(frozen=True)
class Identity:
    """Who somebody is: a certificate and its key, PEM files."""

    certificate: Path
    key: Path


def identity(folder: Path, name: str, address: str = LOOPBACK) -> Identity:
    """A new certificate for an IP address."""
    made = Identity(folder / f"{name}.pem", folder / f"{name}-key.pem")
    subprocess.run(
        [
            require_program("openssl"),
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}"),
            *("-keyout", str(made.key), "-out", str(made.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return made


def trusting(folder: Path, name: str, *trusted: Identity) -> Path:
    """A file of the certificates that somebody trusts."""
    path = folder / f"{name}-trusts.pem"
    path.write_text("".join(one.certificate.read_text() for one in trusted))
    return path


def tls_section(who: Identity, authorities: Path, **more: object) -> dict[str, object]:
    """The node's ``[tls]``."""
    return {
        "certificate": str(who.certificate),
        "key": str(who.key),
        "authorities": str(authorities),
    } | more
