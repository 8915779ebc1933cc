"""The summary says what the tables say, and is up to date."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.cli import app
from model.evaluation import targets

TABLES = Path(__file__).parents[2] / "docs" / "tables"


@pytest.fixture
def copied(tmp_path):
    for name in targets.DOCUMENTS:
        shutil.copy(TABLES / f"{name}.md", tmp_path)
    return tmp_path


def cells(text, target):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {target} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_summary_in_the_documents_is_that_of_their_tables():
    assert (TABLES / "targets.md").read_text() == targets.summary(TABLES)


def test_every_column_of_a_row_is_a_method():
    head = cells(targets.summary(TABLES, ("quality", "NLM")), "target")
    assert head == ["target", "asked", "quality", "NLM"]


def test_what_misses_its_target_is_in_italics(copied):
    safety = copied / "safety.md"
    read = targets.Tables.read(copied)
    of = ("safety", "Shifts, flicker, strength", "flicker, times lower")
    reached = f"{read.figure(*of, 'quality'):.2f}"
    for value, shown in (("5.00", "5.0"), ("4.99", "*5.0*"), ("2.10", "*2.1*")):
        text = (TABLES / "safety.md").read_text()
        lines = [
            line.replace(f" {reached} ", f" {value} ") if "student quality" in line else line
            for line in text.splitlines()
        ]
        safety.write_text("\n".join(lines))
        assert cells(targets.summary(copied), "flicker, times lower")[2] == shown


def test_gains_are_over_the_best_classical_method():
    read = targets.Tables.read(TABLES)
    best, name = read.best_classical("physics", "Fidelity", "PSNR dB")
    assert name not in {"teacher", "DnCNN", "noisy", "reference"}
    assert best >= read.figure("physics", "Fidelity", "PSNR dB", "BM3D")
    row = cells(targets.summary(TABLES, (name,)), "gain, dB")
    assert row[2] == "*0.00*"


def test_a_network_under_any_name_is_no_classical_method(copied):
    document = copied / "physics.md"
    row = next(line for line in document.read_text().splitlines() if line.startswith("| teacher |"))
    renamed = f"{row}\n{row.replace('teacher', 'teacher x4')}\n{row.replace('teacher', 'mine')}"
    document.write_text(document.read_text().replace(row, renamed))
    assert targets.summary(copied) == targets.summary(TABLES)


def test_a_figure_that_is_none_is_named(copied):
    text = (copied / "safety.md").read_text().splitlines()
    start = text.index("### Shifts, flicker, strength")
    row = next(i for i in range(start, len(text)) if text[i].startswith("| student quality |"))
    cells = text[row].split("|")
    text[row] = "|".join([*cells[:2], *[" - " for _ in cells[2:-1]], ""])
    (copied / "safety.md").write_text("\n".join(text))
    with pytest.raises(targets.TablesError, match=r"safety\.md: 'flicker.*'quality'"):
        targets.summary(copied)


def test_a_missing_document_or_method_is_named(copied):
    run = CliRunner().invoke(app, ["targets", str(copied), "--method", "nobody"])
    assert run.exit_code != 0
    assert "nobody" in run.output
    (copied / "real.md").unlink()
    run = CliRunner().invoke(app, ["targets", str(copied)])
    assert run.exit_code != 0
    assert "real.md" in run.output
    assert not (copied / "targets.md").exists()
