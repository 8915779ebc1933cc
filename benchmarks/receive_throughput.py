"""Receiving, compared with DCMTK's storescp on the same machine in the same run.

    python benchmarks/receive_throughput.py [--quick] [--folder DIR]

Sends the same objects with DCMTK's dcmsend to this node's receiver, in a process of its own,
and to storescp, in turn, and prints the ratios of their throughputs (above 1: the node is
faster). The node makes every object durable before it answers; storescp does not. storescp runs
with the same PDU size, once as it is by default, one association after the other, and once with
``--fork``, a process for each association. Prints the receiver's peak memory for four large
cines at once, and its median C-ECHO.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

CINES, CINE_FRAMES = 4, 61  # 61 x 768 x 1024 x 3 bytes = 144 MB
IMAGES = 200  # 480 x 640 bytes = 307 kB
PDU = 131072
CONFIGURATION = """
[node]
ae_title = "NODE"
state_directory = "{state}"
[receive]
host = "127.0.0.1"
port = {port}
min_free_mb = 0
[log]
level = "warning"
"""


def write_instance(path: Path, frames: int, rows: int, columns: int, samples: int) -> None:
    """One ultrasound object of random pixels."""
    dataset = Dataset()
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage if frames > 1 else UltrasoundImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = generate_uid()
    dataset.PatientName = dataset.PatientID = "BENCHMARK"
    dataset.Modality = "US"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, samples
    dataset.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    if frames > 1:
        dataset.NumberOfFrames = frames
        dataset.FrameTime = "33.3"
    pixels = np.random.default_rng(0).integers(0, 256, rows * columns * samples, np.uint8)
    dataset.PixelData = pixels.tobytes() * frames
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def program(name: str) -> str:
    """DCMTK's program; pynetdicom puts slower namesakes into a virtual environment."""
    own = Path(sys.prefix).resolve()
    folders = [
        folder
        for folder in os.environ.get("PATH", "").split(os.pathsep)
        if folder and own not in [Path(folder).resolve(), *Path(folder).resolve().parents]
    ]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise SystemExit(f"{name} is missing; install DCMTK (Debian: apt install dcmtk)")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


@contextmanager
def node(folder: Path) -> Iterator[tuple[int, int]]:
    """The receiver of this node: (port, process id)."""
    state = Path(tempfile.mkdtemp(dir=folder, prefix="node-"))
    port = free_port()
    configuration = state / "node.toml"
    configuration.write_text(CONFIGURATION.format(state=state, port=port))
    process = subprocess.Popen(
        [sys.executable, "-m", "dicom_node", "receive", "--config", str(configuration)]
    )
    try:
        wait_for(port)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(state)


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[tuple[int, int]]:
    """DCMTK's storescp: (port, process id)."""
    state = Path(tempfile.mkdtemp(dir=folder, prefix="storescp-"))
    port = free_port()
    process = subprocess.Popen(
        [program("storescp"), *options, "--max-pdu", str(PDU), "-od", str(state), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(state)


def send(port: int, shares: Sequence[Sequence[Path]]) -> float:
    """Send each share on an association of its own, all at once; seconds until all are in."""
    command = [program("dcmsend"), "-q", "-aec", "NODE", "127.0.0.1", str(port)]
    began = time.perf_counter()
    senders = [subprocess.Popen([*command, *map(str, share)]) for share in shares]
    statuses = [sender.wait() for sender in senders]
    if any(statuses):
        raise SystemExit("dcmsend reports that not every object was stored")
    return time.perf_counter() - began


def rounds(folder: Path, shares: Sequence[Sequence[Path]], count: int) -> list[float]:
    """Best seconds of each receiver, in turn so that all see the same machine."""
    receivers = (node, storescp, lambda where: storescp(where, "--fork"))
    results: list[list[float]] = [[] for _ in receivers]
    for _ in range(count):
        for receiver, seconds in zip(receivers, results, strict=True):
            with receiver(folder) as (port, _process):
                os.sync()  # what the one before left in the page cache is not on this one's bill
                seconds.append(send(port, shares))
    return [min(seconds) for seconds in results]


def peak_memory(folder: Path, cines: Sequence[Path]) -> float:
    """Peak resident set of the receiver, MB, while all the cines arrive at once."""
    with node(folder) as (port, process):
        send(port, [[cine] for cine in cines])
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise SystemExit("the kernel does not tell the peak memory of a process")


def echo(folder: Path) -> float:
    """Median seconds of a whole C-ECHO association."""
    with node(folder) as (port, _process):
        command = [program("echoscu"), "-aec", "NODE", "127.0.0.1", str(port)]
        times = []
        for _ in range(9):
            began = time.perf_counter()
            subprocess.run(command, check=True)
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    arguments = parser.parse_args()
    for name in ("dcmsend", "storescp", "echoscu"):
        program(name)
    count = 1 if arguments.quick else 3
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        cines = [folder / f"cine-{number}.dcm" for number in range(CINES)]
        images = [folder / f"image-{number}.dcm" for number in range(IMAGES)]
        for path in cines:
            write_instance(path, CINE_FRAMES, 768, 1024, 3)
        for path in images:
            write_instance(path, 1, 480, 640, 1)
        print(f"{'':30}{'node':>12}{'storescp':>12}{'ratio':>7}{'--fork':>12}{'ratio':>7}")
        for label, paths in (("144 MB cine", cines), ("307 kB image", images)):
            megabytes = sum(path.stat().st_size for path in paths) / 1e6
            for senders in (1, 4):
                shares = [paths[first::senders] for first in range(senders)]
                ours, *others = rounds(folder, shares, count)
                title = f"{len(paths)} x {label}, {senders} sender{'s' * (senders > 1)}"
                line = f"{title:30}{megabytes / ours:7.0f} MB/s"
                for theirs in others:
                    line += f"{megabytes / theirs:7.0f} MB/s{theirs / ours:7.2f}"
                print(line, flush=True)
        print(f"peak memory, {CINES} cines at once: {peak_memory(folder, cines):.0f} MB")
        print(f"C-ECHO, median of whole associations: {echo(folder) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
