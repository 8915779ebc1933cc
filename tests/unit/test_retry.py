from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import RetrySection
from dicom_node.errors import Permanent, Refused, Transient
from dicom_node.service.retry import OUT_OF_MEMORY, delay, judged

NOW = datetime(2026, 1, 2, tzinfo=UTC)
POLICY = RetrySection(first_seconds=5, factor=2, longest_seconds=600, give_up_hours=72)


@given(attempts=st.integers(0, 10_000), chance=st.floats(0, 1))
def test_delay_is_never_negative_and_never_longer_than_the_longest(attempts, chance):
    pause = delay(POLICY, attempts, chance).total_seconds()
    assert 0 <= pause <= 600


def test_ceiling_grows_by_the_factor_up_to_the_longest():
    ceilings = [delay(POLICY, attempts, 1.0).total_seconds() for attempts in range(1, 10)]
    assert ceilings == [5, 10, 20, 40, 80, 160, 320, 600, 600]


def test_jitter_spreads_over_the_whole_delay():
    assert delay(POLICY, 3, 0.0).total_seconds() == 0
    assert delay(POLICY, 3, 0.5).total_seconds() == 10


@pytest.mark.parametrize(("hours", "kind"), [(71, Transient), (73, Permanent)])
def test_passing_error_becomes_permanent_when_it_lasts_too_long(hours, kind):
    error = Transient("peer-unreachable", "down")
    since = NOW - timedelta(hours=hours)
    result = judged(error, POLICY, attempts=9, failing_since=since, now=NOW)
    assert isinstance(result, kind)
    assert result.code == "peer-unreachable"


def test_first_failure_is_not_given_up_however_old_the_instance_is():
    error = Transient("peer-unreachable", "down")
    assert judged(error, POLICY, attempts=1, failing_since=None, now=NOW) is error


@pytest.mark.parametrize(("attempts", "kind"), [(1, Transient), (2, Transient), (3, Permanent)])
def test_lack_of_memory_is_tried_three_times(attempts, kind):
    error = Transient(OUT_OF_MEMORY, "no memory")
    result = judged(error, POLICY, attempts=attempts, failing_since=NOW, now=NOW)
    assert isinstance(result, kind)


@pytest.mark.parametrize("error", [Refused("a", "b"), Permanent("a", "b")])
def test_other_errors_stay_what_they_are(error):
    since = NOW - timedelta(days=365)
    assert judged(error, POLICY, attempts=99, failing_since=since, now=NOW) is error
