"""What was to be reached beside what bundles and others reach.

Nothing is measured here: every figure is read from a document that an evaluation has written, so
that the summary cannot say anything else than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.evaluation.tables import Table

NETWORKS = ("teacher", "DnCNN")
"""Rows that are neither classical methods nor bundles."""
COMPARED = ("quality", "lesions", *NETWORKS, "BM3D", "SRAD")
"""Columns of the summary."""
NOT_METHODS = ("noisy", "reference")
CLASSICAL = "best classical"
SIZES = ("10 px", "14 px", "20 px", "30 px")
DOCUMENTS = ("physics", "physics-array", "real", "safety")

NOTE = (
    "Italics: not reached. Read by `despeckle-model targets` from [physics](physics.md), "
    "[array](physics-array.md), [real](real.md) and [safety](safety.md), whose heads say when and "
    "how it was measured. Classical methods are tuned. What stands out: 95th percentile at the "
    "worst size."
)

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
        return float(row[column].strip("*"))

    def best_classical(self, document: str, heading: str, column: str) -> tuple[float, str]:
        """The highest figure of a classical method, and which."""
        methods = [name for name in self.found[document][heading] if _is_classical(name)]
        return max((self.figure(document, heading, column, name), name) for name in methods)

    def sources(self) -> list[str]:
        """Headings of real images, by source."""
        return [name for name in self.found["real"] if "_" in name]


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
    return name not in (*NETWORKS, *NOT_METHODS) and not name.startswith("student")


@dataclass(frozen=True)
class Target:
    """One thing that was to be reached.

    Attributes
    ----------
    what : str
    asked : str
        For the reader.
    limit : callable
        Tables to the figure that is asked for.
    reached : callable
        Tables and a method to its figure.
    higher : bool
        Whether more is better.
    digits : int
        Shown.
    against : callable, optional
        Tables to whom the limit comes from.
    """

    what: str
    asked: str
    limit: Callable[[Tables], float]
    reached: Callable[[Tables, str], float]
    higher: bool = True
    digits: int = 2
    against: Callable[[Tables], str] | None = None

    def row(self, tables: Tables, methods: Sequence[str]) -> Row:
        """A row of the summary; what misses the target is set in italics."""
        limit = round(self.limit(tables), 3)
        of = f" ({self.against(tables)} {limit:.{self.digits}f})" if self.against else ""
        row = {"target": self.what, "asked": self.asked + of}
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


def _against_best(document: str, heading: str, column: str, what: str, digits: int = 2) -> Target:
    return Target(
        what,
        f"the {CLASSICAL}'s",
        lambda tables: tables.best_classical(document, heading, column)[0],
        _column(document, heading, column),
        digits=digits,
        against=lambda tables: tables.best_classical(document, heading, column)[1],
    )


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
    Target("gain, dB", f"3 over the {CLASSICAL}", lambda _: 3.0, _gain("physics")),
    Target("gain, array, dB", f"3 over the {CLASSICAL}", lambda _: 3.0, _gain("physics-array")),
    Target("below the teacher, dB", "0.5 at most", lambda _: 0.5, _gap("physics"), higher=False),
    Target(
        "below the teacher, array, dB",
        "0.5 at most",
        lambda _: 0.5,
        _gap("physics-array"),
        higher=False,
    ),
    *(
        _against_best(document, "Tissue, lesions and edges", "gCNR, 8 bits", what, 3)
        for document, what in (("physics", "gCNR"), ("physics-array", "gCNR, array"))
    ),
    *(
        _against_best(
            "safety",
            "Lesions of 3 dB that survive",
            size,
            f"3 dB, {size}, survive",
        )
        for size in SIZES
    ),
    *(
        _against_best(
            "real",
            "Lesions of 3 dB planted in these images",
            size,
            f"planted in real images, {size}, survive",
        )
        for size in SIZES
    ),
    Target(
        "stands out in even speckle, dB",
        "1 at most",
        lambda _: 1.0,
        _largest("safety", EVEN, tuple(f"{size}, dB" for size in (*DISCS, "stroke"))),
        higher=False,
    ),
    Target(
        "stands out among clusters, dB",
        "1 at most",
        lambda _: 1.0,
        _largest("safety", CLUSTERED, tuple(f"clustered, {size}, dB" for size in DISCS)),
        higher=False,
    ),
    Target(
        "flicker, times lower",
        "5",
        lambda _: 5.0,
        _column("safety", "Shifts, flicker, strength", "flicker, times lower"),
        digits=1,
    ),
    Target(
        "mean shift, even tissue, grey levels",
        "1 at most",
        lambda _: 1.0,
        _largest("safety", "Mean shift by brightness", ("largest",)),
        higher=False,
    ),
    Target(
        "mean shift, real images by source",
        "1 at most",
        lambda _: 1.0,
        _shift_of_a_source,
        higher=False,
    ),
    Target(
        "lines wider by, px",
        "0.5 at most",
        lambda _: 0.5,
        _largest(
            "safety",
            "Text and thin lines",
            tuple(f"{width} px line, wider px" for width in (1, 2, 3)),
        ),
        higher=False,
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
