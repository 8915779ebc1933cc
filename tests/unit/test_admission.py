from __future__ import annotations

import pytest

from dicom_node.config import Peer


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
