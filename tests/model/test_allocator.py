"""The memory of activations stays with the process."""

import platform
import subprocess
import sys

import pytest

from model.allocator import keep_activations

FAULTS_OF_TEN_BLOCKS = """
import resource, sys
import numpy as np
from model.allocator import keep_activations
if sys.argv[1] == "kept":
    assert keep_activations()
np.ones(2 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    several = [np.ones(2 << 20) for _ in range(3)]
    del several
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_that_come_back_every_frame_are_not_mapped_anew():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS_OF_TEN_BLOCKS, how],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for how in ("default", "kept")
    }
    assert faults["kept"] < faults["default"] / 3


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_activations()
