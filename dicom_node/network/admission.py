"""(settings, titles, address) -> whether an association request is accepted. Pure.

PS3.8 9.3.4 (A-ASSOCIATE-RJ). Limits that depend on the moment (disk, load) are `receive`'s.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dicom_node.config import Settings


class Rejection(NamedTuple):
    """Result, source and reason of A-ASSOCIATE-RJ, PS3.8 table 9-21."""

    result: int
    source: int
    reason: int


CALLED_AE_UNKNOWN: Final = Rejection(1, 1, 7)
CALLING_AE_UNKNOWN: Final = Rejection(1, 1, 3)
LOCAL_LIMIT: Final = Rejection(2, 3, 2)


def judge(settings: Settings, calling: str, called: str, address: str) -> Rejection | None:
    """Judge an association request by the configured rules; None accepts.

    Parameters
    ----------
    settings : Settings
        ``node.ae_title``, ``receive`` and ``peers``.
    calling, called : str
        AE titles, without padding.
    address : str
        IP address of the caller. A known AE title from another address than its own is not
        that AE.
    """
    if settings.receive.require_called_ae_title and called != settings.node.ae_title.strip():
        return CALLED_AE_UNKNOWN
    peers = settings.peers_of(calling)
    known_alone = settings.receive.require_known_caller
    if not peers:
        return CALLING_AE_UNKNOWN if known_alone else None
    # A destination calls too: to report on a storage commitment.
    may_call = [peer for peer in peers if peer.sends or peer.receives or not known_alone]
    return None if any(peer.admits(address) for peer in may_call) else CALLING_AE_UNKNOWN


def may_send(settings: Settings, calling: str, address: str) -> bool:
    """Whether an AE that may call may also store: a peer with ``sends = false`` may not."""
    peers = settings.peers_of(calling)
    return not peers or any(peer.sends and peer.admits(address) for peer in peers)
