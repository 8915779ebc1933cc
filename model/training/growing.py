"""Growing a network without changing what it computes, to train on from there.

New channels feed no old one yet, new convolutions pass on what they get, new residual blocks add
nothing (Net2Net: Chen, Goodfellow, Shlens, ICLR 2016). Only a gate that the smaller network has not
(`network.selective`) leaves 2 % in from the start: closed altogether it would never learn.
"""

from __future__ import annotations

import torch
from torch import nn

from model.network.reparameterise import adopt, merge
from model.student import Architecture, Student


@torch.no_grad()
def grow(source: Student, target: Student) -> None:
    """Give a larger network the weights of a smaller one.

    Parameters
    ----------
    source : Student
        Branches of its blocks count as merged.
    target : Student
        As many levels; no level narrower or shallower; as many pixels a side that become channels.
        May be a teacher, newly made, or have blocks of several branches where the source has plain
        ones. Gated blocks do not grow.

    Raises
    ------
    ValueError
        The source does not fit into the target.
    """
    _check(source.architecture, target.architecture)
    plain = merge(target)
    _grow(merge(source), plain)
    adopt(target, plain)


def _check(small: Architecture, large: Architecture) -> None:
    """Raise ValueError where shapes may fit and the function would be another."""
    if small.unshuffle != large.unshuffle:
        raise ValueError(f"set network.unshuffle = {small.unshuffle}, as its weights have it")
    if small.selective and not large.selective:
        raise ValueError("its weights have a gate; set network.selective = true")
    if len(small.widths) != len(large.widths):
        raise ValueError(f"has {len(small.widths)} levels; give as many network.widths")
    gated = "gated" in (small.block, large.block)
    if gated and _blocks(small) != _blocks(large):
        raise ValueError(
            f"gated blocks do not grow; set network.block = {small.block!r}, and widths, encoder "
            "and decoder as its weights have them"
        )


def _blocks(architecture: Architecture) -> tuple[object, ...]:
    return architecture.block, architecture.widths, architecture.encoder, architecture.decoder


def _grow(source: Student, target: Student) -> None:
    """The same for plain convolutions."""
    large, small = target.state_dict(), source.state_dict()
    for name, weights in small.items():
        room = large.get(name)
        if room is None or any(a < b for a, b in zip(room.shape, weights.shape, strict=True)):
            raise ValueError(f"{name}: {tuple(weights.shape)} does not fit in; widen the network")
        corner = tuple(slice(0, side) for side in weights.shape)
        if room.ndim > 1:
            transposed = name.startswith("up.")  # weights are (in, out, ...) there
            old_outputs = (slice(None), corner[1]) if transposed else (corner[0],)
            room[old_outputs] = 0  # new channels feed no old one yet
        room[corner] = weights
    target.load_state_dict(large)
    for side in ("encoder", "decoder"):
        for level, stack in enumerate(getattr(target, side)):
            _pass_through(stack, f"{side}.{level}", small)


def _pass_through(stack: nn.Sequential, name: str, known: dict[str, torch.Tensor]) -> None:
    """Set convolutions that the source has not to the identity, which a rectifier leaves."""
    for index, layer in enumerate(stack):
        if not isinstance(layer, nn.Conv2d) or f"{name}.{index}.weight" in known:
            continue
        if index == 0:
            raise ValueError(f"{name}: the smaller network has no convolution there to follow")
        nn.init.dirac_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
