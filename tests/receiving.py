"""Builders for tests of the receiving side: settings, arrivals, small objects, a sender."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    generate_uid,
)
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_node.config import Settings, parse
from dicom_node.records import Arrival, Identity
from tests.peers import LOOPBACK, free_port

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_numbers = itertools.count(1)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def arrival(instance: str = "1.2.3", series: str = "1.2", **changes: Any) -> Arrival:
    identity = Identity(
        sop_class_uid=str(UltrasoundImageStorage),
        sop_instance_uid=instance,
        series_instance_uid=series,
        study_instance_uid="1.1",
        transfer_syntax_uid=str(ExplicitVRLittleEndian),
    )
    values: dict[str, Any] = {
        "identity": identity,
        "path": Path(f"/spool/received/{instance}-{next(_numbers)}.dcm"),
        "size": 10,
        "sha256": "0" * 64,
        "association": "host/1",
        "calling_ae": "US1",
        "received_at": START,
    }
    return Arrival(**(values | changes))


def receive_settings(
    tmp_path: Path,
    peers: dict[str, Any] | None = None,
    tls: dict[str, Any] | None = None,
    **receive: Any,
) -> Settings:
    section = {"host": LOOPBACK, "port": free_port(), "min_free_mb": 0} | receive
    return parse(
        {
            "node": {"ae_title": "NODE", "state_directory": str(tmp_path / "state")},
            "receive": section,
            "tls": tls or {},
            "peers": peers or {},
        }
    )


def small_object(**changes: Any) -> Dataset:
    """A valid 8 x 8 US Image; `changes` set attributes, and None deletes one."""
    dataset = Dataset()
    dataset.SOPClassUID = UltrasoundImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = "1.2.826.0.1.1"
    dataset.SeriesInstanceUID = "1.2.826.0.1.2"
    dataset.Modality = "US"
    dataset.PatientName = "Marked^Patient"
    dataset.PatientID = "MARKED-ID"
    dataset.Rows = dataset.Columns = 8
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = bytes(range(64))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def write_object(path: Path, dataset: Dataset | None = None) -> Path:
    (dataset or small_object()).save_as(path, enforce_file_format=True)
    return path


@contextmanager
def scanner(
    port: int,
    contexts: Sequence[tuple[str, str | Sequence[str]]] = (
        (UltrasoundImageStorage, ExplicitVRLittleEndian),
    ),
    calling: str = "US1",
    called: str = "NODE",
) -> Iterator[Association]:
    """An association to the receiver, released at the end."""
    entity = AE(calling)
    for abstract, transfer in contexts:
        entity.add_requested_context(abstract, transfer)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
    association = entity.associate(LOOPBACK, port, ae_title=called)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
