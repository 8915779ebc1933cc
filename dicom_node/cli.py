"""The command ``dicom-node``: serve, receive, work, process, demo and the administrator's tools.

Exit status: 0 all went well; 1 something failed and is named on standard error; 2 wrong usage;
78 the configuration is wrong (sysexits.h), so that systemd does not start it again and again.
Only the command that needs it imports torch.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dicom_node import __version__
from dicom_node.config import Settings, load
from dicom_node.errors import ConfigError, NodeError, Transient

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger
    from dicom_node.spool import Spool

DEFAULT_CONFIG: Final = Path("/etc/dicom-node/node.toml")
EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 78
_OF_THE_PATH: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
)
"""Why a folder cannot be made as long as the configuration is what it is; a disk may come back."""

app = typer.Typer(
    name="dicom-node",
    help="A DICOM node that takes the speckle out of ultrasound, with provenance.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help=f"Configuration file; default: $DICOM_NODE_CONFIG, then {DEFAULT_CONFIG} if there, "
        "else the built-in defaults.",
        show_default=False,
    ),
]


def main() -> None:
    """Run the command; expected errors end as one line on standard error."""
    try:
        app()
    except NodeError as error:
        _complain(error)
        sys.exit(EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dicom-node {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and end."
        ),
    ] = False,
) -> None:
    del version


@app.command()
def serve(config: Config = None) -> None:
    """Run receiver and worker as two processes, and start them again if they end."""
    from dicom_node.commands.supervise import Supervisor
    from dicom_node.service import log

    path, settings = _settings(config)
    log.configure(settings.log, "serve")
    raise typer.Exit(Supervisor(path).run())


@app.command()
def receive(config: Config = None) -> None:
    """Run the receiver alone: C-STORE, C-ECHO, commitment reports, figures over HTTP."""
    from dicom_node.receive import Receiver
    from dicom_node.service import log, process
    from dicom_node.watch import Watch

    _, settings = _settings(config)
    log.configure(settings.log, "receive")
    spool = _spool(settings)
    with (
        _ledger(settings) as ledger,
        _audited("receiver", settings, ledger),
        Watch(settings, ledger, spool),
    ):
        receiver = Receiver(settings, ledger, spool)
        raise typer.Exit(process.run("receiver", settings, receiver))


@app.command()
def work(config: Config = None) -> None:
    """Run a worker alone: derive, send, commit and audit."""
    from dicom_node.despeckle import load_all
    from dicom_node.service import log, process
    from dicom_node.worker import Worker

    _, settings = _settings(config)
    log.configure(settings.log, "work")
    with _ledger(settings) as ledger, _audited("worker", settings, ledger):
        spool = _spool(settings)
        worker = Worker(settings, ledger, spool, load_all(settings))
        raise typer.Exit(process.run("worker", settings, worker, lambda: worker.is_well))


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for what came back, pictures and logs.")
    ] = Path("demo-output"),
) -> None:
    """Send real ultrasound through a node and an embedded PACS, and check what comes back."""
    from dicom_node.demo.flow import run

    raise typer.Exit(run(output))


@app.command("process")
def process_files(
    inputs: Annotated[
        list[Path], typer.Argument(exists=True, help="DICOM files or folders of them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    strength: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="0 changes nothing, 1 removes all the speckle."),
    ] = None,
    config: Config = None,
) -> None:
    """Derive despeckled objects from files, without a network."""
    from dicom_node.commands import offline
    from dicom_node.despeckle import Despeckler
    from dicom_node.service import log

    settings = _with_strength(_settings(config)[1], strength)
    log.configure(settings.log.model_copy(update={"level": "error", "format": "console"}))
    despeckler = Despeckler.load(settings.despeckle)
    raise typer.Exit(offline.process(inputs, output, despeckler, settings))


@app.command("verify")
def verify_files(
    inputs: Annotated[
        list[Path],
        typer.Argument(exists=True, help="Sources and derived objects: files or folders of them."),
    ],
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder for a picture of each: before, after, removed."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="That the objects were made with.")
    ] = None,
    config: Config = None,
) -> None:
    """Check derived objects against their sources, and derive them again."""
    from dicom_node.commands.verify import verify
    from dicom_node.despeckle import load_all
    from dicom_node.service import log

    settings = _with_strength(_settings(config)[1], strength)
    log.configure(settings.log.model_copy(update={"level": "error", "format": "console"}))
    raise typer.Exit(verify(inputs, pictures, load_all(settings).values(), settings))


@app.command("check-config")
def check_config(config: Config = None) -> None:
    """Check a configuration and what it names: files, folders, ports, the model bundle."""
    from dicom_node.commands import administer

    path, settings = _settings(config)
    raise typer.Exit(administer.check(settings, path))


@app.command()
def echo(config: Config = None) -> None:
    """C-ECHO every peer that the node calls; fails if one of them does not answer."""
    from dicom_node.commands import administer
    from dicom_node.service import log

    _, settings = _settings(config)
    log.configure(settings.log.model_copy(update={"level": "error", "format": "console"}))
    raise typer.Exit(administer.echo(settings))


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: Config = None,
) -> None:
    """Show the queue, why what was skipped or parked, deliveries, last errors and free disk."""
    from dicom_node.commands import administer

    _, settings = _settings(config)
    with _ledger(settings, must_exist=True) as ledger:
        raise typer.Exit(administer.status(settings, ledger, as_json=as_json))


@app.command()
def retry(
    uid: Annotated[
        str | None, typer.Argument(help="SOP Instance UID of a source or a derived object.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is parked.")] = False,
    config: Config = None,
) -> None:
    """Set parked work going again, in the stage in which it failed."""
    from dicom_node.commands import administer

    if (uid is None) is not everything:
        raise typer.BadParameter("give either a UID or --all")
    _, settings = _settings(config)
    with _ledger(settings, must_exist=True) as ledger:
        raise typer.Exit(administer.retry(ledger, uid))


@app.command()
def rederive(
    uid: Annotated[
        str, typer.Argument(help="UID of a study, a series, a source or a derived object.")
    ],
    config: Config = None,
) -> None:
    """Derive anew, by today's configuration, what is done or was skipped, and send it."""
    from dicom_node.commands import administer

    _, settings = _settings(config)
    with _ledger(settings, must_exist=True) as ledger:
        raise typer.Exit(administer.rederive(ledger, uid))


@app.command()
def audit(
    uid: Annotated[
        str | None,
        typer.Argument(help="UID of a study, a series, a source or a derived object; else all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    config: Config = None,
) -> None:
    """Show the audit trail: who did what to which object, when, with what outcome."""
    from dicom_node.commands import administer

    _, settings = _settings(config)
    with _ledger(settings, must_exist=True) as ledger:
        raise typer.Exit(administer.audit(ledger, uid, as_json=as_json))


def _settings(config: Path | None) -> tuple[Path | None, Settings]:
    """The configuration and where it came from."""
    named = os.environ.get("DICOM_NODE_CONFIG", "")
    path = config or (Path(named) if named else None)
    try:
        if path is None and DEFAULT_CONFIG.exists():
            path = DEFAULT_CONFIG
    except OSError as error:
        raise ConfigError(
            "config-unreadable",
            f"{DEFAULT_CONFIG}: {error.strerror}; run this as root or in the group dicom-node, or "
            "name another one by --config",
        ) from error
    return (None, Settings()) if path is None else (path, load(path))


def _with_strength(settings: Settings, strength: float | None) -> Settings:
    """The settings with the strength of the command line, where it names one."""
    return settings if strength is None else settings.with_strength(strength)


def _ledger(settings: Settings, *, must_exist: bool = False) -> Ledger:
    """Open the ledger; a new node gets an empty one where `must_exist` does not forbid it."""
    from dicom_node.ledger import Ledger

    folder = settings.node.state_directory
    if not settings.ledger.url:
        if must_exist and not (folder / "ledger.sqlite3").exists():
            raise ConfigError(
                "no-ledger",
                f"node.state_directory = '{folder}': holds no ledger; name the configuration "
                "that the node runs with, or start it first",
            )
        _make_state_directory(settings)
    return Ledger(
        settings.ledger_url,
        lease_seconds=settings.retry.lease_seconds,
        give_up_hours=settings.retry.give_up_hours,
    )


def _spool(settings: Settings) -> Spool:
    """Open the spool; a new node gets an empty one."""
    from dicom_node.spool import Spool

    _make_state_directory(settings)
    try:
        return Spool(settings.spool_directory)
    except Transient as error:
        where = f"node.state_directory = '{settings.node.state_directory}'"
        raise Transient(error.code, f"{where}: {error.message}") from error


def _make_state_directory(settings: Settings) -> None:
    folder = settings.node.state_directory
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in _OF_THE_PATH:
            raise Transient(
                "spool-unusable",
                f"node.state_directory = '{folder}': {error.strerror}; check its disk",
            ) from error
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "is no folder, or lies below a file" if is_file else error.strerror
        raise ConfigError(
            "state-directory",
            f"node.state_directory = '{folder}': {reason}; create it, or name one "
            "that this user may write",
        ) from error


@contextmanager
def _audited(name: str, settings: Settings, ledger: Ledger) -> Iterator[None]:
    """Note the start and the end of a process in the audit trail."""
    from dicom_node.audit import EventName, event

    def note(what: EventName) -> None:
        ledger.append_event(event(what, actor=settings.node.ae_title, detail=name))

    note(EventName.APPLICATION_START)
    try:
        yield
    finally:
        with suppress(NodeError):  # without its ledger a process ends all the same
            note(EventName.APPLICATION_STOP)


def _complain(error: NodeError) -> None:
    typer.echo(f"dicom-node: {error.message} [{error.code}]", err=True)
