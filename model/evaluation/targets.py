"""What was to be reached beside what bundles and others reach.

Nothing is measured here: every figure is read from a document that an evaluation has written, so
that the summary cannot say anything else than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.baselines import BASELINES
from model.evaluation.tables import Table

COMPARED = ("quality", "lesions", "teacher", "DnCNN", "BM3D", "SRAD")
"""Columns of the summary."""
CLASSICAL = "best classical"
ALL_IMAGES = "All images"
SIZES = ("10 px", "14 px", "20 px", "30 px")
DOCUMENTS = ("physics", "physics-array", "real", "safety")

NOTE = (
    "Italics: not reached. Read by `despeckle-model targets` from [physics](physics.md), "
    "[array](physics-array.md), [real](real.md) and [safety](safety.md), whose heads say when and "
    "how it was measured. Classical methods are tuned. What stands out: 95th percentile at the "
    "worst of 10, 16 and 24 px, in even speckle also of strokes."
)

Figure = tuple[str, str, str]
"""Document, heading and column."""
Row = dict[str, str]
Rows = dict[str, Row]
"""Rows of a table by their first column."""


class TablesError(ValueError):
    """A document is missing, or lacks a table or row; the message says what makes it."""


@dataclass(frozen=True)
class Tables:
    """Tables of all documents, by document and heading."""

    found: dict[str, dict[str, Rows]]

    @classmethod
    def read(cls, folder: Path) -> Tables:
        """Read the documents that the targets need."""
        try:
            return cls({name: tables_of(folder / f"{name}.md") for name in DOCUMENTS})
        except OSError as error:
            raise TablesError(
                f"{error.filename}: {error.strerror}; put what `despeckle-model evaluate` writes "
                "for physics (speckle and array), real and safety into that folder"
            ) from error

    def figure(self, document: str, heading: str, column: str, method: str) -> float:
        """One figure of a method, a bundle's by its name."""
        rows = self.found[document].get(heading, {})
        row = rows.get(method) or rows.get(f"student {method}", {})
        if column not in row:
            raise TablesError(
                f"{document}.md: no {column!r} of {method!r} under {heading!r}; evaluate it with "
                "--run or --bundle, in that protocol"
            )
        try:
            return float(row[column].strip("*"))
        except ValueError as error:
            raise TablesError(
                f"{document}.md: {column!r} of {method!r} under {heading!r} is {row[column]!r}; "
                "evaluate it where it has a figure"
            ) from error

    def best_classical(self, document: str, heading: str, column: str) -> tuple[float, str]:
        """The highest figure of a classical method, and which."""
        methods = [name for name in self.found[document].get(heading, {}) if _is_classical(name)]
        if not methods:
            raise TablesError(
                f"{document}.md: no classical method under {heading!r}; evaluate without --method"
            )
        return max((self.figure(document, heading, column, name), name) for name in methods)

    def sources(self) -> list[str]:
        """Headings of real images, by source."""
        named = [
            heading
            for heading, rows in self.found["real"].items()
            if heading != ALL_IMAGES and any("mean shift" in row for row in rows.values())
        ]
        if not named:
            raise TablesError("real.md: no images by source; evaluate on folders of them")
        return named


def tables_of(path: Path) -> dict[str, Rows]:
    """All tables of a document by their headings."""
    found: dict[str, Rows] = {}
    heading = ""
    columns: list[str] = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("### "):
            heading, columns = line[4:], []
        elif line.startswith("|") and not line.startswith("|-"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if columns:
                found[heading][cells[0]] = dict(zip(columns, cells, strict=True))
            else:
                columns = cells
                found[heading] = {}
    return found


def _is_classical(name: str) -> bool:
    return name in {baseline.name for baseline in BASELINES}


@dataclass(frozen=True)
class Target:
    """One thing that was to be reached.

    Attributes
    ----------
    what : str
    asked : str
        For the reader.
    limit : float or tuple of str
        What is asked for; or whose best classical figure is: document, heading, column.
    reached : callable
        Tables and a method to its figure.
    higher : bool
        Whether more is better.
    digits : int
        Shown.
    """

    what: str
    asked: str
    limit: float | Figure
    reached: Callable[[Tables, str], float]
    higher: bool = True
    digits: int = 2

    def row(self, tables: Tables, methods: Sequence[str]) -> Row:
        """A row of the summary; what misses the target is set in italics."""
        limit, asked = self.limit, self.asked
        if isinstance(limit, tuple):
            limit, best = tables.best_classical(*limit)
            asked += f" ({best} {limit:.{self.digits}f})"
        row = {"target": self.what, "asked": asked}
        for method in methods:
            value = round(self.reached(tables, method), 3)
            met = value >= limit if self.higher else value <= limit
            shown = f"{value:.{self.digits}f}"
            row[method] = shown if met else f"*{shown}*"
        return row


def _gain(document: str) -> Callable[[Tables, str], float]:
    def over_classical(tables: Tables, method: str) -> float:
        of = ("Fidelity", "PSNR dB")
        return tables.figure(document, *of, method) - tables.best_classical(document, *of)[0]

    return over_classical


def _gap(document: str) -> Callable[[Tables, str], float]:
    def below_teacher(tables: Tables, method: str) -> float:
        mine, its = (tables.figure(document, "Fidelity", "PSNR dB", m) for m in (method, "teacher"))
        return its - mine

    return below_teacher


def _column(document: str, heading: str, column: str) -> Callable[[Tables, str], float]:
    return lambda tables, method: tables.figure(document, heading, column, method)


def _best_classical(what: str, of: Figure, digits: int = 2) -> Target:
    return Target(what, f"the {CLASSICAL}'s", of, _column(*of), digits=digits)


def _at_most(limit: float, what: str, reached: Callable[[Tables, str], float]) -> Target:
    return Target(what, f"{limit:g} at most", limit, reached, higher=False)


def _largest(
    document: str, heading: str, columns: tuple[str, ...]
) -> Callable[[Tables, str], float]:
    return lambda tables, method: max(
        abs(tables.figure(document, heading, column, method)) for column in columns
    )


def _shift_of_a_source(tables: Tables, method: str) -> float:
    return max(
        abs(tables.figure("real", source, "mean shift", method)) for source in tables.sources()
    )


EVEN, CLUSTERED = "Structures in even speckle", "Structures where scatterers gather in clusters"
DISCS = ("10 px", "16 px", "24 px")

TARGETS = (
    Target("gain, dB", f"3 over the {CLASSICAL}", 3.0, _gain("physics")),
    Target("gain, array, dB", f"3 over the {CLASSICAL}", 3.0, _gain("physics-array")),
    _at_most(0.5, "below the teacher, dB", _gap("physics")),
    _at_most(0.5, "below the teacher, array, dB", _gap("physics-array")),
    *(
        _best_classical(what, (document, "Tissue, lesions and edges", "gCNR, 8 bits"), 3)
        for document, what in (("physics", "gCNR"), ("physics-array", "gCNR, array"))
    ),
    _best_classical(
        "gCNR of 3 dB over chance", ("safety", "Lesions of 3 dB told apart", "over chance")
    ),
    *(
        _best_classical(f"3 dB, {size}, survive", ("safety", "Lesions of 3 dB that survive", size))
        for size in SIZES
    ),
    *(
        _best_classical(
            f"planted in real images, {size}, survive",
            ("real", "Lesions of 3 dB planted in these images", size),
        )
        for size in SIZES
    ),
    _at_most(
        1,
        "stands out in even speckle, dB",
        _largest("safety", EVEN, tuple(f"{size}, dB" for size in (*DISCS, "stroke"))),
    ),
    _at_most(
        1,
        "stands out among clusters, dB",
        _largest("safety", CLUSTERED, tuple(f"clustered, {size}, dB" for size in DISCS)),
    ),
    Target(
        "flicker, times lower",
        "5",
        5.0,
        _column("safety", "Shifts, flicker, strength", "flicker, times lower"),
        digits=1,
    ),
    _at_most(
        1,
        "mean shift, even tissue, grey levels",
        _largest("safety", "Mean shift by brightness", ("largest",)),
    ),
    _at_most(1, "mean shift, real images by source", _shift_of_a_source),
    _at_most(
        0.5,
        "lines wider by, px",
        _largest(
            "safety",
            "Text and thin lines",
            tuple(f"{width} px line, wider px" for width in (1, 2, 3)),
        ),
    ),
)


def summary(folder: Path, methods: Sequence[str] = COMPARED) -> str:
    """The summary as Markdown.

    Parameters
    ----------
    folder : Path
        Of the documents in `DOCUMENTS`.
    methods : sequence of str
        Rows of their tables, which become columns; bundles by their names.

    Raises
    ------
    TablesError
    """
    tables = Tables.read(folder)
    table = Table(
        "What was to be reached",
        ("target", "asked", *methods),
        [target.row(tables, methods) for target in TARGETS],
        (NOTE,),
    )
    return table.markdown()
