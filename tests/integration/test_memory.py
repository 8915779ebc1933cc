"""Memory is bounded by frames: to derive and verify a long cine takes no more than a short one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURE = """
import re, sys
from pathlib import Path
from dicom_node.config import parse
from dicom_node.service.folder import write_into
from dicom_node.pipeline import derive_instance
from dicom_node.verify import compare, recompute
from tests.builders import MedianDespeckler

class Through(MedianDespeckler):
    def frames(self, luminances, strength, tissue=None):
        for frame in luminances:
            yield frame ^ 1

source, output, syntax = sys.argv[1:]
settings = parse({"derive": {"transfer_syntax": syntax}})
result = derive_instance(Path(source), Through(), settings, write_into(Path(output)))
assert result.report.changed_share > 0.3
assert compare(Path(source), result.path).problems == []
assert recompute(Path(source), result.path, Through(), settings).agrees
# Not ru_maxrss, which starts at the parent's.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def long_cine(path: Path, frames: int) -> Path:
    """An 800 x 600 RGB cine, written a frame at a time."""
    from dicom_node.attributes.transcribe import transcribe
    from dicom_node.pixels.encode import encode
    from tests.builders import make_us_instance, region, speckle

    grey = speckle(1, 600, 800)[0]
    header = transcribe(
        make_us_instance(
            frames=2, rows=8, columns=8, photometric="RGB", regions=[region(0, 0, 799, 599)]
        )
    )
    header.Rows, header.Columns, header.NumberOfFrames = 600, 800, frames
    shifted = (grey if i % 2 else grey[::-1] for i in range(frames))
    rgb = (frame[..., None].repeat(3, axis=-1) for frame in shifted)
    with path.open("wb") as file:
        file.writelines(encode(header, rgb, "explicit-le"))
    return path


def peak_kilobytes(tmp_path: Path, frames: int, syntax: str) -> int:
    source = long_cine(tmp_path / f"{frames}.dcm", frames)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "out"), syntax],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("syntax", ["explicit-le", "jpeg-ls"])
def test_300_frames_need_no_more_memory_than_10(tmp_path: Path, syntax: str) -> None:
    long, short = 300 if syntax == "explicit-le" else 60, 10
    few, many = peak_kilobytes(tmp_path, short, syntax), peak_kilobytes(tmp_path, long, syntax)
    print(f"{syntax}: {few / 1024:.0f} MB for {short} frames, {many / 1024:.0f} MB for {long}")
    assert many - few < 30_000
