"""Parts of a recipe on trial: arms from new weights with seeds, judged and told together."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.evaluation.tables import Table
from model.metrics import COLUMNS
from model.train import train
from model.training import recipe as recipes
from model.training import runs

BATCH, CROP = 8, 96
DIGITS = 2
"""Of figures that the tables of evaluation have no column for."""
NOTE = "Mean and half the range over seeds."
Sections = Mapping[str, Mapping[str, object]]
Figures = dict[str, float]
Judged = Mapping[str, Sequence[Mapping[str, Figures]]]
"""By arm and seed: figures by table."""


_COMMON = """threads = 1
precision = "auto"
validation_steps = {third}
"""
_OPTIMISER = f"""[optimiser]
minutes = 1000
steps = {{steps}}
ema_decay = 0.995
batch = {BATCH}
crop = {CROP}
learning_rate = 2e-3
"""


@dataclass(frozen=True)
class Study:
    """What the arms have in common.

    Attributes
    ----------
    name : str
        Of runs and of what is kept.
    recipe : str
        TOML of all arms: what is not in `_COMMON` and not in the sections that arms give.
    arms : mapping of str to Sections
        Values of sections; ``{teacher}`` in a string is the teacher's folder.
    judge : callable
        From the folder of a run to its figures, by table.
    """

    name: str
    recipe: str
    arms: Mapping[str, Sections]
    judge: Callable[[Path], dict[str, Figures]]

    def judged(self, arguments: argparse.Namespace) -> Judged:
        """Train and judge every arm with every seed; goes on where it was stopped."""
        arguments.output.mkdir(parents=True, exist_ok=True)
        return {
            arm: [
                self._judged(f"{self.name}-{number}-{seed}", seed, self.arms[arm], arguments)
                for seed in range(1, arguments.seeds + 1)
            ]
            for number, arm in enumerate(self.arms)
        }

    def _judged(
        self, name: str, seed: int, sections: Sections, arguments: argparse.Namespace
    ) -> dict[str, Figures]:
        """Figures of a run by table, kept beside its recipe for the next start."""
        recipe, kept = (arguments.output / f"{name}.{kind}" for kind in ("toml", "json"))
        common = _COMMON.format(third=max(1, arguments.steps // 3))
        text = f'name = "{name}"\nseed = {seed}\n{common}{self.recipe}'
        text += _OPTIMISER.format(steps=arguments.steps)
        for section, values in sections.items():
            text += f"[{section}]\n"
            text += "".join(f"{key} = {_toml(each, arguments)}\n" for key, each in values.items())
        if kept.exists():
            before = json.loads(kept.read_text("utf-8"))
            if before["recipe"] == text:
                found: dict[str, Figures] = before["figures"]
                return found
        recipe.write_text(text, "utf-8")
        found = self.judge(trained(recipe, arguments.runs))
        kept.write_text(json.dumps({"recipe": text, "figures": found}), "utf-8")
        return found


def trained(recipe: Path, output: Path) -> Path:
    """Folder of a run that has had no other recipe: what was trained by another is begun anew.

    Parameters
    ----------
    recipe : Path
        TOML; a run by it that was stopped goes on.
    output : Path
        Folder of runs.
    """
    wanted = recipes.load(recipe)
    try:
        known = runs.describe(output / wanted.name)
    except runs.RunError:
        known = {}
    same = known.get("recipe") == json.loads(wanted.model_dump_json()) and "earlier" not in known
    return train(recipe, output, resume=same).parent


def told(arguments: argparse.Namespace) -> dict[str, object]:
    """What the head of a document says of the training."""
    return {
        "training": (
            f"{arguments.steps} steps an arm and seed, from new weights, "
            f"batches of {BATCH} patches of {CROP} px"
        ),
        "seeds": arguments.seeds,
    }


def table(
    name: str, columns: Sequence[str], judged: Judged, *notes: str, digits: int = DIGITS
) -> Table:
    """Mean and half the range over seeds; of a single run the figure alone."""
    labels = {key: COLUMNS[key].label if key in COLUMNS else key for key in columns}
    rows = []
    for arm, found in judged.items():
        row = {"arm": arm}
        for key, label in labels.items():
            values = [figures[name][key] for figures in found]
            places = COLUMNS[key].digits if key in COLUMNS else digits
            row[label] = f"{np.mean(values):.{places}f}"
            if len(values) > 1:
                row[label] += f" ±{(max(values) - min(values)) / 2:.{places}f}"
        rows.append(row)
    return Table(name[0].upper() + name[1:], ("arm", *labels.values()), rows, (NOTE, *notes))


def _toml(value: object, arguments: argparse.Namespace) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(each, arguments) for each in value) + "]"
    if isinstance(value, str):
        return f'"{value.format(**vars(arguments))}"'
    return str(value)
