"""Open an association to a peer as SCU, and say in the node's errors what went wrong with it.

PS3.8 7.1 and 9.3.4 (A-ASSOCIATE-RJ reasons), PS3.7 D.3 (presentation contexts). Shared by
`send`, `commit`, `query` and the ``echo`` command. It serves no requests; `receive` does.
"""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import P_DATA, MaximumLengthNotification
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_node.attributes.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.config import Peer, ReceiveSection, Settings
from dicom_node.errors import ConfigError, Permanent, Transient
from dicom_node.network import tls
from dicom_node.network.status import Verdict, describe, verdict

_config.STORE_SEND_CHUNKED_DATASET = True
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False

ASSOCIATION_LOST: Final = "association-lost"
"""Code of the error for an association that ended before the peer answered."""
_WINDOW_PDUS: Final = 16
_DATA_TRANSFER: Final = "Sta6"
_REMEDIES: Final = {
    (1, 3): "register this node's AE title and address there",
    (1, 7): "correct the peer's ae_title in the configuration",
}
"""Rejection (source, reason) of PS3.8 table 9-21 -> what to do."""


class ContextsRejected(Permanent):
    """The peer is there and accepts none of the presentation contexts, Verification included."""


class Context(NamedTuple):
    """A presentation context to propose: one transfer syntax each, so the answer is clear."""

    abstract_syntax: str
    transfer_syntax: str


def peer_named(settings: Settings, name: str) -> Peer:
    """The configured peer.

    Raises
    ------
    Permanent
        There is none of this name that the node can call.
    """
    peer = settings.peers.get(name)
    if peer is None or peer.host is None or peer.port is None:
        raise Permanent(
            "peer-unknown",
            f"no peer {name!r} with host and port is configured; add [peers.{name}] and retry",
        )
    return peer


@contextmanager
def associate(
    settings: Settings,
    name: str,
    contexts: Iterable[Context | PresentationContext],
    handlers: Sequence[tuple[Any, ...]] = (),
) -> Iterator[Association]:
    """An established association, released at the end, or aborted where the block fails.

    Verification is proposed as well, so that a peer that accepts none of `contexts` still
    leaves an association on which ``accepted_contexts`` can be read.

    Parameters
    ----------
    settings : Settings
        Own AE title and time-outs.
    name : str
        The peer's name in ``settings.peers``.
    contexts : iterable of Context or PresentationContext
        Proposed in this order; at most 127.
    handlers : sequence
        pynetdicom event handlers.

    Raises
    ------
    Transient
        Not reachable, rejected, aborted or timed out, or no usable certificates for TLS.
    Permanent
        The peer is not configured, or accepts no context whatever.
    """
    peer = peer_named(settings, name)
    association = _request(settings, peer, name, [_proposal(c) for c in contexts], handlers)
    try:
        yield association
    except GeneratorExit:  # the caller wants no more of it, which is no failure
        association.release()
        raise
    except BaseException:
        association.abort()
        raise
    if association.is_established:
        association.release()
    if not (association.is_released or association.is_aborted):
        association.abort()


def accepts(association: Association, context: Context) -> bool:
    """Whether the peer accepted exactly this presentation context."""
    return any(
        accepted.abstract_syntax == context.abstract_syntax
        and accepted.transfer_syntax[0] == context.transfer_syntax
        for accepted in association.accepted_contexts
    )


def echo(settings: Settings, name: str) -> None:
    """C-ECHO a peer (PS3.4 A); return where it answers Success.

    Raises
    ------
    Transient, Permanent
        Why not.
    """
    with associate(settings, name, ()) as association:
        if not association.accepted_contexts:
            raise Permanent("echo-not-supported", f"peer {name!r} does not accept Verification")
        status = association.send_c_echo()
        if "Status" not in status:
            raise lost(name)
        if verdict(status.Status) is not Verdict.SUCCESS:
            raise Transient("echo-failed", f"peer {name!r} answered {describe(status.Status)}")


def lost(name: str) -> Transient:
    """The association ended before the peer answered."""
    return Transient(
        ASSOCIATION_LOST,
        f"peer {name!r} aborted, closed or did not answer within receive.dimse_timeout_seconds; "
        "see its log for the cause",
    )


def _proposal(context: Context | PresentationContext) -> PresentationContext:
    if isinstance(context, PresentationContext):
        return context
    return build_context(context.abstract_syntax, context.transfer_syntax)


def _request(
    settings: Settings,
    peer: Peer,
    name: str,
    contexts: list[PresentationContext],
    handlers: Sequence[tuple[Any, ...]],
) -> Association:
    """Negotiate, and turn every way in which that fails into one of the node's errors."""
    limits = settings.receive
    ae = AE(ae_title=settings.node.ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = limits.acse_timeout_seconds
    ae.acse_timeout = limits.acse_timeout_seconds
    ae.dimse_timeout = limits.dimse_timeout_seconds
    ae.network_timeout = limits.network_timeout_seconds
    where = f"peer {name!r} ({peer.ae_title} at {peer.host}:{peer.port})"
    window = _SendWindow(maxsize=_WINDOW_PDUS)
    try:
        encrypted = (tls.calling(settings.tls), str(peer.host)) if peer.tls else None
    except ConfigError as error:  # a certificate that is being renewed, perhaps
        raise Transient(error.code, error.message) from error
    try:
        association = ae.associate(
            str(peer.host),
            int(peer.port or 0),
            contexts=[*contexts, build_context(Verification)],
            ae_title=peer.ae_title,
            max_pdu=limits.max_pdu_bytes,
            tls_args=encrypted,
            evt_handlers=[
                (evt.EVT_FSM_TRANSITION, window.on_transition),
                (evt.EVT_DATA_SENT, _acknowledge_at_once),
                *handlers,
            ],
        )
    except OSError as error:  # a host name that does not resolve
        raise Transient("peer-unreachable", f"{where}: {type(error).__name__}") from error
    if association.is_established:
        _bound(association, window, limits)
        return association
    if association.is_rejected:
        raise _rejection(association, where)
    if association.rejected_contexts:
        raise ContextsRejected(
            "contexts-rejected",
            f"{where} accepts none of the proposed SOP classes; enable them there",
        )
    if encrypted and encrypted[0].failure:
        raise Transient("tls-failed", f"{where}: {encrypted[0].failure}")
    more = ", speaks TLS there and trusts this node's certificate" if peer.tls else ""
    raise Transient(
        "peer-unreachable",
        f"{where} cannot be reached or does not answer; check host, port and that it runs{more}",
    )


def _rejection(association: Association, where: str) -> Transient:
    answer: Any = association.acceptor.primitive
    remedy = _REMEDIES.get((answer.result_source, answer.diagnostic), "see the peer's log")
    return Transient(
        "association-rejected",
        f"{where} rejected the association: {answer.reason_str.lower()}; {remedy}",
    )


class _SendWindow(queue.Queue[Any]):
    """The queue between a sender and its socket, holding a few PDUs instead of a whole object.

    pynetdicom's own is unbounded, so that a file read faster than the network takes it ends
    up in memory. What is put after the end of the data transfer state is dropped: nobody
    would take it, and the waiting request learns of the end by its missing response.
    """

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self._severed = False

    def on_transition(self, event: evt.Event) -> None:
        """Follow the upper layer state machine (PS3.8 9.2); runs in its thread."""
        if event.current_state == _DATA_TRANSFER and event.next_state != _DATA_TRANSFER:
            with self.mutex:
                self._severed = True
                kept = [item for item in self.queue if not isinstance(item, P_DATA)]
                self.queue.clear()
                self.queue.extend(kept)
                self.not_full.notify_all()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Wait for room, or for the end of the association."""
        del block, timeout  # pynetdicom always blocks without limit; the socket has a time-out
        with self.not_full:
            while isinstance(item, P_DATA) and not self._severed and self._qsize() >= self.maxsize:
                self.not_full.wait()
            if self._severed and isinstance(item, P_DATA):
                return
            self._put(item)
            self.unfinished_tasks += 1
            self.not_empty.notify()


def _bound(association: Association, window: _SendWindow, limits: ReceiveSection) -> None:
    """Bound the memory and the time that sending on this association can take.

    A peer that announces no limit, or a vast one, would get each object in a single PDU.
    """
    for item in association.acceptor.user_information:
        if isinstance(item, MaximumLengthNotification):
            wanted = item.maximum_length_received or limits.max_pdu_bytes
            item.maximum_length_received = min(wanted, limits.max_pdu_bytes)
    provider = association.dul
    provider.to_provider_queue = window
    connection = provider.socket.socket if provider.socket else None
    if isinstance(connection, socket.socket):
        connection.settimeout(limits.network_timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _acknowledge_at_once(event: evt.Event) -> None:
    """Let TCP acknowledge the response's first segment without delay.

    Peers write a response in two segments, of which Nagle's algorithm holds back the second
    until the first is acknowledged; the kernel would take 40 ms over that, for each object.
    """
    provider = event.assoc.dul
    connection = provider.socket.socket if provider.socket else None
    if isinstance(connection, socket.socket) and hasattr(socket, "TCP_QUICKACK"):
        with suppress(OSError):  # closed at this moment
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
