"""Deliveries of real files and settings with one peer, for tests of the sending side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import dcmread, examples

from dicom_node.config import Settings, parse
from dicom_node.records import Delivery, DeliveryState

PEER = "pacs"


def example(name: str = "rgb_color") -> Path:
    """A real ultrasound object from pydicom's wheel."""
    return Path(str(examples.get_path(name)))


def delivery_of(path: Path, number: int = 1, **changes: Any) -> Delivery:
    """A delivery of a file to the peer."""
    header = dcmread(path, stop_before_pixels=True)
    fields: dict[str, Any] = {
        "id": number,
        "instance_id": number,
        "destination": PEER,
        "state": DeliveryState.PENDING,
        "sop_class_uid": str(header.SOPClassUID),
        "sop_instance_uid": str(header.SOPInstanceUID),
        "series_instance_uid": str(header.SeriesInstanceUID),
        "study_instance_uid": str(header.StudyInstanceUID),
        "path": path,
    }
    return Delivery(**(fields | changes))


def settings_for(
    port: int,
    receive: dict[str, Any] | None = None,
    certificates: dict[str, Any] | None = None,
    **peer: Any,
) -> Settings:
    """Settings with one destination on loopback; short time-outs."""
    limits = {"acse_timeout_seconds": 5.0, "dimse_timeout_seconds": 5.0}
    destination = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": port, "receives": True}
    return parse(
        {
            "tls": certificates or {},
            "receive": limits | {"network_timeout_seconds": 5.0} | (receive or {}),
            "peers": {PEER: destination | peer},
        }
    )


def series_of(path: Path, folder: Path, count: int) -> list[Delivery]:
    """`count` copies of an object as instances of one series."""
    dataset = dcmread(path)
    deliveries = []
    for number in range(1, count + 1):
        uid = f"{dataset.SeriesInstanceUID}.{number}"[-64:].lstrip(".0")
        copy = folder / f"{number}.dcm"
        dataset.SOPInstanceUID = uid
        dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.InstanceNumber = number
        dataset.save_as(copy)
        deliveries.append(delivery_of(copy, number))
    return deliveries
