"""All knobs of the scene generator, and the presets that give them their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fedmlic.errors import InputError


@dataclass(frozen=True)
class Options:
    """Values of every knob; ``fedmlic.datasets.scenes.scenes`` documents them one by one.

    The defaults here are the preset ``small``.
    """

    seed: int = 0
    image_size: int = 64
    channels: int = 3
    # vocabulary
    num_labels: int = 20
    num_scene_labels: int = 0
    num_coarse: int = 6
    level: str = "fine"
    # marginals
    cardinality: float = 2.9
    scene_cardinality: float = 1.5
    zipf_exponent: float = 1.0
    zipf_offset: float = 0.0
    imbalance_ratio: float = 0.0
    max_prevalence: float = 0.75
    group_ranks: bool = False
    empty_fraction: float = -1.0
    # co-occurrence
    num_contexts: int = 8
    context_kind: str = "hard"
    correlation: float = 0.6
    attract: tuple[tuple[int, int, float], ...] = ()
    exclude: tuple[tuple[int, int], ...] = ()
    determine: tuple[tuple[int, int, int], ...] = ()
    # layout
    extra_instances: float = 0.3
    size_log_mean: float = -1.9
    size_log_spread: float = 0.35
    location_prior: bool = True
    rotation: float = 15.0
    max_objects: int = 12
    occlusion: bool = True
    min_visible: float = 0.25
    min_pixels: int = 12
    hidden: str = "remove"
    # photometrics
    colour_reliability: float = 0.3
    background: str = "textured"
    background_reliability: float = 0.3
    illumination: float = 0.2
    shadow_probability: float = 0.3
    blur: float = 0.0
    noise: float = 0.03
    jpeg_quality: int = 0
    # owners
    num_images: int = 12_000
    population: int = 200
    num_owners: int = 0
    owner_sizes: str = "zipf-mandelbrot"
    size_exponent: float = 2.2
    size_offset: float = 1.5
    owner_spread: float = 1.0
    min_size: int = 8
    max_size: int = 512
    context_alpha: float = 0.5
    label_preference: float = 0.5
    cooccurrence_rotation: float = 0.0
    style_strength: float = 0.5
    annotated_fraction: float = 1.0
    uncertain_below: float = 0.0
    # splits
    split_by: str = "owner"
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    test: str = "iid"
    num_test: int = 2000
    unseen_style_strength: float = 1.5

    def described(self) -> dict[str, Any]:
        """JSON values of every knob."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:  # noqa: ANN401  (nested tuples of numbers)
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "image_size": 32,
        "num_labels": 8,
        "num_coarse": 3,
        "cardinality": 1.6,
        "num_contexts": 4,
        "empty_fraction": 0.05,
        "size_log_mean": -1.35,
        "size_log_spread": 0.2,
        "extra_instances": 0.1,
        "max_objects": 5,
        "num_images": 600,
        "population": 20,
        "max_size": 100,
        "num_test": 200,
    },
    "small": {},
    "medium": {
        "image_size": 96,
        "num_labels": 80,
        "num_scene_labels": 12,
        "num_coarse": 12,
        "num_contexts": 16,
        "num_images": 60_000,
        "population": 1000,
        "num_test": 5000,
    },
    # 51,414 users, sizes 1 to 4,151 with median 2 and mean 8.35, 8 : 1 : 1 by user. Frequencies are
    # such that its 17 coarse labels have cardinality 2.8 and imbalance ratio 264.
    "flair-like": {
        "num_labels": 200,
        "num_coarse": 17,
        "zipf_exponent": 5.75,
        "zipf_offset": 100.0,
        "group_ranks": True,
        "cardinality": 4.8,
        "extra_instances": 0.1,
        "num_contexts": 24,
        "num_images": 0,
        "population": 51_414,
        "num_owners": 1000,
        "min_size": 1,
        "max_size": 4151,
        "test": "owners",
    },
    # 80 labels, cardinality 2.9; about one image in a hundred shows none.
    "coco-like": {
        "image_size": 96,
        "num_labels": 80,
        "num_coarse": 12,
        "zipf_exponent": 1.0,
        "num_contexts": 16,
        "empty_fraction": 0.01,
        "num_images": 30_000,
        "population": 300,
        "num_test": 3000,
    },
    # 20 labels, cardinality 1.5, no empty image.
    "voc-like": {
        "image_size": 96,
        "cardinality": 1.5,
        "empty_fraction": 0.0,
        "size_log_mean": -1.5,
        "num_images": 6000,
        "population": 60,
    },
    # 81 labels, cardinality 1.87, 22.4 % of images without any.
    "nus-like": {
        "num_labels": 81,
        "num_coarse": 12,
        "cardinality": 1.87,
        "empty_fraction": 0.224,
        "num_contexts": 16,
        "num_images": 30_000,
        "population": 300,
        "num_test": 3000,
    },
}
"""What each preset changes of the defaults above."""


def resolve(preset: str, given: Mapping[str, Any]) -> Options:
    """The preset with every value of ``given`` that is not ``None`` in its place."""
    known = {item.name for item in fields(Options)}
    chosen = {key: value for key, value in given.items() if key in known and value is not None}
    for rules in ("attract", "exclude", "determine"):
        chosen[rules] = tuple(tuple(rule) for rule in chosen.get(rules, ()))
    options = replace(Options(), **{**PRESETS[preset], **chosen})
    return replace(options, num_owners=options.num_owners or options.population)


def check(options: Options) -> None:
    """Raise ``InputError`` for knobs that do not fit together."""
    problems = {
        "num_owners": (options.num_owners <= options.population, f"at most population ({options.population})"),
        "min_size": (options.min_size <= options.max_size, f"at most max_size ({options.max_size})"),
        "num_images": (
            options.num_images > 0 or options.owner_sizes == "zipf-mandelbrot",
            f"1 or more with owner_sizes {options.owner_sizes!r}",
        ),
        "level": (
            options.test != "unseen-combinations" or options.level != "fine",
            "'coarse' or 'attributes' for test 'unseen-combinations', whose objects have no fine label",
        ),
        "num_labels": (
            options.test != "unseen-combinations" or options.num_labels > 2,
            "3 or more for test 'unseen-combinations'",
        ),
        "val_fraction": (options.val_fraction + options.test_fraction < 1, "below 1 together with test_fraction"),
    }
    for name, (right, expected) in problems.items():
        if not right:
            msg = f"Expected {name} of scenes to be {expected}, got {getattr(options, name)!r}. Change either."
            raise InputError(msg)
