"""A search on a grid of whole numbers that looks at neighbours and halves its steps: few probes in place of all.

From a place, the four neighbours at the steps of both axes are scored. If the best of them is better than the place
by more than ``gain``, the search moves there; else both steps are halved. It ends where steps are the smallest and no
neighbour is better, or where the budget is spent.

The search is a value that is stepped from outside, so that scores may come from anywhere, several at once: ``wanted``
says which places to score, ``scored`` takes the scores. Scores of one step must come from one judge, those of different
steps need not: what ``wanted`` asks for always holds the place itself and all its neighbours, and scores count by their
differences to the place's score of the same step.

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
        budget: most places that are scored; a place that is scored again is not counted again.
        gain: by how much a neighbour must be better.
        scores: of the places scored so far, as the judge of the first step would give them if judges differed by one
            number for all places; larger is better. A later score of a place takes the place of an earlier one.
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
        """Which places to score next, five at most, the place itself first; none when the search is over.

        Empty too where all of them have a score: the search then goes on by the scores that it has.
        """
        if self.ended:
            return []
        around = [self.place, *self.neighbours()]
        missing = [each for each in around if each not in self.scores][: self.budget - len(self.scores)]
        return [each for each in around if each in self.scores or each in missing] if missing else []

    def scored(self, scores: Mapping[Place, float]) -> LocalSearch:
        """The search after the scores of some places became known.

        Args:
            scores: of one judge; the place's own is among them.

        Raises:
            ValueError: it is not.
        """
        if self.ended:
            return self
        if self.place not in scores:
            msg = f"Expected scores to hold that of the place {self.place}, got {sorted(scores)}. Score it beside them."
            raise ValueError(msg)
        # 0, so that no score changes, where the place's score is the one that it had.
        easier = self.scores.get(self.place, scores[self.place]) - scores[self.place]
        found = replace(self, scores={**self.scores, **{place: score + easier for place, score in scores.items()}})
        while not found.ended and not found.wanted():
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
