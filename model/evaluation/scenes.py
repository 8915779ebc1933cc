"""The simulators whose scenes a method can be judged on, each with an exact reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from model.data import validation_set
from model.simulation.scene import Scene

SPECKLE, WIDENED, ARRAY = "speckle", "widened", "array"


def _speckle(count: int, seed: int) -> Sequence[Scene]:
    return validation_set(count, seed)


def _widened(count: int, seed: int) -> Sequence[Scene]:
    return validation_set(count, seed, widened=True)


def _array(count: int, seed: int) -> Sequence[Scene]:
    from model.simulation.array import array_scenes  # noqa: PLC0415 only where it is asked for

    return array_scenes(count, seed)


SIMULATORS: Mapping[str, Callable[[int, int], Sequence[Scene]]] = {
    SPECKLE: _speckle,
    WIDENED: _widened,
    ARRAY: _array,
}
"""Count and seed to scenes. `widened` has the tissue of `speckle` under the beams and displays of
real images; networks are trained on these two alone. `array` shares no code with them."""
