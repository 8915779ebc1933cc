"""docs/training.md names every key of a recipe with its default, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from model.losses import TERMS
from model.training.recipe import Recipe

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"


def keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names of all keys, with their fields."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def documented(heading: str) -> dict[str, str]:
    """First and second column of the table whose first heading is given."""
    table = DOCUMENT.read_text().partition(f"| {heading} |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.*?) \|", table, re.MULTILINE))


def test_every_key_of_a_recipe_is_documented_with_its_default():
    expected = {
        name: "needed" if field.is_required() else f"`{json.dumps(field.default)}`"
        for name, field in keys()
    }
    assert documented("key") == expected


def test_every_term_of_the_loss_is_documented():
    assert set(documented("term")) == set(TERMS)


def test_every_key_has_a_sentence_of_its_own():
    assert all(field.description for _, field in keys())
