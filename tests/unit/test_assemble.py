from __future__ import annotations

from dicom_node.assemble import Reason, complete
from dicom_node.config import AssembleSection
from dicom_node.records import SeriesArrivals
from tests.receiving import after

POLICY = AssembleSection(quiet_seconds=10, max_wait_seconds=900)


def waiting(first: float = 0, last: float = 0, still_open: int = 0) -> SeriesArrivals:
    return SeriesArrivals("1.2", after(first), after(last), still_open, 1)


def decide(series: SeriesArrivals, now: float) -> Reason | None:
    found = complete([series], after(now), POLICY)
    return found[0].reason if found else None


def test_series_waits_for_its_quiet_time():
    assert decide(waiting(last=5), now=14.9) is None
    assert decide(waiting(last=5), now=15) is Reason.QUIET


def test_series_waits_for_an_open_association_however_quiet():
    assert decide(waiting(still_open=1), now=800) is None


def test_hard_limit_ends_the_wait_for_an_association_that_never_closes():
    assert decide(waiting(last=899, still_open=1), now=900) is Reason.WAITED_LONG_ENOUGH


def test_hard_limit_ends_the_wait_for_a_trickle():
    assert decide(waiting(last=899.5), now=900) is Reason.WAITED_LONG_ENOUGH


def test_clock_that_was_set_back_makes_a_series_wait():
    assert decide(waiting(first=1000, last=1000), now=0) is None


def test_series_are_decided_one_by_one_in_order():
    series = [
        SeriesArrivals("1.1", after(0), after(0), 0, 1),
        SeriesArrivals("1.2", after(0), after(99), 0, 1),
        SeriesArrivals("1.3", after(0), after(0), 0, 0),
    ]
    assert [one.series_uid for one in complete(series, after(100), POLICY)] == ["1.1", "1.3"]
