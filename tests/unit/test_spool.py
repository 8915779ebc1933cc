from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from dicom_node.errors import Permanent, Transient
from dicom_node.spool import Spool


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def temporary(spool: Spool, content: bytes = b"object", name: str = "a.part"):
    path = spool.incoming / name
    path.write_bytes(content)
    return path


def age(path, seconds: float = 7200) -> None:
    """Let a file look old; the change time cannot be set, so the clock is moved in the test."""
    old = time.time() - seconds
    os.utime(path, (old, old))


@pytest.fixture
def later(monkeypatch):
    now = time.time()
    monkeypatch.setattr("dicom_node.spool.time.time", lambda: now + 7200)


def test_taken_file_leaves_incoming_and_keeps_its_bytes(spool):
    path = spool.take(temporary(spool), "1.2.3")
    assert path.parent == spool.received
    assert path.name.startswith("1.2.3-")
    assert path.read_bytes() == b"object"
    assert list(spool.incoming.iterdir()) == []


def test_same_instance_taken_twice_gets_two_files(spool):
    first = spool.take(temporary(spool, b"1"), "1.2.3")
    second = spool.take(temporary(spool, b"2"), "1.2.3")
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")


@pytest.mark.parametrize("hint", ["../../etc/passwd", "/abs", "", "..", "1.2.3/4", "1\0"])
def test_name_hint_that_is_no_uid_never_reaches_the_file_name(spool, hint):
    path = spool.take(temporary(spool), hint)
    assert path.parent == spool.received
    assert path.name.startswith("unnamed-")


def test_file_is_forced_to_disk_before_it_is_renamed_and_its_folder_after(spool, monkeypatch):
    steps = []
    real_fsync, real_rename = os.fsync, type(spool.root).rename

    def fsync(descriptor):
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def rename(self, target):
        steps.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(type(spool.root), "rename", rename)
    spool.take(temporary(spool), "1.2.3")
    assert steps == ["a.part", "rename", "received"]
    steps.clear()
    spool.write([b"x"], "2.25.1/2.25.2.dcm")
    assert steps[0].startswith("derived-")
    assert steps[1:] == ["rename", "2.25.1", "derived"]
    steps.clear()
    assert spool.sweep({spool.derived / "2.25.1" / "2.25.2.dcm"}, older_than_s=-1) == (0, 1)
    assert steps == ["rename", "quarantine"]


def test_no_file_stays_open(spool):
    before = len(list(Path("/proc/self/fd").iterdir()))
    spool.take(temporary(spool), "1.2.3")
    spool.write([b"x"], "2.25.1/2.25.2.dcm")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_derived_file_appears_whole(spool):
    path = spool.write([b"head", b"", b"body"], "2.25.1/2.25.2.dcm")
    assert path == spool.derived / "2.25.1" / "2.25.2.dcm"
    assert path.read_bytes() == b"headbody"
    assert list(spool.incoming.iterdir()) == []


def test_derived_file_of_a_retry_replaces_the_first(spool):
    spool.write([b"first"], "a/b.dcm")
    assert spool.write([b"second"], "a/b.dcm").read_bytes() == b"second"


def test_nothing_remains_where_the_content_fails_half_way(spool):
    def chunks():
        yield b"head"
        raise Permanent("pixel-data-truncated", "no")

    with pytest.raises(Permanent, match="truncated"):
        spool.write(chunks(), "a/b.dcm")
    assert [path for path in spool.root.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("relative", ["../x", "/etc/x", "a/../../x", ""])
def test_derived_file_cannot_leave_the_spool(spool, relative):
    with pytest.raises(Permanent, match="outside"):
        spool.write([b""], relative)


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "disk-full"), (errno.EIO, "spool-unusable")],
)
def test_failing_disk_is_transient_and_named(spool, monkeypatch, number, code):
    def fail(_descriptor):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Transient) as caught:
        spool.write([b"x"], "a/b.dcm")
    assert caught.value.code == code
    assert list(spool.incoming.iterdir()) == []


def test_sweep_removes_old_orphans_only(spool, later):
    kept = spool.take(temporary(spool), "1.2.3")
    orphan = spool.take(temporary(spool), "1.2.3")
    derived_orphan = spool.write([b"x"], "a/b.dcm")
    left_behind = temporary(spool, name="dead-sender.part")
    for path in (kept, orphan, derived_orphan, left_behind):
        age(path)
    assert spool.sweep({kept}, older_than_s=3600) == (3, 0)
    assert kept.exists()
    assert not orphan.exists()
    assert not derived_orphan.parent.exists()
    assert not left_behind.exists()


def test_sweep_puts_aside_what_was_received_and_is_of_no_known_instance(spool, later):
    kept = spool.take(temporary(spool), "1.2.3")
    unknown = spool.take(temporary(spool), "1.2.4")
    for path in (kept, unknown):
        age(path)
    assert spool.sweep({kept}, older_than_s=3600) == (0, 1)
    assert [path.name for path in (spool.root / "quarantine").iterdir()] == [unknown.name]


def test_files_of_a_spool_that_has_moved_are_found_and_kept(spool, later, tmp_path):
    received = spool.take(temporary(spool), "1.2.3")
    derived = spool.write([b"x"], "2.25.1/2.25.2.dcm")
    spool.root.rename(tmp_path / "moved")
    moved = Spool(tmp_path / "moved")
    for old in (received, derived):
        assert moved.located(old).is_file()
        assert moved.located(moved.located(old)) == moved.located(old)
        age(moved.located(old))
    assert moved.sweep({received, derived}, older_than_s=3600) == (0, 0)
    for old in (received, derived):
        moved.remove(old)
        assert not moved.located(old).exists()


def test_spool_that_cannot_be_written_says_so(spool, monkeypatch):
    spool.check_writable()
    assert list(spool.incoming.iterdir()) == []
    read_only = OSError(errno.EROFS, "read-only")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(read_only))
    with pytest.raises(Transient, match="Read-only"):
        spool.check_writable()


def test_others_cannot_look_into_the_spool(tmp_path):
    root = Spool(tmp_path / "fresh").root
    assert root.stat().st_mode & 0o007 == 0


def test_sweep_spares_a_file_that_was_renamed_a_moment_ago(spool):
    path = temporary(spool)
    age(path)
    taken = spool.take(path, "1.2.3")  # old content, fresh name: its row is about to come
    assert spool.sweep(set(), older_than_s=3600) == (0, 0)
    assert taken.exists()


def test_sweep_leaves_quarantine_alone(spool):
    path = spool.take(temporary(spool), "1.2.3")
    assert spool.sweep(set(), older_than_s=-1) == (0, 1)
    assert spool.sweep(set(), older_than_s=-1) == (0, 0)
    assert (spool.root / "quarantine" / path.name).exists()


def test_sweeps_of_several_workers_do_not_trip_over_each_other(spool):
    for number in range(200):
        spool.take(temporary(spool), f"1.2.{number}")
        spool.write([b"x"], f"{number}/{number}.dcm")
    together = Barrier(4)

    def sweep(_worker):
        together.wait()
        return spool.sweep(set(), older_than_s=-1)

    with ThreadPoolExecutor(4) as workers:
        counts = list(workers.map(sweep, range(4)))
    assert [sum(column) for column in zip(*counts, strict=True)] == [200, 200]
    assert list(spool.derived.iterdir()) == []


def test_removing_a_missing_file_is_no_error(spool):
    spool.remove(spool.received / "gone.dcm")


def test_free_space_is_in_megabytes(spool):
    figures = os.statvfs(spool.root)
    expected = figures.f_bavail * figures.f_frsize / 1e6
    assert spool.free_mb() == pytest.approx(expected, rel=0.05)
