from __future__ import annotations

import pytest

from dicom_node.network.status import StoreStatus, Verdict, describe, verdict


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0x0000, Verdict.SUCCESS),
        (0x0001, Verdict.WARNING),
        (0x0107, Verdict.WARNING),
        (0x0111, Verdict.WARNING),
        (0x0116, Verdict.WARNING),
        (0xB000, Verdict.WARNING),
        (0xB006, Verdict.WARNING),
        (0xB007, Verdict.WARNING),
        (0xBFFF, Verdict.WARNING),
        (0xA700, Verdict.RETRY),
        (0xA701, Verdict.RETRY),
        (0xA7FF, Verdict.RETRY),
        (0x0110, Verdict.RETRY),
        (0x0112, Verdict.RETRY),
        (0x0131, Verdict.RETRY),
        (0x0213, Verdict.RETRY),
        (0xFE00, Verdict.RETRY),
        (0x0122, Verdict.PARK),
        (0x0124, Verdict.PARK),
        (0xA900, Verdict.PARK),
        (0xA9FF, Verdict.PARK),
        (0xC000, Verdict.PARK),
        (0xCFFF, Verdict.PARK),
        (0xFF00, Verdict.PARK),
        (0xA800, Verdict.PARK),
    ],
)
def test_status_ranges_of_the_standard_are_judged(status, expected):
    assert verdict(status) is expected


def test_peer_that_holds_the_uid_already_counts_as_stored():
    assert verdict(StoreStatus.DUPLICATE_INSTANCE) is Verdict.WARNING


def test_archive_that_lacks_the_object_is_asked_again():
    assert verdict(StoreStatus.NO_SUCH_INSTANCE) is Verdict.RETRY


def test_description_names_known_statuses_and_numbers_all():
    assert describe(0xA700) == "out-of-resources (0xA700)"
    assert describe(0xA7AB) == "status (0xA7AB)"
