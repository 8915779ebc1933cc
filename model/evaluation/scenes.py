"""The simulators whose scenes a method can be judged on, each with an exact reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from model.data import Scene, validation_set

SPECKLE, ARRAY = "speckle", "array"


def _speckle(count: int, seed: int) -> Sequence[Scene]:
    return validation_set(count, seed)


def _array(count: int, seed: int) -> Sequence[Scene]:
    from model.array_simulation import array_scenes  # noqa: PLC0415 only where it is asked for

    return array_scenes(count, seed)


SIMULATORS: Mapping[str, Callable[[int, int], Sequence[Scene]]] = {
    SPECKLE: _speckle,
    ARRAY: _array,
}
"""Count and seed to scenes. Networks are trained on `speckle` alone; `array` shares no code."""
