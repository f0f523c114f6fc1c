"""A search on a grid of whole numbers that looks at neighbours and halves its steps: few probes in place of all.

From a place, the four neighbours at the steps of both axes are scored. If the best of them is better than the place
by more than ``gain``, the search moves there; else both steps are halved. It ends where steps are the smallest and no
neighbour is better, or where the budget is spent. No place is scored twice.

The search is a value that is stepped from outside, so that scores may come from anywhere, several at once: ``wanted``
says which places to score, ``scored`` takes the scores.

Source: the "heuristic local search" of Diff-Feat (arXiv 2509.15553); its text could not be read, and the moves here
are a reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Place = tuple[int, int]


@dataclass(frozen=True)
class LocalSearch:
    """Where a search stands.

    Attributes:
        size: numbers of values of both axes; places go from (0, 0) to (size[0] - 1, size[1] - 1).
        place: where it is.
        step: steps of both axes.
        smallest: smallest steps.
        budget: most places that are scored.
        gain: by how much a neighbour must be better.
        scores: of the places scored so far; larger is better.
        ended: whether it is over.
    """

    size: Place
    place: Place
    step: Place
    smallest: Place = (1, 10)
    budget: int = 24
    gain: float = 1e-4
    scores: Mapping[Place, float] = field(default_factory=dict)
    ended: bool = False

    @property
    def best(self) -> Place:
        """The place with the best score, the first of equals; before any is known, where the search is."""
        return max(self.scores, key=lambda place: self.scores[place]) if self.scores else self.place

    def neighbours(self) -> list[Place]:
        """The places one step away, at the edge of the grid where they would lie beyond it."""
        (first, second), (step, other) = self.place, self.step
        found = [(first + step, second), (first - step, second), (first, second + other), (first, second - other)]
        inside = [tuple(min(max(at, 0), most - 1) for at, most in zip(each, self.size, strict=True)) for each in found]
        return [each for each in dict.fromkeys((a, b) for a, b in inside) if each != self.place]

    def wanted(self) -> list[Place]:
        """Which places to score next, five at most; none when the search is over."""
        if self.ended:
            return []
        missing = [each for each in [self.place, *self.neighbours()] if each not in self.scores]
        return missing[: self.budget - len(self.scores)]

    def scored(self, scores: Mapping[Place, float]) -> LocalSearch:
        """The search after the scores of some places became known."""
        found = replace(self, scores={**self.scores, **scores})
        while not found.ended and (not found.wanted() or len(found.scores) >= found.budget):
            found = found.moved()
        return found

    def moved(self) -> LocalSearch:
        """The search after one move or halving, or its end; all that ``wanted`` asks for must be scored."""
        known = [each for each in self.neighbours() if each in self.scores]
        better = max(known, key=lambda each: self.scores[each], default=self.place)
        if self.scores[better] > self.scores[self.place] + self.gain and len(self.scores) < self.budget:
            return replace(self, place=better)
        if len(self.scores) >= self.budget or self.step == self.smallest:
            return replace(self, place=self.best, ended=True)
        halved = tuple(max(least, each // 2) for each, least in zip(self.step, self.smallest, strict=True))
        return replace(self, step=(halved[0], halved[1]))
