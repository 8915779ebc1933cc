"""Fixtures for all tests: the real samples, settings, a despeckler without a network."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings as hypothesis_settings
from numpy.typing import NDArray
from PIL import Image
from pydicom.examples import get_path

from dicom_node.config import Settings
from tests.builders import MedianDespeckler

hypothesis_settings.register_profile("untimed", deadline=None)
hypothesis_settings.load_profile("untimed")

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "dicom"
REAL_IMAGES = SAMPLES.parent / "data" / "train"
EXAMPLES = ("ybr_color", "rgb_color", "palette_color", "jpeg2k")


def sample_names() -> list[str]:
    """Names of the real objects, for parametrised tests; one that skips where there are none."""
    index = SAMPLES / "index.csv"
    if not index.is_file():
        return ["absent"]
    with index.open(newline="", encoding="utf-8") as file:
        return [row["file"] for row in csv.DictReader(file)]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where torch sees none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture
def samples() -> Path:
    """The folder of real ultrasound objects, beside the project."""
    if not (SAMPLES / "index.csv").is_file():
        pytest.skip("the folder ../shared/dicom with real ultrasound is absent")
    return SAMPLES


@pytest.fixture
def real_images() -> list[NDArray[np.uint8]]:
    """Eight or so real B-mode images, of all sources, from the folder beside the project."""
    paths = sorted(REAL_IMAGES.rglob("*.png"))
    if not paths:
        pytest.skip("the folder ../shared/data/train with real B-mode images is absent")
    images = []
    for path in paths[:: max(1, len(paths) // 8)]:
        with Image.open(path) as picture:
            images.append(np.array(picture.convert("L")))
    return images


@pytest.fixture
def examples() -> dict[str, Path]:
    """pydicom's own ultrasound, by name."""
    return {name: Path(get_path(name)) for name in EXAMPLES}


@pytest.fixture
def settings() -> Settings:
    """The defaults."""
    return Settings()


@pytest.fixture
def despeckler() -> MedianDespeckler:
    """Takes speckle out without a network."""
    return MedianDespeckler()
