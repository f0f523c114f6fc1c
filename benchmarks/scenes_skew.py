"""What each heterogeneity knob of the scene generator does, alone: one line per setting.

All other knobs are off (owners of one size, alike in contexts, labels, dependence, looks and
annotation), so every column but the knob's own should stay where the first line has it. That
line shows what chance alone gives.

    OMP_NUM_THREADS=1 uv run python benchmarks/scenes_skew.py
"""

from __future__ import annotations

import numpy as np

from fedmlic.datasets.scenes import scenes
from fedmlic.labels import PRESENT, UNKNOWN

OFF = {
    "population": 40,
    "num_images": 12_000,
    "max_size": 6000,
    "owner_sizes": "constant",
    "context_alpha": 1e6,
    "label_preference": 0.0,
    "cooccurrence_rotation": 0.0,
    "style_strength": 0.0,
    "val_fraction": 0.0,
    "num_test": 0,
}
CASES = [
    {},
    {"owner_sizes": "lognormal", "owner_spread": 1.0},
    {"owner_sizes": "zipf-mandelbrot"},
    {"context_alpha": 1.0},
    {"context_alpha": 0.1},
    {"label_preference": 0.5},
    {"label_preference": 1.5},
    {"cooccurrence_rotation": 0.5},
    {"cooccurrence_rotation": 1.0},
    {"style_strength": 0.5},
    {"style_strength": 1.5},
    {"annotated_fraction": 0.5},
    {"annotated_fraction": 0.2},
]
"""Changes of ``OFF``."""

MIN_IMAGES = 100
"""Owners with fewer say little about correlations."""

IMAGES_PER_OWNER = 60


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon distance of two distributions, base 2, in [0, 1]."""
    mean = (first + second) / 2
    terms = [np.where(p > 0, p * np.log2(np.where(p > 0, p, 1) / mean), 0).sum() for p in (first, second)]
    return float(max(0.0, sum(terms) / 2) ** 0.5)


def correlations(present: np.ndarray) -> np.ndarray:
    """Phi of every pair of labels, 0 where one of them does not vary."""
    centred = present - present.mean(axis=0)
    spread = np.sqrt((centred**2).mean(axis=0))
    phi = (centred.T @ centred / len(present)) / np.maximum(np.outer(spread, spread), 1e-9)
    return phi[~np.eye(len(phi), dtype=bool)]


def between(values: np.ndarray, owners: np.ndarray) -> float:
    """Share of the variance of ``values`` that lies between owners."""
    means = {owner: values[owners == owner].mean() for owner in set(owners.tolist())}
    return float(np.array([means[owner] for owner in owners.tolist()]).var() / values.var())


def measure(changes: dict[str, object]) -> list[float]:
    """Median and largest size; label, co-occurrence, feature and annotation skew."""
    knobs = {**OFF, **changes}
    data, full = scenes(**knobs), scenes(**{**knobs, "annotated_fraction": 1.0})  # type: ignore[arg-type]
    table, present = data.table(), full.table().labels == PRESENT
    sizes = np.bincount(table.owners)
    marginal, phi = present.mean(axis=0), correlations(present.astype(float))
    label, together = [], []
    for owner in np.flatnonzero(sizes >= MIN_IMAGES).tolist():
        own = present[table.owners == owner].astype(float)
        label.append(divergence(own.mean(axis=0) / own.mean(axis=0).sum(), marginal / marginal.sum()))
        together.append(np.abs(correlations(own) - phi).mean())
    rows = np.concatenate([np.flatnonzero(table.owners == owner)[:IMAGES_PER_OWNER] for owner in range(len(sizes))])
    pixels = data.images(rows).astype(np.float32) / 255
    looks = [pixels.mean(axis=(1, 2, 3)), pixels[..., 0].mean(axis=(1, 2)) - pixels[..., 2].mean(axis=(1, 2))]
    feature = float(np.mean([between(look, table.owners[rows]) for look in looks]))
    known = table.labels != UNKNOWN
    return [
        float(np.median(sizes)),
        float(sizes.max()),
        float(np.mean(label)),
        float(np.mean(together)),
        feature,
        float(known.mean()),
    ]


def main() -> None:
    """Print a Markdown table."""
    print("| knob | median size | largest | label skew | co-occurrence skew | feature skew | known |")
    print("|---|---|---|---|---|---|---|")
    for changes in CASES:
        median, largest, label, together, feature, known = measure(changes)
        name = ", ".join(f"`{key}={value!r}`" for key, value in changes.items()) or "all off"
        numbers = f"{median:.0f} | {largest:.0f} | {label:.3f} | {together:.3f} | {feature:.3f} | {known:.2f}"
        print(f"| {name} | {numbers} |")


if __name__ == "__main__":
    main()
