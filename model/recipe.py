"""One TOML file a training run; an unknown key is an error."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.losses import TERMS
from model.student import Architecture


class RecipeError(ValueError):
    """The recipe is unusable; the message names the file, the key and the remedy."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NetworkSection(_Section):
    """Architecture of the student."""

    widths: tuple[int, ...] = Architecture.widths
    """Channels, by level."""
    encoder: tuple[int, ...] = Architecture.encoder
    """3x3 convolutions on the way down, by level."""
    decoder: tuple[int, ...] = Architecture.decoder
    """3x3 convolutions on the way up, by level."""

    def build(self) -> Architecture:
        """The architecture; raises ValueError where the lengths do not fit."""
        return Architecture(self.widths, self.encoder, self.decoder)


class DataSection(_Section):
    """Simulated pairs."""

    anatomy: str = ""
    """Folder of real B-mode images that lend their anatomy, relative to the working folder."""
    anatomy_share: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Share of scenes drawn from it."""
    overlay_share: Annotated[float, Field(ge=0, le=1)] = 0.12
    """Share of scenes with burned-in text and callipers, to be kept."""
    side: Annotated[int, Field(ge=64)] = 288
    """Side of a scene, pixels."""
    pool: Annotated[int, Field(ge=1)] = 1500
    """Scenes kept in memory at once."""
    scenes_per_batch: Annotated[float, Field(gt=0)] = 1.0
    """New scenes for each batch."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that form scenes."""


class OptimiserSection(_Section):
    """AdamW with a warm-up and a cosine over the budget."""

    minutes: Annotated[float, Field(gt=0)] = 100.0
    """Training time over all resumed runs, minutes; validation included."""
    steps: Annotated[int, Field(gt=0)] = 1_000_000
    """Stop after this many steps at the latest."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Patches a step."""
    crop: Annotated[int, Field(ge=32)] = 96
    """Side of a patch, pixels."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Decoupled."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """The exported weights are this running mean."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""


class Recipe(_Section):
    """All settings of one run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """Of the run and of its folder."""
    seed: Annotated[int, Field(ge=0, lt=900_000)] = 1
    """Of weights and data."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the trainer."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the trainer; 0 takes the cores that there are."""
    validation_scenes: Annotated[int, Field(ge=2)] = 32
    """Simulated scenes, seeded apart from the training."""
    validation_steps: Annotated[int, Field(ge=1)] = 1000
    """Steps from one validation and checkpoint to the next."""
    network: NetworkSection = NetworkSection()
    data: DataSection = DataSection()
    optimiser: OptimiserSection = OptimiserSection()
    loss: dict[str, Annotated[float, Field(ge=0)]] = {"charbonnier": 1.0}
    """Weight of each term of `model.losses`."""

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(TERMS))
        if unknown:
            raise ValueError(f"no such term {unknown}; known are {sorted(TERMS)}")
        return value


def load(path: Path) -> Recipe:
    """Read a recipe.

    Raises
    ------
    RecipeError
    """
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        recipe.network.build()
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; name a recipe that can be read") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}; correct the syntax there") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc']))} = {p['input']!r}: {p['msg']}" for p in error.errors()
        )
        raise RecipeError(f"{path}: {problems}") from error
    except ValueError as error:
        raise RecipeError(f"{path}: network: {error}") from error
    return recipe
