from __future__ import annotations

import errno
import io
import json
import logging
import sys
import threading
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
from pydicom import Dataset
from pydicom.valuerep import PersonName

from dicom_node.config import LogSection
from dicom_node.records import Stage
from dicom_node.service import log

MARK = "Zyxwv^Marked"


@pytest.fixture(autouse=True)
def restored():
    """Leave the process's logging as it was."""
    hooks = threading.excepthook, warnings.showwarning
    handlers = list(logging.root.handlers)
    with warnings.catch_warnings():
        yield
    logging.root.handlers = handlers
    threading.excepthook, warnings.showwarning = hooks
    structlog.reset_defaults()


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_line_has_event_level_time_process_and_module(capsys):
    log.configure(LogSection(), "work")
    log.get("dicom_node.send").info("instance-sent", sop_instance_uid="1.2.3", seconds=0.5)
    (line,) = lines(capsys)
    assert line["event"] == "instance-sent"
    assert line["level"] == "info"
    assert line["process"] == "work"
    assert line["module"] == "send"
    assert line["sop_instance_uid"] == "1.2.3"
    assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None


def test_logger_made_before_the_configuration_follows_it(capsys):
    early = log.get("dicom_node.send")
    log.configure(LogSection(), "work")
    thread = threading.Thread(target=lambda: early.info("hello", error=ValueError(MARK)))
    thread.start()
    thread.join()
    (line,) = lines(capsys)
    assert line["process"] == "work"
    assert line["error"] == "ValueError"


@pytest.mark.parametrize("fails", ["write", "flush"])
def test_line_that_nobody_takes_stops_no_work(monkeypatch, fails):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    stream = io.StringIO()
    monkeypatch.setattr(stream, fails, full)
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure(LogSection(), "work")
    log.get("x").error("lost")


def test_level_filters(capsys):
    log.configure(LogSection(level="warning"))
    log.get("x").info("quiet")
    log.get("x").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


@pytest.mark.parametrize("format_", ["json", "console"])
def test_data_set_person_name_and_element_never_reach_a_line(capsys, format_):
    log.configure(LogSection(format=format_))
    dataset = Dataset()
    dataset.PatientName = MARK
    log.get("x").error(
        "mistake",
        dataset=dataset,
        name=PersonName(MARK),
        element=dataset["PatientName"],
        nested={"inner": [dataset, PersonName(MARK)]},
        error=ValueError(MARK),
    )
    written = capsys.readouterr().err
    assert "mistake" in written
    assert "Zyxwv" not in written


def test_plain_values_pass_unchanged(capsys):
    log.configure(LogSection())
    log.get("x").info(
        "e",
        path=Path("/a/b"),
        stage=Stage.SEND,
        at=datetime(2026, 1, 2, tzinfo=UTC),
        items=(1, "a"),
    )
    (line,) = lines(capsys)
    assert line["path"] == "/a/b"
    assert line["stage"] == "send"
    assert line["at"] == "2026-01-02T00:00:00+00:00"
    assert line["items"] == [1, "a"]


def test_libraries_words_and_warnings_are_not_passed_on(capsys):
    log.configure(LogSection(level="debug"))
    logging.getLogger("pydicom").error(MARK)
    logging.getLogger("pynetdicom.association").error(MARK)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"Invalid value: {MARK}", UserWarning, stacklevel=1)
    written = capsys.readouterr().err
    assert "Zyxwv" not in written
    assert "library-warning" in written


def test_library_that_nobody_thought_of_writes_no_text_of_its_own(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    log.configure(LogSection(level="debug"), "work")
    failure = ValueError(MARK)
    logging.getLogger("sqlalchemy.pool").error("closing %s", MARK, exc_info=failure)
    (line,) = lines(capsys)
    assert (line["event"], line["library"]) == ("library-logged", "sqlalchemy.pool")
    assert "Zyxwv" not in json.dumps(line)


def test_thread_that_dies_is_named_without_the_exceptions_text(capsys):
    log.configure(LogSection(), "work")

    def die() -> None:
        raise KeyError(MARK)

    thread = threading.Thread(target=die, name="derive")
    thread.start()
    thread.join()
    (line,) = lines(capsys)
    assert line["event"] == "thread-died"
    assert line["exception"] == "KeyError"
    assert line["thread"] == "derive"
    assert "test_log.py" in line["place"]
    assert "Zyxwv" not in json.dumps(line)
