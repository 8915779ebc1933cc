"""What an administrator asks of a node: is its configuration right, who answers, how it stands.

Each function prints for people and returns the exit status of its command.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node.audit import Event
from dicom_node.config import Settings
from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger
from dicom_node.network import associate, tls
from dicom_node.records import DeliveryState, Overview, Stage
from dicom_node.service.edge import guarded

_MB = 1_000_000
_Row = Sequence[str | Text]
_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``check-config``."""

    verdict: Literal["ok", "warning", "error"]
    key: str
    text: str


def check(settings: Settings, path: Path | None) -> int:
    """Check what a configuration names; 1 where something is wrong."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"configuration: {path or 'built-in defaults'}", markup=False)
    findings = list(_findings(settings))
    for finding in findings:
        verdict = Text(finding.verdict, _STYLES[finding.verdict])
        console.print(Text.assemble(verdict, f" {finding.key}: {finding.text}"))
    return int(any(finding.verdict == "error" for finding in findings))


def _findings(settings: Settings) -> Iterator[Finding]:
    yield _state_directory(settings)
    yield _ledger(settings)
    yield from _bundles(settings)
    yield from _ports(settings)
    if settings.uses_tls:
        yield _certificates(settings)
    yield from _peers(settings)


def _state_directory(settings: Settings) -> Finding:
    """Look without creating anything: this may run as another user than the node."""
    folder, key = settings.node.state_directory, "node.state_directory"
    there = _nearest(folder)
    if not there.is_dir():
        return Finding("error", key, f"'{folder}': '{there}' is no folder; name one")
    if not os.access(there, os.W_OK | os.X_OK):
        text = f"'{folder}': this user may not write there; create it for the node's user"
        return Finding("error", key, text)
    free = _free_mb(there)
    if free < settings.receive.min_free_mb:
        text = (
            f"'{folder}' has {free:.0f} MB free, less than receive.min_free_mb = "
            f"{settings.receive.min_free_mb}; nothing will be received until some is freed"
        )
        return Finding("error", key, text)
    state = "is writable" if there == folder else "will be created"
    return Finding("ok", key, f"'{folder}' {state}, {free:.0f} MB free")


def _ports(settings: Settings) -> Iterator[Finding]:
    section = settings.receive
    if section.plain:
        yield _port(section.host, section.port, "receive.port")
    if section.tls_port:
        yield _port(section.host, section.tls_port, "receive.tls_port")
    if settings.watch.port:
        yield _port(settings.watch.host, settings.watch.port, "watch.port")


def _port(host: str, port: int, key: str) -> Finding:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        where = f"{port} on '{host}'"
        if error.errno == errno.EADDRINUSE:
            return Finding("warning", key, f"{where} is in use; by this node, or choose another")
        if error.errno == errno.EACCES:
            text = f"{where}: not allowed; take one above 1023 or grant CAP_NET_BIND_SERVICE"
            return Finding("error", key, text)
        host_key = f"{key.partition('.')[0]}.host"
        text = f"{where}: {error.strerror or type(error).__name__}; correct {host_key} or {key}"
        return Finding("error", key, text)
    return Finding("ok", key, f"{port} is free")


def _certificates(settings: Settings) -> Finding:
    def loaded() -> str:
        tls.serving(settings.tls)
        tls.calling(settings.tls)
        return tls.out_of_date(settings.tls)

    failed = guarded(loaded)
    if isinstance(failed, NodeError):
        return Finding("error", "tls", failed.message)
    if failed:
        text = f"'{settings.tls.certificate}': {failed}; renew it, nobody takes it"
        return Finding("error", "tls.certificate", text)
    return Finding("ok", "tls", "certificate, key and authorities load")


def _ledger(settings: Settings) -> Finding:
    if settings.ledger_url.startswith("sqlite:///"):
        path = Path(settings.ledger_url.removeprefix("sqlite:///"))
        if not path.exists():
            return Finding("ok", "ledger.url", f"'{path}' will be created")
        if not os.access(path, os.W_OK):
            text = f"'{path}': this user may not write it; run as the node's user"
            return Finding("error", "ledger.url", text)

    def opened() -> None:
        Ledger(settings.ledger_url).close()

    failed = guarded(opened)
    if isinstance(failed, NodeError):
        return Finding("error", "ledger.url", failed.message.removeprefix("ledger.url: "))
    return Finding("ok", "ledger.url", "the ledger opens")


def _bundles(settings: Settings) -> Iterator[Finding]:
    from dicom_node.despeckle import Despeckler

    for key, section in settings.bundles.items():
        loaded = guarded(partial(Despeckler.load, section, key))
        if isinstance(loaded, NodeError):
            yield Finding("error", key, loaded.message.removeprefix(f"{key}: "))
            continue
        bundle = loaded.bundle
        text = f"{bundle.name} {bundle.version} passes its self-test on {bundle.runtime}"
        yield Finding("ok", key, text)


def _peers(settings: Settings) -> Iterator[Finding]:
    if not settings.destinations:
        text = "no peer has receives = true; derived series stay in the spool"
        yield Finding("warning", "peers", text)
    if settings.receive.require_known_caller and not any(p.sends for p in settings.peers.values()):
        text = "receive.require_known_caller = true, but no peer sends; nobody may call"
        yield Finding("error", "peers", text)
    titles: dict[str, str] = {}
    for name, peer in settings.peers.items():
        key = f"peers.{name}"
        if peer.ae_title in titles:
            text = (
                f"ae_title = '{peer.ae_title}' is that of peers.{titles[peer.ae_title]} as well, "
                "whose bundle and strength hold for both"
            )
            yield Finding("warning", key, text)
        titles.setdefault(peer.ae_title, name)
        if peer.ae_title == settings.node.ae_title:
            yield Finding("error", key, f"ae_title = '{peer.ae_title}' is this node's own")
        elif peer.host is not None and not _resolves(peer.host):
            yield Finding("error", key, f"host = '{peer.host}': no such host; correct it")
        elif peer.host and peer.port:
            yield Finding("ok", key, f"{peer.ae_title}; `dicom-node echo` tries the connection")
        else:
            yield Finding("ok", key, f"{peer.ae_title}; without host and port it is never called")


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def echo(settings: Settings) -> int:
    """C-ECHO every peer that has an address; 1 where one does not answer."""
    names = [name for name, peer in settings.peers.items() if peer.host and peer.port]
    console = Console(highlight=False)
    if not names:
        console.print("no peer with host and port is configured")
        return 1
    with ThreadPoolExecutor(max_workers=min(8, len(names))) as pool:
        answers = list(pool.map(lambda name: _echo_one(settings, name), names))
    rows: list[_Row] = []
    for name, answer in zip(names, answers, strict=True):
        peer = settings.peers[name]
        said = Text("answers", "green")
        if answer is not None:
            said = Text.assemble((answer.code, "red"), f": {answer.message}")
        rows.append((name, peer.ae_title, f"{peer.host}:{peer.port}", said))
    _print_rows(console, ("peer", "AE title", "address", "answer"), rows)
    return int(any(answer is not None for answer in answers))


def _echo_one(settings: Settings, name: str) -> NodeError | None:
    action: Callable[[], None] = lambda: associate.echo(settings, name)  # noqa: E731
    result = guarded(action)
    return result if isinstance(result, NodeError) else None


def status(settings: Settings, ledger: Ledger, *, as_json: bool) -> int:
    """Print how the node stands; 1 where something is parked or the disk is full."""
    overview = ledger.overview()
    free = _free_mb(settings.spool_directory)
    low = free < settings.receive.min_free_mb
    if as_json:
        disk = {"free_mb": round(free), "min_free_mb": settings.receive.min_free_mb}
        print(json.dumps(asdict(overview) | {"disk": disk}, default=_iso))  # noqa: T201 - programs
    else:
        _print_status(settings, overview, free, low=low)
    given_up = overview.stages.get(Stage.PARKED, 0) + sum(
        counts.get(DeliveryState.PARKED, 0) for counts in overview.deliveries.values()
    )
    return int(bool(given_up) or low)


def _iso(value: datetime) -> str:
    return value.isoformat()


def _print_status(settings: Settings, overview: Overview, free: float, *, low: bool) -> None:
    console = Console(highlight=False)
    stages = Table("stage", "instances", box=None, pad_edge=False)
    for stage in Stage:
        count = overview.stages.get(stage, 0)
        if count:
            style = "red" if stage is Stage.PARKED else ""
            stages.add_row(str(stage), str(count), style=style)
        for code, some in overview.reasons.get(stage, {}).items():
            stages.add_row(f"  {code}", str(some))
    console.print(stages if stages.row_count else "no instances yet")
    if overview.deliveries:
        _deliveries(console, overview.deliveries)
    if overview.oldest_waiting:
        waited = datetime.now(UTC) - overview.oldest_waiting
        console.print(f"\noldest waiting: {str(waited).split('.')[0]} since it arrived")
    console.print(f"open associations: {overview.open_associations}")
    style = "red" if low else "green"
    console.print(
        f"disk: [{style}]{free:.0f} MB free[/], receiving stops below "
        f"{settings.receive.min_free_mb} MB"
    )
    if overview.last_errors:
        errors: list[_Row] = []
        for failure in overview.last_errors:
            mark = ("parked " if failure.parked else "", "red")
            said = Text.assemble(mark, f"{failure.code}: {failure.message}")
            when = f"{failure.at:%Y-%m-%d %H:%M:%S}"
            errors.append((when, failure.where, failure.sop_instance_uid, said))
        console.print("\nlast errors")
        _print_rows(console, ("when (UTC)", "where", "instance", "error"), errors)


def audit(ledger: Ledger, uid: str | None, *, as_json: bool) -> int:
    """Print the audit trail, oldest first; 1 where nothing is known of `uid`.

    Parameters
    ----------
    uid : str, optional
        Study, series, source or derived instance that the lines have to name.
    as_json : bool
        An object a line, with the codes of PS3.15 A.5.3.
    """
    rows: list[_Row] = []
    found = 0
    for line in _trail(ledger, uid):
        found += 1
        if as_json:
            typed = {"code": line.code.value, "meaning": line.code.meaning, **asdict(line)}
            print(json.dumps(typed | {"at": line.at.isoformat()}))  # noqa: T201 - for programs
            continue
        named = next((one for one in reversed(_uids(line)) if one), "")
        when = f"{line.at:%Y-%m-%d %H:%M:%S}"
        row = (when, line.name, line.outcome.name.lower(), line.actor, line.destination, named)
        rows.append((*row, line.detail))
    console = Console(highlight=False)
    if not as_json and found:
        heading = ("when (UTC)", "event", "outcome", "who", "to", "object", "detail")
        _print_rows(console, heading, rows)
    elif not as_json:
        console.print("no such lines in the audit trail")
    return int(uid is not None and not found)


def _trail(ledger: Ledger, uid: str | None) -> Iterator[Event]:
    """The lines of the audit trail that name a UID, or all of them, a page at a time."""
    number = 0
    while page := ledger.events(after=number, uid=uid):
        for number, line in page:  # noqa: B007 - the last number begins the next page
            yield line


def _uids(line: Event) -> list[str]:
    """What a line names, from the study down to the derived object."""
    return [
        line.study_instance_uid,
        line.series_instance_uid,
        line.sop_instance_uid,
        line.derived_instance_uid,
    ]


def _deliveries(console: Console, deliveries: dict[str, dict[DeliveryState, int]]) -> None:
    rows = [
        (name, *(str(counts.get(state, 0)) for state in DeliveryState))
        for name, counts in sorted(deliveries.items())
    ]
    console.print()
    _print_rows(console, ("destination", *DeliveryState), rows)


def _print_rows(console: Console, heading: _Row, rows: Sequence[_Row]) -> None:
    """Print a table whose cells stand as they are: no markup in them, none cut or broken."""
    lines = [[Text(cell) if isinstance(cell, str) else cell for cell in heading]]
    for cell in lines[0]:
        cell.stylize("bold")
    lines += [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    for column in list(zip(*lines, strict=True))[:-1]:
        width = max(cell.cell_len for cell in column)
        for cell in column:
            cell.pad_right(width - cell.cell_len)
    for line in lines:
        console.print(Text("  ").join(line), soft_wrap=True)


def _nearest(folder: Path) -> Path:
    """The folder, or the closest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _free_mb(folder: Path) -> float:
    figures = os.statvfs(_nearest(folder))
    return figures.f_bavail * figures.f_frsize / _MB


def retry(ledger: Ledger, uid: str | None) -> int:
    """Set one parked instance, or all of them, going again; 1 where nothing is parked."""
    count = ledger.retry(everything=True) if uid is None else ledger.retry(sop_instance_uid=uid)
    console = Console(highlight=False)
    if not count:
        console.print("nothing parked" + (f" under {uid}" if uid else ""), markup=False)
        return 1
    console.print(f"{count} instance{'s' if count > 1 else ''} set going again")
    return 0


def rederive(ledger: Ledger, uid: str) -> int:
    """Derive anew what has ended under a UID; 1 where nothing can be."""
    set_going, purged = ledger.rederive(uid)
    console = Console(highlight=False)
    if set_going:
        console.print(f"{set_going} instance{'s' if set_going > 1 else ''} set going again")
    if purged:
        console.print(
            f"{purged} purged (spool.keep_hours); send the source again to derive it anew"
        )
    if not set_going and not purged:
        console.print(f"nothing done or skipped under {uid}", markup=False)
    return int(not set_going)
