"""Which train examples a step uses: minibatches, and fresh examples for trials."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import count, islice

from dspy_dlpo.core.settings import Settings


class Sampler:
    """Goes through the trainset, in a new random order for each epoch.

    Minibatch and trial follow the same order: what an incumbent was paid for in the trial that made it the incumbent
    serves again in the next minibatch.

    Args:
        settings: The trainset, the sizes of minibatch and trial, and the seed from which the orders follow.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def minibatch(self, position: int, passes: Callable[[str], bool]) -> list[str]:
        """Return the next examples, until `batch_size` of them are not known to be passed.

        Those that the incumbent failed in its trial are paid already, so most of a minibatch costs nothing.

        Args:
            position: Examples gone through so far, over all epochs.
            passes: Whether the incumbent is known to pass an example.
        """
        size, batch_size = len(self._settings.trainset), self._settings.batch_size
        most = max(batch_size, size - batch_size)  # Some stay fresh for the trial.
        names: list[str] = []
        num_open = 0
        for name in self._upcoming(position):
            names.append(name)
            num_open += not passes(name)
            if num_open == batch_size or len(names) == most:
                break
        return names

    def fresh(self, position: int, used: Sequence[str], most: int | None) -> list[str]:
        """Return the next examples that are not in use, at most so many; None for all."""
        taken = {*used}
        return list(islice((name for name in self._upcoming(position) if name not in taken), most))

    def trial(self, position: int, minibatch: Sequence[str], first: Sequence[str]) -> list[str]:
        """Return the examples of a trial: none that the candidates were made from, unless too few are left.

        The minibatch decides nothing: a candidate that quotes its examples would win there and nowhere else.

        Args:
            position: Examples gone through so far, over all epochs.
            minibatch: What the candidates were made from.
            first: Examples that come first.
        """
        most = self._settings.max_trial_examples
        names = dict.fromkeys([*first, *self.fresh(position, minibatch, most)])
        if len(names) < self._settings.first_look:  # A small trainset has no fresh ones to spare.
            names |= dict.fromkeys(minibatch)
        return [*names][:most]

    def _upcoming(self, position: int) -> Iterator[str]:
        """Yield every train example once, from a position on."""
        size, seen = len(self._settings.trainset), set[str]()
        for place in count(position):
            epoch, index = divmod(place, size)
            name = self._order(epoch)[index]
            if name not in seen:
                seen.add(name)
                yield name
            if len(seen) == size:
                return

    def _shuffled(self, epoch: int) -> list[str]:
        order = list(self._settings.trainset)
        random.Random(f"{self._settings.seed}/epoch/{epoch}").shuffle(order)
        return order
