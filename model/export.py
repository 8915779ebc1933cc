"""Turn a training run, or another bundle, into a bundle that the node takes."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import bundle as bundles
from model import data
from model.metrics.fidelity import psnr
from model.network.reparameterise import merge
from model.student import Student, multiply_accumulates, parameters
from model.training import runs
from model.training.recipe import flat

LICENCE = "Apache-2.0"
SELF_TEST_SCENE = 7
"""Index in the validation set."""

_log = logging.getLogger(__name__)


def export(
    checkpoint: Path,
    output: Path,
    *,
    name: str,
    version: str,
    averaged: Mapping[Path, float] | None = None,
    retain: float | None = None,
    retain_wide: float | None = None,
    halvings: int | None = None,
    rim_px: int | None = None,
    attribution: list[str] | None = None,
) -> bundles.Bundle:
    """Write a bundle and load it again.

    Parameters
    ----------
    checkpoint : Path
        Of `model.train`, the folder of the run, or a bundle that is to get other shares.
    output : Path
        Folder of bundles; this one goes into ``output/<name>``.
    name, version : str
        Of the release. Each call makes a new Device UID.
    averaged : mapping of Path to float, optional
        Other sources whose weights are averaged in, and the share of each; the rest is the first's.
    retain, retain_wide : float, 0..1
        Shares of what is removed at the size of lesions that stay; see `model.network.coarse`.
    halvings : int
        Times an image with coarse speckle may be halved; `model.network.scales`.
    rim_px : int
        How far tissue is continued beyond the rim of a sector; `model.network.rim`. What is not
        given of these four is as a bundle has it, and 0 for a run.
    attribution : list of str, optional
        Sources of real images that the training used, as their licences ask; those of bundles that
        the weights came from or that taught them are added.

    Raises
    ------
    bundles.BundleError
        A source is unusable, its network has another shape than the first or weights that are no
        numbers, or the name is none.
    """
    if not re.fullmatch(bundles.NAME, name):
        raise bundles.BundleError(
            f"name {name!r}: write small letters, digits and hyphens, such as my-student"
        )
    trained, training = _trained(checkpoint)
    student = merge(trained).eval()
    if averaged:
        training = {**training, "averaged": _average_in(student, averaged)}
    _round(student)
    if not bundles.finite(student.state_dict().values()):
        raise bundles.BundleError(
            f"{checkpoint}: weights are no numbers; train again with a lower learning rate"
        )
    behind = [each for source in (checkpoint, *(averaged or ())) for each in _behind(source)]
    named = [name for each in behind for name in each.attribution]
    sources = list(dict.fromkeys([*named, *(attribution or [])]))
    known = {images for each in behind if each.attribution for images in _images(each.training)}
    if not attribution and _images(training) - known:
        _log.warning(
            "%s: trained with real images whose source nobody names; add --attribution", checkpoint
        )
    settings = {
        "retain": retain,
        "retain_wide": retain_wide,
        "halvings": halvings,
        "rim_px": rim_px,
    }
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    architecture = replace(student.architecture, **given)
    if architecture.block == "reparameterised":
        architecture = replace(architecture, block="plain")
    student.architecture = architecture

    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    bundles.write_tensors(folder / bundles.WEIGHTS, student.state_dict())
    scene = data.validation_set(SELF_TEST_SCENE + 1)[-1]
    probe = np.ascontiguousarray(scene.noisy[:121, :150])
    draft = bundles.Bundle(folder, _manifest_stub(), student, probe, probe)
    bundles.write_tensors(
        folder / bundles.SELF_TEST,
        {"input": torch.from_numpy(probe), "output": torch.from_numpy(draft.apply(probe))},
    )
    manifest = bundles.Manifest(
        name=name,
        version=version,
        device_uid=f"2.25.{uuid.uuid4().int}",
        architecture=architecture.to_dict(),
        parameters=parameters(student),
        weights_sha256=bundles.sha256(folder / bundles.WEIGHTS),
        self_test_sha256=bundles.sha256(folder / bundles.SELF_TEST),
        training=training,
        figures={
            **_figures(draft),
            "multiply_accumulates_per_pixel": round(multiply_accumulates(student) / (768 * 1024)),
        },
        licence=LICENCE,
        attribution=sources,
    )
    _write_card(folder, manifest)
    (folder / bundles.MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
    loaded = bundles.load(folder)
    loaded.self_test()
    return loaded


def _trained(source: Path) -> tuple[Student, dict[str, Any]]:
    """The student of a run, or of a bundle, and what is known of its training."""
    if _is_bundle(source):
        bundle = bundles.load(source)
        return bundle.student, bundle.manifest.training
    try:
        run = runs.load(_run_folder(source))
    except runs.RunError as error:
        raise bundles.BundleError(str(error)) from error
    if type(run.network) is not Student:
        raise bundles.BundleError(
            f"{source}: the run trained a {run.kind}; only a student makes a bundle"
        )
    return run.network, {
        **run.description,
        "steps": run.steps,
        "minutes": round(run.minutes, 1),
    }


def _is_bundle(source: Path) -> bool:
    return any(
        (folder / bundles.MANIFEST).is_file() for folder in (source, bundles.BUNDLES / source)
    )


def _run_folder(source: Path) -> Path:
    """Of a run, by itself or by its checkpoint."""
    return source.parent if source.suffix and not source.is_dir() else source


def _behind(source: Path, after: frozenset[Path] = frozenset()) -> list[bundles.Manifest]:
    """A bundle itself, or those that a run began with or learned from, in its earlier steps too."""
    if source in after:
        return []  # runs under one name after another may name each other
    if _is_bundle(source):
        return [bundles.load(source).manifest]
    try:
        described = runs.describe(_run_folder(source))
        recipe = dict(flat(described["recipe"]))
    except (runs.RunError, KeyError):
        return []  # it began with a run that is not here any more
    named: list[str] = []
    for keys in (recipe, *(before["recipe"] for before in described.get("earlier", []))):
        named += [keys.get("optimiser.start_from", ""), keys.get("distillation.teacher", "")]
        named += keys.get("distillation.panel", [])
        named += [keys.get("data.smoothed_by", "")] if _images(described) else []
    return [found for each in named if each for found in _behind(Path(each), after | {source})]


def _images(training: Mapping[str, Any]) -> set[str]:
    """Hashes of the real images of a training, of its earlier steps and of what is averaged in."""
    found = {training.get("data_sha256") or "not known"} if training.get("images") else set()
    found |= {before.get("data_sha256", "") for before in training.get("earlier", [])}
    return found.union(*map(_images, training.get("averaged", []))) - {""}


def _round(student: Student) -> None:
    """Round weights to bfloat16, so that every precision computes with the same."""
    weights = student.state_dict()
    student.load_state_dict({key: value.bfloat16().float() for key, value in weights.items()})


def _average_in(student: Student, others: Mapping[Path, float]) -> list[dict[str, Any]]:
    """Give a student the mean of its weights and of others', and say what is known of those.

    Networks that began as one and were trained apart lie in one basin: the mean of their weights is
    between them in what it does, and often better than either.

    References
    ----------
    Wortsman et al., "Model soups", ICML 2022, and "Robust fine-tuning", CVPR 2022.
    """
    shares = ", ".join(f"{source}={share:g}" for source, share in others.items())
    if not all(share > 0 for share in others.values()) or sum(others.values()) >= 1:
        raise bundles.BundleError(f"averaged {shares}: give shares above 0 that leave some over")
    weights = student.state_dict()
    mean = {key: (1 - sum(others.values())) * value for key, value in weights.items()}
    described = []
    for source, share in others.items():
        other, training = _trained(source)
        more = merge(other).state_dict()
        if {k: v.shape for k, v in more.items()} != {k: v.shape for k, v in weights.items()}:
            raise bundles.BundleError(
                f"{source}: its network has another shape; average what began as one"
            )
        mean = {key: value + share * more[key] for key, value in mean.items()}
        described.append({"share": share, **training})
    student.load_state_dict(mean)
    return described


def _figures(bundle: bundles.Bundle, count: int = 48) -> dict[str, float]:
    """Mean PSNR of the speckled input and of the output over validation scenes, dB."""
    before, after = [], []
    for scene in data.validation_set(count):
        target = np.clip(scene.target, 0, 255)
        before.append(psnr(scene.noisy.astype(np.float32), target, data_range=255))
        after.append(psnr(bundle.apply(scene.noisy).astype(np.float32), target, data_range=255))
    return {
        "validation_scenes": count,
        "input_psnr_db": round(float(np.mean(before)), 3),
        "output_psnr_db": round(float(np.mean(after)), 3),
        "gain_db": round(float(np.mean(after) - np.mean(before)), 3),
    }


def _manifest_stub() -> bundles.Manifest:
    """Stands in while the hashes are not known yet."""
    return bundles.Manifest(
        name="draft",
        version="0",
        device_uid="2.25.0",
        architecture={},
        parameters=0,
        weights_sha256="",
        self_test_sha256="",
        training={},
        figures={},
        licence=LICENCE,
        attribution=[],
    )


def _write_card(folder: Path, manifest: bundles.Manifest) -> None:
    """Write the first card, or that of this export; one that its author has changed stays."""
    card = folder / bundles.MODEL_CARD
    if card.exists():
        try:
            before = bundles.Manifest.model_validate_json((folder / bundles.MANIFEST).read_text())
            changed = card.read_text("utf-8") != _card(before)
        except (OSError, ValueError):
            changed = True
        if changed:
            _log.warning("%s: stays as it is; bring its version and figures up to date", card)
            return
    card.write_text(_card(manifest), "utf-8")


def _card(manifest: bundles.Manifest) -> str:
    """First model card of a bundle, to be completed by its author."""
    lines = "\n".join(f"- {source}" for source in manifest.attribution) or "- none"
    figures = "\n".join(f"| {key} | {value} |" for key, value in manifest.figures.items())
    return (
        f"# {manifest.name} {manifest.version}\n\n"
        "Removes speckle from 8-bit B-mode ultrasound. For research use; not a medical device.\n\n"
        f"{manifest.parameters} parameters. Device UID {manifest.device_uid}.\n\n"
        f"| figure | value |\n|---|---|\n{figures}\n\n"
        f"## Real images in the training\n{lines}\n"
    )
