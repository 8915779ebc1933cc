from __future__ import annotations

import subprocess
import sys

import pytest

from dicom_node.service.presence import Presence
from dicom_node.spool import Spool

OTHER = """
import sys, time
from pathlib import Path
from dicom_node.service.presence import Presence
from dicom_node.spool import Spool
one = Presence(Spool(Path(sys.argv[1])), "receivers")
one.begin()
print(one.name, flush=True)
time.sleep(60)
"""


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


@pytest.fixture
def other(spool):
    """Another process, and its name."""
    command = [sys.executable, "-c", OTHER, str(spool.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


def test_only_who_was_killed_is_dead_until_buried(spool, other):
    process, name = other
    here = Presence(spool, "receivers")
    here.begin()
    assert here.dead() == []
    process.kill()
    process.wait()
    assert here.dead() == [name]
    here.bury(name)
    assert here.dead() == []


def test_who_ends_leaves_nothing(spool):
    first, second = Presence(spool, "receivers"), Presence(spool, "receivers")
    first.begin()
    second.begin()
    first.end()
    first.end()
    assert second.dead() == []
    second.end()
    assert [path for path in spool.root.rglob("*") if path.is_file()] == []


def test_those_of_another_spool_are_not_known(spool, other, tmp_path):
    process, _ = other
    process.kill()
    process.wait()
    elsewhere = Presence(Spool(tmp_path / "elsewhere"), "receivers")
    elsewhere.begin()
    assert elsewhere.dead() == []
