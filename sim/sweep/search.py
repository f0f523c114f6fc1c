"""What a study searches: grids, which are crossed, or ranges, from which Optuna draws trials.

::

    [search]
    learning-rate = {low = 1e-4, high = 1e-1, log = true}
    local-epochs = {low = 1, high = 8}          # two whole numbers: whole numbers are tried
    optimizer = ["sgd", "adam"]                 # beside a range, a choice among these
    trials = 12                                 # of every row
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictInt,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from fedmlic.errors import InputError

SEARCH_SEED = 1000
"""Seed of search runs; those of the table are others, so that no run of the table was looked at before."""

EDGE = 0.05
"""Share of a range of real numbers at each of its ends that counts as its border."""

SAMPLED = ("trials", "trials_at_once", "sampler_seed")
"""Options that only a search of ranges has."""

OPTIONS = ("seed", "metric", "model", *SAMPLED)
"""What ``[search]`` holds besides settings."""

Number = StrictInt | Annotated[float, Field(strict=True, allow_inf_nan=False)]
Value = bool | int | float | str | list[str]
Settings = dict[str, Any]


class Range(BaseModel):
    """Numbers from ``low`` to ``high``, both included; whole numbers where both (and ``step``) are whole.

    Attributes:
        low: the smallest.
        high: the largest.
        log: whether equal ratios are equally likely, for numbers above 0.
        step: distance of the numbers that are tried; all by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: Number
    high: Number
    log: bool = False
    step: Annotated[Number, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Range:
        shown = f"{{low = {self.low}, high = {self.high}}}"
        if self.low >= self.high:
            msg = f"Expected a range's low to be below its high, got {shown}. Give one value without a range."
            raise InputError(msg)
        if self.log and self.low <= 0:
            msg = f"Expected a range with log = true to begin above 0, got {shown}. Raise low or leave log out."
            raise InputError(msg)
        if self.log and self.step is not None:
            msg = f"Expected a range to have log = true or a step, got both in {shown}. Leave one out."
            raise InputError(msg)
        if self.step is not None and (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(self.step)):
            msg = f"Expected a range's high to be low plus a multiple of step {self.step}, got {shown}. Change one."
            raise InputError(msg)
        return self

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers are tried."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    def is_at_edge(self, value: float) -> bool:
        """Whether a value lies at an end: is the first or last, or among real numbers in the outer ``EDGE``."""
        if self.is_whole or self.step is not None:
            return any(math.isclose(value, end) for end in (self.low, self.high))
        scale = math.log if self.log else float
        place = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return not EDGE < place < 1 - EDGE


Tried = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Value], Field(min_length=1), Tag("values")],
    Discriminator(lambda found: "range" if isinstance(found, (dict, Range)) else "values"),
]


class Search(BaseModel):
    """Settings that are chosen for every combination of the axes but the seed.

    Attributes:
        settings: what to try by setting. Lists alone are crossed; beside a range they are choices.
        seed: of the runs that are compared to choose.
        metric: the highest wins; never one of test images.
        model: of a run: after its last round, or the best on validation data.
        trials: runs of every row, where there is a range.
        trials_at_once: so many trials of a row are proposed together, from the results of those before.
        sampler_seed: of the proposals.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Tried] = Field(min_length=1)
    seed: Annotated[int, Field(ge=0)] = SEARCH_SEED
    metric: str = "server/val/mAP"
    model: Literal["last", "best"] = "last"
    trials: Annotated[int, Field(ge=1)] = 12
    trials_at_once: Annotated[int, Field(ge=1)] = 4
    sampler_seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _settings_beside_options(cls, found: Any) -> Any:  # noqa: ANN401  (as TOML has it)
        if not isinstance(found, dict):
            return found
        options = {key.replace("-", "_"): value for key, value in found.items() if key.replace("-", "_") in OPTIONS}
        # A model is searched where several are named.
        settings = {"model": options.pop("model")} if isinstance(options.get("model"), list) else {}
        rest = {
            key: value for key, value in found.items() if key != "settings" and key.replace("-", "_") not in OPTIONS
        }
        return {**options, "settings": {**found.get("settings", {}), **settings, **rest}}

    @field_validator("settings", mode="before")
    @classmethod
    def _lists(cls, found: Any) -> Any:  # noqa: ANN401
        return {dashed(k): values_of(k, v) for k, v in found.items()} if isinstance(found, dict) else found

    @field_validator("metric")
    @classmethod
    def _no_test_data(cls, metric: str) -> str:
        if metric.startswith("server/") and not metric.startswith("server/val/"):
            msg = f"Expected the metric of a search to be one of validation data, got {metric!r}. Use server/val/mAP."
            raise InputError(msg)
        return metric

    @model_validator(mode="after")
    def _options_fit(self) -> Search:
        if "seed" in self.settings:
            msg = "Expected search.seed to be one number, got several. A seed is no setting to choose."
            raise InputError(msg)
        beside = [dashed(key) for key in SAMPLED if key in self.model_fields_set]
        if self.is_grid and beside:
            msg = (
                f"Expected {beside[0]} beside a range such as {{low = 1e-4, high = 0.1, log = true}}, got lists of "
                "values alone, all of which are tried. Give a range or leave it out."
            )
            raise InputError(msg)
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, made: Any) -> dict[str, Any]:  # noqa: ANN401  (pydantic's handler)
        """A grid is written as ever, so that folders named after it keep their names."""
        return {key: value for key, value in made(self).items() if not (self.is_grid and key in SAMPLED)}

    @property
    def ranges(self) -> dict[str, Range]:
        """Settings with a range."""
        return {key: tried for key, tried in self.settings.items() if isinstance(tried, Range)}

    @property
    def is_grid(self) -> bool:
        """Whether every combination of values is tried; otherwise trials are drawn."""
        return not self.ranges

    @property
    def num_runs(self) -> int:
        """Runs that choose the settings of a row."""
        return len(self.ends()) if self.is_grid else self.trials

    def ends(self) -> list[Settings]:
        """Every combination of the values, of ranges their ends, the first setting varying slowest."""
        tried = [[v.low, v.high] if isinstance(v, Range) else v for v in self.settings.values()]
        return [dict(zip(self.settings, values, strict=True)) for values in itertools.product(*tried)]

    def digest(self) -> str:
        """A name for what is proposed, whatever the number of trials."""
        text = json.dumps(self.model_dump(exclude={"trials", "trials_at_once"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def dashed(key: str) -> str:
    """A setting's name as people write it."""
    return str(key).strip().replace("_", "-")


def values_of(key: str, value: object) -> object:
    """A list of values; ``"0..4"`` is 0, 1, 2, 3, 4 and one value a list of one. A range stays one."""
    if isinstance(value, (list, dict, Range)):
        return value
    if isinstance(value, str) and (span := re.fullmatch(r"\s*(\d+)\.\.(\d+)\s*", value)):
        first, last = map(int, span.groups())
        if last < first:
            msg = f"Expected {key} to be FIRST..LAST, got {value}."
            raise InputError(msg)
        return list(range(first, last + 1))
    return [value]


def edges_of(values: Mapping[str, Any], tried: Mapping[str, Range | Sequence[Any]]) -> list[str]:
    """Settings whose value lies at the border of several numbers that were tried.

    >>> edges_of({"learning-rate": 0.01}, {"learning-rate": [0.001, 0.01]})
    ['learning-rate']
    >>> edges_of({"learning-rate": 0.0011}, {"learning-rate": Range(low=0.001, high=0.1, log=True)})
    ['learning-rate']
    """
    found = []
    for key, value in values.items():
        numbers = tried[key]
        if isinstance(numbers, Range):
            found += [key] if numbers.is_at_edge(value) else []
        elif len(set(map(str, numbers))) > 1 and all(_is_number(number) for number in numbers):
            found += [key] if value in {min(numbers), max(numbers)} else []
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown_value(value: object) -> str:
    """A searched value for people: four digits of a number that was drawn."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
