"""``verify``: an auditor's question, whether derived objects are what this node makes of a source.

Each object is compared with its source and then derived again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from rich.console import Console
from rich.progress import track

from dicom_node.attributes.identity import is_own_output, is_valid_uid
from dicom_node.attributes.transcribe import MALFORMED
from dicom_node.config import Settings
from dicom_node.decode import open_instance
from dicom_node.errors import NodeError
from dicom_node.pipeline import Despeckler
from dicom_node.service.edge import guarded
from dicom_node.service.folder import find_files
from dicom_node.verify import compare, recompute, source_of
from model.pictures import write_panel


def verify(
    inputs: Sequence[Path],
    pictures: Path | None,
    despecklers: Iterable[Despeckler],
    settings: Settings,
) -> int:
    """Verify every derived object below `inputs` whose source is there as well.

    Parameters
    ----------
    inputs : sequence of Path
        Files and folders with sources and derived objects, in any order.
    pictures : Path, optional
        Folder for a picture of each: before, after, removed.
    despecklers : iterable of Despeckler
        An object is derived again by the one whose Device UID it bears.
    settings : Settings
        Strength and regions that the objects are said to be made with.

    Returns
    -------
    int
        0 where something was verified and all of it is right, else 1.
    """
    console = Console(highlight=False, soft_wrap=True)
    sources, derived = _sorted(find_files(inputs, pictures))
    verifier = _Verifier(
        sources, pictures, {one.bundle.device_uid: one for one in despecklers}, settings
    )
    wrong = 0
    progress = Console(stderr=True)
    for path in track(list(derived), "verifying", console=progress, transient=True):
        problems = verifier.problems(path, derived[path])
        wrong += bool(problems)
        console.print(f"{'WRONG' if problems else 'right'} {path}", markup=False)
        for problem in problems:
            console.print(f"      {problem}", markup=False)
    console.print(f"{len(derived)} derived objects, {wrong} wrong")
    return int(wrong > 0 or not derived)


def _sorted(files: Iterable[Path]) -> tuple[dict[str, Path], dict[Path, Dataset]]:
    """Sources by SOP Instance UID, derived objects by path; what is neither is left out."""
    sources: dict[str, Path] = {}
    derived: dict[Path, Dataset] = {}
    for path in files:
        try:
            header = dcmread(path, stop_before_pixels=True)
            if is_own_output(header):
                derived[path] = header
            else:
                sources[str(open_instance(path).dataset.SOPInstanceUID)] = path
        except (*MALFORMED, InvalidDicomError, OSError, NodeError):
            continue
    return sources, derived


@dataclass(frozen=True)
class _Verifier:
    """What one derived object is verified with."""

    sources: Mapping[str, Path]
    pictures: Path | None
    despecklers: Mapping[str, Despeckler]
    """By (0018,1002) *Device UID* of the bundle."""
    settings: Settings

    def problems(self, path: Path, header: Dataset) -> list[str]:
        """What is wrong with a derived object; empty where all is right."""
        found = guarded(partial(self._problems, path, header))
        return [f"{found.message} [{found.code}]"] if isinstance(found, NodeError) else found

    def _problems(self, path: Path, header: Dataset) -> list[str]:
        uid = source_of(header)
        source = self.sources.get(uid)
        if source is None:
            named = uid if is_valid_uid(uid) else "(none is named)"
            return [f"its source {named} is not among the files; give it as well"]
        found = compare(source, path)
        if self.pictures is not None:
            write_panel(found.before, found.after, self.pictures / f"{path.stem}.png")
        despeckler = self._despeckler_of(header)
        if despeckler is None:
            return [*found.problems, self._other_bundle()]
        again = recompute(source, path, despeckler, self.settings)
        if not again.same_uid:
            return [*found.problems, _OTHER_SETTINGS]
        if not again.agrees:
            share, largest = f"{again.differing:.2%}", again.largest
            differs = (
                f"derived again, {share} of the pixels differ by over a grey level ({largest})"
            )
            return [*found.problems, differs]
        return found.problems

    def _despeckler_of(self, header: Dataset) -> Despeckler | None:
        """The one that an object says made it."""
        equipment = header.get("ContributingEquipmentSequence") or ()
        named = (self.despecklers.get(str(item.get("DeviceUID", ""))) for item in equipment)
        return next((one for one in named if one is not None), None)

    def _other_bundle(self) -> str:
        ours = (f"{one.bundle.name} {one.bundle.version}" for one in self.despecklers.values())
        return (
            f"made with another bundle than {' and '.join(ours)}; name that bundle in "
            "despeckle.bundle"
        )


_OTHER_SETTINGS = (
    "SOP Instance UID: not that of this source, strength and pixel policy; see (0008,2111) for the "
    "strength and give it with --strength"
)
