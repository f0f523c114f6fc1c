"""two_coin: by a plain loop, and rates of planted annotators within three standard deviations."""

import itertools

import numpy as np
import pytest
import torch

from fedmlic.annotation.two_coin import LARGEST_SUM, Rates, Sums, bounded, estimated, posterior, rates_from, sums_of
from fedmlic.annotation.votes import aggregate
from fedmlic.labels import ABSENT, PRESENT, UNKNOWN

MISS = np.array([[0.1, 0.3, 0.5], [0.2, 0.05, 0.25], [0.15, 0.4, 0.1]])
SPURIOUS = np.array([[0.02, 0.1, 0.05], [0.1, 0.02, 0.01], [0.05, 0.05, 0.15]])
PREVALENCE = np.array([0.5, 0.3, 0.4])


def planted(num_images, seed=0):
    """What three annotators write of three labels, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.random((num_images, 3)) < PREVALENCE
    says = rng.random((3, num_images, 3)) < np.where(truth, 1 - MISS[:, None], SPURIOUS[:, None])
    return torch.from_numpy(np.where(says, PRESENT, ABSENT).astype(np.int8)), truth


def three_sigmas(rates, entries):
    return 3 * np.sqrt(rates * (1 - rates) / entries)


def test_the_posterior_and_the_sums_by_loop():
    votes, _ = planted(6)
    votes[0, 2, 1] = votes[1, 2, 1] = UNKNOWN
    rates = Rates(torch.from_numpy(MISS), torch.from_numpy(SPURIOUS))

    probs = posterior(votes, torch.from_numpy(PREVALENCE), rates)
    sums = sums_of(votes, probs)

    missed = np.zeros((3, 3))
    for image, label in np.ndindex(6, 3):
        there, away = PREVALENCE[label], 1 - PREVALENCE[label]
        for who in range(3):
            vote = votes[who, image, label].item()
            m, s = MISS[who, label], SPURIOUS[who, label]
            there *= {PRESENT: 1 - m, ABSENT: m, UNKNOWN: 1}[vote]
            away *= {PRESENT: s, ABSENT: 1 - s, UNKNOWN: 1}[vote]
        assert probs[image, label].item() == pytest.approx(there / (there + away))
        for who in range(3):
            missed[who, label] += (votes[who, image, label] == ABSENT) * there / (there + away)
    np.testing.assert_allclose(sums.missed.numpy(), missed)


def test_parts_add_up_to_the_whole():
    votes, truth = planted(20)
    probs = torch.from_numpy(truth).double()

    whole = sums_of(votes, probs)
    added = sums_of(votes[:, :7], probs[:7]).plus(sums_of(votes[:, 7:], probs[7:]))

    assert all(torch.allclose(here, there) for here, there in zip(whole, added, strict=True))


def test_with_the_truth_at_hand_rates_are_within_three_sigma():
    votes, truth = planted(4000)

    found = rates_from(sums_of(votes, torch.from_numpy(truth)))

    assert (np.abs(found.miss.numpy() - MISS) < three_sigmas(MISS, truth.sum(0))).all()
    assert (np.abs(found.spurious.numpy() - SPURIOUS) < three_sigmas(SPURIOUS, (~truth).sum(0))).all()


def test_without_the_truth_votes_of_three_tell_their_rates():
    """A thousand images in exactly the proportions of the model, so that nothing is left to chance."""
    miss, spurious = np.array([0.1, 0.2, 0.2]), np.array([0.1, 0.2, 0.1])
    rows = []
    for votes in itertools.product((ABSENT, PRESENT), repeat=3):
        said = np.array(votes) == PRESENT
        share = 0.5 * np.where(said, 1 - miss, miss).prod() + 0.5 * np.where(said, spurious, 1 - spurious).prod()
        assert abs(1000 * share - round(1000 * share)) < 1e-9
        rows += [votes] * round(1000 * share)

    found = estimated(torch.tensor(rows, dtype=torch.int8).T[:, :, None], steps=400)

    np.testing.assert_allclose(found.miss[:, 0].numpy(), miss, atol=2e-3)
    np.testing.assert_allclose(found.spurious[:, 0].numpy(), spurious, atol=2e-3)


def test_no_votes_give_rates_of_zero_and_impossible_ones_are_bounded():
    nothing = rates_from(Sums(*(torch.zeros(1, 2) for _ in range(4))))
    large = bounded(Rates(torch.tensor([0.9, 0.2]), torch.tensor([0.6, 0.1])))

    assert not nothing.miss.any()
    assert not nothing.spurious.any()
    assert (large.miss + large.spurious).tolist() == pytest.approx([LARGEST_SUM, 0.3])


def test_votes_of_unequal_annotators_are_put_together_better_than_by_majority():
    rng = np.random.default_rng(1)
    truth = (rng.random((1500, 2)) < 0.4).astype(np.int8)
    truth[:3, 0] = UNKNOWN
    miss = np.array([0.05, 0.6, 0.6])[:, None, None]
    says = rng.random((3, *truth.shape)) < np.where(truth == PRESENT, 1 - miss, 0.03)
    nobody = np.zeros(len(truth), np.int64)

    ours, majority = (aggregate(says, how, nobody, truth) for how in ("two_coin", "majority"))

    assert (ours[:3, 0] == UNKNOWN).all()
    assert (ours != truth).mean() < (majority != truth).mean() - 0.05
