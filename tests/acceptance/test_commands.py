"""The command line as an administrator meets it: what it says, where, and with which status."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_node import cli
from dicom_node.audit import EventName, event
from dicom_node.config import load
from dicom_node.demo.pacs import EmbeddedPacs
from dicom_node.errors import ConfigError, Permanent, Refused, Transient
from dicom_node.ledger import Ledger
from tests.builders import write_us_instance
from tests.ledgers import derive, soon
from tests.peers import LOOPBACK, free_port, orthanc
from tests.receiving import arrival

ROOT = Path(__file__).parents[2]


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dicom_node", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "300", "NO_COLOR": "1", **environment},
    )


def config(folder: Path, text: str = "") -> Path:
    path = folder / "node.toml"
    path.write_text(
        f'[node]\nstate_directory = "{folder}/state"\n'
        f'[receive]\nhost = "{LOOPBACK}"\nport = {free_port()}\nmin_free_mb = 1\n{text}'
    )
    return path


def test_a_configuration_that_may_not_be_read_is_named(monkeypatch):
    class Locked(type(Path())):  # what Path says to whom the folder is closed, but root never is
        def exists(self):
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.delenv("DICOM_NODE_CONFIG", raising=False)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", Locked("/etc/dicom-node/node.toml"))
    with pytest.raises(ConfigError, match=r"node\.toml: Permission denied.*group dicom-node"):
        cli._settings(None)


def test_every_command_is_listed():
    shown = command("--help")
    assert shown.returncode == 0
    for name in [
        "serve",
        "receive",
        "work",
        "process",
        "demo",
        "check-config",
        "echo",
        "status",
        "retry",
        "rederive",
        "verify",
        "audit",
    ]:
        assert re.search(rf"^\W*{name}\s", shown.stdout, re.MULTILINE), name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 104\n", ["receive.prot", "did you mean 'port'"]),
        ('[log]\nlevel = "loud"\n', ["log.level", "'loud'", "debug"]),
        ("[despeckle]\nstrength = 1.5\n", ["despeckle.strength", "1.5", "less than or equal to 1"]),
        ('[peers.x]\nae_title = "X"\nreceives = true\n', ["peers.x", "host and port"]),
        ('[peers.x]\nae_title = "SEVENTEEN_LETTERS"\n', ["peers.x.ae_title", "16"]),
        ('[peers.x]\nae_title = "  "\n', ["peers.x.ae_title", "at least 1 character"]),
        ("[retry]\ngive_up_hours = inf\n", ["retry.give_up_hours", "finite"]),
        ("[spool]\nkeep_hours = nan\n", ["spool.keep_hours", "finite"]),
        ('[peers.x]\nae_title = "Ger\u00e4t"\n', ["peers.x.ae_title", "printable ASCII"]),
        (
            "[derive]\nseries_description_label = 'a \\ b'\n",
            ["derive.series_description_label", "no backslash"],
        ),
        ("[receive\n", ["node.toml", "correct the syntax"]),
    ],
)
def test_wrong_key_is_named_with_value_and_remedy_in_one_line(tmp_path, text, words):
    done = command("check-config", "--config", config(tmp_path, text))
    assert done.returncode == 78
    (line,) = done.stderr.strip().splitlines()
    for word in words:
        assert word in line
    assert "Traceback" not in done.stderr


def test_unreadable_configuration_is_said_in_one_line(tmp_path):
    done = command("receive", "--config", tmp_path / "none.toml")
    assert done.returncode == 78
    assert "none.toml" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_check_of_a_good_configuration_creates_nothing(tmp_path):
    done = command("check-config", "--config", config(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "self-test" in done.stdout
    assert "warning peers: no peer has receives = true" in done.stdout
    assert not (tmp_path / "state").exists()


def test_check_finds_missing_bundle_busy_port_and_unknown_host(tmp_path):
    with EmbeddedPacs(tmp_path / "pacs") as pacs:
        busy = pacs.port
        path = config(
            tmp_path,
            '[despeckle]\nbundle = "no-such"\n'
            '[peers.far]\nae_title = "FAR"\nhost = "no-such-host.invalid"\nport = 104\n',
        )
        path.write_text(re.sub(r"port = \d+\nmin", f"port = {pacs.port}\nmin", path.read_text()))
        done = command("check-config", "--config", path)
    assert done.returncode == 1
    assert "error despeckle.bundle" in done.stdout
    assert f"warning receive.port: {busy}" in done.stdout
    assert "error peers.far: host = 'no-such-host.invalid'" in done.stdout


def test_check_prints_names_as_they_are_and_says_who_is_never_called(tmp_path):
    text = '[peers."[old]"]\nae_title = "US1"\n'
    done = command("check-config", "--config", config(tmp_path, text))
    assert done.returncode == 0, done.stdout
    assert "ok peers.[old]: US1; without host and port it is never called" in done.stdout


def test_echo_prints_names_as_they_are(tmp_path):
    text = f'[peers."[old]"]\nae_title = "[/X]"\nhost = "{LOOPBACK}"\nport = {free_port()}\n'
    done = command("echo", "--config", config(tmp_path, text))
    assert done.returncode == 1
    assert re.search(
        r"^\[old\] +\[/X\] +127.0.0.1:\d+ +peer-unreachable: ", done.stdout, re.MULTILINE
    )


@pytest.mark.peer
def test_echo_shows_every_peer_and_fails_if_one_does(tmp_path):
    with orthanc(tmp_path / "orthanc") as archive:
        living = f'[peers.pacs]\nae_title = "ORTHANC"\nhost = "{LOOPBACK}"\nport = {archive.port}\n'
        dead = f'[peers.dead]\nae_title = "DEAD"\nhost = "{LOOPBACK}"\nport = {free_port()}\n'
        good = command("echo", "--config", config(tmp_path, living))
        bad = command("echo", "--config", config(tmp_path, living + dead))
    assert good.returncode == 0
    assert re.search(r"pacs +ORTHANC +127.0.0.1:\d+ +answers", good.stdout)
    assert bad.returncode == 1
    assert "answers" in bad.stdout
    assert "peer-unreachable" in bad.stdout


def test_status_of_a_node_that_never_ran_says_so(tmp_path):
    done = command("status", "--config", config(tmp_path))
    assert done.returncode == 78
    assert "holds no ledger" in done.stderr


UID = "2.25.206014738917823831808931866092327136675203.1.2.3.4.5.6.7.8.9"


def test_status_and_audit_print_messages_as_they_are_and_uids_whole(tmp_path):
    path = config(tmp_path)
    (tmp_path / "state").mkdir()
    with Ledger(f"sqlite:///{tmp_path}/state/ledger.sqlite3") as ledger:
        ledger.record_arrival(arrival(UID))
        instance = ledger.claim_derive("w", soon())
        assert instance is not None
        ledger.park(instance.id, "w", Permanent("odd", f"[/RED] [peers.old] {'long ' * 20}end"))
        ledger.append_event(
            event(EventName.INSTANCE_SENT, destination="[old]", sop_instance_uid=UID, detail="[/]")
        )
    shown = command("status", "--config", path, COLUMNS="80")
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    assert re.search(rf"derive  {UID}  parked odd: \[/RED\] \[peers.old\] long.*end", shown.stdout)
    listed = command("status", "--json", "--config", path)
    assert listed.returncode == 1
    (error,) = json.loads(listed.stdout)["last_errors"]
    assert (error["sop_instance_uid"], error["code"], error["parked"]) == (UID, "odd", True)
    trail = command("audit", UID, "--config", path, COLUMNS="80")
    assert trail.returncode == 0, trail.stderr
    assert re.search(rf"\[old\]  {UID}  \[/\]", trail.stdout)


def test_status_tells_of_what_is_parked_while_another_destination_waits(tmp_path):
    path = config(tmp_path)
    (tmp_path / "state").mkdir()
    with Ledger(f"sqlite:///{tmp_path}/state/ledger.sqlite3") as ledger:
        ledger.record_arrival(arrival(UID))
        derive(ledger, destinations=("one", "other"))
        ledger.release_series("1.2", "quiet", soon())
        (delivery,) = ledger.claim_send("w", soon(), "one")
        ledger.park_delivery(delivery.id, "w", Permanent("store-refused", "no"))
    shown = command("status", "--json", "--config", path)
    assert json.loads(shown.stdout)["stages"] == {"send": 1}
    assert shown.returncode == 1


def test_status_counts_what_was_skipped_or_parked_by_reason(tmp_path):
    path = config(tmp_path)
    (tmp_path / "state").mkdir()
    with Ledger(f"sqlite:///{tmp_path}/state/ledger.sqlite3") as ledger:
        for number, code in enumerate(("no-tissue", "not-ultrasound", "not-ultrasound")):
            ledger.record_arrival(arrival(f"1.2.{number}"), skip=Refused(code, "it is not"))
    shown = command("status", "--config", path)
    assert shown.returncode == 0
    pattern = r"skipped +3 *\n +not-ultrasound +2 *\n +no-tissue +1 *\n"
    assert re.search(pattern, shown.stdout), shown.stdout
    found = json.loads(command("status", "--json", "--config", path).stdout)
    assert found["stages"] == {"skipped": 3}
    assert found["reasons"] == {"skipped": {"not-ultrasound": 2, "no-tissue": 1}}
    assert found["disk"]["free_mb"] > 0


def test_retry_and_rederive_print_what_was_asked_for(tmp_path):
    path = config(tmp_path)
    (tmp_path / "state").mkdir()
    Ledger(f"sqlite:///{tmp_path}/state/ledger.sqlite3").close()
    for name in ("retry", "rederive"):
        done = command(name, "[/1.2]", "--config", path)
        assert done.returncode == 1
        assert "under [/1.2]" in done.stdout


def test_audit_shows_the_lines_that_name_an_object_for_people_and_programs(tmp_path):
    path = config(tmp_path)
    (tmp_path / "state").mkdir()
    with Ledger(f"sqlite:///{tmp_path}/state/ledger.sqlite3") as ledger:
        for uid in ("1.2.3", "1.2.4"):
            ledger.append_event(
                event(
                    EventName.INSTANCE_SENT, actor="NODE", destination="pacs", sop_instance_uid=uid
                )
            )
    everything = command("audit", "--config", path)
    assert everything.returncode == 0
    assert everything.stdout.count("instance-sent") == 2
    one = command("audit", "1.2.4", "--json", "--config", path)
    (line,) = one.stdout.splitlines()
    found = json.loads(line)
    assert found["sop_instance_uid"] == "1.2.4"
    assert (found["code"], found["outcome"]) == ("110104", 0)
    assert command("audit", "1.2.5", "--config", path).returncode == 1


def test_retry_wants_a_uid_or_all(tmp_path):
    assert command("retry", "--config", config(tmp_path)).returncode == 2
    assert command("retry", "1.2", "--all", "--config", config(tmp_path)).returncode == 2


def test_second_receiver_on_the_same_port_ends_with_one_clear_line(tmp_path):
    with EmbeddedPacs(tmp_path / "pacs") as pacs:
        path = config(tmp_path)
        path.write_text(re.sub(r"port = \d+\nmin", f"port = {pacs.port}\nmin", path.read_text()))
        done = command("receive", "--config", path)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_receiver_on_a_host_that_does_not_resolve_says_so(tmp_path):
    path = config(tmp_path)
    path.write_text(path.read_text().replace(LOOPBACK, "no-such-host.invalid"))
    done = command("receive", "--config", path)
    assert done.returncode == 1
    assert "receive.host, receive.port" in done.stderr
    assert "no such host" in done.stderr
    assert "another program" not in done.stderr


def test_state_directory_that_is_a_file_is_named_with_its_key(tmp_path):
    path = config(tmp_path, f'[ledger]\nurl = "sqlite:///{tmp_path}/ledger"\n')
    (tmp_path / "state").write_text("")
    done = command("receive", "--config", path)
    assert done.returncode == 78
    assert f"node.state_directory = '{tmp_path}/state': is no folder" in done.stderr
    checked = command("check-config", "--config", path)
    assert checked.returncode == 1
    assert f"error node.state_directory: '{tmp_path}/state'" in checked.stdout
    assert "is no folder" in checked.stdout


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ESTALE, Transient),
        (errno.EIO, Transient),
        (errno.EROFS, Transient),
        (errno.EACCES, ConfigError),
    ],
)
def test_disk_that_is_away_at_boot_ends_no_service_for_good(tmp_path, monkeypatch, number, kind):
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    settings = load(config(tmp_path))
    monkeypatch.setattr(Path, "mkdir", failing)
    with pytest.raises(kind, match=r"node\.state_directory"):
        cli._make_state_directory(settings)


@pytest.mark.slow
def test_process_derives_files_and_folders_and_names_what_it_skips(tmp_path):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    source = write_us_instance(folder / "deeper" / "a.dcm")
    (folder / "notes.txt").write_text("not DICOM")
    output = tmp_path / "out"
    done = command("process", folder, "--output", output, "--strength", "0.5")
    assert done.returncode == 0, done.stderr
    (derived,) = output.rglob("*.dcm")
    references = dcmread(derived).SourceImageSequence
    assert references[0].ReferencedSOPInstanceUID == dcmread(source).SOPInstanceUID
    assert "1 derived" in done.stdout
    assert "notes.txt: skipped" in done.stderr


@pytest.mark.slow
def test_process_gives_the_same_object_for_the_same_strength_and_another_for_another(tmp_path):
    source = write_us_instance(tmp_path / "a.dcm")
    names = []
    for number, strength in enumerate(("1.0", "1.0", "0.5")):
        output = tmp_path / str(number)
        assert command("process", source, "-o", output, "--strength", strength).returncode == 0
        names.append(next(output.rglob("*.dcm")).name)
    assert names[0] == names[1] != names[2]


@pytest.mark.slow
def test_process_fails_where_something_failed(tmp_path):
    source = write_us_instance(tmp_path / "a.dcm")
    dataset = dcmread(source)
    dataset.PixelData = dataset.PixelData[:10]
    dataset.save_as(source)
    done = command("process", source, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "a.dcm: failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_process_of_nothing_is_wrong_usage(tmp_path):
    assert command("process", tmp_path / "none", "-o", tmp_path).returncode == 2


@pytest.mark.slow
def test_demo_ends_well_and_leaves_objects_and_pictures(tmp_path):
    done = command("demo", "--output", tmp_path / "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("right") == 3
    assert len(list((tmp_path / "demo" / "pacs").glob("*.dcm"))) == 3
    pictures = sorted(path.name for path in (tmp_path / "demo" / "pictures").iterdir())
    assert pictures == ["palette_color.png", "rgb_color.png", "ybr_color.png"]
    assert "error" not in (tmp_path / "demo" / "node.log").read_text()
    again = command("demo", "--output", tmp_path / "demo")
    assert again.returncode == 0, "a second run into the same folder"


def test_commands_work_from_any_folder(tmp_path):
    program = shutil.which("dicom-node", path=str(Path(sys.executable).parent))
    assert program, "the console script is installed"
    done = subprocess.run(
        [program, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"dicom-node \d+\.\d+\.\d+\n", done.stdout)


@pytest.fixture(scope="module")
def processed(tmp_path_factory):
    """A source and what `process` made of it, in one folder."""
    folder = tmp_path_factory.mktemp("processed")
    source = write_us_instance(folder / "source.dcm")
    assert command("process", source, "--output", folder / "derived").returncode == 0
    return folder


def test_verify_finds_what_process_made_right_and_shows_it(processed, tmp_path):
    done = command("verify", processed, "--pictures", tmp_path / "pictures")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 derived objects, 0 wrong" in done.stdout
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1


def test_verify_names_pixels_that_are_not_those_of_the_network(processed, tmp_path):
    folder = shutil.copytree(processed, tmp_path / "changed")
    (path,) = (folder / "derived").rglob("*.dcm")
    derived = dcmread(path)
    pixels = derived.pixel_array.copy()
    pixels[pixels.shape[0] // 4 :] //= 2
    derived.PixelData = pixels.tobytes()
    derived.save_as(path)
    done = command("verify", folder)
    assert done.returncode == 1
    assert re.search(r"pixels differ by over a grey level|outside the tissue", done.stdout)


def test_verify_reports_a_damaged_object_and_goes_on(processed, tmp_path):
    folder = shutil.copytree(processed, tmp_path / "damaged")
    (path,) = (folder / "derived").rglob("*.dcm")
    whole = path.read_bytes()
    (path.parent / "0-half.dcm").write_bytes(whole[: len(whole) // 2])
    (path.parent / "1-stub.dcm").write_bytes(whole[:500])
    done = command("verify", folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"WRONG .*0-half.dcm\n +its pixels are damaged or cut off", done.stdout)
    assert f"right {path}" in done.stdout
    assert "2 derived objects, 1 wrong" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strength", "0.5"], "not that of this source, strength"),
        (["--config", "lesions"], "another bundle than lesions"),
    ],
)
def test_verify_names_another_strength_or_bundle(processed, tmp_path, options, words):
    path = config(tmp_path, '[despeckle]\nbundle = "lesions"\n')
    given = [path if option == "lesions" else option for option in options]
    done = command("verify", processed, *given)
    assert done.returncode == 1
    assert words in done.stdout


def test_verify_takes_the_bundle_that_made_it(processed, tmp_path):
    text = '[despeckle]\nbundle = "lesions"\n[peers.us]\nae_title = "US"\nbundle = "quality"\n'
    done = command("verify", processed, "--config", config(tmp_path, text))
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_config_names_the_peer_whose_bundle_is_not_there(tmp_path):
    text = '[peers.us]\nae_title = "US"\nbundle = "/no/such"\n'
    done = command("check-config", "--config", config(tmp_path, text))
    assert done.returncode == 1
    assert "peers.us.bundle: " in done.stdout
    assert "/no/such" in done.stdout


def test_verify_wants_the_source_and_something_to_verify(processed):
    alone = command("verify", processed / "derived")
    assert alone.returncode == 1
    assert "is not among the files" in alone.stdout
    nothing = command("verify", processed / "source.dcm")
    assert nothing.returncode == 1
    assert "0 derived objects" in nothing.stdout
