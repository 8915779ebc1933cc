from __future__ import annotations

import pytest

from dicom_node.config import Peer, parse
from dicom_node.network.admission import CALLING_AE_UNKNOWN, judge, may_send


@pytest.mark.parametrize(
    ("allowed", "caller", "admitted"),
    [
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.2.0/24", "::ffff:192.0.2.7", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.0/24", "::ffff:198.51.100.7", False),
        ("192.0.2.0/24", "2001:db8::7", False),
        ("2001:db8::/32", "2001:db8::7", True),
        ("2001:db8::/32", "192.0.2.7", False),
    ],
)
def test_caller_is_known_by_its_address_on_a_socket_for_ipv4_and_ipv6(
    allowed: str, caller: str, admitted: bool
) -> None:
    assert Peer(ae_title="US1", addresses=(allowed,)).admits(caller) is admitted


def test_peers_of_one_title_may_each_call_from_addresses_of_their_own() -> None:
    peers = {
        "one": {"ae_title": "US", "addresses": ["192.0.2.1"]},
        "other": {"ae_title": "US", "addresses": ["192.0.2.2"], "sends": False},
    }
    settings = parse({"node": {"ae_title": "NODE"}, "peers": peers})
    for last, refused, stores in (
        (1, None, True),
        (2, None, False),
        (3, CALLING_AE_UNKNOWN, False),
    ):
        assert judge(settings, "US", "NODE", f"192.0.2.{last}") == refused
        assert may_send(settings, "US", f"192.0.2.{last}") is stores
