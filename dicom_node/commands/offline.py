"""``process``: derive objects from files and folders without a network, with a progress bar."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dicom_node.config import Settings
from dicom_node.errors import NodeError
from dicom_node.pipeline import Despeckler, derive_files
from dicom_node.service.folder import FileOutcome, FileStatus


def process(inputs: list[Path], output: Path, despeckler: Despeckler, settings: Settings) -> int:
    """Derive every object below `inputs` into `output`; return the exit status.

    Parameters
    ----------
    inputs : list of Path
        Files and folders.
    output : Path
        Derived objects appear below it as ``<series>/<instance>.dcm``.
    despeckler : Despeckler
    settings : Settings
        Strength, regions and encoding.

    Returns
    -------
    int
        0 where something was derived and nothing failed, else 1; each failure is one line on
        standard error.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
    ) as progress:
        task = progress.add_task("despeckling", total=None)

        def advance(outcome: FileOutcome, done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            if outcome.error is not None:
                progress.console.print(_line(outcome, outcome.error), markup=False)

        outcomes = derive_files(inputs, output, despeckler, settings, advance)
    counts = {status: sum(o.status is status for o in outcomes) for status in FileStatus}
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{counts[FileStatus.DERIVED]} derived into {output}, "
        f"{counts[FileStatus.SKIPPED]} skipped, {counts[FileStatus.FAILED]} failed",
        markup=False,
    )
    return int(counts[FileStatus.FAILED] > 0 or counts[FileStatus.DERIVED] == 0)


def _line(outcome: FileOutcome, error: NodeError) -> str:
    return f"{outcome.source}: {outcome.status}: {error.message} [{error.code}]"
