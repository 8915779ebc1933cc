"""The receiver as a process of its own, with DCMTK's senders, and killed at any moment."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit

from dicom_node.ledger import Ledger
from dicom_node.records import Stage
from dicom_node.spool import Spool
from tests.builders import write_us_instance
from tests.peers import LOOPBACK, listens, require_program, wait_until
from tests.receiving import receive_settings, small_object, write_object

pytestmark = pytest.mark.peer
README = Path(__file__).parents[2] / "README.md"

RECEIVER = """
import sys
from dicom_node.config import Settings
from dicom_node.service.log import configure
from dicom_node.ledger import Ledger
from dicom_node.receive import Receiver
from dicom_node.service import process
from dicom_node.spool import Spool
settings = Settings.model_validate_json(sys.argv[1])
configure(settings.log, "receive")
spool = Spool(settings.spool_directory)
with Ledger(settings.ledger_url) as ledger:
    sys.exit(process.run("receiver", settings, Receiver(settings, ledger, spool)))
"""


@contextmanager
def receiver(settings):
    command = [sys.executable, "-c", RECEIVER, settings.model_dump_json()]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(settings.receive.port), "the receiver does not listen")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, "a clean stop has status 0"


def dcmtk(name, settings, *options, check=True):
    command = [
        require_program(name),
        *options[:-1],
        *("-aet", "US1", "-aec", "NODE", LOOPBACK, str(settings.receive.port)),
        *options[-1],
    ]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120)


def objects(folder, count, **changes):
    folder.mkdir(exist_ok=True)
    return [str(write_object(folder / f"{n}.dcm", small_object(**changes))) for n in range(count)]


def test_echoscu_is_answered(tmp_path):
    settings = receive_settings(tmp_path)
    with receiver(settings):
        assert dcmtk("echoscu", settings, []).returncode == 0


def test_dcmsend_of_the_readme_delivers_jpeg_beside_uncompressed_objects(tmp_path):
    settings = receive_settings(tmp_path)
    syntaxes = (JPEGBaseline8Bit, ExplicitVRLittleEndian)
    for number, syntax in enumerate(syntaxes):
        path = tmp_path / f"{number}.dcm"
        write_us_instance(path, instance=number + 1, transfer_syntax=syntax)
    command = re.search(r"`(dcmsend [^`]+)`", README.read_text())
    assert command is not None
    words = command[1].replace("DESPECKLE", "NODE").replace("11112", str(settings.receive.port))
    words = words.replace("*.dcm", "0.dcm 1.dcm")
    require_program("dcmsend")
    with receiver(settings):
        subprocess.run(words.split(), check=True, cwd=tmp_path, timeout=120)
    with Ledger(settings.ledger_url) as ledger:
        for number, syntax in enumerate(syntaxes):
            held = ledger.instance(dcmread(tmp_path / f"{number}.dcm").SOPInstanceUID)
            assert held is not None
            assert held.identity.transfer_syntax_uid == syntax


@pytest.mark.parametrize("option", ["-xe", "-xi", "-xb", "-xd"])
def test_storescu_delivers_in_every_uncompressed_encoding(tmp_path, option):
    settings = receive_settings(tmp_path)
    paths = objects(tmp_path / "out", 2)
    with receiver(settings):
        dcmtk("storescu", settings, option, paths)
    with Ledger(settings.ledger_url) as ledger:
        for path in paths:
            sent = dcmread(path)
            held = ledger.instance(sent.SOPInstanceUID)
            stored = dcmread(held.source_path)
            assert stored.PixelData == sent.PixelData
            assert stored.PatientName == sent.PatientName
            assert stored.file_meta.TransferSyntaxUID == held.identity.transfer_syntax_uid


def test_whole_study_with_a_report_is_a_success_for_dcmsend(tmp_path):
    settings = receive_settings(tmp_path)
    paths = objects(tmp_path / "images", 3)
    paths += objects(tmp_path / "reports", 1, SOPClassUID=BasicTextSRStorage)
    with receiver(settings):
        dcmtk("dcmsend", settings, paths)
    with Ledger(settings.ledger_url) as ledger:
        assert ledger.overview().stages == {Stage.DERIVE: 3, Stage.SKIPPED: 1}


def test_refused_object_is_named_to_dcmsend_and_the_others_arrive(tmp_path):
    settings = receive_settings(tmp_path)
    paths = objects(tmp_path / "good", 2)
    bad = small_object()
    del bad.StudyInstanceUID
    paths.insert(1, str(write_object(tmp_path / "bad.dcm", bad)))
    report = tmp_path / "report.txt"
    with receiver(settings):
        dcmtk("dcmsend", settings, "-nuc", "-nh", "+crf", str(report), paths, check=False)
    assert "0xc000" in report.read_text(errors="replace").lower()
    with Ledger(settings.ledger_url) as ledger:
        assert ledger.overview().stages == {Stage.DERIVE: 2}


def acknowledged(paths, settings):
    """Send with storescu until it fails; the SOP Instance UIDs that were answered 0x0000."""
    done = dcmtk("storescu", settings, "-v", "-nh", paths, check=False)
    uids, current = [], None
    for line in (done.stdout + done.stderr).splitlines():
        if "Sending file:" in line:
            current = line.split("Sending file:")[1].strip()
        if "Received Store Response (Success)" in line:
            uids.append(str(dcmread(current).SOPInstanceUID))
    return uids


@pytest.mark.parametrize("after_files", [0, 1, 4, 9])
def test_nothing_acknowledged_is_lost_when_the_receiver_is_killed(tmp_path, after_files):
    settings = receive_settings(tmp_path)
    paths = objects(tmp_path / "out", 12, PixelData=bytes(64))
    sent = {str(dcmread(path).SOPInstanceUID): path for path in paths}
    received = Spool(settings.spool_directory).received
    with receiver(settings) as process:
        uids = []
        sender = threading.Thread(target=lambda: uids.extend(acknowledged(paths, settings)))
        sender.start()
        wait_until(
            lambda: len(list(received.iterdir())) >= after_files, "nothing arrives", pause=0.001
        )
        process.kill()
        process.wait()
        sender.join()
    with Ledger(settings.ledger_url) as ledger:
        for uid in uids:
            held = ledger.instance(uid)
            assert held is not None, "acknowledged, and not in the ledger"
            stored = held.source_path.read_bytes()
            assert hashlib.sha256(stored[-held.size :]).hexdigest() == held.sha256
    with receiver(settings):
        assert len(acknowledged(paths, settings)) == len(paths), "the sender repeats everything"
    with Ledger(settings.ledger_url) as ledger:
        assert ledger.overview().stages == {Stage.DERIVE: len(paths)}
        known = ledger.known_files()
        assert {dcmread(path).SOPInstanceUID for path in known} == set(sent)
        spool = Spool(settings.spool_directory)
        spool.sweep(known, older_than_s=-1)
        left = [path for path in spool.root.rglob("*") if path.is_file()]
        assert set(left) == known


def test_private_elements_and_sequences_are_kept_as_they_came(tmp_path):
    settings = receive_settings(tmp_path)
    dataset = small_object()
    dataset.add_new(0x00090010, "LO", "PRIVATE")
    dataset.add_new(0x00091001, "UN", b"\x01\x02\x03\x04")
    item = Dataset()
    item.CodeMeaning = "x"
    dataset.ConceptNameCodeSequence = [item]
    path = write_object(tmp_path / "private.dcm", dataset)
    with receiver(settings):
        dcmtk("dcmsend", settings, [str(path)])
    with Ledger(settings.ledger_url) as ledger:
        stored = dcmread(ledger.instance(dataset.SOPInstanceUID).source_path)
    assert stored[0x00091001].value == b"\x01\x02\x03\x04"
    assert stored.ConceptNameCodeSequence[0].CodeMeaning == "x"
    done = subprocess.run(
        [require_program("dcmftest"), stored.filename], check=False, capture_output=True
    )
    assert done.returncode == 0, "DCMTK takes it for no DICOM file"
