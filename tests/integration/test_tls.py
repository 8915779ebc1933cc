"""TLS on either side: DCMTK's tools and Orthanc as peers, and those who must not get in."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from pydicom import dcmread
from structlog.testing import capture_logs

from dicom_node.commands.administer import check
from dicom_node.config import TlsSection
from dicom_node.errors import ConfigError, Permanent, Transient
from dicom_node.ledger import Ledger
from dicom_node.network import tls
from dicom_node.network.associate import echo
from dicom_node.receive import Receiver
from dicom_node.send import send
from dicom_node.spool import Spool
from tests.certificates import expired, identity, tls_section, trusting
from tests.deliveries import PEER, delivery_of, example, series_of, settings_for
from tests.peers import LOOPBACK, free_port, listens, orthanc, require_program, storescp, wait_until
from tests.receiving import receive_settings, small_object, write_object

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """The node, a peer that it trusts, and a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    return {name: identity(folder, name) for name in ("node", "peer", "stranger")} | {
        "folder": folder
    }


@pytest.fixture
def node(tmp_path, people):
    """A receiver on a TLS port alone; its settings and its ledger."""
    authorities = trusting(people["folder"], "node", people["peer"])
    settings = receive_settings(
        tmp_path, tls=tls_section(people["node"], authorities), plain=False, tls_port=free_port()
    )
    with receiving(settings) as ledger:
        yield settings, ledger


@contextmanager
def receiving(settings):
    """A running receiver; its ledger."""
    spool = Spool(settings.spool_directory)
    with Ledger(settings.ledger_url) as ledger, Receiver(settings, ledger, spool):
        yield ledger


def scanner(people, settings, program, *files, who="peer", trusts="node", options=()):
    """Run one of DCMTK's SCUs against the TLS port."""
    return subprocess.run(
        [
            require_program(program),
            *("+tls", str(people[who].key), str(people[who].certificate)),
            *("+cf", str(people[trusts].certificate), *options),
            *("-aet", "US1", "-aec", "NODE", LOOPBACK, str(settings.receive.tls_port), *files),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_scanner_stores_over_tls(node, people, tmp_path):
    settings, ledger = node
    files = [str(write_object(tmp_path / f"{n}.dcm", small_object())) for n in range(5)]
    done = scanner(people, settings, "storescu", *files)
    assert done.returncode == 0, done.stderr
    assert sum(ledger.overview().stages.values()) == 5


def test_a_large_cine_arrives_whole_over_tls(node, people):
    settings, ledger = node
    path = example("ybr_color")
    done = scanner(people, settings, "storescu", str(path), options=("-xy", "--max-pdu", "131072"))
    assert done.returncode == 0, done.stderr
    held = ledger.instance(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID))
    assert dcmread(held.source_path).PixelData == dcmread(path).PixelData


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_either_version_of_tls_is_spoken(node, people, version):
    settings, _ = node
    context = _client(people, "peer")
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection((LOOPBACK, settings.receive.tls_port), 10) as plain,
        context.wrap_socket(plain) as secured,
    ):
        assert secured.version() == version.name.replace("v1_", "v1.")


def test_a_caller_without_a_certificate_that_is_trusted_gets_no_association(node, people):
    settings, ledger = node
    with capture_logs() as logged:
        assert scanner(people, settings, "echoscu", who="stranger").returncode != 0
        wait_until(
            lambda: [e for e in logged if e["event"] == "receive-tls-failed"], "it is not logged"
        )
    assert scanner(people, settings, "echoscu").returncode == 0
    assert ledger.overview().open_associations == 0


def test_a_caller_without_tls_gets_no_association(node):
    settings, _ = node
    done = subprocess.run(
        [require_program("echoscu"), "-to", "5", LOOPBACK, str(settings.receive.tls_port)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0


def test_renewed_files_hold_from_the_next_association_on(tmp_path, people):
    served, renewed = identity(tmp_path, "served"), identity(tmp_path, "renewed")
    authorities = trusting(tmp_path, "served", people["peer"])
    settings = receive_settings(
        tmp_path, tls=tls_section(served, authorities), plain=False, tls_port=free_port()
    )
    known = people | {"served": served, "renewed": renewed}
    with receiving(settings), capture_logs() as logged:
        assert scanner(known, settings, "echoscu", trusts="served").returncode == 0
        served.certificate.write_bytes(renewed.certificate.read_bytes())
        assert scanner(known, settings, "echoscu", trusts="renewed").returncode != 0  # no key yet
        served.key.write_bytes(renewed.key.read_bytes())
        assert scanner(known, settings, "echoscu", trusts="renewed").returncode == 0
        authorities.write_bytes(people["stranger"].certificate.read_bytes())
        assert scanner(known, settings, "echoscu", trusts="renewed").returncode != 0
        asked = scanner(known, settings, "echoscu", who="stranger", trusts="renewed")
        assert asked.returncode == 0
    events = [entry for entry in logged if "renewed" in entry["event"]]
    assert [entry["event"] for entry in events] == [
        "receive-tls-not-renewed",
        "receive-tls-renewed",
        "receive-tls-renewed",
    ]
    assert "tls.certificate, tls.key" in events[0]["reason"]


def test_a_caller_that_never_shakes_hands_keeps_nobody_waiting(node, people):
    settings, _ = node
    silent = [socket.create_connection((LOOPBACK, settings.receive.tls_port)) for _ in range(3)]
    silent[0].sendall(b"\x16\x03\x01")  # the beginning of a handshake
    try:
        started = time.monotonic()
        assert scanner(people, settings, "echoscu").returncode == 0
        assert time.monotonic() - started < settings.receive.network_timeout_seconds / 2
    finally:
        for connection in silent:
            connection.close()


def test_plain_and_tls_are_served_side_by_side(tmp_path, people):
    authorities = trusting(people["folder"], "node", people["peer"])
    settings = receive_settings(
        tmp_path, tls=tls_section(people["node"], authorities), tls_port=free_port()
    )
    with receiving(settings):
        assert scanner(people, settings, "echoscu").returncode == 0
        done = subprocess.run(
            [require_program("echoscu"), "-aec", "NODE", LOOPBACK, str(settings.receive.port)],
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
    assert not listens(settings.receive.port)
    assert not listens(settings.receive.tls_port)


def outgoing(people, port, *, trusted="peer", **more):
    """Settings of a node that calls a peer with TLS."""
    authorities = trusting(people["folder"], f"outgoing-{trusted}", people[trusted])
    return settings_for(
        port, certificates=tls_section(people["node"], authorities, **more), tls=True
    )


def test_a_series_is_sent_to_storescp_over_tls(tmp_path, people):
    deliveries = series_of(example(), tmp_path, 3)
    options = ("+tls", str(people["peer"].key), str(people["peer"].certificate))
    trusted = ("+cf", str(people["node"].certificate))
    with storescp(tmp_path / "pacs", *options, *trusted) as pacs:
        outcomes = list(send(outgoing(people, pacs.port), deliveries, lambda _: None))
        assert [outcome.error for outcome in outcomes] == [None] * 3
        assert len([p for p in pacs.folder.iterdir() if p.suffix != ".log"]) == 3


def test_orthanc_takes_a_cine_over_tls_and_answers_a_query(tmp_path, people):
    path = example("ybr_color")
    trusted = trusting(people["folder"], "orthanc", people["node"])
    with orthanc(
        tmp_path / "orthanc",
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(people["peer"].certificate),
        DicomTlsPrivateKey=str(people["peer"].key),
        DicomTlsTrustedCertificates=str(trusted),
    ) as pacs:
        settings = outgoing(people, pacs.port)
        echo(settings, PEER)
        (outcome,) = send(settings, [delivery_of(path)], lambda _: None)
        assert outcome.error is None
        (stored,) = pacs.files(tmp_path / "back")
        assert dcmread(stored).PixelData == dcmread(path).PixelData


def test_a_peer_whose_certificate_is_not_trusted_is_not_sent_to(tmp_path, people):
    options = ("+tls", str(people["peer"].key), str(people["peer"].certificate))
    with storescp(tmp_path / "pacs", *options, "+cf", str(people["node"].certificate)) as pacs:
        with pytest.raises(Transient, match=r"tls-failed.*self-signed.*tls\.authorities"):
            echo(outgoing(people, pacs.port, trusted="stranger"), PEER)
        echo(outgoing(people, pacs.port), PEER)


def test_a_certificate_of_another_host_is_taken_only_where_names_are_not_checked(tmp_path, people):
    elsewhere = identity(people["folder"], "elsewhere", "192.0.2.1")
    others = people | {"peer": elsewhere}
    options = ("+tls", str(elsewhere.key), str(elsewhere.certificate))
    with storescp(tmp_path / "pacs", *options, "+cf", str(people["node"].certificate)) as pacs:
        with pytest.raises(Transient, match=r"tls-failed.*mismatch.*tls\.check_host_names"):
            echo(outgoing(others, pacs.port), PEER)
        echo(outgoing(others, pacs.port, check_host_names=False), PEER)


def test_an_expired_certificate_of_a_peer_is_named(tmp_path, people):
    old = expired(people["folder"], "old-peer")
    options = ("+tls", str(old.key), str(old.certificate))
    trusted = ("+cf", str(people["node"].certificate))
    said = pytest.raises(Transient, match=r"tls-failed.*certificate has expired.*renew it")
    with storescp(tmp_path / "pacs", *options, *trusted) as pacs, said:
        echo(outgoing(people | {"peer": old}, pacs.port), PEER)


def test_a_peer_that_does_not_take_our_certificate_is_named(tmp_path, people):
    options = ("+tls", str(people["peer"].key), str(people["peer"].certificate))
    trusted = ("+cf", str(people["stranger"].certificate))
    said = pytest.raises(Transient, match=r"tls-failed.*does not accept this node's certificate")
    with storescp(tmp_path / "pacs", *options, *trusted) as pacs, said:
        echo(outgoing(people, pacs.port), PEER)


def test_a_peer_without_tls_is_named(tmp_path, people):
    with storescp(tmp_path / "pacs") as pacs, pytest.raises(Transient, match="speaks TLS"):
        echo(outgoing(people, pacs.port), PEER)


def test_check_config_names_a_certificate_whose_time_is_over(tmp_path, people, capsys):
    old = expired(people["folder"], "old-node")
    for who, verdict in (
        (old, "error tls.certificate: .* certificate has expired"),
        (people["node"], "ok tls: "),
    ):
        section = tls_section(who, people["peer"].certificate)
        settings = receive_settings(tmp_path, tls=section, tls_port=free_port())
        check(settings, None)
        assert re.search(verdict, capsys.readouterr().out)


@pytest.mark.parametrize("key", ["certificate", "key", "authorities"])
def test_an_unusable_file_is_named(people, tmp_path, key):
    authorities = trusting(people["folder"], "node", people["peer"])
    whole = TlsSection(**tls_section(people["node"], authorities))
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for path in ("", tmp_path / "missing.pem", junk):
        with pytest.raises(ConfigError, match=rf"tls\.{key}"):
            tls.serving(whole.model_copy(update={key: str(path)}))
    tls.serving(whole)


def test_a_key_with_a_password_is_refused_and_not_asked_for(people, tmp_path):
    locked = replace(people["node"], key=tmp_path / "locked.pem")
    subprocess.run(
        [
            *(require_program("openssl"), "rsa", "-aes256", "-passout", "pass:secret"),
            *("-in", str(people["node"].key), "-out", str(locked.key)),
        ],
        check=True,
        capture_output=True,
    )
    authorities = trusting(people["folder"], "node", people["peer"])
    with pytest.raises(ConfigError, match="unencrypted key"):
        tls.calling(TlsSection(**tls_section(locked, authorities)))


def test_a_node_that_listens_nowhere_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nobody could call"):
        receive_settings(tmp_path, plain=False)


def test_a_receiver_without_its_certificates_does_not_start(tmp_path):
    settings = receive_settings(tmp_path, tls_port=free_port())
    with pytest.raises(ConfigError, match=r"tls\.certificate: missing"), receiving(settings):
        pass


def test_a_receiver_that_gets_one_of_its_two_ports_gives_it_up(tmp_path, people):
    section = tls_section(people["node"], trusting(people["folder"], "node", people["peer"]))
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        settings = receive_settings(tmp_path, tls=section, tls_port=port)
        with pytest.raises(Permanent, match=r"receive\.tls_port"), receiving(settings):
            pass
    assert not listens(settings.receive.port)


def _client(people, who):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(people[who].certificate, people[who].key)
    context.load_verify_locations(people["node"].certificate)
    return context
