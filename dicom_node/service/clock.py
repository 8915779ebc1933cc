"""Seconds that each stage took, where stages pull one another's frames.

Time counts for the innermost stage alone, so that the sum is the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

Item = TypeVar("Item")


class Clock:
    """A stack of stages; the one on top is being paid.

    Attributes
    ----------
    seconds : dict of str to float
        By stage, so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = perf_counter()

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Count the block for a stage, less what it leaves to others."""
        self._settle()
        self._stack.append(stage)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def timed(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """Hand items on; count the time that producing them takes."""
        iterator = iter(items)
        while True:
            with self.measured(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _settle(self) -> None:
        now = perf_counter()
        if self._stack:
            top = self._stack[-1]
            self.seconds[top] = self.seconds.get(top, 0.0) + now - self._since
        self._since = now
