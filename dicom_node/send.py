"""C-STORE SCU: one association for one derived series and one destination, one outcome each.

PS3.4 B.2 (statuses by `status`), PS3.7 9.1.1. Files are streamed from the spool in bounded
memory, in the transfer syntax in which they lie there: one presentation context is proposed
for each (SOP class, transfer syntax), so that the peer's answer cannot be misread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom.association import Association

from dicom_node.config import Settings
from dicom_node.errors import NodeError, Permanent, Transient
from dicom_node.network import query
from dicom_node.network.associate import (
    ASSOCIATION_LOST,
    Context,
    ContextsRejected,
    accepts,
    associate,
    lost,
)
from dicom_node.network.status import Verdict, describe, verdict
from dicom_node.records import DERIVED_FILE_UNREADABLE, Delivery, DeliveryState
from dicom_node.service import log

_log = log.get(__name__)
STORE_REFUSED: Final = "store-refused"
"""Code of the error for an object that the destination says it did not take, and may yet."""
_MAX_ASSOCIATIONS = 2
"""An object over which a peer aborts must not keep the rest of its series from going out."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one delivery."""

    delivery: Delivery
    error: NodeError | None = None
    """None where the destination has accepted it."""
    warning: str = ""
    """Description of a Bxxx status."""
    already_held: bool = False
    """Not sent, since the destination held it already."""
    seconds: float = 0.0


def send(
    settings: Settings, deliveries: Sequence[Delivery], starting: Callable[[Delivery], None]
) -> Generator[Outcome, None, None]:
    """Send the derived instances of one series to one destination.

    Parameters
    ----------
    settings : Settings
        Own AE title, peers and time-outs.
    deliveries : sequence of Delivery
        All of one derived series for one destination. Those in state SENDING were
        interrupted: the destination is asked first what it holds.
    starting : callable
        Called, and to be durable when it returns, before each C-STORE.

    Yields
    ------
    Outcome
        Exactly one for each delivery. Its error is Transient or Permanent.
    """
    waiting: dict[int, tuple[Delivery, Context]] = {}
    for delivery in deliveries:
        try:
            waiting[delivery.id] = (delivery, _context(delivery))
        except (Transient, Permanent) as error:
            yield Outcome(delivery, error)
    try:
        for delivery in _already_held(settings, [delivery for delivery, _ in waiting.values()]):
            del waiting[delivery.id]
            yield Outcome(delivery, already_held=True)
        for _ in range(_MAX_ASSOCIATIONS):
            if waiting:
                yield from _send_on_one_association(settings, waiting, starting)
    except (Transient, Permanent) as error:
        for delivery, _context_unused in waiting.values():
            yield Outcome(delivery, error)
        return
    for delivery, _context_unused in waiting.values():
        yield Outcome(delivery, lost(delivery.destination))


def _send_on_one_association(
    settings: Settings,
    waiting: dict[int, tuple[Delivery, Context]],
    starting: Callable[[Delivery], None],
) -> Iterator[Outcome]:
    """Send until all are out or the association is lost; what has an outcome leaves `waiting`."""
    name = next(iter(waiting.values()))[0].destination
    contexts = dict.fromkeys(context for _, context in waiting.values())
    with associate(settings, name, contexts) as association:
        for delivery, context in list(waiting.values()):
            del waiting[delivery.id]
            if not accepts(association, context):
                yield Outcome(delivery, _not_accepted(name, context))
                continue
            starting(delivery)
            outcome = _store(association, delivery, name)
            yield outcome
            if outcome.error is not None and outcome.error.code == ASSOCIATION_LOST:
                return


def _store(association: Association, delivery: Delivery, name: str) -> Outcome:
    """One C-STORE, judged by its status."""
    began = time.monotonic()
    try:
        answer = association.send_c_store(delivery.path)
    except (OSError, InvalidDicomError) as failure:
        return Outcome(delivery, _unreadable(delivery.path, failure))
    except (RuntimeError, ValueError):  # pynetdicom: no association, or no context any more
        return Outcome(delivery, lost(name))
    seconds = time.monotonic() - began
    if "Status" not in answer:
        return Outcome(delivery, lost(name))
    said = describe(answer.Status)
    match verdict(answer.Status):
        case Verdict.SUCCESS:
            return Outcome(delivery, seconds=seconds)
        case Verdict.WARNING:
            return Outcome(delivery, warning=said, seconds=seconds)
        case Verdict.RETRY:
            error: NodeError = Transient(STORE_REFUSED, f"peer {name!r} answered {said}")
        case Verdict.PARK:
            error = Permanent(
                "store-failed",
                f"peer {name!r} answered {said} to instance {delivery.sop_instance_uid}; "
                "see its log, correct the cause there and retry",
            )
    return Outcome(delivery, error, seconds=seconds)


def _already_held(settings: Settings, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Interrupted deliveries that their destination does hold; it is asked only if there are any.

    A destination that cannot be queried gets them again: the UID is the same, so it keeps one.
    """
    interrupted = [d for d in deliveries if d.state is DeliveryState.SENDING]
    if not interrupted:
        return []
    first = interrupted[0]
    peer = settings.peers.get(first.destination)
    if peer is None or not peer.query_after_crash:
        return []
    try:
        held = query.held(
            settings, first.destination, first.study_instance_uid, first.series_instance_uid
        )
    except (query.QueryUnsupported, ContextsRejected) as error:
        _log.info("query-unavailable", destination=first.destination, code=error.code)
        return []
    return [d for d in interrupted if d.sop_instance_uid in held]


def _context(delivery: Delivery) -> Context:
    """The presentation context that the file needs, from its file meta information."""
    try:
        meta = read_file_meta_info(delivery.path)
        return Context(delivery.sop_class_uid, str(meta.TransferSyntaxUID))
    except (OSError, InvalidDicomError, AttributeError) as error:
        raise _unreadable(delivery.path, error) from error


def _unreadable(path: Path, error: Exception) -> NodeError:
    """A file that is not what was derived is lost; a disk that fails may recover."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        reason = error.strerror or type(error).__name__
        return Transient("disk-failed", f"{path} cannot be read now ({reason}); check its disk")
    return Permanent(
        DERIVED_FILE_UNREADABLE,
        f"{path} is missing or no DICOM file; retry, and its source is derived anew",
    )


def _not_accepted(name: str, context: Context) -> Permanent:
    return Permanent(
        "context-rejected",
        f"peer {name!r} does not accept {UID(context.abstract_syntax).name} "
        f"({context.abstract_syntax}) in {UID(context.transfer_syntax).name} "
        f"({context.transfer_syntax}); enable it there, or set derive.transfer_syntax to "
        "one that it accepts (explicit-le nearly always is) and retry",
    )
