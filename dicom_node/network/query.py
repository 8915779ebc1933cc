"""Ask a peer by C-FIND at IMAGE level which instances of a series it holds.

PS3.4 C.6.2 (Study Root information model). Used after a crash, before an interrupted send is
repeated, and to confirm storage where a peer offers no Storage Commitment.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
)

from dicom_node.config import Settings
from dicom_node.errors import Permanent, Transient
from dicom_node.network.associate import Context, accepts, associate, lost
from dicom_node.network.status import Verdict, describe, verdict

_FIND = Context(str(StudyRootQueryRetrieveInformationModelFind), str(ImplicitVRLittleEndian))


class QueryUnsupported(Permanent):
    """The peer offers no C-FIND at IMAGE level."""


def held(
    settings: Settings, name: str, study_instance_uid: str, series_instance_uid: str
) -> frozenset[str]:
    """SOP Instance UIDs of a series that a peer says it holds.

    Raises
    ------
    Transient
        The peer cannot be asked now.
    QueryUnsupported
        It never answers such a question.
    """
    with associate(settings, name, (_FIND,)) as association:
        if not accepts(association, _FIND):
            raise QueryUnsupported(
                "query-not-supported",
                f"peer {name!r} does not accept Study Root C-FIND; allow this node to query there",
            )
        found: set[str] = set()
        question = _question(study_instance_uid, series_instance_uid)
        for status, answer in association.send_c_find(
            question, StudyRootQueryRetrieveInformationModelFind
        ):
            if "Status" not in status:
                raise lost(name)
            if answer is not None:
                # Some archives answer with more than was asked for.
                if str(answer.get("SeriesInstanceUID", series_instance_uid)) == series_instance_uid:
                    found.add(str(answer.get("SOPInstanceUID", "")))
            else:
                _judge(name, status.Status)
        return frozenset(found - {""})


def _question(study_instance_uid: str, series_instance_uid: str) -> Dataset:
    """The identifier: the unique keys above IMAGE level, and (0008,0018) to be returned."""
    question = Dataset()
    question.QueryRetrieveLevel = "IMAGE"
    question.StudyInstanceUID = study_instance_uid
    question.SeriesInstanceUID = series_instance_uid
    question.SOPInstanceUID = ""
    return question


def _judge(name: str, status: int) -> None:
    """Raise what the final status calls for."""
    match verdict(status):
        case Verdict.RETRY:
            raise Transient("query-failed", f"peer {name!r} answered {describe(status)}")
        case Verdict.PARK:
            raise QueryUnsupported(
                "query-not-supported", f"peer {name!r} answered C-FIND with {describe(status)}"
            )
        case _:
            return
