"""UIDs and names: what a valid UID is, who this node is, and which UID a derived object gets.

PS3.5 9.1 and B.2 (UUID-derived UIDs under ``2.25``), PS3.7 D.3.3.2 (implementation
identification), PS3.3 C.12.1 (contributing equipment).
"""

from __future__ import annotations

import re
import uuid
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node import __version__
from dicom_node.records import DerivedIdentity

MANUFACTURER: Final = "despeckle-node project"
"""(0008,0070) *Manufacturer* of the Processing Equipment item."""
MODEL_NAME: Final = "despeckle-node"
"""(0008,1090) *Manufacturer's Model Name* by which the node recognises its own output."""
PROCESSING_EQUIPMENT: Final = ("109102", "DCM")
"""Purpose code of the contributing equipment item, PS3.16 CID 7005."""

_UID_PATTERN: Final = re.compile(r"[0-9.]{1,64}")
_NAMESPACE: Final = uuid.UUID("8f6c1f7e-3a57-5d0c-9b43-5b1b0f6f2a11")


def is_valid_uid(value: object) -> bool:
    """Whether `value` can be a UID and, for the same reason, a part of a file name.

    More lenient than PS3.5 9.1 about leading zeros, which scanners do send, and as strict
    about everything that could leave the spool folder.
    """
    if not isinstance(value, str) or _UID_PATTERN.fullmatch(value) is None:
        return False
    return all(value.split("."))


def _uid(*parts: str) -> str:
    """The UUIDv5 of the parts as a UID, PS3.5 B.2; the separator occurs in no part."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(parts)).int}"


IMPLEMENTATION_CLASS_UID: Final = UID(_uid("implementation", MODEL_NAME))
"""(0002,0012) *Implementation Class UID*; the same for every release."""
IMPLEMENTATION_VERSION_NAME: Final = f"DESPECKLE_{__version__}"[:16]
"""(0002,0013) *Implementation Version Name*."""


def derived_identity(
    source_instance_uid: str, source_series_uid: str, bundle_device_uid: str, fingerprint: str
) -> DerivedIdentity:
    """UIDs of the object derived from one source: equal inputs give equal UIDs on every host.

    Parameters
    ----------
    source_instance_uid, source_series_uid : str
        (0008,0018) and (0020,000E) of the source.
    bundle_device_uid : str
        (0018,1002) *Device UID* of the model bundle, new for each release of it.
    fingerprint : str
        Digest of every setting that changes pixels, such as the strength.
    """
    process = (bundle_device_uid, fingerprint)
    return DerivedIdentity(
        sop_instance_uid=_uid("instance", source_instance_uid, *process),
        series_instance_uid=_uid("series", source_series_uid, *process),
    )


def is_own_output(dataset: Dataset) -> bool:
    """Whether this product, on any host and in any version, derived the object.

    Looks for a Processing Equipment item with the node's model name in (0018,A001)
    *Contributing Equipment Sequence*. The file meta says nothing: archives rewrite it.
    """
    for item in dataset.get("ContributingEquipmentSequence") or ():
        if str(item.get("ManufacturerModelName", "")).strip() != MODEL_NAME:
            continue
        for purpose in item.get("PurposeOfReferenceCodeSequence") or ():
            code = (str(purpose.get("CodeValue")), str(purpose.get("CodingSchemeDesignator")))
            if code == PROCESSING_EQUIPMENT:
                return True
    return False
