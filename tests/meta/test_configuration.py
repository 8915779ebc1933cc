"""config/node.toml has every key with its default; systemd takes the units; the version is one."""

from __future__ import annotations

import re
import subprocess
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from dicom_node import __version__
from dicom_node.attributes.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.config import Peer, Settings, load, parse
from dicom_node.errors import ConfigError
from dicom_node.network.contexts import TRANSFER_SYNTAXES
from dicom_node.network.status import StoreStatus, Verdict, verdict
from tests.peers import require_program

ROOT = Path(__file__).parents[2]
NODE_TOML = ROOT / "config" / "node.toml"
CONFORMANCE = ROOT / "docs" / "conformance.md"
UNITS = sorted((ROOT / "systemd").glob("*.service"))


def plain(value: Any) -> Any:
    return (
        list(value)
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
    )


def test_every_key_is_there_with_its_default():
    document = tomllib.loads(NODE_TOML.read_text())
    expected = {
        section: {key: plain(value) for key, value in getattr(Settings(), section)}
        for section in Settings.model_fields
        if section != "peers"
    }
    assert document == expected


def test_the_file_loads_as_the_defaults():
    assert load(NODE_TOML) == Settings()


def peer_example() -> str:
    text = NODE_TOML.read_text()
    commented = text[text.index("# [peers.pacs]") :]
    return "\n".join(line.removeprefix("# ") for line in commented.splitlines())


def test_peer_example_shows_every_key_with_its_default():
    example = tomllib.loads(peer_example())["peers"]["pacs"]
    assert set(example) == set(Peer.model_fields)
    without_default = {"ae_title", "host", "port", "strength"}
    for key, field in Peer.model_fields.items():
        if key not in without_default:
            assert example[key] == plain(field.default), key
    Peer.model_validate(example)


def test_every_key_has_a_comment_right_above_it():
    lines = NODE_TOML.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-z_]+ = ", line):
            above = lines[number - 1]
            assert above.startswith("#"), f"line {number + 1}: {line}"


def test_every_setting_has_a_sentence():
    for section in [*Settings.model_fields.values()]:
        fields = getattr(section.annotation, "model_fields", Peer.model_fields)
        assert all(field.description for field in fields.values())


def test_ae_titles_are_read_without_the_spaces_around_them():
    settings = parse({"node": {"ae_title": " HERE"}, "peers": {"us": {"ae_title": "US1 "}}})
    assert settings.node.ae_title == "HERE"
    assert settings.peers_of("US1") == [settings.peers["us"]]


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units with a program that exists on this machine."""
    copies = []
    for unit in [*UNITS, ROOT / "systemd" / "dicom-node.target"]:
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/dicom-node/bin/dicom-node", "/bin/true"))
        copies.append(copy)
    return copies


def test_systemd_accepts_the_units(units):
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", *map(str, units)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "dicom-node" in line]
    assert done.returncode == 0, done.stderr
    assert not ours


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_hardened(unit):
    done = subprocess.run(
        [
            *(require_program("systemd-analyze"), "security", "--offline=yes"),
            *("--threshold=20", "--no-pager", str(unit)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-500:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_start_again_for_as_long_as_it_takes(unit):
    lines = unit.read_text().splitlines()
    assert "StartLimitIntervalSec=0" in lines
    assert "RestartSec=5" in lines
    assert not any(line.startswith("StartLimitBurst=") for line in lines)


def test_port_104_also_needs_the_users_of_the_host():
    text = (ROOT / "systemd" / "dicom-node-receive.service").read_text()
    comment = text[text.index("# For port 104") : text.index("#AmbientCapabilities")]
    assert "PrivateUsers=no" in comment


@pytest.mark.parametrize(
    "group", ["nvidia", "nvidiactl", "nvidia-frontend", "nvidia-uvm", "nvidia-caps"]
)
def test_worker_may_open_the_gpu_by_whatever_name_the_driver_lists_it(group):
    """In /proc/devices; from driver 545 on nvidia-frontend is nvidia and nvidiactl."""
    text = (ROOT / "systemd" / "dicom-node-work.service").read_text()
    allowed = re.findall(r"^DeviceAllow=char-(\S+) rw$", text, re.MULTILINE)
    assert any(fnmatchcase(group, pattern) for pattern in allowed)
    assert not any(fnmatchcase("mem", pattern) for pattern in allowed)


def test_conformance_statement_is_of_this_version():
    text = CONFORMANCE.read_text()
    assert f"Product: despeckle-node {__version__}." in text
    assert f"`{IMPLEMENTATION_VERSION_NAME}`" in text
    assert f"`{IMPLEMENTATION_CLASS_UID}`" in text


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=str)
def test_conformance_statement_has_every_accepted_transfer_syntax(syntax):
    table = CONFORMANCE.read_text().partition("| transfer syntax |")[2].partition("\n\n")[0]
    named = set(re.findall(r"[.0-9]*[0-9]", table))
    first, last = re.findall(r"MPEG-4 \.(\d+) to \.(\d+)", table)[0]
    named |= {f".{number}" for number in range(int(first), int(last) + 1)}
    shortened = str(syntax).removeprefix("1.2.840.10008.1.2.4")
    assert shortened in named or shortened.removesuffix(".1") in named


def test_conformance_statement_has_every_answer_to_a_c_store():
    text = CONFORMANCE.read_text().partition("## 4.")[2].partition("## 5.")[0]
    judged = text.partition("| answer to C-STORE |")[2].partition("\n\n")[0]
    rows = dict(line.split(" | ") for line in judged.splitlines() if line.startswith("| "))
    verdicts = {"stored": {"success", "warning"}, "repeated": {"retry"}, "parked": {"park"}}
    for statuses, said in rows.items():
        for status in re.findall(r"0x[0-9A-Fx]{4}", statuses):
            wanted = verdicts[re.split(r"\W", said)[0]]
            assert verdict(int(status.replace("xxx", "123").replace("xx", "12"), 16)) in wanted
    named = {int(each, 16) for each in re.findall(r"0x[0-9A-F]{4}\b", "".join(rows))}
    passing = {each for each in StoreStatus if verdict(each) is Verdict.RETRY}
    assert passing - named <= {StoreStatus.OUT_OF_RESOURCES}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_notify_are_watched_and_keep_their_state(unit):
    text = unit.read_text()
    for line in ("Type=notify", "WatchdogSec=", "StateDirectory=dicom-node", "Restart=always"):
        assert line in text
    assert "RestartPreventExitStatus=78" in text


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_want_their_folders_as_tmpfiles_makes_them(unit):
    """Systemd warns at each start where the modes differ."""
    made = re.findall(
        r"^d \S+ (\d+)", (ROOT / "systemd/dicom-node.tmpfiles.conf").read_text(), re.MULTILINE
    )
    modes = re.findall(
        r"^(?:State|Configuration)DirectoryMode=(\d+)$", unit.read_text(), re.MULTILINE
    )
    assert sorted(modes) == sorted(made)


def test_sysusers_and_tmpfiles_are_accepted(tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for program, name in (
        ("systemd-sysusers", "dicom-node.sysusers.conf"),
        ("systemd-tmpfiles", "dicom-node.tmpfiles.conf"),
    ):
        options = ["--create"] if program == "systemd-tmpfiles" else []
        done = subprocess.run(
            [require_program(program), f"--root={root}", *options, str(ROOT / "systemd" / name)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert "dicom-node" in (root / "etc" / "passwd").read_text()
    assert (root / "var" / "lib" / "dicom-node").is_dir()


def test_every_bundle_in_use_is_loaded_and_known_by_the_key_that_names_it_first():
    settings = parse(
        {
            "despeckle": {"bundle": "quality", "threads": 3},
            "peers": {
                "plain": {"ae_title": "A"},
                "breast": {"ae_title": "B", "bundle": "lesions"},
                "other": {"ae_title": "C", "bundle": "lesions"},
            },
        }
    )
    used = {key: (section.bundle, section.threads) for key, section in settings.bundles.items()}
    assert used == {"despeckle.bundle": ("quality", 3), "peers.breast.bundle": ("lesions", 3)}


def test_peers_of_one_title_are_told_apart_or_refused():
    scanner = {"ae_title": "A", "bundle": "lesions", "strength": 0.5}
    archive = {"ae_title": "A", "sends": False}
    settings = parse({"peers": {"archive": archive, "scanner": scanner}})
    despeckle = settings.for_sender("A").despeckle
    assert (despeckle.bundle, despeckle.strength) == ("lesions", 0.5)
    parse({"peers": {"one": scanner, "two": scanner | {"addresses": ["10.0.0.2"]}}})
    for other in ({"bundle": "quality"}, {"strength": 1.0}):
        with pytest.raises(ConfigError, match=r"peers\.one and peers\.two send with one AE title"):
            parse({"peers": {"one": scanner, "two": scanner | other}})


def test_key_that_is_missing_is_named():
    with pytest.raises(ConfigError, match=r"peers\.pacs\.ae_title: missing; add it"):
        parse({"peers": {"pacs": {}}})


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (
            {"receive": {"plain": False}, "ledger": {"url": "postgresql://node:SECRET@db/node"}},
            r"configuration: receive\.plain = false needs",
        ),
        ({"ledger": "postgresql://node:SECRET@db/node"}, r"configuration: ledger: input should"),
        ({"ledger": {"url": ["SECRET"]}}, r"configuration: ledger\.url: input should"),
        (
            {"peers": {"pacs": {"ae_title": "SECRET", "receives": True}}},
            r"configuration: peers\.pacs: a peer with receives",
        ),
        ({"receive": {"port": "x"}}, r"configuration: receive\.port = 'x': input should"),
        (
            {"peers": {"x" * 65: {"ae_title": "SECRET"}}},
            r"configuration: peers\.x+\.\[key\].*string should have at most 64 characters",
        ),
    ],
)
def test_wrong_configuration_is_told_without_the_password(document, told):
    with pytest.raises(ConfigError, match=told) as caught:
        parse(document)
    assert "SECRET" not in str(caught.value)
