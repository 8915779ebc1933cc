"""When to repeat what failed for a passing reason, and when to give up. Pure.

Exponential backoff with full jitter: after many failures at once (a PACS restarts) the
repetitions spread out instead of arriving together.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from dicom_node.config import RetrySection
from dicom_node.errors import NodeError, Permanent, Transient

_MEMORY_ATTEMPTS = 3
OUT_OF_MEMORY = "out-of-memory"


def delay(policy: RetrySection, attempts: int, chance: float) -> timedelta:
    """How long to wait after the given number of attempts.

    Parameters
    ----------
    policy : RetrySection
        Bounds and growth.
    attempts : int
        Failed so far, 1 or more.
    chance : float
        Drawn uniformly from 0 to 1.
    """
    # Far beyond the longest delay the power would overflow.
    steps = min(max(attempts - 1, 0), 64)
    ceiling = min(policy.first_seconds * policy.factor**steps, policy.longest_seconds)
    return timedelta(seconds=ceiling * chance)


def judged(
    error: NodeError,
    policy: RetrySection,
    *,
    attempts: int,
    failing_since: datetime | None,
    now: datetime,
) -> NodeError:
    """The error as it counts now: a passing one that lasts too long becomes permanent."""
    if not isinstance(error, Transient):
        return error
    if error.code == OUT_OF_MEMORY and attempts >= _MEMORY_ATTEMPTS:
        return Permanent(error.code, f"{error.message}; tried {attempts} times")
    if failing_since and now - failing_since > timedelta(hours=policy.give_up_hours):
        return Permanent(
            error.code, f"{error.message}; given up after {policy.give_up_hours:g} hours"
        )
    return error
