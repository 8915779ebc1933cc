"""One TOML file a training run; an unknown key is an error."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from torch import nn

from model.losses import MS_SSIM_LEAST_PX, TERMS
from model.network.dncnn import DnCNN
from model.student import Architecture, Student
from model.teacher import Teacher
from model.training.pool import FEATURE_STRIDE


class RecipeError(ValueError):
    """The recipe is unusable; the message names the file, the key and the remedy."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NetworkSection(_Section):
    """What is trained."""

    kind: Literal["student", "teacher", "dncnn"] = "student"
    """The student ships; the teacher and DnCNN are there to teach and to compare."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Architecture.widths
    """Channels, by level."""
    encoder: tuple[Annotated[int, Field(ge=0)], ...] = Architecture.encoder
    """3x3 convolutions on the way down, by level."""
    decoder: tuple[Annotated[int, Field(ge=0)], ...] = Architecture.decoder
    """3x3 convolutions on the way up, by level."""
    unshuffle: Annotated[int, Field(ge=2, le=4)] = Architecture.unshuffle
    """Pixels a side that become channels before the first convolution."""
    block: Literal["plain", "reparameterised", "gated"] = "plain"
    """Kind of convolution: one, several branches merged after training, or two multiplied."""
    selective: bool = False
    """Whether the network says where coarse structures stay; see `model.network.coarse`."""
    residual_blocks: tuple[Annotated[int, Field(ge=0)], ...] = (2, 2, 4, 6)
    """Of a teacher, by level, on the way down; all but the last also on the way up."""

    def build(self) -> nn.Module:
        """A new network; raises ValueError where the lengths do not fit."""
        if self.kind == "dncnn":
            return DnCNN()
        architecture = self.architecture()
        if self.kind == "teacher":
            return Teacher(architecture, self.residual_blocks)
        return Student(architecture)

    def architecture(self) -> Architecture:
        """Of a student, or of the student that a teacher is grown from."""
        return Architecture(
            self.widths,
            self.encoder,
            self.decoder,
            self.unshuffle,
            self.block,
            selective=self.selective,
        )


class DataSection(_Section):
    """Scenes to train on; see `model.training.prepare`."""

    source: Literal["physics", "paper"] = "physics"
    """Simulated speckle, or real images with multiplicative noise."""
    images: str = ""
    """Folder of real B-mode images or DICOM objects, relative to the working folder."""
    frames_per_file: Annotated[int, Field(ge=1)] = 4
    """Frames of a cine that are used."""
    smoothed_by: str = ""
    """Bundle that makes anatomy of the images; a plain filter where there is none."""
    anatomy_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of scenes that take their map from a real image."""
    faint_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of scenes that are nearly even tissue with faint lesions."""
    detail_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of scenes full of calcifications, clefts and fine lines."""
    overlay_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of scenes with burned-in text, callipers and lines, to be kept."""
    clustered_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of scenes whose scatterers gather in clusters: uneven tissue that is to be even."""
    widened_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of scenes with the beams and displays of real images: coarser, brighter grains."""
    side: Annotated[int, Field(ge=64, multiple_of=8)] = 256
    """Side of a scene, pixels."""
    scenes: Annotated[int, Field(ge=1)] = 4000
    """Scenes that are drawn before the training; where a GPU trains, its memory holds them."""
    seed: Annotated[int, Field(ge=0, lt=900_000)] = 1
    """Of the scenes; runs that differ in their own seed alone share them."""
    fresh_per_batch: Annotated[float, Field(ge=0)] = 0.0
    """Scenes that are replaced by new ones a batch; not together with a distillation."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that draw scenes beforehand; 0 takes the cores that there are."""
    loaders: Annotated[int, Field(ge=0)] = 0
    """Processes that cut patches, and draw fresh scenes, while the training runs."""
    cache: str = "runs/cache"
    """Folder that keeps drawn scenes for the next run."""


class DistillationSection(_Section):
    """What the student learns from a teacher; see `model.training.distill`."""

    teacher: str = ""
    """Folder of the teacher's run; no distillation where there is none."""
    supervised: Annotated[float, Field(ge=0)] = 1.0
    """Parts of the reference in what a student aims at in simulated scenes."""
    output: Annotated[float, Field(ge=0)] = 1.0
    """Parts of the teacher's output beside them; 0 asks it about real images alone."""
    panel: list[str] = []
    """Runs or bundles that answer together for simulated scenes, in the teacher's place."""
    affinity: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the likeness of feature affinities."""
    folds: Annotated[int, Field(ge=1, le=4)] = 4
    """Mirrored inputs over which the teacher's output is averaged."""
    real_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the patches that are unlabelled real images, with the teacher alone to go by."""
    real_halvings: Annotated[int, Field(ge=0, le=4)] = 0
    """Times that the teacher may halve a real image whose speckle is coarse, to see it as grain."""
    real_retained: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of what the teacher removes of a real image over 16 pixels and more that stays: not all
    of that is speckle."""
    real_planted: Annotated[int, Field(ge=0)] = 0
    """Copies of each real patch, with faint lesions planted; 0 takes the patches as they are."""


class GuidanceSection(_Section):
    """How the loss weights follow the validation metrics; see `model.training.guidance`."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps from one adjustment to the next; 0 leaves the weights as they are."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """How strongly the largest shortfall draws the weights; small is strong."""
    inertia: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the old weight that stays at an adjustment."""
    reach: Annotated[float, Field(ge=1)] = 4.0
    """Largest factor, up or down, from the recipe's own weight."""
    targets: dict[str, float] = {}
    """By metric; those that are not given are the teacher's."""


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
    start_from: str = ""
    """Bundle or run whose weights begin; a larger network grows from it without a change, but for
    the 2 % that a new gate leaves in."""


class Recipe(_Section):
    """All settings of one run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """Of the run and of its folder."""
    seed: Annotated[int, Field(ge=0, lt=900_000)] = 1
    """Of weights and data."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the trainer; `auto` is bf16-mixed where the device computes in it, or else 32-true."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of the trainer; 0 takes the cores that there are."""
    accelerator: str = "auto"
    """Lightning's: cpu, gpu, or what there is."""
    cuda_graph: bool = True
    """On one GPU, record the kernels of a step once and launch them together from then on."""
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """How many; several train together (DDP), each on batches of its own."""
    validation_scenes: Annotated[int, Field(ge=2)] = 32
    """Simulated scenes, seeded apart from the training."""
    validation_steps: Annotated[int, Field(ge=1)] = 1000
    """Steps from one validation and checkpoint to the next."""
    network: NetworkSection = NetworkSection()
    data: DataSection = DataSection()
    optimiser: OptimiserSection = OptimiserSection()
    distillation: DistillationSection = DistillationSection()
    guidance: GuidanceSection = GuidanceSection()
    loss: dict[str, Annotated[float, Field(ge=0)]] = {"charbonnier": 1.0}
    """Weight of each term of `model.losses`."""
    decides_in_clusters: bool = True
    """Whether `survival` asks for decisions in clustered tissue too, where chance draws lesions."""

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(TERMS))
        if unknown:
            raise ValueError(f"no such term {unknown}; known are {sorted(TERMS)}")
        if not any(value.values()):
            raise ValueError("give at least one term a weight above 0")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.distillation.teacher and self.data.fresh_per_batch:
            raise ValueError(
                "data.fresh_per_batch: a teacher's output is computed once, for scenes that stay; "
                "set it to 0, or leave distillation.teacher empty"
            )
        if self.distillation.real_planted and self.distillation.affinity:
            raise ValueError(
                "distillation.real_planted: a teacher's features know nothing of what was planted "
                "after it looked; set distillation.affinity to 0"
            )
        d = self.distillation
        if not d.teacher and (d.real_share or d.affinity):
            raise ValueError(
                "distillation.real_share, distillation.affinity: nobody would answer; name a "
                "distillation.teacher, or leave them out"
            )
        if self.data.faint_share + self.data.anatomy_share + self.data.detail_share > 1:
            raise ValueError(
                "data.faint_share, data.anatomy_share, data.detail_share: together at most 1"
            )
        if d.teacher and not d.supervised + d.output:
            raise ValueError(
                "distillation.supervised, distillation.output: parts of what the student aims at "
                "in simulated scenes; give one of them more than 0"
            )
        if d.panel and not (d.teacher and d.output and not d.affinity):
            raise ValueError(
                "distillation.panel: answers for simulated scenes alone, and has no features; name "
                "a distillation.teacher for the rest, give distillation.output a weight and set "
                "distillation.affinity to 0"
            )
        if self.optimiser.crop > self.data.side or self.optimiser.crop % FEATURE_STRIDE:
            raise ValueError(
                f"optimiser.crop = {self.optimiser.crop}: must be a multiple of {FEATURE_STRIDE} "
                f"and at most data.side = {self.data.side}"
            )
        if self.loss.get("ms_ssim") and self.optimiser.crop < MS_SSIM_LEAST_PX:
            raise ValueError(
                f"optimiser.crop = {self.optimiser.crop}: loss.ms_ssim needs {MS_SSIM_LEAST_PX} at "
                "least; enlarge it, or leave the term out"
            )
        return self


def load(path: Path) -> Recipe:
    """Read a recipe, and the one that it extends.

    Raises
    ------
    RecipeError
    """
    values = _read(path)
    try:
        recipe = Recipe.model_validate(values)
        recipe.network.build()
    except ValidationError as error:
        problems = "; ".join(_told(problem) for problem in error.errors())
        raise RecipeError(f"{path}: {problems}") from error
    except ValueError as error:
        raise RecipeError(f"{path}: network: {error}") from error
    return recipe


def _told(problem: ErrorDetails) -> str:
    """Key, value and remedy; of keys that do not agree the remedy alone, which names them."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    return f"{'.'.join(map(str, problem['loc']))} = {problem['input']!r}: {message}"


_EXTENDS = "extends"
"""Key, at the top of a file alone, that names another recipe, relative to the file's folder."""


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Values of a file, over those of the recipe that it extends."""
    if path.resolve() in above:
        raise RecipeError(f"{path}: {_EXTENDS} itself; name another recipe")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        by = f" ({_EXTENDS} of {above[-1]})" if above else ""
        raise RecipeError(f"{path}{by}: {error.strerror}; name a recipe to be read") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}; correct the syntax there") from error
    base = values.pop(_EXTENDS, "")
    if not isinstance(base, str):
        raise RecipeError(f"{path}: {_EXTENDS} = {base!r}: name the file of one recipe")
    if not base:
        return values
    return _over(_read(path.parent / base, (*above, path.resolve())), values)


def _over(below: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values, and what they leave unsaid; sections are merged key by key."""
    merged = below | values
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            merged[name] = _over(below[name], value)
    return merged


def flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of a recipe with their dotted names."""
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
