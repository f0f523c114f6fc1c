"""Held-out images against plain loops over owners: no owner on both sides, about as many as asked for."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedmlic.dataset import NO_OWNER
from fedmlic.holdout import Owned, by_image, by_owner, largest_share
from fedmlic.seeds import entry_uniforms, text_keys

FRACTIONS = st.floats(0, 1, exclude_max=True)


@st.composite
def clients(draw):
    """Owner of each image, a list per client."""
    owner = st.integers(NO_OWNER, 6)
    return draw(st.lists(st.lists(owner, min_size=1, max_size=25), min_size=1, max_size=5))


def held_out(of_clients, fraction, seed=0, names=()):
    """Owners of the held-out and of the training images, each with the image's place, per client."""
    owners = np.array([owner for client in of_clients for owner in client], dtype=np.int64)
    sizes = np.array([len(client) for client in of_clients])
    keys = text_keys([f"image {place}" for place in range(len(owners))])
    chosen = by_owner(keys, Owned(owners, names), sizes, fraction, seed)
    ends = np.cumsum(sizes).tolist()
    return [
        [[(int(owners[i]), i) for i in range(end - size, end) if chosen[i] == side] for side in (True, False)]
        for end, size in zip(ends, sizes.tolist(), strict=True)
    ]


def of_nobody_apart(images):
    """Who owns each image, where one of nobody is its own owner."""
    return {owner if owner != NO_OWNER else ("nobody", place) for owner, place in images}


@given(of_clients=clients(), fraction=FRACTIONS, seed=st.integers(0, 3))
@example(of_clients=[[0, 1], [0]], fraction=math.nextafter(1, 0), seed=0)
@settings(max_examples=200, deadline=None)
def test_no_owner_is_on_both_sides_and_about_the_fraction_is_held_out(of_clients, fraction, seed):
    for out, kept in held_out(of_clients, fraction, seed):
        sizes = defaultdict(int)
        for image in out + kept:
            sizes[next(iter(of_nobody_apart([image])))] += 1
        count, target = sum(sizes.values()), fraction * sum(sizes.values())

        assert not of_nobody_apart(out) & of_nobody_apart(kept)
        assert kept
        assert abs(len(out) - target) <= max(sizes.values())
        assert largest_share(fraction, "owner") < 1
        assert len(out) <= largest_share(fraction, "owner") * count + 1e-9
        assert len(kept) >= (count - target) / 2 - 1e-9
        if len(sizes) == 1 or fraction == 0:
            assert not out


@given(of_clients=clients(), fraction=FRACTIONS, seed=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_owners_are_taken_in_the_order_of_the_queue_as_a_plain_loop_takes_them(of_clients, fraction, seed):
    place = 0
    for client, (out, _) in zip(of_clients, held_out(of_clients, fraction, seed), strict=True):
        images = defaultdict(list)
        for owner in client:
            images[f"image {place}" if owner == NO_OWNER else str(owner), owner == NO_OWNER].append(place)
            place += 1
        draws = entry_uniforms(seed, "federation/holdout/owner", 0, text_keys([who for who, _ in images]), 1)[:, 0]
        drawn = dict(zip(images, draws.tolist(), strict=True))
        best, taken = [], []
        for who in sorted(images, key=drawn.__getitem__):
            taken = taken + images[who]
            near = abs(len(taken) - fraction * len(client)) < abs(len(best) - fraction * len(client))
            few = len(taken) <= largest_share(fraction, "owner") * len(client) and len(taken) < len(client)
            if near and few:
                best = taken
        assert sorted(best) == [i for _, i in out]


def test_of_many_owners_the_fraction_is_met_and_each_is_held_out_equally_often():
    owners = np.repeat(np.arange(100), np.random.default_rng(0).integers(1, 6, 100))
    times = np.zeros(100)
    for seed in range(300):
        ((out, _),) = held_out([owners.tolist()], 0.2, seed)
        assert abs(len(out) - 0.2 * len(owners)) <= 3, "half an owner of five images at most"
        times[list({owner for owner, _ in out})] += 1

    spread = np.sqrt(300 * 0.2 * 0.8)
    assert abs(times.mean() - 60) <= 1.5
    assert abs(times - 60).max() <= 4 * spread


def test_clients_with_images_of_the_same_owners_hold_out_the_same_ones():
    ((first, _), (second, _)) = held_out([[0, 1, 2, 3, 4] * 4, [4, 3, 2, 1, 0] * 3], 0.4)

    assert {owner for owner, _ in first} == {owner for owner, _ in second}
    assert len({owner for owner, _ in first}) == 2


def test_who_an_owner_is_counts_and_not_the_number():
    """A device numbers its own owners only."""
    names = ["ann", "bob", "cat", "dan", "eve", "fay"]
    everybody = [2, 3, 5, 5, 3, 2, 5]
    ((there, _),) = held_out([everybody], 0.4, names=names)
    ((here, _),) = held_out([[[2, 3, 5].index(owner) for owner in everybody]], 0.4, names=[names[i] for i in (2, 3, 5)])

    assert [place for _, place in there] == [place for _, place in here]
    assert there


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_single_images_are_held_out_whoever_owns_them(fraction):
    sizes = np.array([1, 7, 40])
    chosen = by_image(text_keys([str(i) for i in range(48)]), sizes, fraction, 0)

    counts = [int(part.sum()) for part in np.split(chosen, [1, 8])]
    assert counts == [min(round(fraction * n), n - 1) for n in (1, 7, 40)]
    assert math.isclose(largest_share(fraction, "image"), fraction)
