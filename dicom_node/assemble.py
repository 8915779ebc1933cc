"""(arrivals, now, policy) -> which source series are complete, and why. Pure.

DICOM has no message that says that a series is complete: the node judges from arrivals, from
associations that were released, and from a quiet time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from dicom_node.config import AssembleSection
from dicom_node.records import SeriesArrivals


class Reason(StrEnum):
    """Why a series counts as complete."""

    QUIET = "quiet"
    """No open association delivers into it, and nothing has come for the quiet time."""
    WAITED_LONG_ENOUGH = "waited-long-enough"
    """The hard limit since its first arrival has passed, whatever is still open."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One source series that may be released for sending."""

    series_uid: str
    reason: Reason


def complete(
    series: Sequence[SeriesArrivals], now: datetime, policy: AssembleSection
) -> list[Completion]:
    """Decide which of the waiting series are complete, in the order given.

    Parameters
    ----------
    series : sequence of SeriesArrivals
        Series that are not released yet.
    now : datetime
        Aware, UTC. A clock that was set back makes a series wait, never go early.
    policy : AssembleSection
        Quiet time and hard limit, in seconds.
    """
    quiet = timedelta(seconds=policy.quiet_seconds)
    longest = timedelta(seconds=policy.max_wait_seconds)
    completions = []
    for one in series:
        if one.open_associations == 0 and now - one.last_arrival >= quiet:
            completions.append(Completion(one.series_instance_uid, Reason.QUIET))
        elif now - one.first_arrival >= longest:
            completions.append(Completion(one.series_instance_uid, Reason.WAITED_LONG_ENOUGH))
    return completions
