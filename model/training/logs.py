"""The log of a run: one CSV file that goes on where a killed run stopped.

Lightning's own logger starts a new file with each start. This one appends, and drops the rows of
steps that the resumed run will do again, so that a run reads as one however often it was killed.
"""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

FILE = "metrics.csv"
STEP = "step"


class RunLog(Logger):
    """Writes a row for each step at which something was logged; one row holds all of a step.

    The first column is the step, counted from 0; figures that a step has not are empty. A row
    is in the file before the next one begins, and before a checkpoint is written, so that a kill
    loses one row at the most, and none of a step that is not done again.

    Parameters
    ----------
    folder : Path
        Of the run; the file is `FILE` in it.
    done : int
        Steps that the run goes on from; rows of later ones are dropped. 0 begins anew.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        super().__init__()
        self.path = folder / FILE
        self._done = done
        self._columns: list[str] | None = None
        self._row: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Of the log, for the trainer."""
        return "log"

    @property
    def version(self) -> str:
        """None: a run has one log."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the recipe is in the run's description."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add figures to the row of a step."""
        if step is None:
            raise ValueError("figures are logged with their step")
        if self._row and self._row[STEP] != step:
            self._write()
        self._row = {**self._row, **metrics, STEP: step}

    @rank_zero_only
    def save(self) -> None:
        """Write what is left."""
        if self._row:
            self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002 the trainer gives it
        """Write what is left."""
        self.save()

    def _write(self) -> None:
        row, self._row = self._row, {}
        if self._columns is not None and row.keys() <= set(self._columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
            return
        rows = read(self.path)
        if self._columns is None:
            rows = [each for each in rows if each[STEP] < self._done]
        rows.append(row)
        self._columns = list(dict.fromkeys([STEP, *(name for each in rows for name in each)]))
        self._renew(rows)

    def _renew(self, rows: list[dict[str, float]]) -> None:
        """Write the whole file, in place of the former one at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns or [])
            writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)


def read(path: Path) -> list[dict[str, float]]:
    """Rows of a log, without a last one that a kill cut short.

    Returns
    -------
    list of dict of str to float
        Each with `STEP`; other figures only where they were logged, in all rows the same order.
        Empty without a file.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [
        {name: int(value) if name == STEP else float(value) for name, value in row.items() if value}
        for row in csv.DictReader(whole.splitlines())
    ]
