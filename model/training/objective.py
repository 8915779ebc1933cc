"""The terms of a recipe's loss over one batch of patches, with what a teacher has said of them.

On a GPU the step of a small network is a thousand kernels of some microseconds, each of which the
CPU has to launch. `recorded` launches all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.losses import TERMS
from model.student import Student
from model.training import distill
from model.training.pool import Batch
from model.training.recipe import Recipe

AGAINST_THE_REFERENCE = frozenset({"contrast", "survival"})
"""Terms that always ask for the simulated reference: a teacher's guess may have shrunk a lesion."""
AFFINITY = "affinity"
"""The term that compares features with the teacher's."""

Terms = Callable[..., Tensor]
"""What `inputs` gives to the value of each term, (terms,)."""


class Objective(nn.Module):
    """A network and the terms it is trained by.

    Parameters
    ----------
    network : nn.Module
    recipe : Recipe
    """

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.distillation = network, recipe.distillation
        self.decides_in_clusters = recipe.decides_in_clusters
        self.terms = tuple(name for name, weight in recipe.loss.items() if weight)
        self.compares_features = (
            bool(recipe.distillation.teacher)
            and recipe.distillation.affinity > 0
            and isinstance(network, Student)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values, in order."""
        return (*self.terms, AFFINITY) if self.compares_features else self.terms

    def forward(self, noisy: Tensor, target: Tensor, clustered: Tensor, *said: Tensor) -> Tensor:
        """Value of each term, (terms,), of what `inputs` gives."""
        taught, real, features = (*said, None, None, None)[:3]
        seen = None
        if features is not None and self.compares_features and isinstance(self.network, Student):
            removed, seen = self.network.residual_and_features(noisy)
            output = (noisy - removed).float()
        else:
            output = self.network(noisy).float()
        aim = target
        if taught is not None and real is not None:
            d = self.distillation
            aim = torch.where(
                real, taught, target.lerp(taught, d.output / (d.output + d.supervised))
            )
            target = torch.where(real, taught, target)
        asked = dict.fromkeys(AGAINST_THE_REFERENCE, target)
        if not self.decides_in_clusters:
            even = target.mean((1, 2, 3), keepdim=True)  # nothing faint in it: nothing to decide
            asked["survival"] = torch.where(clustered, even, target)
        values = [TERMS[name](output, asked.get(name, aim), noisy) for name in self.terms]
        if seen is not None and features is not None:
            values.append(distill.affinity_loss(seen, features))
        return torch.stack(values)


def inputs(batch: Batch) -> tuple[Tensor, ...]:
    """What an objective takes of a batch."""
    names = ("noisy", "target", "clustered", "taught", "real", "features")
    return tuple(batch[name] for name in names if name in batch)


def recorded(objective: Objective, given: tuple[Tensor, ...]) -> Terms:
    """The objective and its gradient as two CUDA graphs, for batches of one shape.

    Parameters
    ----------
    objective : Objective
        On a GPU, in training mode; its weights may change in place afterwards.
    given : tuple of Tensor
        From `inputs`, on the same device.

    Returns
    -------
    callable
        What the objective computes; gradients reach the same weights.
    """
    kind = torch.get_autocast_dtype("cuda")
    mixed = torch.is_autocast_enabled("cuda")
    samples = tuple(tensor.clone() for tensor in given)
    with torch.autocast("cuda", kind, enabled=mixed, cache_enabled=False):
        torch.cuda.make_graphed_callables(objective, samples)  # in place
    return objective.forward
