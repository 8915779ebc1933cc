"""The demonstration, end to end: start a PACS and a node, send, wait, check, show.

The node is the real one, ``dicom-node serve`` in its own processes with an SQLite ledger; only
the PACS is ours. Everything listens on free loopback ports.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from pydicom import dcmread, examples
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from dicom_node.audit import EventName
from dicom_node.commands.supervise import Listener
from dicom_node.config import LogSection, Settings, parse
from dicom_node.demo.pacs import LOOPBACK, EmbeddedPacs
from dicom_node.errors import NodeError, Transient
from dicom_node.ledger import Ledger
from dicom_node.records import Delivery, DeliveryState, Instance, Stage
from dicom_node.send import send
from dicom_node.service import log
from dicom_node.verify import Comparison, compare
from model.pictures import write_panel

SAMPLES: Final = ("ybr_color", "rgb_color", "palette_color")
"""Names in `pydicom.examples`: a 30-frame JPEG cine, an RGB and a palette image."""
_START_SECONDS: Final = 180.0
_STALL_SECONDS: Final = 600.0
_POLL_SECONDS: Final = 0.2
_ORDER: Final = (Stage.DERIVE, Stage.SEND, Stage.COMMIT, Stage.AUDIT, Stage.DONE)


@dataclass(frozen=True)
class Sample:
    """One object of the demonstration."""

    name: str
    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


def run(output: Path) -> int:
    """Run the demonstration; 0 only if every object came back right.

    Parameters
    ----------
    output : Path
        Created if absent; gets the PACS's files, the pictures and the node's log.
    """
    log.configure(LogSection(level="error", format="console"))
    console = Console(highlight=False)
    output.mkdir(parents=True, exist_ok=True)
    samples = [_sample(name) for name in SAMPLES]
    with tempfile.TemporaryDirectory(prefix="dicom-node-demo-") as state:
        node_port = _free_port()
        pacs = EmbeddedPacs(output / "pacs", report_to=("DESPECKLE", LOOPBACK, node_port))
        with pacs:
            settings = _configure(output, Path(state), node_port, pacs.port)
            try:
                with _progress(console) as progress, _node(output, progress):
                    _send(samples, node_port)
                    with Ledger(settings.ledger_url) as ledger:
                        _wait(ledger, samples, progress)
                        rows = [_timings(ledger, sample) for sample in samples]
            except NodeError as error:
                console.print(f"[red]failed[/] {error.message}\nthe node's log: {output}/node.log")
                return 1
        return _report(console, output, samples, pacs, rows)


def _sample(name: str) -> Sample:
    path = Path(str(examples.get_path(name)))
    header = dcmread(path, stop_before_pixels=True)
    return Sample(
        name,
        path,
        str(header.SOPClassUID),
        str(header.SOPInstanceUID),
        str(header.SeriesInstanceUID),
        str(header.StudyInstanceUID),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _configure(output: Path, state: Path, node_port: int, pacs_port: int) -> Settings:
    """Write the node's configuration, which a reader can take as a start for their own."""
    text = f"""\
# Written by `dicom-node demo`; config/node.toml shows every key.
[node]
state_directory = "{state}"

[receive]
host = "{LOOPBACK}"
port = {node_port}
min_free_mb = 64

[assemble]
quiet_seconds = 1.0

[peers.pacs]
ae_title = "PACS"
host = "{LOOPBACK}"
port = {pacs_port}
receives = true
commitment_wait_seconds = 20.0
"""
    (output / "node.toml").write_text(text, encoding="utf-8")
    return parse(tomllib.loads(text))


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=console,
    )


@contextmanager
def _node(output: Path, progress: Progress) -> Iterator[None]:
    """The node's processes, ready when the block begins, stopped cleanly when it ends."""
    task = progress.add_task("node", total=1, state="starting")
    command = [sys.executable, "-m", "dicom_node", "serve", "--config", str(output / "node.toml")]
    with (
        tempfile.TemporaryDirectory(prefix="dicom-node-demo-") as folder,
        Listener(Path(folder)) as listener,
        (output / "node.log").open("wb") as errors,
    ):
        environment = {**os.environ, "NOTIFY_SOCKET": str(listener.address("serve"))}
        process = subprocess.Popen(command, stderr=errors, env=environment)
        try:
            limit = time.monotonic() + _START_SECONDS
            while "serve" not in listener.ready(_POLL_SECONDS):
                if process.poll() is not None or time.monotonic() > limit:
                    raise Transient("node-not-ready", "the node did not start; see its log")
            progress.update(task, completed=1, state="ready")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    if process.returncode != 0:
        raise Transient("node-stop", f"the node ended with status {process.returncode}")


def _send(samples: list[Sample], node_port: int) -> None:
    """C-STORE the samples to the node, as a scanner would."""
    scanner = parse(
        {
            "node": {"ae_title": "SCANNER"},
            "peers": {"node": {"ae_title": "DESPECKLE", "host": LOOPBACK, "port": node_port}},
        }
    )
    deliveries = [
        Delivery(
            id=index,
            instance_id=index,
            destination="node",
            state=DeliveryState.PENDING,
            sop_class_uid=sample.sop_class_uid,
            sop_instance_uid=sample.sop_instance_uid,
            series_instance_uid=sample.series_instance_uid,
            path=sample.path,
        )
        for index, sample in enumerate(samples)
    ]
    for outcome in send(scanner, deliveries, lambda _delivery: None):
        if outcome.error is not None:
            raise outcome.error


def _wait(ledger: Ledger, samples: list[Sample], progress: Progress) -> None:
    """Follow every instance through the ledger until it is done."""
    tasks = {
        sample.sop_instance_uid: progress.add_task(
            sample.name, total=len(_ORDER) - 1, state="received"
        )
        for sample in samples
    }
    moved, stages = time.monotonic(), dict.fromkeys(tasks, Stage.DERIVE)
    while any(stage is not Stage.DONE for stage in stages.values()):
        time.sleep(_POLL_SECONDS)
        for uid, task in tasks.items():
            stage = _follow(ledger.instance(uid), progress, task)
            if stage is not stages[uid]:
                stages[uid], moved = stage, time.monotonic()
        if time.monotonic() - moved > _STALL_SECONDS:
            raise Transient("demo-stalled", "nothing moved for ten minutes; see the node's log")


def _follow(instance: Instance | None, progress: Progress, task: TaskID) -> Stage:
    if instance is None:
        raise Transient("demo-lost", "the node acknowledged an object that its ledger lacks")
    if instance.stage not in _ORDER:
        raise Transient(
            instance.error_code or "demo-failed",
            f"{instance.identity.sop_instance_uid} is {instance.stage}: {instance.error}",
        )
    progress.update(task, completed=_ORDER.index(instance.stage), state=str(instance.stage))
    return instance.stage


def _timings(ledger: Ledger, sample: Sample) -> tuple[str, dict[str, float]]:
    """Derived SOP Instance UID, and seconds by stage from the audit trail."""
    instance = ledger.instance(sample.sop_instance_uid)
    if instance is None or instance.derived_instance_uid is None:
        raise Transient("demo-lost", "the ledger has no derived object")
    at: dict[EventName, datetime] = {}
    for _, event in ledger.events():
        mine = event.sop_instance_uid == sample.sop_instance_uid
        series = event.series_instance_uid == sample.series_instance_uid
        if mine or (series and event.name is EventName.SERIES_RELEASED):
            at.setdefault(event.name, event.at)
    seconds = dict(instance.timings)
    marks = (EventName.SERIES_RELEASED, EventName.INSTANCE_SENT, EventName.INSTANCE_COMPLETED)
    names = ("send", "commit")
    for name, begin, end in zip(names, marks, marks[1:], strict=False):
        if begin in at and end in at:
            seconds[name] = max(0.0, (at[end] - at[begin]).total_seconds())
    return instance.derived_instance_uid, seconds


def _report(
    console: Console,
    output: Path,
    samples: list[Sample],
    pacs: EmbeddedPacs,
    rows: list[tuple[str, dict[str, float]]],
) -> int:
    """Check and show what came back; 0 if all of it is right."""
    stages = list(dict.fromkeys(name for _, seconds in rows for name in seconds))
    columns = [["frames", "pixels changed", *(f"{name}, s" for name in stages), "result"]]
    lines = []
    failed = False
    for sample, (uid, seconds) in zip(samples, rows, strict=True):
        comparison, problems = _judge(sample, uid, pacs)
        failed = failed or bool(problems)
        columns.append(
            [
                str(comparison.frames) if comparison else "-",
                f"{100 * comparison.changed_share:.1f} %" if comparison else "-",
                *(f"{seconds[name]:.2f}" if name in seconds else "-" for name in stages),
                "[red]" + "; ".join(problems) + "[/]" if problems else "[green]right[/]",
            ]
        )
        if comparison:
            picture = output / "pictures" / f"{sample.name}.png"
            write_panel(comparison.before, comparison.after, picture)
            lines += [f"{sample.name}:", f"  {pacs.held[uid]}", f"  {picture}"]
    table = Table("", *(sample.name for sample in samples))
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    console.print(table)
    console.print("\n".join(lines), soft_wrap=True)
    console.print(f"the node's log: {output / 'node.log'}", soft_wrap=True)
    return int(failed)


def _judge(sample: Sample, uid: str, pacs: EmbeddedPacs) -> tuple[Comparison | None, list[str]]:
    """Compare one object with its source, and see that the PACS has committed to it."""
    if uid not in pacs.held:
        return None, ["did not arrive at the PACS"]
    problems: list[str] = []
    if uid not in pacs.committed:
        problems.append("not committed")
    if pacs.received[uid] != 1:
        problems.append(f"sent {pacs.received[uid]} times")
    try:
        comparison = compare(sample.path, pacs.held[uid])
    except NodeError as error:
        return None, [*problems, str(error)]
    return comparison, [*problems, *comparison.problems]
