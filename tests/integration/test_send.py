"""C-STORE SCU against Orthanc, DCMTK's storescp with its fault options, and the embedded PACS."""

from __future__ import annotations

import errno
import os
import socket
import threading
import tracemalloc
from contextlib import suppress

import pytest
from pydicom import dcmread
from pynetdicom import evt
from pynetdicom.sop_class import Verification

from dicom_node.demo.pacs import EmbeddedPacs
from dicom_node.errors import Permanent, Transient
from dicom_node.network.associate import Context, associate, echo
from dicom_node.network.status import StoreStatus
from dicom_node.records import DeliveryState
from dicom_node.send import Outcome, send
from tests.deliveries import delivery_of, example, series_of, settings_for
from tests.peers import (
    answering,
    free_port,
    listens,
    orthanc,
    storage_alone,
    storescp,
    wait_until,
)


def sent(settings, deliveries, starting=lambda _delivery: None) -> list[Outcome]:
    return list(send(settings, deliveries, starting))


@pytest.mark.peer
def test_orthanc_stores_every_instance_and_finds_them_by_qido(tmp_path):
    deliveries = series_of(example(), tmp_path, 3)
    with orthanc(tmp_path / "orthanc") as pacs:
        outcomes = sent(settings_for(pacs.port), deliveries)
        assert [outcome.error for outcome in outcomes] == [None] * 3
        expected = sorted(delivery.sop_instance_uid for delivery in deliveries)
        assert pacs.instances() == expected
        found = pacs.qido("instances", SeriesInstanceUID=deliveries[0].series_instance_uid)
        assert sorted(item["00080018"]["Value"][0] for item in found) == expected


@pytest.mark.peer
def test_stored_bytes_are_those_of_the_file(tmp_path):
    path = example("ybr_color")
    with orthanc(tmp_path / "orthanc") as pacs:
        sent(settings_for(pacs.port), [delivery_of(path)])
        (stored,) = pacs.files(tmp_path / "back")
        assert dcmread(stored).PixelData == dcmread(path).PixelData


@pytest.mark.peer
def test_interrupted_delivery_that_orthanc_holds_is_not_sent_again(tmp_path):
    delivery = delivery_of(example())
    started = []
    with orthanc(tmp_path / "orthanc") as pacs:
        settings = settings_for(pacs.port)
        sent(settings, [delivery])
        interrupted = delivery_of(example(), state=DeliveryState.SENDING)
        (outcome,) = sent(settings, [interrupted], started.append)
    assert outcome.already_held
    assert outcome.error is None
    assert not started


@pytest.mark.peer
def test_interrupted_delivery_that_orthanc_lacks_is_sent(tmp_path):
    with orthanc(tmp_path / "orthanc") as pacs:
        interrupted = delivery_of(example(), state=DeliveryState.SENDING)
        (outcome,) = sent(settings_for(pacs.port), [interrupted])
        assert not outcome.already_held
        assert outcome.error is None
        assert pacs.instances() == [interrupted.sop_instance_uid]


def test_interrupted_delivery_goes_out_again_where_the_peer_is_not_to_be_queried(tmp_path):
    interrupted = delivery_of(example(), state=DeliveryState.SENDING)
    with EmbeddedPacs(tmp_path / "pacs") as pacs:
        (first,) = sent(settings_for(pacs.port), [delivery_of(example())])
        (again,) = sent(settings_for(pacs.port, query_after_crash=False), [interrupted])
        assert pacs.received[interrupted.sop_instance_uid] == 2
    assert (first.error, again.error, again.already_held) == (None, None, False)


@pytest.mark.peer
def test_interrupted_delivery_goes_out_again_where_the_peer_cannot_be_queried(tmp_path):
    with storescp(tmp_path / "scp") as peer:
        interrupted = delivery_of(example(), state=DeliveryState.SENDING)
        (outcome,) = sent(settings_for(peer.port), [interrupted])
    assert outcome.error is None
    assert not outcome.already_held


def test_interrupted_delivery_goes_out_again_to_a_peer_that_takes_storage_alone():
    interrupted = delivery_of(example(), state=DeliveryState.SENDING)
    with storage_alone(interrupted.sop_class_uid) as port:
        (outcome,) = sent(settings_for(port), [interrupted])
    assert outcome.error is None
    assert not outcome.already_held


def test_disk_that_fails_is_passing_and_a_file_that_is_gone_is_not(monkeypatch):
    delivery = delivery_of(example())
    for reason, kind in ((errno.EIO, Transient), (errno.ENOENT, Permanent)):

        def fail(*_, reason=reason):
            raise OSError(reason, os.strerror(reason))

        monkeypatch.setattr("dicom_node.send.read_file_meta_info", fail)
        (outcome,) = sent(settings_for(free_port()), [delivery])
        assert isinstance(outcome.error, kind)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("option", "codes"),
    [
        ("--abort-during", {"association-lost"}),
        ("--abort-after", {"association-lost"}),
        # storescp closes right behind its rejection, which may then never be read.
        ("--refuse", {"association-rejected", "peer-unreachable"}),
    ],
)
def test_faults_of_the_association_are_transient(tmp_path, option, codes):
    with storescp(tmp_path / "scp", option) as peer:
        outcomes = sent(settings_for(peer.port), series_of(example(), tmp_path, 3))
    assert len(outcomes) == 3
    for outcome in outcomes:
        assert isinstance(outcome.error, Transient)
        assert outcome.error.code in codes


@pytest.mark.peer
def test_peer_that_does_not_answer_in_time_is_transient(tmp_path):
    with storescp(tmp_path / "scp", "--sleep-during", "30") as peer:
        settings = settings_for(peer.port, receive={"dimse_timeout_seconds": 0.3})
        (outcome,) = sent(settings, [delivery_of(example())])
    assert isinstance(outcome.error, Transient)


@pytest.mark.peer
def test_unaccepted_transfer_syntax_is_permanent_and_names_the_remedy(tmp_path):
    with storescp(tmp_path / "scp", "+xi") as peer:  # implicit little endian only
        (outcome,) = sent(settings_for(peer.port), [delivery_of(example("ybr_color"))])
    assert isinstance(outcome.error, Permanent)
    assert outcome.error.code == "context-rejected"
    assert "1.2.840.10008.1.2.4.50" in outcome.error.message
    assert "derive.transfer_syntax" in outcome.error.message


def test_closed_port_is_transient():
    (outcome,) = sent(settings_for(free_port()), [delivery_of(example())])
    assert isinstance(outcome.error, Transient)
    assert outcome.error.code == "peer-unreachable"


def test_unknown_host_is_transient():
    settings = settings_for(104, host="no-such-host.invalid")
    (outcome,) = sent(settings, [delivery_of(example())])
    assert isinstance(outcome.error, Transient)


def test_wrong_called_ae_title_names_the_remedy(tmp_path):
    with EmbeddedPacs(tmp_path / "pacs") as pacs:
        pacs._ae.require_called_aet = True
        with pytest.raises(Transient, match="ae_title"):
            echo(settings_for(pacs.port, ae_title="WRONG"), "pacs")


def test_unconfigured_destination_is_permanent():
    (outcome,) = sent(settings_for(104), [delivery_of(example(), destination="gone")])
    assert isinstance(outcome.error, Permanent)
    assert "[peers.gone]" in outcome.error.message


def test_missing_file_parks_only_its_own_delivery(tmp_path):
    good, bad = series_of(example(), tmp_path, 2)
    bad.path.unlink()
    with EmbeddedPacs(tmp_path / "pacs") as pacs:
        outcomes = {o.delivery.id: o for o in sent(settings_for(pacs.port), [bad, good])}
    assert isinstance(outcomes[bad.id].error, Permanent)
    assert outcomes[good.id].error is None


@pytest.mark.parametrize(
    ("status", "kind", "warned"),
    [
        (0x0000, type(None), False),
        (0xB000, type(None), True),
        (0xB007, type(None), True),
        (0x0111, type(None), True),
        (0xA700, Transient, False),
        (0xA7FF, Transient, False),
        (0x0213, Transient, False),
        (0x0122, Permanent, False),
        (0x0124, Permanent, False),
        (0xA900, Permanent, False),
        (0xC123, Permanent, False),
    ],
)
def test_every_status_has_its_outcome(tmp_path, status, kind, warned):
    with EmbeddedPacs(tmp_path / "pacs", answer=lambda _uid: status) as pacs:
        (outcome,) = sent(settings_for(pacs.port), [delivery_of(example())])
    assert isinstance(outcome.error, kind)
    assert bool(outcome.warning) is warned
    if outcome.error is not None:
        assert f"0x{status:04X}" in outcome.error.message


def test_one_refused_object_does_not_keep_the_others(tmp_path):
    deliveries = series_of(example(), tmp_path, 3)
    poison = deliveries[0].sop_instance_uid
    refuse = lambda uid: int(StoreStatus.CANNOT_UNDERSTAND) if uid == poison else 0  # noqa: E731
    with EmbeddedPacs(tmp_path / "pacs", answer=refuse) as pacs:
        outcomes = sent(settings_for(pacs.port), deliveries)
    assert [outcome.error is None for outcome in outcomes] == [False, True, True]


def test_object_over_which_the_peer_aborts_does_not_keep_the_others(tmp_path):
    deliveries = series_of(example(), tmp_path, 3)
    poison = deliveries[0].sop_instance_uid
    with EmbeddedPacs(tmp_path / "pacs") as pacs:

        def abort(uid: str) -> int:
            if uid == poison:
                for association in pacs._server.active_associations:
                    association.abort()
            return 0

        pacs._answer = abort
        outcomes = sent(settings_for(pacs.port), deliveries)
        assert set(pacs.held) >= {d.sop_instance_uid for d in deliveries[1:]}
    assert [outcome.error is None for outcome in outcomes] == [False, True, True]


def test_caller_that_stops_half_way_releases_the_association(tmp_path):
    deliveries = series_of(example(), tmp_path, 3)
    with EmbeddedPacs(tmp_path / "pacs") as pacs:
        sending = send(settings_for(pacs.port), deliveries, lambda _delivery: None)
        assert next(sending).error is None
        sending.close()
        wait_until(lambda: not pacs._server.active_associations, "the association ends")
        assert list(pacs.held) == [deliveries[0].sop_instance_uid]


def test_sending_waits_for_a_slow_network_instead_of_filling_memory(tmp_path):
    """A peer that accepts and then reads nothing: what is queued stays a few PDUs."""
    big = tmp_path / "big.dcm"
    dataset = dcmread(example())
    dataset.PixelData = bytes(64 * 2**20)
    dataset.save_as(big)
    delivery = delivery_of(big)
    context = Context(delivery.sop_class_uid, str(dataset.file_meta.TransferSyntaxUID))
    with EmbeddedPacs(tmp_path / "pacs") as pacs, _StallingRelay(pacs.port) as relay:
        settings = settings_for(relay.port)
        del dataset
        with associate(settings, "pacs", [context]) as association:
            relay.stall.set()
            tracemalloc.start()
            answers = []
            sender = threading.Thread(
                target=lambda: answers.append(association.send_c_store(big)), daemon=True
            )
            sender.start()
            queue = association.dul.to_provider_queue
            wait_until(lambda: queue.qsize() >= queue.maxsize, "the window fills")
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 16 * 2**20
            relay.stall.clear()
            sender.join(60)
        assert answers[0].Status == 0
        assert delivery.sop_instance_uid in pacs.held


@pytest.mark.parametrize("announced", [0, 2**31, 2**20, 2**14])
def test_peer_that_takes_pdus_of_any_size_gets_none_above_ours(tmp_path, announced):
    delivery = delivery_of(example())
    assert delivery.path.stat().st_size > 2**17
    sizes = []
    handlers = (
        (evt.EVT_C_STORE, lambda _event: 0),
        (evt.EVT_DATA_RECV, lambda event: sizes.append(len(event.data))),
    )
    with answering(*handlers, classes=[delivery.sop_class_uid], max_pdu=announced) as port:
        (outcome,) = sent(settings_for(port), [delivery])
    assert outcome.error is None
    assert max(sizes) == min(announced or 2**17, 2**17) + 6


def test_sender_gives_up_on_a_peer_that_stops_reading(tmp_path):
    big = tmp_path / "big.dcm"
    dataset = dcmread(example())
    dataset.PixelData = bytes(64 * 2**20)
    dataset.save_as(big)
    with EmbeddedPacs(tmp_path / "pacs") as pacs, _StallingRelay(pacs.port) as relay:
        settings = settings_for(
            relay.port, receive={"network_timeout_seconds": 0.5, "dimse_timeout_seconds": 1.0}
        )
        stall = lambda _delivery: relay.stall.set()  # noqa: E731
        (outcome,) = sent(settings, [delivery_of(big)], stall)
        relay.stall.clear()
    assert isinstance(outcome.error, Transient)


class _StallingRelay:
    """A TCP relay that stops reading from the sender while `stall` is set."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.stall = threading.Event()
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *details):
        self._over.set()
        for one in [self._listener, *self._sockets]:
            # Closing alone does not wake who waits in it; a PACS would never see its peer go.
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _serve(self):
        while not self._over.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            for source, sink, holds in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._copy, args=(source, sink, holds), daemon=True).start()

    def _copy(self, source, sink, holds):
        try:
            while True:
                while holds and self.stall.is_set() and not self._over.wait(0.01):
                    pass
                data = source.recv(65536)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
        except OSError:
            return


def test_association_over_which_the_caller_fails_is_aborted():
    aborted = threading.Event()
    handler = (evt.EVT_ABORTED, lambda _event: aborted.set())
    with answering(handler, classes=[Verification]) as port:
        settings = settings_for(port, receive={"network_timeout_seconds": 60.0})
        with pytest.raises(ZeroDivisionError), associate(settings, "pacs", ()):
            raise ZeroDivisionError
        assert aborted.wait(10)


def test_peer_that_aborts_over_an_echo_does_not_answer():
    def echoed(event):
        event.assoc.abort()
        return 0

    with (
        answering((evt.EVT_C_ECHO, echoed), classes=[Verification]) as port,
        pytest.raises(Transient, match="association"),
    ):
        echo(settings_for(port), "pacs")


@pytest.mark.peer
def test_echo_answers_for_a_living_peer_and_not_for_a_dead_one(tmp_path):
    with orthanc(tmp_path / "orthanc") as pacs:
        settings = settings_for(pacs.port)
        echo(settings, "pacs")
        port = pacs.port
    assert not listens(port)
    with pytest.raises(Transient):
        echo(settings, "pacs")
