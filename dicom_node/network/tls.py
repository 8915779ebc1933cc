"""TLS contexts for associations: PS3.15 B.12, the profile of BCP 195.

TLS 1.2 at least; both sides show a certificate and both are verified.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from dicom_node.config import TlsSection
from dicom_node.errors import ConfigError


def serving(section: TlsSection) -> ssl.SSLContext:
    """For accepted connections: callers have to show a certificate that the authorities vouch for.

    Raises
    ------
    ConfigError
        A file is missing or not what it should be.
    """
    context = _LazyContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, section)


def calling(section: TlsSection) -> ssl.SSLContext:
    """For connections to peers, whose certificates have to be valid and bear their host.

    Raises
    ------
    ConfigError
        A file is missing or not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = section.check_host_names
    return _loaded(context, section)


class _LazyContext(ssl.SSLContext):
    """Shakes hands at the first read, in the association's own thread.

    pynetdicom wraps a connection where it accepts it; a caller that connects and says nothing
    would keep all others waiting.
    """

    def wrap_socket(  # type: ignore[override]
        self, sock: socket.socket, server_side: bool = False
    ) -> ssl.SSLSocket:
        """The connection, not yet encrypted."""
        return super().wrap_socket(sock, server_side=server_side, do_handshake_on_connect=False)


def _loaded(context: ssl.SSLContext, section: TlsSection) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate = _named("tls.certificate", section.certificate)
    key = _named("tls.key", section.key)
    authorities = _named("tls.authorities", section.authorities)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # else it asks the terminal
    except ssl.SSLError as error:
        raise ConfigError(
            "tls-unusable",
            f"tls.certificate, tls.key: '{certificate}' and '{key}' are no PEM certificate and its "
            f"unencrypted key ({error.reason or 'unreadable'})",
        ) from error
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise ConfigError(
            "tls-unusable",
            f"tls.authorities: '{authorities}' holds no PEM certificates "
            f"({error.reason or 'unreadable'})",
        ) from error
    return context


def _named(key: str, path: str) -> str:
    """A configured file that can be read."""
    if not path:
        raise ConfigError("tls-unusable", f"{key}: missing; TLS needs it")
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise ConfigError("tls-unusable", f"{key}: '{path}': {error.strerror}") from error
    return path
