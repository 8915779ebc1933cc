"""Result tables with their provenance, as Markdown for the docs and as CSV for machines."""

from __future__ import annotations

import csv
import math
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from model.cost import machine
from model.metrics import COLUMNS, Column

Value = float | int | str | None
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "torchmetrics", "bm3d")


@dataclass(frozen=True)
class Table:
    """One table of methods and figures.

    Parameters
    ----------
    title : str
        Heading.
    columns : sequence of str
        Keys of a row, in order. Keys of `model.metrics.COLUMNS` get their label, digits and bold
        best value; others are headings themselves.
    rows : sequence of mapping
        Key to value; a value that is missing, None or not a number prints as a dash.
    notes : sequence of str
        Lines under the table.
    unranked : collection of str
        First-column values that take no part in the choice of the best value.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Value]]
    notes: Sequence[str] = ()
    unranked: frozenset[str] = field(default_factory=frozenset)

    def markdown(self) -> str:
        """GitHub-flavoured table with bold best values and a legend."""
        headings = [_label(key) for key in self.columns]
        best = {key: self._best(key) for key in self.columns}
        lines = [
            f"### {self.title}",
            "",
            "| " + " | ".join(headings) + " |",
            "|" + "|".join("---" if i == 0 else "---:" for i in range(len(headings))) + "|",
        ]
        for row in self.rows:
            cells = []
            for key in self.columns:
                text = _shown(key, row.get(key))
                bold = text != "-" and text in best[key] and self._ranked(row)
                cells.append(f"**{text}**" if bold else text)
            lines.append("| " + " | ".join(cells) + " |")
        known = [COLUMNS[key] for key in self.columns if key in COLUMNS]
        legend = [f"- {column.label}: {column.note}" for column in known]
        notes = [f"{note}\n" for note in self.notes]
        return "\n".join([*lines, "", *legend, *([""] if legend else []), *notes]) + "\n"

    def _ranked(self, row: Mapping[str, Value]) -> bool:
        return row.get(self.columns[0]) not in self.unranked

    def _best(self, key: str) -> set[str]:
        column = COLUMNS.get(key)
        if column is None or column.better == "none":
            return set()
        values = [
            float(value)
            for row in self.rows
            if self._ranked(row)
            and isinstance(value := row.get(key), int | float)
            and math.isfinite(value)
        ]
        if len(values) < 2:  # noqa: PLR2004 one is not the best of many
            return set()
        return {_shown(key, _choose(column, values))}


def write(folder: Path, name: str, tables: Sequence[Table], head: str) -> list[Path]:
    """Write ``name.md`` with all tables and a CSV file a table, named after its title.

    Returns
    -------
    list of Path
        What was written, the Markdown first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = folder / f"{name}.md"
    body = "\n".join(table.markdown() for table in tables)
    document.write_text(f"{head}\n{body}", encoding="utf-8")
    written = [document]
    for table in tables:
        words = re.findall(r"[a-z0-9]+", table.title.lower())
        path = folder / f"{name}-{'-'.join(words)}.csv"
        write_csv(path, table.columns, table.rows)
        written.append(path)
    return written


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Value]]) -> None:
    """Unrounded values under their keys, one row a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def header(title: str, settings: Mapping[str, object]) -> str:
    """Where, when and with what the figures were made: the top of every document."""
    versions = ", ".join(
        f"{package} {version}" for package in PACKAGES if (version := version_of(package))
    )
    lines = [
        f"## {title}",
        "",
        f"- date: {datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC')}",
        f"- machine: {machine()}",
        f"- versions: Python {platform.python_version()}, {versions}",
        f"- commit: {_commit()}",
        *(f"- {key}: {value}" for key, value in settings.items()),
        "",
    ]
    return "\n".join(lines)


def mean(values: Iterable[float]) -> float:
    """Mean of the finite values; `nan` where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _label(key: str) -> str:
    return COLUMNS[key].label if key in COLUMNS else key


def _shown(key: str, value: Value) -> str:
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    digits = COLUMNS[key].digits if key in COLUMNS else 2
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _choose(column: Column, values: list[float]) -> float:
    match column.better:
        case "higher":
            return max(values)
        case "lower":
            return min(values)
        case "zero":
            return min(values, key=abs)
        case _:
            return min(values, key=lambda value: abs(value - 1))


def version_of(package: str) -> str | None:
    """Of an installed package; None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "not from a repository"
    return described.stdout.strip()
