"""All knobs of emoji scenes, and the presets that give them their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fedmlic.emoji.kinds import KINDS
from fedmlic.errors import InputError
from fedmlic.scenes.options import Options as Looks

MIN_PIXELS = 12.0
"""Smallest drawn side of an emoji; below, nobody can tell what it shows."""


@dataclass(frozen=True)
class Options:
    """Values of every knob; ``fedmlic.datasets.emoji_scenes.emoji_scenes`` documents them one by one.

    The defaults here are the preset ``small``.
    """

    seed: int = 0
    num_train: int = 7200
    num_val: int = 600
    num_test: int = 1500
    image_size: int = 96
    num_labels: int = 32
    min_objects: int = 1
    max_objects: int = 3
    object_size: tuple[float, float] = (0.3, 0.5)
    rotation: float = 15.0
    max_overlap: float = 0.1
    min_visible: float = 0.5
    repeat_probability: float = 0.1
    clutter: int = 0
    context_strength: float = 0.7
    num_owners: int = 24
    owner_spread: float = 0.0
    context_alpha: float = 0.5
    style_strength: float = 0.0
    background: str = "textured"
    background_reliability: float = 0.0
    illumination: float = 0.2
    shadow_probability: float = 0.3
    noise: float = 0.03
    fold: int = 0
    held_out_vendor: str = ""

    def described(self) -> dict[str, Any]:
        """JSON values of every knob."""
        return {**asdict(self), "object_size": list(self.object_size)}

    @property
    def looks(self) -> Looks:
        """The same for ``fedmlic.scenes``, which draws everything but the objects."""
        return Looks(
            seed=self.seed,
            image_size=self.image_size,
            background=self.background,
            background_reliability=self.background_reliability,
            illumination=self.illumination,
            shadow_probability=self.shadow_probability,
            noise=self.noise,
            style_strength=self.style_strength,
        )

    @property
    def slots(self) -> int:
        """Most objects of an image, with and without a label."""
        return self.max_objects + self.clutter


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "num_train": 600,
        "num_val": 100,
        "num_test": 200,
        "image_size": 48,
        "num_labels": 12,
        "max_objects": 2,
        "object_size": (0.4, 0.6),
        "num_owners": 6,
    },
    "small": {},
    "medium": {
        "num_train": 40_000,
        "num_val": 2000,
        "num_test": 5000,
        "image_size": 128,
        "num_labels": len(KINDS),
        "max_objects": 5,
        "object_size": (0.2, 0.4),
        "clutter": 2,
        "num_owners": 200,
        "owner_spread": 1.0,
        "style_strength": 0.5,
    },
}
"""What each preset changes of the defaults above."""


def resolve(preset: str, given: Mapping[str, Any]) -> Options:
    """The preset with every value of ``given`` that is not ``None`` in its place.

    Raises:
        InputError: knobs that do not fit together.
    """
    known = {item.name for item in fields(Options)}
    chosen = {key: value for key, value in given.items() if key in known and value is not None}
    options = replace(Options(), **{**PRESETS[preset], **chosen})
    low, high = options.object_size
    options = replace(options, object_size=(low, high))
    _check(options)
    return options


def _check(options: Options) -> None:
    low, high = options.object_size
    smallest = MIN_PIXELS / options.image_size
    rules = {
        "object_size": (
            smallest <= low <= high <= 1,
            f"two shares that rise from at least {smallest:.3g} ({MIN_PIXELS:.0f} of {options.image_size} pixels) to 1",
        ),
        "min_objects": (options.min_objects <= options.max_objects, f"at most max_objects ({options.max_objects})"),
        "max_objects": (options.max_objects <= options.num_labels, f"at most num_labels ({options.num_labels})"),
        "num_owners": (options.num_owners <= options.num_train, f"at most num_train ({options.num_train})"),
    }
    for name, (right, expected) in rules.items():
        if not right:
            msg = f"Expected {name} of emoji_scenes to be {expected}, got {getattr(options, name)!r}. Change either."
            raise InputError(msg)
