"""What data sets composed of given pictures share: owners, labels drawn by weight, free places, tight boxes.

Used by ``multidigits`` (digits) and ``emoji_scenes`` (emoji). Every function is a plain function of
the uniform numbers that its caller drew; nothing here keeps a state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedmlic.seeds import stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

TRIES = 16
"""Random places considered for each object."""


def owner_mixtures(seed: int, purpose: str, num_owners: int, alphas: Floats) -> Floats:
    """float64 ``[owners, contexts]``, rows sum to one: a Dirichlet draw for each owner from its own stream."""
    return np.stack([stream(seed, purpose, owner).dirichlet(alphas) for owner in range(num_owners)])


def owner_sizes(rng: np.random.Generator, num_owners: int, num_images: int, spread: float) -> Ints:
    """int64 ``[owners]``: at least one image each, ``num_images`` in all, proportional to a log-normal draw."""
    draws = rng.lognormal(0.0, spread, num_owners)
    spare = num_images - num_owners
    shares = draws / draws.sum() * spare
    sizes = np.floor(shares).astype(np.int64)
    largest_remainders = np.argsort(sizes - shares, kind="stable")[: spare - int(sizes.sum())]
    sizes[largest_remainders] += 1
    return np.asarray(sizes + 1, dtype=np.int64)


def pick(weights: Floats, uniforms: Floats) -> Ints:
    """int64 ``[rows]``: a column of float64 ``weights [rows, columns]``, with that probability.

    >>> pick(np.array([[0.0, 2.0, 2.0]] * 2), np.array([0.1, 0.9])).tolist()
    [1, 2]
    """
    steps = np.cumsum(weights, axis=1)
    below = steps <= uniforms[:, None] * steps[:, -1:]
    return np.asarray(np.minimum(below.sum(axis=1), weights.shape[1] - 1), dtype=np.int64)


def pick_labels(weights: Floats, uniforms: Floats, repeats: Floats, repeat_probability: float) -> Ints:
    """int64 ``[scenes, slots]``: new labels without replacement; some slots repeat an earlier one.

    Args:
        weights: float64 ``[scenes, labels]``.
        uniforms: float64 ``[scenes, slots]``, picks the new label.
        repeats: float64 ``[scenes, slots, 2]``, decides whether to repeat, and which.
        repeat_probability: chance that a slot after the first repeats an earlier one's label.
    """
    left = weights.copy()
    num_scenes, slots = uniforms.shape
    chosen = np.zeros((num_scenes, slots), dtype=np.int64)
    everyone = np.arange(num_scenes)
    for slot in range(slots):
        new = pick(left, uniforms[:, slot])
        earlier = chosen[everyone, (repeats[:, slot, 1] * slot).astype(np.int64)]
        again = (repeats[:, slot, 0] < repeat_probability) & (slot > 0)
        chosen[:, slot] = np.where(again, earlier, new)
        left[everyone, chosen[:, slot]] = 0
    return chosen


def free_places(size: Floats, uniforms: Floats, image_size: int, max_overlap: float) -> Floats:
    """float64 ``[scenes, slots, 2]``: centre of each square, the first of its random places that is free enough.

    A place is free enough if no square before it shares more than ``max_overlap`` of the
    smaller square; if none of its places is, the one with the least overlap is taken.

    Args:
        size: float64 ``[scenes, slots]``, sides of the squares, pixels.
        uniforms: float64 ``[scenes, slots, TRIES, 2]``.
        image_size: height and width of the image, pixels.
        max_overlap: wanted limit on the shared fraction.
    """
    num_scenes, slots = size.shape
    everyone = np.arange(num_scenes)
    tries = size[:, :, None, None] / 2 + uniforms * (image_size - size)[:, :, None, None]
    centre = np.zeros((num_scenes, slots, 2))
    for slot in range(slots):
        worst = np.zeros((num_scenes, uniforms.shape[2]))
        for other in range(slot):
            smaller = np.minimum(size[:, slot], size[:, other])[:, None, None]
            reach = (size[:, slot] + size[:, other])[:, None, None] / 2
            shared = reach - np.abs(tries[:, slot] - centre[:, None, other])
            sides = np.minimum(np.maximum(shared, 0), smaller) / smaller
            worst = np.maximum(worst, sides[..., 0] * sides[..., 1])
        free = worst <= max_overlap
        chosen = np.where(free.any(axis=1), free.argmax(axis=1), worst.argmin(axis=1))
        centre[:, slot] = tries[everyone, slot, chosen]
    return centre


def tight_boxes(masks: NDArray[np.bool_]) -> Ints:
    """int64 ``[masks, 4]``: the tight x, y, width, height of each bool ``[height, width]``, none empty."""
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    x, y = columns.argmax(axis=1), rows.argmax(axis=1)
    right = masks.shape[2] - columns[:, ::-1].argmax(axis=1)
    bottom = masks.shape[1] - rows[:, ::-1].argmax(axis=1)
    return np.stack([x, y, right - x, bottom - y], axis=1)
