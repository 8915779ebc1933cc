"""TLS contexts for associations: PS3.15 B.12, the profile of BCP 195.

TLS 1.2 at least; both sides show a certificate and both are verified. Renewed files are taken up
without a restart.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from dicom_node.config import TlsSection
from dicom_node.errors import ConfigError
from dicom_node.service import log

_log = log.get(__name__)


def serving(section: TlsSection) -> ssl.SSLContext:
    """For accepted connections: callers have to show a certificate that the authorities vouch for.

    Files that are replaced later hold for the connections after that.

    Raises
    ------
    ConfigError
        A file is missing or not what it should be.
    """
    return _Renewable.of(section)


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


class _Renewable(ssl.SSLContext):
    """Serves with the files as they are when a caller connects; shakes hands at the first read.

    An authority that is no longer trusted leaves with the renewal, too. Files that cannot be used,
    as when a certificate is there before its key, are logged once and those before serve on.

    The handshake is left to the association's own thread: pynetdicom wraps a connection where it
    accepts it, and a caller that connects and says nothing would keep all others waiting.
    """

    _section: TlsSection
    _state: tuple[tuple[int, int, int], ...]
    _current: ssl.SSLContext

    @classmethod
    def of(cls, section: TlsSection) -> _Renewable:
        """The files of a section, which have to be usable by now."""
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made._section, made._state = section, _state(section)
        made._current = _accepting(section)
        return made

    def wrap_socket(  # type: ignore[override]
        self, sock: socket.socket, server_side: bool = False
    ) -> ssl.SSLSocket:
        """The connection, not yet encrypted."""
        state = _state(self._section)
        if state != self._state:
            self._state = state
            try:
                self._current = _accepting(self._section)
                _log.info("receive-tls-renewed")
            except ConfigError as error:
                _log.error("receive-tls-not-renewed", code=error.code, reason=error.message)
        return self._current.wrap_socket(
            sock, server_side=server_side, do_handshake_on_connect=False
        )


def _accepting(section: TlsSection) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, section)


def _state(section: TlsSection) -> tuple[tuple[int, int, int], ...]:
    """What changes when one of the files is written or replaced."""
    return tuple(_stamp(path) for path in (section.certificate, section.key, section.authorities))


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _loaded(context: ssl.SSLContext, section: TlsSection) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate = _named("tls.certificate", section.certificate)
    key = _named("tls.key", section.key)
    authorities = _named("tls.authorities", section.authorities)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # else it asks the terminal
    except OSError as error:  # an SSLError is one, too
        raise ConfigError(
            "tls-unusable",
            f"tls.certificate, tls.key: '{certificate}' and '{key}' are no PEM certificate and its "
            f"unencrypted key ({_reason(error)})",
        ) from error
    try:
        context.load_verify_locations(authorities)
    except OSError as error:  # an SSLError is one, too
        raise ConfigError(
            "tls-unusable",
            f"tls.authorities: '{authorities}' holds no PEM certificates ({_reason(error)})",
        ) from error
    return context


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or "unreadable"


def _named(key: str, path: str) -> str:
    """A configured file that can be read."""
    if not path:
        raise ConfigError("tls-unusable", f"{key}: missing; TLS needs it")
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise ConfigError("tls-unusable", f"{key}: '{path}': {error.strerror}") from error
    return path
