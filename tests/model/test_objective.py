"""Which of a batch's patches a term looks at, and what it holds them against."""

import pytest
import torch

from model.training.objective import Objective
from model.training.recipe import Recipe


def values(clustered, **options):
    """Terms of a batch of two in which all faint lesions are lost."""
    terms = {"charbonnier": 1.0, "survival": 1.0}
    recipe = Recipe.model_validate({"name": "terms", "loss": terms, **options})
    target = torch.full((2, 1, 64, 64), 0.5)
    target[:, :, 24:40, 24:40] = 0.55
    even = torch.full_like(target, 0.5)
    found = Objective(torch.nn.Identity(), recipe)(even, target, flags(clustered))
    return dict(zip(terms, found.tolist(), strict=True))


def flags(values):
    return torch.tensor(values)[:, None, None, None]


def test_no_decision_is_asked_for_where_scatterers_gather_in_clusters():
    asked = [
        values(clustered, decides_in_clusters=False)
        for clustered in ([False, False], [True, False], [True, True])
    ]
    everywhere = values([True, False])
    assert asked[0] == everywhere
    assert everywhere["survival"] > 0
    shares = [each["survival"] / everywhere["survival"] for each in asked]
    assert shares == pytest.approx([1, 0.5, 0])
    assert {each["charbonnier"] for each in asked} == {everywhere["charbonnier"]}
