"""TLS contexts for associations: PS3.15 B.12, the profile of BCP 195.

TLS 1.2 at least; both sides show a certificate and both are verified. Renewed files are taken up
without a restart.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dicom_node.config import TlsSection
from dicom_node.errors import ConfigError
from dicom_node.service import log

_log = log.get(__name__)
_DATES: Final = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""


def serving(section: TlsSection) -> ssl.SSLContext:
    """For accepted connections: callers have to show a certificate that the authorities vouch for.

    Files that are replaced later hold for the connections after that.

    Raises
    ------
    ConfigError
        A file is missing or not what it should be.
    """
    return _Renewable.of(section)


def calling(section: TlsSection) -> CallingContext:
    """For connections to peers, whose certificates have to be valid and bear their host.

    Raises
    ------
    ConfigError
        A file is missing or not what it should be.
    """
    context = CallingContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = section.check_host_names
    _loaded(context, section)
    return context


def out_of_date(section: TlsSection) -> str:
    """Why the node's own certificate is not valid today; empty where it is.

    The ssl module reads no dates of it: the certificate shakes hands, in memory, with somebody who
    trusts it and nothing else.

    Raises
    ------
    ConfigError
        A file is missing or not what it should be.
    """
    own = _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), section)
    judge = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    judge.check_hostname = False
    judge.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    judge.load_verify_locations(section.certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = judge.wrap_bio(back, there)
    server = own.wrap_bio(there, back, server_side=True)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with suppress(ssl.SSLWantReadError):
        server.do_handshake()
    try:
        client.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message if error.verify_code in _DATES else ""
    except ssl.SSLError:  # that it would not be trusted is for the peers to say
        return ""
    return ""


class _TellingSocket(ssl.SSLSocket):
    """Keeps in its context why TLS failed; pynetdicom says no more than that it did."""

    context: CallingContext

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands, with the peer's certificate as a rule."""
        with self._telling():
            super().do_handshake(block)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - the name of the base
        """Read; in TLS 1.3 the peer's verdict on our certificate comes with the first data."""
        with self._telling():
            return super().read(len, buffer)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLError as error:
            self.context.failure = self.context.failure or _cause(error)
            raise


class CallingContext(ssl.SSLContext):
    """For the connections to one peer; see `calling`."""

    sslsocket_class = _TellingSocket
    failure: str = ""
    """Why TLS failed, with the remedy; empty where it has not."""


def _cause(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted here ({error.verify_message}); renew it, or correct "
            "tls.authorities, the peer's host or tls.check_host_names"
        )
    if "ALERT" in (error.reason or ""):
        return (
            f"it does not accept this node's certificate ({error.reason}); renew tls.certificate, "
            "or have it trusted there"
        )
    return (
        f"no handshake ({_reason(error)}); check that the peer speaks TLS at this port, and its log"
    )


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
