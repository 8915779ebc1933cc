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


def expired(folder: Path, name: str) -> Identity:
    """A certificate whose time is over."""
    made = identity(folder, name)
    settings = folder / f"{name}.cnf"
    settings.write_text(
        f"[ca]\ndefault_ca = it\n[it]\ndatabase = {folder / name}.index\n"
        f"serial = {folder / name}.serial\nnew_certs_dir = {folder}\ndefault_md = sha256\npolicy = any\nx509_extensions = more\n"
        f"[any]\ncommonName = supplied\n[more]\nsubjectAltName = IP:{LOOPBACK}\n"
    )
    (folder / f"{name}.index").write_text("")
    openssl = require_program("openssl")
    request = str(folder / f"{name}.csr")
    own = ("-key", str(made.key))
    subprocess.run(
        [openssl, "req", "-new", *own, "-subj", f"/CN={name}", "-out", request],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [
            *(openssl, "ca", "-config", str(settings), "-selfsign", "-batch", "-rand_serial"),
            *("-keyfile", str(made.key), "-in", request, "-out", str(made.certificate)),
            *("-startdate", "20240101000000Z", "-enddate", "20250101000000Z"),
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
