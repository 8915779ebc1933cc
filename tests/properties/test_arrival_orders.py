"""Whatever the order of arrivals, repetitions, associations and time: no instance is left out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.assemble import complete
from dicom_node.config import AssembleSection
from dicom_node.ledger import Ledger
from dicom_node.records import DeliveryState, Stage
from tests.ledgers import derive, send, soon
from tests.receiving import after, arrival

POLICY = AssembleSection(quiet_seconds=10, max_wait_seconds=60)
INSTANCES = st.integers(0, 3)
ASSOCIATIONS = st.integers(0, 2)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), INSTANCES, st.integers(0, 1), ASSOCIATIONS),
        st.tuples(st.just("close"), ASSOCIATIONS),
        st.tuples(st.just("wait"), st.sampled_from([0, 1, 9, 10, 11, 61])),
        st.tuples(st.just("derive")),
        st.tuples(st.just("send")),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_every_instance_is_sent_once_in_the_one_derived_series(plan):
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(f"sqlite:///{Path(folder) / 'ledger.sqlite3'}") as ledger,
    ):
        clock, came, delivered = 0.0, set(), []
        for name, *arguments in [*plan, *_until_the_end()]:
            if name == "arrive":
                number, series, association = arguments
                uid = f"1.2.{series}.{number}"
                taken = ledger.record_arrival(
                    arrival(
                        uid,
                        f"1.2.{series}",
                        association=f"host/{association}",
                        received_at=after(clock),
                    )
                )
                assert taken == (uid not in came), "kept once, whoever sends it"
                came.add(uid)
            elif name == "close":
                ledger.close_association(f"host/{arguments[0]}")
            elif name == "wait":
                clock += arguments[0]
                waiting = ledger.series_arrivals(after(clock))
                for completion in complete(waiting, after(clock), POLICY):
                    ledger.release_series(completion.series_uid, completion.reason, after(clock))
            elif name == "derive":
                derive(ledger)
            else:
                delivered += send(ledger)
        assert {each.source_instance_uid for each in delivered} == came
        assert len(delivered) == len(came), "sent once"
        for each in delivered:
            source_series = each.source_instance_uid.rsplit(".", 1)[0]
            assert each.series_instance_uid == f"2.25.{source_series}"
        states = ledger.overview().deliveries.get("pacs", {})
        assert states == ({DeliveryState.SENT: len(came)} if came else {})


def _until_the_end():
    """Everything that the node does by itself, until nothing is left to do."""
    yield from [("close", number) for number in range(3)]
    yield from [("derive",)] * 8
    yield ("wait", 10)
    yield from [("send",)] * 4


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(5)), repeats=st.lists(st.integers(0, 4), max_size=5))
def test_order_of_arrival_does_not_change_what_is_held(order, repeats):
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(f"sqlite:///{Path(folder) / 'ledger.sqlite3'}") as ledger,
    ):
        for second, number in enumerate([*order, *repeats]):
            ledger.record_arrival(arrival(f"1.2.{number}", received_at=after(second)))
        assert ledger.overview().stages == {Stage.DERIVE: 5}
        (waiting,) = ledger.series_arrivals(soon())
        assert (waiting.first_arrival, waiting.last_arrival) == (after(0), after(4))
