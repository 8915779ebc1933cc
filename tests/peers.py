"""Real peers for tests: DCMTK's tools, Orthanc and dicom3tools, started on free loopback ports.

A program that is missing skips the test, except where the environment sets ``CI``: there every
peer has to be present.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt

LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0


def require_program(name: str) -> str:
    """Path of a system program; namesakes in virtual environments (pynetdicom's) do not count."""
    folders = [
        folder
        for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/usr/local/bin"]
        if folder and not (Path(folder).parent / "pyvenv.cfg").exists()
    ]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        message = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(f"{message}, and CI needs every peer")
        pytest.skip(message)
    return found


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_until(
    condition: Callable[[], Any], what: str, seconds: float = START_SECONDS, pause: float = 0.05
) -> Any:
    """Poll until `condition` holds, and return its value; a limit keeps a broken test finite."""
    limit = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > limit:
            pytest.fail(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(pause)


def listens(port: int) -> bool:
    """Whether something accepts TCP connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


@dataclass
class Running:
    """A peer process and where to find it."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    output: Path

    def stop(self) -> None:
        """End it, gently first."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def text(self) -> str:
        """What it has written so far."""
        return self.output.read_text(errors="replace")


@contextmanager
def running(
    command: Sequence[str | Path], folder: Path, port: int, ready: Callable[[], bool]
) -> Iterator[Running]:
    """Start a program, wait until it is ready, and stop it at the end."""
    output = folder / f"{Path(command[0]).name}-{port}.log"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=folder, stdout=sink, stderr=subprocess.STDOUT
        )
    peer = Running(process, port, folder, output)
    try:
        wait_until(
            lambda: ready() or process.poll() is not None, f"{command[0]} does not get ready"
        )
        if process.poll() is not None:
            pytest.fail(f"{command[0]} ended with {process.returncode}: {peer.text()[-2000:]}")
        yield peer
    finally:
        peer.stop()


@contextmanager
def storescp(folder: Path, *options: str, port: int | None = None) -> Iterator[Running]:
    """DCMTK's Storage SCP, e.g. with ``--abort-during``, ``--sleep-during 5`` or ``--refuse``."""
    program = require_program("storescp")
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [program, "--accept-all", "--output-directory", folder, *options, str(port)]
    with running(command, folder, port, lambda: listens(port)) as peer:
        yield peer


@dataclass
class Orthanc(Running):
    """An Orthanc and its REST and DICOMweb interfaces."""

    http_port: int = 0
    ae_title: str = "ORTHANC"

    def get(self, path: str) -> Any:
        """A REST or QIDO answer, parsed."""
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        """The bytes of a REST answer."""
        url = f"http://{LOOPBACK}:{self.http_port}/{path.lstrip('/')}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return bytes(answer.read())

    def instances(self) -> list[str]:
        """SOP Instance UIDs that it holds, sorted; each as often as it is held."""
        return sorted(
            self.get(f"/instances/{key}")["MainDicomTags"]["SOPInstanceUID"]
            for key in self.get("/instances")
        )

    def files(self, into: Path) -> list[Path]:
        """Download every object that it holds."""
        into.mkdir(parents=True, exist_ok=True)
        paths = []
        for key in self.get("/instances"):
            path = into / f"{key}.dcm"
            path.write_bytes(self.fetch(f"/instances/{key}/file"))
            paths.append(path)
        return paths

    def qido(self, level: str, **query: str) -> list[dict[str, Any]]:
        """A QIDO-RS search, PS3.18 10.6."""
        terms = "&".join(f"{key}={value}" for key, value in query.items())
        return list(self.get(f"/dicom-web/{level}?{terms}"))


@contextmanager
def orthanc(
    folder: Path,
    *,
    node_ae: str = "DESPECKLE",
    node_port: int = 0,
    port: int | None = None,
    commitment: bool = True,
    **more: object,
) -> Iterator[Orthanc]:
    """Orthanc as the PACS, with a clean store in `folder` (or the one that is there already)."""
    program = require_program("Orthanc")
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    http_port = free_port()
    node = {
        "AET": node_ae,
        "Host": LOOPBACK,
        "Port": node_port or 1,
        "AllowStorageCommitment": commitment,
    }
    configuration = {
        "Name": "test PACS",
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpPort": http_port,
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "AuthenticationEnabled": False,
        "StableAge": 3,
        "Plugins": _plugins(),
        "DicomModalities": {"node": node},
        "DicomScpTimeout": 30,
        "DicomWeb": {"Enable": True},
        **more,
    }
    path = folder / "orthanc.json"
    path.write_text(json.dumps(configuration))

    def ready() -> bool:
        try:
            return bool(_json(f"http://{LOOPBACK}:{http_port}/system")) and listens(port)
        except (OSError, urllib.error.URLError):
            return False

    with running([program, path], folder, port, ready) as peer:
        yield Orthanc(peer.process, port, folder, peer.output, http_port)


def _plugins() -> list[str]:
    """The DICOMweb plugin of Debian's package, where it is installed."""
    folder = Path("/usr/share/orthanc/plugins")
    return [str(path) for path in folder.glob("libOrthancDicomWeb.so")]


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own loopback
        return json.loads(answer.read())


def storescu(
    port: int,
    files: Iterable[Path],
    *options: str,
    calling: str = "US1",
    called: str = "DESPECKLE",
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Send files as a scanner would, with DCMTK's storescu."""
    command = [
        require_program("storescu"),
        *("-v", "-aet", calling, "-aec", called, "--max-pdu", "131072", *options),
        *(LOOPBACK, str(port)),
        *(str(path) for path in files),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=120, check=False
    )
    if check:
        assert done.returncode == 0, done.stderr + done.stdout
    return done


def dcmsend(
    port: int, files: Iterable[Path], *options: str, calling: str = "US1", called: str = "DESPECKLE"
) -> subprocess.CompletedProcess[str]:
    """Send files with DCMTK's dcmsend, which proposes every context that the files need."""
    command = [
        require_program("dcmsend"),
        *("-v", "-aet", calling, "-aec", called, *options, LOOPBACK, str(port)),
        *(str(path) for path in files),
    ]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=120, check=False
    )


@dataclass
class Judgement:
    """What dicom3tools said of an object."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def dciodvfy(path: Path) -> Judgement:
    """Check an object against its IOD. Any exit but 0 and 1 is a crash, and fails the test."""
    done = subprocess.run(
        [require_program("dciodvfy"), "-new", str(path)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert done.returncode in {0, 1}, f"dciodvfy ended with {done.returncode} on {path}"
    lines = (done.stderr + done.stdout).splitlines()
    return Judgement(
        errors=[line for line in lines if line.startswith("Error")],
        warnings=[line for line in lines if line.startswith("Warning")],
    )


def dcentvfy(*paths: Path) -> list[str]:
    """Inconsistencies between objects of one patient, study or series; none is the good answer."""
    done = subprocess.run(
        [require_program("dcentvfy"), *(str(path) for path in paths)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    return [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]


@contextmanager
def storage_alone(sop_class: str) -> Iterator[int]:
    """A PACS that accepts one storage class and nothing else, Verification included; its port."""
    with answering((evt.EVT_C_STORE, lambda _event: 0), classes=[sop_class]) as port:
        yield port


@contextmanager
def answering(
    *handlers: tuple[Any, ...], classes: Sequence[str], max_pdu: int = 16382
) -> Iterator[int]:
    """A peer in this process that answers as the handlers do; its port."""
    entity = AE("ORTHANC")
    entity.maximum_pdu_size = max_pdu
    for sop_class in classes:
        entity.add_supported_context(sop_class, ALL_TRANSFER_SYNTAXES)
    port = free_port()
    server = entity.start_server((LOOPBACK, port), block=False, evt_handlers=list(handlers))
    try:
        yield port
    finally:
        server.shutdown()
