"""fedharmony: correlations by loop, the mean over other clients, blocks, the loss by hand, limits; the rule by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmlic.errors import InputError
from fedmlic.experiment import Experiment
from fedmlic.labels import UNKNOWN
from fedmlic.learner import build_learner
from fedmlic.losses import mean_binary_cross_entropy
from fedmlic.method import Local
from fedmlic.methods.fedharmony import (
    CLIENTS,
    CORRELATIONS,
    EPSILON,
    OWN,
    OWN_ROUND,
    ROUNDS,
    Consensus,
    blocks_of,
    correlations,
    gap,
    others,
    spectral_blocks,
)
from fedmlic.pixel_scale import to_float
from fedmlic.protocol import ROUND_SUMS
from fedmlic.shard import Shard
from strategies.server.check import check_experiment

NAMES = ("zero", "one", "two")
SIDE = 8


class Pixels:
    def __init__(self, pixels):
        self.pixels = pixels

    def take(self, rows):
        return self.pixels[rows]


def data(num_images=10, hidden=0.3, names=NAMES):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (num_images, len(names))).astype(np.int8)
    labels[rng.random(labels.shape) < hidden] = UNKNOWN
    pixels = rng.integers(0, 255, (num_images, SIDE, SIDE, 1)).astype(np.uint8)
    return Shard(0, names, Pixels(pixels), np.arange(num_images), labels, np.zeros(0, np.int64), labels[:0])


def turn(text, shard, shared=None, memory=None, number=1, **changes):
    """The learner after one turn, what it told, and its ``Local``."""
    values = {"model": "small_cnn(width=4, num_blocks=0)", "batch_size": 5, "local_epochs": 2, **changes}
    experiment = Experiment(method=text, **values)
    learned = build_learner(experiment, shard.label_names, (SIDE, SIDE, 1))
    local = Local(experiment, number, 0, torch.device("cpu"), lambda: learned.resident.network)
    local = replace(local, shared=shared or {}, memory={} if memory is None else memory)
    return learned, learned.method.train(learned.resident, shard, local), local


def sums(*parts, number=1):
    """What clients are told of a round in which these matrices were measured."""
    count = torch.tensor([len(parts)])
    given = {CORRELATIONS: torch.stack(parts).sum(0), CLIENTS: count, ROUNDS: count * number}
    return {ROUND_SUMS + name: tensor for name, tensor in given.items()}


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_correlations_by_loop(num_images, num_labels, seed):
    probs = np.random.default_rng(seed).uniform(0.01, 0.99, (num_images, num_labels))

    found = correlations(torch.from_numpy(probs)).numpy()

    for c, d in np.ndindex(num_labels, num_labels):
        first, second = probs[:, c].mean(), probs[:, d].mean()
        both = sum(probs[i, c] * probs[i, d] for i in range(num_images)) / num_images
        root = math.sqrt(first * (1 - first) * second * (1 - second))
        assert found[c, d] == pytest.approx((both - first * second) / (root + EPSILON), abs=1e-9)
    order = np.random.default_rng(seed).permutation(num_labels)
    np.testing.assert_allclose(correlations(torch.from_numpy(probs[:, order])), found[np.ix_(order, order)], atol=1e-12)


def test_of_hard_predictions_they_are_pearsons():
    labels = np.random.default_rng(3).integers(0, 2, (40, 4)).astype(np.float64)

    np.testing.assert_allclose(correlations(torch.from_numpy(labels)), np.corrcoef(labels.T), atol=1e-5)


@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
def test_certain_predictions_and_one_image_have_finite_gradients(logit):
    for num_images in (1, 3):
        logits = torch.full((num_images, 3), logit, requires_grad=True)

        gap(correlations(torch.sigmoid(logits)), torch.ones(3, 3), ~torch.eye(3, dtype=torch.bool)).backward()

        assert logits.grad.isfinite().all()
        assert num_images > 1 or not logits.grad.any()


def parts(count=3):
    rng = np.random.default_rng(5)
    return [correlations(torch.from_numpy(rng.uniform(size=(6, 3)))) for _ in range(count)]


def consensus_of(shared, memory=None):
    local = Local(Experiment(), 3, 0, torch.device("cpu"), lambda: None, shared=shared, memory=memory or {})
    return others(local, 3)


def test_the_others_are_a_mean_without_the_clients_own_part():
    first, second, third = parts()
    shared = sums(first, second, third, number=2)
    off = ~torch.eye(3, dtype=torch.bool)

    inside = consensus_of(shared, {OWN: second, OWN_ROUND: torch.tensor([2])})
    earlier = consensus_of(shared, {OWN: second, OWN_ROUND: torch.tensor([1])})
    never = consensus_of(shared)

    torch.testing.assert_close(inside.mean, ((first + third) / 2).float())
    torch.testing.assert_close(earlier.mean, ((first + second + third) / 3).float())
    assert torch.equal(never.mean, earlier.mean)
    assert torch.equal(inside.pairs, off)


def test_without_others_or_where_numbers_are_withheld_nothing_is_compared():
    first, second, _ = parts()
    alone = consensus_of(sums(first, number=2), {OWN: first, OWN_ROUND: torch.tensor([2])})
    hidden = sums(first, second)
    hidden[ROUND_SUMS + CORRELATIONS][0, 1] = hidden[ROUND_SUMS + CORRELATIONS][1, 0] = 0

    assert not alone.pairs.any()
    assert not consensus_of({}).pairs.any()
    assert not consensus_of({name: torch.zeros_like(each) for name, each in hidden.items()}).pairs.any()
    assert consensus_of(hidden).pairs.sum() == 4


def test_blocks_find_planted_groups_and_one_block_is_everything():
    group = np.array([0, 1, 0, 2, 1, 2, 0])
    rng = np.random.default_rng(0)
    affinity = np.where(group[:, None] == group, 0.8, 0.05) + rng.uniform(0, 0.02, (7, 7))
    affinity = (affinity + affinity.T) / 2
    np.fill_diagonal(affinity, 0)

    block = spectral_blocks(affinity, 3)

    assert {
        (a == b) == (x == y) for a, x in zip(group, block, strict=True) for b, y in zip(group, block, strict=True)
    } == {True}
    mean, pairs = torch.from_numpy(affinity).float(), ~torch.eye(7, dtype=torch.bool)
    assert torch.equal(blocks_of(Consensus(mean, pairs), 1).pairs, pairs)
    expected = torch.from_numpy(group[:, None] == group) & pairs
    assert torch.equal(blocks_of(Consensus(mean, pairs), 3).pairs, expected)
    assert not blocks_of(Consensus(mean, pairs), 7).pairs.any()
    assert spectral_blocks(np.zeros((3, 3)), 2).shape == (3,)


def test_the_whole_loss_by_hand_and_what_is_told():
    first, second, _ = parts()
    shared, shard = sums(first, second, number=1), data(6)
    learned, told, local = turn("fedharmony(weight=0.5)", shard, shared, number=2, batch_size=6, local_epochs=1)
    fresh = build_learner(local.experiment, NAMES, (SIDE, SIDE, 1))
    logits = fresh.resident.network(to_float(shard.images.pixels)).detach()
    mean, probs = (first + second) / 2, torch.sigmoid(logits.double())
    pairs = [(c, d) for c in range(3) for d in range(3) if c != d]
    apart = sum(float(correlations(probs)[p] - mean[p]) ** 2 for p in pairs) / 6

    expected = mean_binary_cross_entropy(logits, torch.from_numpy(shard.labels)).item() + 0.5 * apart
    assert told.loss == pytest.approx(expected, rel=1e-5)

    with torch.no_grad():
        sent = torch.sigmoid(learned.resident.network.eval()(to_float(shard.images.pixels)).double())
    own = correlations(sent)
    torch.testing.assert_close(local.round_sums[CORRELATIONS], own)
    assert int(local.round_sums[ROUNDS]) == 2
    distance = math.sqrt(sum(float(own[p] - mean[p]) ** 2 for p in pairs) / 6)
    assert told.metrics["disagreement"] == pytest.approx(distance, rel=1e-5)


def test_the_term_draws_correlations_to_the_consensus():
    """Descent on free logits: two labels that should go together, and a third that should exclude them."""
    target = torch.tensor([[0.0, 0.5, -0.5], [0.5, 0.0, -0.5], [-0.5, -0.5, 0.0]])
    pairs = ~torch.eye(3, dtype=torch.bool)
    logits = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    steps = torch.optim.Adam([logits], lr=0.1)
    before = gap(correlations(torch.sigmoid(logits)), target, pairs).item()
    for _ in range(100):
        steps.zero_grad()
        gap(correlations(torch.sigmoid(logits)), target, pairs).backward()
        steps.step()

    found = correlations(torch.sigmoid(logits.detach()))
    assert before > 0.1
    torch.testing.assert_close(found[pairs], target[pairs], rtol=0, atol=0.02)


def test_without_weight_or_consensus_it_is_plain_cross_entropy():
    shard, given = data(), sums(*parts(2))
    plain = turn("bce()", shard, number=2)[0].resident.flat

    assert torch.equal(turn("fedharmony()", shard, number=2)[0].resident.flat, plain)
    assert torch.equal(turn("fedharmony(weight=0.0)", shard, given, number=2)[0].resident.flat, plain)
    assert not torch.equal(turn("fedharmony()", shard, given, number=2)[0].resident.flat, plain)


def test_one_label_one_image_and_nothing_known():
    for shard in (data(1), data(4, hidden=1.0), data(3, names=NAMES[:1])):
        size = len(shard.label_names)
        shared = sums(torch.full((size, size), 0.5, dtype=torch.float64), torch.eye(size, dtype=torch.float64))
        learned, told, local = turn("fedharmony()", shard, shared, number=2, batch_size=1)
        assert learned.resident.flat.isfinite().all()
        assert np.isfinite(told.loss)
        assert local.round_sums[CORRELATIONS].isfinite().all()


def test_a_run_by_agreement_asks_for_leave_and_keeps_what_it_needs(play, tiny, tmp_path):
    from fedmlic.record import open_run

    changes = {"method": "fedharmony()", "strategy": "fedharmony(rounds=1)", "statistics_min_clients": 2}
    with pytest.raises(InputError, match="Expected allow-statistics=true"):
        check_experiment(*tiny(**changes))
    play(tmp_path / "run", allow_statistics=True, num_rounds=2, **changes)
    tensors, _ = open_run(tmp_path / "run").load_checkpoint(2)

    assert int(tensors[f"shared/{ROUND_SUMS}{CLIENTS}"]) == 4
    assert int(tensors[f"shared/{ROUND_SUMS}{ROUNDS}"]) == 8
    assert tensors[f"shared/{ROUND_SUMS}{CORRELATIONS}"].shape == (10, 10)
